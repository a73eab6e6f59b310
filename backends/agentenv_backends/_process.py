"""The sandbox server as a process of this machine: started clean, and gone when the driver is.

Three nets: `ServerProcess.end`; the server's own watch on its driver, which catches SIGKILL; and at
the interpreter's exit, for a driver that forgot to stop, `_kill_all`.
"""

from __future__ import annotations

import asyncio
import atexit
import logging
import os
import socket
import subprocess
import sys
from typing import Self

from agentenv_backends.sandboxd.bundle import memory_file
from agentenv_backends.sandboxd.packing import sandboxd_zipapp

_log = logging.getLogger(__name__)

_KEPT_VARIABLES = ("PATH", "TMPDIR", "LANG", "LC_ALL")
_DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_LOG_TAIL = 2000
_DEATH_S = 2.0
"""How long a killed process may take to be gone: no time at all, but for a busy machine."""

_running: dict[int, ServerProcess] = {}


class ServerProcess:
    """A running sandbox server and the driver's end of the socket to it."""

    def __init__(self, process: subprocess.Popen[bytes], stream: socket.socket, log: int) -> None:
        self.stream = stream
        self._process = process
        self._log = log
        self._pidfd = os.pidfd_open(process.pid)
        _running[process.pid] = self

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    @classmethod
    def start(cls) -> Self:
        """Start one, in a session of its own, so that a Ctrl-C meant for the driver passes it by.

        It inherits a few harmless variables and three descriptors, nothing else of the driver's.
        Raises `OSError`.
        """
        ours, theirs = socket.socketpair()
        program = memory_file("sandboxd", sandboxd_zipapp())
        log = os.memfd_create("sandboxd-log", os.MFD_CLOEXEC)
        try:
            process = subprocess.Popen(  # noqa: S603 - our own program
                [sys.executable or "/usr/bin/python3", "-I", "-S", f"/proc/self/fd/{program}"],
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=log,
                pass_fds=[program],
                start_new_session=True,
                cwd="/",
                env=_environment(),
            )
        except BaseException:
            ours.close()
            os.close(log)
            raise
        finally:
            theirs.close()
            os.close(program)
        return cls(process, ours, log)

    def complaints(self) -> str:
        """The end of what it wrote to its standard error."""
        size = os.fstat(self._log).st_size
        tail = os.pread(self._log, _LOG_TAIL, max(0, size - _LOG_TAIL))
        return tail.decode("utf-8", "replace").strip()

    async def end(self, patience_s: float) -> bool:
        """Wait until the process has ended, and kill it after `patience_s`. Call once.

        True when it ended by itself and in order, having removed what it had made.
        """
        try:
            if not await self._exited(patience_s):
                _log.warning("sandbox server %d does not end, killing it", self.pid)
                self.kill()
                await self._exited(_DEATH_S)
        except asyncio.CancelledError:
            self.kill()
            raise
        finally:
            self._reap()
        return self._process.returncode == 0

    def kill(self) -> None:
        """Kill it at once; its slots die with it."""
        self._process.kill()

    async def _exited(self, timeout_s: float) -> bool:
        loop = asyncio.get_running_loop()
        exited = asyncio.Event()
        loop.add_reader(self._pidfd, exited.set)
        try:
            await asyncio.wait_for(exited.wait(), timeout_s)
        except TimeoutError:
            return False
        finally:
            loop.remove_reader(self._pidfd)
        return True

    def _reap(self) -> None:
        # After a SIGKILL this takes no time; a process that even so does not end is left to the
        # exit.
        if self._process.poll() is not None:
            _running.pop(self.pid, None)
            os.close(self._pidfd)
            os.close(self._log)

    def kill_and_reap(self) -> None:
        """Kill it and wait, without an event loop."""
        self.kill()
        try:
            self._process.wait(timeout=_DEATH_S)
        except subprocess.TimeoutExpired:
            _log.error("sandbox server %d survives SIGKILL", self.pid)


def _environment() -> dict[str, str]:
    kept = {name: os.environ[name] for name in _KEPT_VARIABLES if name in os.environ}
    return {"PATH": _DEFAULT_PATH} | kept


def _kill_all() -> None:
    for process in list(_running.values()):
        process.kill_and_reap()


atexit.register(_kill_all)
