"""Floors and rivals of a call: what the same shell costs with less around it.

`LiveSlots` is the floor the executor is measured against: sandboxes that live, in each a small C program that spawns a
shell per command, driven by nothing but `epoll`.
"""

from __future__ import annotations

import asyncio
import select
import shutil
import socket
import subprocess
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Self

from tests.benchmarks.figures import Load

if TYPE_CHECKING:
    from types import TracebackType

COMMAND = "true"
_SHELL = ("/bin/bash", "-c", COMMAND)
_ANSWER_WITHIN_S = 30.0
_SANDBOX = (
    *("--unshare-all", "--die-with-parent", "--new-session", "--cap-drop", "ALL", "--clearenv"),
    *(
        "--setenv",
        "PATH",
        "/usr/bin:/bin",
        "--ro-bind",
        "/usr",
        "/usr",
        "--symlink",
        "usr/bin",
        "/bin",
    ),
    *("--symlink", "usr/lib", "/lib", "--symlink", "usr/lib64", "/lib64", "--proc", "/proc"),
    *("--dev", "/dev", "--tmpfs", "/tmp", "--chdir", "/tmp"),
)


class FloorUnavailableError(Exception):
    """The floor cannot be measured here. The message says why."""


def compile_init(folder: Path) -> Path:
    """The C program, compiled. Raises `FloorUnavailableError`."""
    compiler = shutil.which("cc")
    if compiler is None:
        raise FloorUnavailableError("no C compiler (cc) is installed")
    program = folder / "slot_floor"
    source = Path(__file__).with_name("slot_floor.c")
    done = subprocess.run(
        [compiler, "-O2", "-Wall", "-o", str(program), str(source)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    if done.returncode != 0:
        raise FloorUnavailableError(f"cc failed: {done.stderr.strip()[-500:]}")
    return program


class LiveSlots:
    """`count` sandboxes with the C program in each, as an async context manager."""

    def __init__(self, init: Path, count: int) -> None:
        self._init = init
        self._count = count
        self._processes: list[subprocess.Popen[bytes]] = []
        self._streams: list[socket.socket] = []

    async def __aenter__(self) -> Self:
        try:
            await asyncio.to_thread(self._start)
        except BaseException:
            self._stop()
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await asyncio.to_thread(self._stop)

    async def measure(self, seconds: float) -> Load:
        """Keep every slot busy with one command after another, from a thread of its own."""
        return await asyncio.to_thread(self._measure, seconds)

    def _start(self) -> None:
        arguments = ["bwrap", *_SANDBOX, "--ro-bind", str(self._init), "/init", "--", "/init"]
        for _ in range(self._count):
            ours, theirs = socket.socketpair()
            self._streams.append(ours)
            ours.settimeout(_ANSWER_WITHIN_S)
            with theirs:
                self._processes.append(subprocess.Popen(arguments, stdin=theirs.fileno()))
        for stream in self._streams:
            stream.sendall(COMMAND.encode() + b"\n")
            if stream.recv(1) != b".":
                raise FloorUnavailableError("a bubblewrap slot did not run its first command")

    def _stop(self) -> None:
        for stream in self._streams:
            stream.close()
        for process in self._processes:
            process.kill()
            process.wait()

    def _measure(self, seconds: float) -> Load:
        request = COMMAND.encode() + b"\n"
        by_fd = {stream.fileno(): stream for stream in self._streams}
        sent_at: dict[int, float] = {}
        latencies: list[float] = []
        with select.epoll() as poller:
            for fd, stream in by_fd.items():
                poller.register(fd, select.EPOLLIN)
                sent_at[fd] = perf_counter()
                stream.send(request)
            deadline = perf_counter() + seconds
            while sent_at:
                ready = poller.poll(_ANSWER_WITHIN_S)
                if not ready:
                    raise FloorUnavailableError("the slots stopped answering")
                for fd, _ in ready:
                    by_fd[fd].recv(1)
                    now = perf_counter()
                    started = sent_at.pop(fd)
                    if now <= deadline:
                        latencies.append(now - started)
                        sent_at[fd] = now
                        by_fd[fd].send(request)
        return Load.of(len(latencies), latencies, seconds, len(latencies) + len(self._streams))


async def plain_shell(_trajectory: int) -> None:
    """A shell started by asyncio, without any isolation."""
    await _run(*_SHELL)


async def sandboxed_shell(_trajectory: int) -> None:
    """A bubblewrap made for one command, started by asyncio."""
    await _run("bwrap", *_SANDBOX, "--", *_SHELL)


async def _run(*arguments: str) -> None:
    process = await asyncio.create_subprocess_exec(
        *arguments,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    _, errors = await process.communicate()
    if process.returncode != 0:
        raise FloorUnavailableError(
            f"{arguments[0]} failed: {errors.decode(errors='replace')[-300:]}"
        )
