"""Real hosts for tests: a server process, the connection to it, and questions about their processes."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from agentenv_backends.connection import HostConnection, connect_host
from agentenv_backends.requests import ExecRequest
from agentenv_backends.results import ExecResult, OpFailure
from agentenv_backends.sandboxd.leftovers import Owner, start_time
from agentenv_backends.sandboxd.settings import HostFacts, HostSettings
from agentenv_backends.sandboxd.slot_processes import descendants_of
from tests.processes import Process, descendants
from tests.waiting import WITHIN_S, eventually

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from agentenv_backends.requests import Request
    from agentenv_backends.results import Result


class StartHost(Protocol):
    """Start a host with these settings and open these slots."""

    async def __call__(self, *slots: str, **settings: Any) -> RunningHost: ...


@dataclass
class RunningHost:
    process: subprocess.Popen[bytes]
    connection: HostConnection

    @property
    def facts(self) -> HostFacts:
        assert self.connection.facts is not None
        return self.connection.facts

    async def execute(self, request: Request, slot: str = "a") -> Result:
        return await self.connection.execute(slot, request)

    async def run(
        self, command: str | Sequence[str], slot: str = "a", **options: Any
    ) -> ExecResult:
        result = await self.connection.execute(slot, ExecRequest(command, **options))
        assert isinstance(result, ExecResult), result
        return result

    async def commands(self, argv: str, count: int = 1) -> None:
        """Return when so many processes with these arguments run in the slots."""
        await eventually(
            lambda: sum(each.command == argv.split() for each in self._below()) >= count,
            f"{count} times {argv}",
        )

    def the_only(self, name: str) -> Process:
        """The one process of that name in the slots."""
        (found,) = [each for each in self._below() if each.name == name]
        return found

    def _below(self) -> set[Process]:
        return descendants(self.process.pid)

    async def refused(self, request: Request, slot: str = "a") -> str:
        result = await self.connection.execute(slot, request)
        assert isinstance(result, OpFailure), result
        return str(result.kind)

    def family(self) -> list[Owner]:
        """The server and every process below it, but for its helpers: that for mounts, and what slots are copies of."""
        server = self.process.pid
        below = descendants_of(server)
        return [owner(pid) for pid in (server, *below) if pid == server or not self._helps(pid)]

    def _helps(self, pid: int) -> bool:
        """The helper for mounts is a copy of the server in a mount namespace of its own."""
        try:
            if Path(f"/proc/{pid}/comm").read_text() == "slot-template\n":
                return True
            (command, place), (own, own_place) = map(_command_and_place, (pid, self.process.pid))
            return command == own and place != own_place
        except OSError:  # it has just ended, or is another user's
            return False


def _command_and_place(pid: int) -> tuple[bytes, Path]:
    folder = Path(f"/proc/{pid}")
    return (folder / "cmdline").read_bytes(), (folder / "ns/mnt").readlink()


def owner(pid: int) -> Owner:
    """A process, told apart from later ones of its number."""
    return Owner(pid, start_time(pid) or 0)


async def until(condition: Callable[[], bool], timeout_s: float = WITHIN_S) -> bool:
    """Poll until `condition` holds; False when it does not in time."""
    end = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > end:
            return False
        await asyncio.sleep(0.01)
    return True


async def all_gone(family: list[Owner], timeout_s: float = WITHIN_S) -> bool:
    return await until(lambda: not any(member.is_alive() for member in family), timeout_s)


async def launch(
    pyz: Path, server_python: str = sys.executable, user: int | None = None, **settings: Any
) -> RunningHost:
    ours, theirs = socket.socketpair()
    process = subprocess.Popen(
        [server_python, "-I", str(pyz)],
        stdin=theirs.fileno(),
        stderr=subprocess.DEVNULL,
        user=user,
        group=user,
        extra_groups=[] if user is not None else None,
        cwd="/",
    )
    theirs.close()

    async def finished() -> None:
        assert await until(lambda: process.poll() is not None), "the server did not exit"

    try:
        values: dict[str, Any] = {"run_id": "test", "owner_pid": os.getpid(), **settings}
        host_settings = HostSettings(**values)
        connection = await connect_host(ours, "host", host_settings, on_close=finished)
    except BaseException:
        process.kill()
        process.wait()
        raise
    return RunningHost(process, connection)
