"""The demo's processes: started under a guard, watched, and gone with everything they started when the demo is.

The guard is that of tool servers: it ends its program and all descendants when our end of a pipe closes, and the
kernel closes that pipe also when this process is killed.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import sys
from typing import TYPE_CHECKING, Self

from agentenv.errors import AgentEnvError
from agentenv_tools.external import mcp_guard

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence
    from pathlib import Path

logger = logging.getLogger(__name__)

_PATIENCE_S = 10.0
"""What the guard itself needs, beyond its program's grace."""
_POLL_S = 0.1
_TAIL_BYTES = 2_000


class DemoProcessError(AgentEnvError):
    """One of the demo's processes ended too early or did not answer. The message holds the end of its log."""


class DemoProcess:
    """One process, its output in a log file."""

    def __init__(
        self, name: str, log: Path, process: asyncio.subprocess.Process, watch: int, grace_s: float
    ) -> None:
        self.name = name
        self.log = log
        self._process = process
        self._watch: int | None = watch
        self._grace_s = grace_s

    @classmethod
    async def start(
        cls, name: str, command: Sequence[str], log: Path, *, grace_s: float = 15.0
    ) -> Self:
        """Start `command` with this interpreter, in a session of its own, so that a Ctrl-C passes it by.

        `grace_s` is the time between SIGTERM and SIGKILL. Raises `OSError`.
        """
        watched, watch = os.pipe()
        guard = [sys.executable, "-I", "-S", mcp_guard.__file__, str(watched), str(grace_s)]
        try:
            with log.open("ab") as output:
                process = await asyncio.create_subprocess_exec(
                    *(*guard, sys.executable, *command),
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    pass_fds=[watched],
                    start_new_session=True,
                )
        except BaseException:
            os.close(watch)
            raise
        finally:
            os.close(watched)
        return cls(name, log, process, watch, grace_s)

    @property
    def status(self) -> int | None:
        """Its exit status; None while it runs."""
        return self._process.returncode

    async def wait(self) -> int:
        """Until it has ended; its exit status."""
        return await self._process.wait()

    async def ready(self, answers: Callable[[], Awaitable[bool]], timeout_s: float) -> None:
        """Until `answers` says so. Raises `DemoProcessError` when the process ends or the time is over."""
        try:
            async with asyncio.timeout(timeout_s):
                while not await answers():
                    if self.status is not None:
                        raise self.failure("ended before it answered")
                    await asyncio.sleep(_POLL_S)
        except TimeoutError:
            raise self.failure(f"did not answer within {timeout_s:g} s") from None

    async def stop(self) -> None:
        """End it and everything it started: SIGTERM, `grace_s`, SIGKILL. Bounded, idempotent."""
        watch, self._watch = self._watch, None
        if watch is not None:
            os.close(watch)
        try:
            async with asyncio.timeout(self._grace_s + _PATIENCE_S):
                await self._process.wait()
        except TimeoutError:
            logger.error("the guard of %s does not end, killing it", self.name)  # noqa: TRY400 - no trace is of use
            self._process.kill()
            await self._process.wait()

    def failure(self, what: str) -> DemoProcessError:
        """The error that says what happened to it, with the end of its log."""
        status = "" if self.status is None else f" (exit status {self.status})"
        return DemoProcessError(f"the {self.name} {what}{status}; {self.log} ends:\n{self._tail()}")

    def _tail(self) -> str:
        with self.log.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL_BYTES))
            return file.read().decode("utf-8", "replace").strip() or "(empty)"


def free_port() -> int:
    """A port of the loopback address that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


async def listens(port: int) -> bool:
    """Whether somebody accepts connections on that port of the loopback address."""
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return False
    writer.close()
    return True
