"""Real containers for tests that break them: whose they are, what is left of them, and what is done to them from
outside, by the engine's own means and never through the backend under test.

The engine itself is stopped for a while only if these tests have started it (`scripts/test-engine.sh`), or where
AGENTENV_MAY_PAUSE_ENGINE=1 and AGENTENV_ENGINE_PID is its process. Else the way to it is.
"""

from __future__ import annotations

import asyncio
import os
import signal
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiodocker

from agentenv_backends._owner import Owner
from agentenv_backends.config import DockerConfig
from agentenv_backends.docker.owners import OWNER_LABEL
from agentenv_backends.docker.provider import DockerProvider
from agentenv_backends.pool import SlotPool
from tests.agentenv_backends.docker.stalling import stalling_way
from tests.docker_engine import DOCKER
from tests.faults.programs import ROOT
from tests.processes import Process

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterable


_SOCKET = "unix:///var/run/docker.sock"


def docker_pool(**settings: Any) -> tuple[SlotPool, DockerProvider]:
    """A pool of containers, not started, and its provider."""
    config = DockerConfig(**DOCKER | settings)
    provider = DockerProvider(config)
    return SlotPool(provider, config.pool_settings()), provider


class Engine:
    """The engine, seen and used from outside."""

    def __init__(self, docker: aiodocker.Docker) -> None:
        self._docker = docker

    async def containers_of(self, driver: Process) -> set[str]:
        """The containers that this process has made, in whatever state."""
        owners = {name: Owner.read(label) for name, label in (await self._labels()).items()}
        who = (driver.pid, driver.start_time)
        return {
            name for name, owner in owners.items() if owner and (owner.pid, owner.start_time) == who
        }

    async def containers(self) -> set[str]:
        """The containers that any driver has made, in whatever state."""
        return set(await self._labels())

    async def networks_and_volumes(self) -> set[str]:
        """What is there of both, of whoever it is."""
        networks = await self._docker.networks.list()
        volumes = (await self._docker.volumes.list())["Volumes"] or ()  # type: ignore[no-untyped-call]
        return {entry["Name"] for entry in (*networks, *volumes)}

    async def memory_of(self, name: str) -> int:
        """Bytes that a container takes now."""
        (stats,) = await self._docker.containers.container(name).stats(stream=False)
        return int(stats["memory_stats"]["usage"])

    async def kill(self, name: str) -> bool:
        """`docker kill`; False when it was gone already."""
        return await self._does(self._docker.containers.container(name).kill())

    async def pause(self, names: Iterable[str]) -> None:
        """`docker pause`: nothing in them runs any more, not even what would end them."""
        for name in names:
            await self._pause(name)

    async def _pause(self, name: str) -> None:
        """Again where the engine could not: it may fail to freeze what starts processes all the while."""
        for attempt in range(50):
            try:
                await self._does(self._docker.containers.container(name).pause())
            except aiodocker.DockerError as error:
                if attempt == 49 or "unable to freeze" not in str(error):
                    raise
                await asyncio.sleep(0.1)
            else:
                return

    async def appeared(self, driver: Process, *, within_s: float = 60.0) -> None:
        """Return when this process has made a container."""
        async with asyncio.timeout(within_s):
            while not await self.containers_of(driver):
                await asyncio.sleep(0.05)

    async def gone(self, names: Iterable[str], *, within_s: float) -> None:
        """Return when none of these containers is there any more."""
        wanted = set(names)
        deadline = asyncio.get_running_loop().time() + within_s
        while left := wanted & await self.containers():
            assert asyncio.get_running_loop().time() < deadline, f"after {within_s:g} s: {left}"
            await asyncio.sleep(0.1)

    async def _labels(self) -> dict[str, str]:
        """Who owns what, by the containers' names."""
        listing = await self._docker.containers.list(all=True, filters={"label": [OWNER_LABEL]})
        return {
            name.lstrip("/"): container["Labels"][OWNER_LABEL]
            for container in listing
            for name in container["Names"]
        }

    async def _does(self, call: Any) -> bool:
        try:
            await call
        except aiodocker.DockerError as error:
            if error.status in (404, 409):  # gone, or not running
                return False
            raise
        return True


@asynccontextmanager
async def real_engine() -> AsyncIterator[Engine]:
    """The engine that tests use."""
    async with aiodocker.Docker() as docker:
        yield Engine(docker)


def engine_socket() -> str:
    """The path of the Unix socket that the engine listens on."""
    return os.environ.get("DOCKER_HOST", _SOCKET).removeprefix("unix://")


@dataclass(frozen=True, slots=True)
class Stalling:
    """An engine that can be made to stand still."""

    settings: dict[str, Any]
    """For the backend, so that it notices."""
    stall: Callable[[float], Awaitable[None]]
    """For so many seconds."""


@asynccontextmanager
async def stalling_engine(folder: Path) -> AsyncIterator[Stalling]:
    """The engine itself where its process may be stopped, else a way to it that can be."""
    pid = _own_engine()
    if pid is not None:
        yield Stalling({}, partial(_stop_for, pid))
        return
    async with stalling_way(folder, engine_socket()) as way:

        async def stall(seconds: float) -> None:
            way.open.clear()
            await asyncio.sleep(seconds)
            way.open.set()

        yield Stalling({"docker_host": way.url}, stall)


def _own_engine() -> int | None:
    """The engine's process, if these tests have started it or a person says that it may be stopped for a while."""
    started = ROOT / ".test-engine" / "dockerd.pid"
    if os.environ.get("AGENTENV_MAY_PAUSE_ENGINE") == "1":
        pid = int(os.environ["AGENTENV_ENGINE_PID"])
    elif started.exists():
        pid = int(started.read_text())
    else:
        return None
    return pid if Process(pid, start_time=0).name == "dockerd" else None


async def _stop_for(pid: int, seconds: float) -> None:
    # A process of its own goes on with it, whatever becomes of this one.
    script = f"kill -STOP {pid}; sleep {seconds:g}; kill -CONT {pid}"
    stopping = await asyncio.create_subprocess_exec("sh", "-c", script, start_new_session=True)
    try:
        await stopping.wait()
    finally:
        os.kill(pid, signal.SIGCONT)
