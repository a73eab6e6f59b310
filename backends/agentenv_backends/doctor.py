"""Which protections are really in force on this machine, found out by trying from inside a slot.

    for protection in await examine(LocalConfig()): ...

Nothing is concluded from configuration: slots are opened as a run would open them, a probe runs in
one, and what the probe can do is what an agent can do.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agentenv_backends._bait import OF_THIS_MACHINE, bait
from agentenv_backends._findings import Findings, InForce, Protection, assess
from agentenv_backends._remote_findings import examine_modal, examine_nomad
from agentenv_backends.config import LocalConfig
from agentenv_backends.errors import BackendError, InfrastructureError
from agentenv_backends.local import LocalProvider
from agentenv_backends.pool import SlotPool
from agentenv_backends.requests import ExecRequest, WriteRequest
from agentenv_backends.results import ExecResult

if TYPE_CHECKING:
    from agentenv_backends.base import Slot

__all__ = [
    "InForce",
    "Protection",
    "examine",
    "examine_engine",
    "examine_modal",
    "examine_nomad",
]

_SMALL = {"slots": 2, "max_hosts": 1, "min_hosts": 1, "memory_mb": 64, "max_processes": 40}
_SMALL_DISKS = {"disk_mb": 12, "tmp_mb": 6}
_ENGINE_S = 15.0


async def examine(config: LocalConfig | None = None) -> list[Protection]:
    """Try every protection that `config` (None: the defaults) asks for.

    Limits are tried at a small size, so that trying them harms nothing; whether they hold does not
    depend on it. Takes a few seconds. Where no slot can be opened at all there is one entry, which
    says why and what to do; nothing is raised for that.
    """
    small = (config or LocalConfig()).model_copy(update=_SMALL | _SMALL_DISKS)
    try:
        with bait(*OF_THIS_MACHINE) as asked:
            return assess(await _probe(small, asked))
    except BackendError as error:
        return [Protection("slots can be opened", InForce.NO, type(error).__name__, str(error))]


async def examine_engine(url: str | None = None) -> list[Protection]:
    """Ask the container engine (None: the one that the `docker` command finds) what it can enforce. Starts nothing.

    Where there is none to ask there is one entry, which says why and what to do; nothing is raised for that.
    """
    from agentenv_backends._engine_findings import assess_engine, no_engine  # noqa: PLC0415

    try:
        from agentenv_backends.docker.engine import Engine  # noqa: PLC0415 - an extra
    except ModuleNotFoundError as error:
        return no_engine(f"{error.name} is not installed: `pip install 'agentenv[docker]'`")
    try:
        async with asyncio.timeout(_ENGINE_S), Engine(url) as engine:
            return assess_engine(engine.name, await engine.version(), await engine.info())
    except TimeoutError:
        return no_engine(f"it gave no answer within {_ENGINE_S:g} s")
    except BackendError as error:
        return no_engine(str(error))


def _uids_below(server: int) -> frozenset[int]:
    """User ids of every process below a sandbox server, but of its helper for mounts, which runs no commands."""
    uids: set[int] = set()
    waiting = [server]
    while waiting:
        folder = Path(f"/proc/{waiting.pop()}")
        with contextlib.suppress(OSError):  # it may end while we look
            children = [
                int(child)
                for task in (folder / "task").iterdir()
                for child in (task / "children").read_text(encoding="ascii").split()
                if not _helps(int(child), server)
            ]
            uids |= {Path(f"/proc/{child}").stat().st_uid for child in children}
            waiting += children
    return frozenset(uids)


def _helps(pid: int, server: int) -> bool:
    """Whether a process is the helper: it sees the processes of the server, but other mounts than it."""
    try:
        theirs, own = (
            [Path(f"/proc/{process}/ns/{kind}").readlink() for kind in ("pid", "mnt")]
            for process in (pid, server)
        )
    except OSError:  # it has ended, or is another user's, as no helper is
        return False
    return theirs[0] == own[0] and theirs[1] != own[1]


async def _probe(config: LocalConfig, baited: dict[str, Any]) -> Findings:
    provider = LocalProvider(config)
    async with SlotPool(provider, config.pool_settings()) as pool:
        slot, neighbour = await asyncio.gather(pool.acquire("doctor"), pool.acquire("neighbour"))
        await pool.execute(neighbour, WriteRequest(baited["neighbour"], b"mine"))

        async def run(part: str, asked: dict[str, Any]) -> dict[str, Any]:
            return await _run_part(pool, slot, part, asked)

        disk = {"megabytes": 2 * max(_SMALL_DISKS.values())}
        return Findings(
            config=config,
            host=provider.facts,
            uids=_uids_below(provider.hosts[slot.host_id].pid),
            facts=await run("facts", baited),
            memory=await run(
                "memory",
                {"megabytes": _memory_in_all(config), "process_megabytes": config.memory_mb},
            ),
            forks=await run("forks", {"most": config.max_processes + 60}),
            workspace=await run("disk", disk | {"folder": "."}),
            tmp=await run("disk", disk | {"folder": "/tmp"}),  # noqa: S108 - the slot's
        )


def _memory_in_all(config: LocalConfig) -> int:
    """What a slot's processes and its files in memory may take together, and then some."""
    return config.memory_mb + config.disk_mb + 2 * config.tmp_mb + 32


async def _run_part(pool: SlotPool, slot: Slot, part: str, asked: dict[str, Any]) -> dict[str, Any]:
    # By standard input alone: what is on a command line or in a variable could be found by the probe.
    source = resources.files("agentenv_backends").joinpath("_probe.py").read_text("utf-8")
    program = f"{source}\nrun({part!r}, {asked!r})\n"
    request = ExecRequest(("python3", "-"), stdin=program.encode())
    answer = await pool.execute(slot, request)
    if not isinstance(answer, ExecResult) or answer.exit_code != 0:
        raise InfrastructureError(f"the probe's part {part!r} did not run: {answer}")
    found: dict[str, Any] = json.loads(answer.stdout.text())
    return found
