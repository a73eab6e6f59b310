"""Trajectory servers as processes of their own: ours, and the one that Atropos ships.

with AgentEnvServer(folder) as server: ...        # `agentenv api`, its data in `folder`
with AtroposServer(folder) as server: ...         # `run-api`
"""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Self

import httpx

from tests.atropos import ATROPOS_PYTHON
from tests.faults.programs import ROOT, SOURCES

if TYPE_CHECKING:
    from pathlib import Path

_STARTS_WITHIN_S = 60.0
_ENDS_WITHIN_S = 60.0
_POLL_S = 0.02
_TRIES = 3
_SERVING = re.compile(rb"serving on (http://\S+)")


class ServerProcess:
    """A server under way. `url` may be another one after a restart."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.url = ""
        self._log = folder / "server.log"
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        """Of the running process."""
        assert self._process is not None
        return self._process.pid

    @property
    def log(self) -> str:
        """All it has printed, over all its starts."""
        return self._log.read_text(errors="replace")

    def start(self) -> None:
        """Return when it answers. Raises `AssertionError` with its log when it does not."""
        for _ in range(_TRIES):
            if self._started():
                return
            self.stop()
        raise AssertionError(f"{type(self).__name__} does not start: {self.log[-3000:]}")

    def kill(self) -> None:
        """SIGKILL, and return when it is dead."""
        assert self._process is not None
        self._process.kill()
        self._process.wait(_ENDS_WITHIN_S)

    def stop(self) -> None:
        """SIGTERM, and SIGKILL when that is not enough."""
        if self._process is None or self._process.poll() is not None:
            return
        self._process.terminate()
        try:
            self._process.wait(_ENDS_WITHIN_S)
        except subprocess.TimeoutExpired:
            self.kill()

    def _started(self) -> bool:
        printed_before = self._log.stat().st_size if self._log.exists() else 0
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command(),
                cwd=self._cwd(),
                env=self._environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        deadline = time.monotonic() + _STARTS_WITHIN_S
        while time.monotonic() < deadline and self._process.poll() is None:
            url = self._url(self._log.read_bytes()[printed_before:])
            if url and answers(url):
                self.url = url
                return True
            time.sleep(_POLL_S)
        return False

    def _command(self) -> tuple[str, ...]:
        raise NotImplementedError

    def _cwd(self) -> Path:
        raise NotImplementedError

    def _environment(self) -> dict[str, str]:
        return dict(os.environ)

    def _url(self, printed: bytes) -> str:
        raise NotImplementedError


class AgentEnvServer(ServerProcess):
    """`agentenv api` on a free port, its data in `data` or below `folder`. `arguments` are options of it."""

    def __init__(
        self, folder: Path, *arguments: str, port: int = 0, data: Path | None = None
    ) -> None:
        super().__init__(folder)
        self.data = data or folder / "data"
        self._arguments = arguments
        self._port = port

    def _command(self) -> tuple[str, ...]:
        where = ("--port", str(self._port), "--data", str(self.data))
        return (sys.executable, "-m", "agentenv", "api", *where, *self._arguments)

    def _cwd(self) -> Path:
        return ROOT

    def _environment(self) -> dict[str, str]:
        paths = os.pathsep.join(str(ROOT / source) for source in SOURCES)
        return super()._environment() | {"PYTHONPATH": paths}

    def _url(self, printed: bytes) -> str:
        found = _SERVING.search(printed)
        return found[1].decode().rstrip("/") if found else ""


class AtroposServer(ServerProcess):
    """Atropos' `run-api` on a free port, which it keeps over restarts."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._port = 0

    def _command(self) -> tuple[str, ...]:
        if not self.url:
            self._port = free_port()
        where = ("--host", "127.0.0.1", "--port", str(self._port))
        return (str(ATROPOS_PYTHON), "-m", "atroposlib.cli.run_api", *where)

    def _cwd(self) -> Path:
        return self.folder

    def _url(self, printed: bytes) -> str:
        return f"http://127.0.0.1:{self._port}"


def free_port() -> int:
    """A port of loopback that nothing listened on a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def answers(url: str) -> bool:
    """Whether a trajectory server answers there."""
    try:
        return httpx.get(f"{url}/info", timeout=5, trust_env=False).status_code == 200
    except httpx.HTTPError:
        return False
