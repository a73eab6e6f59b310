"""Floors of the shell and the terminal: the same programs driven by nothing but `epoll`, without a sandbox around them.

Harsher than what a program could reach that has other things to do (`programs_terminals.py`): one request, made
beforehand, and answers that are not looked into.
"""

from __future__ import annotations

import asyncio
import os
import re
import select
import shutil
import subprocess
from collections import deque
from contextlib import suppress
from time import perf_counter
from typing import TYPE_CHECKING, Self

from tests.benchmarks.figures import Load
from tests.benchmarks.floors import FloorUnavailableError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path
    from types import TracebackType

_ANSWER_WITHIN_S = 30.0
ENV = {"PATH": "/usr/bin:/bin", "LC_CTYPE": "C.UTF-8", "TERM": "dumb"}
SIZE = (120, 40)
"""Columns and lines of a terminal."""


class _Program:
    """A running program that answers a line with text that ends in a known way."""

    def __init__(
        self, arguments: Sequence[str], answer_end: re.Pattern[bytes], last_words: bytes
    ) -> None:
        self._answer_end = answer_end
        self._last_words = last_words
        self._tail = b""
        self._process = subprocess.Popen(
            arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=ENV, bufsize=0
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._requests = self._process.stdin.fileno()
        self.answers = self._process.stdout.fileno()

    def ask(self, request: bytes) -> None:
        self._tail = b""
        os.write(self._requests, request)

    def has_answered(self) -> bool:
        """Take in what has come."""
        self._tail += os.read(self.answers, 1 << 16)
        return self._answer_end.search(self._tail) is not None

    def end(self) -> None:
        """Have it end by itself: a server it has put into the background would outlive its killing."""
        with suppress(BrokenPipeError):
            os.write(self._requests, self._last_words)
        try:
            self._process.communicate(timeout=_ANSWER_WITHIN_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.communicate()


class PipedPrograms:
    """`count` programs, each kept busy with one request after another by nothing but `epoll`."""

    def __init__(
        self,
        commands: Sequence[Sequence[str]],
        *,
        request: bytes,
        answer_end: str,
        last_words: bytes,
    ) -> None:
        self._commands = commands
        self._request = request
        self._answer_end = re.compile(answer_end.encode())
        self._last_words = last_words
        self._programs: deque[_Program] = deque()

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
        """Requests of all programs together, from a thread of its own."""
        return await asyncio.to_thread(self._measure, seconds)

    def _start(self) -> None:
        for command in self._commands:
            self._programs.append(_Program(command, self._answer_end, self._last_words))
        self._measure(0.0)

    def _stop(self) -> None:
        while self._programs:
            self._programs.pop().end()

    def _measure(self, seconds: float) -> Load:
        by_fd = {program.answers: program for program in self._programs}
        asked_at: dict[int, float] = {}
        latencies: list[float] = []
        with select.epoll() as poller:
            for fd, program in by_fd.items():
                poller.register(fd, select.EPOLLIN)
                asked_at[fd] = perf_counter()
                program.ask(self._request)
            deadline = perf_counter() + seconds
            while asked_at:
                ready = poller.poll(_ANSWER_WITHIN_S)
                if not ready:
                    raise FloorUnavailableError("the programs stopped answering")
                for fd, _ in ready:
                    if not by_fd[fd].has_answered() or fd not in asked_at:
                        continue
                    now = perf_counter()
                    started = asked_at.pop(fd)
                    if now <= deadline:
                        latencies.append(now - started)
                        asked_at[fd] = now
                        by_fd[fd].ask(self._request)
        calls = len(latencies) + len(by_fd)
        return Load.of(len(latencies), latencies, max(seconds, 1e-9), calls)


def bare_shells(count: int) -> PipedPrograms:
    """`bash` on pipes, for a builtin that says when it is done."""
    command = ("bash", "--norc", "--noprofile")
    return PipedPrograms(
        [command] * count, request=b"x=1; echo .\n", answer_end=r"\.\n", last_words=b"exit\n"
    )


def bare_terminals(folder: Path, count: int) -> PipedPrograms:
    """`tmux` in control mode, asked for its screen. Raises `FloorUnavailableError`."""
    if shutil.which("tmux") is None:
        raise FloorUnavailableError("tmux is not installed")
    commands = [tmux_command(folder, str(number)) for number in range(count)]
    return PipedPrograms(
        commands,
        request=b"capture-pane -p\n",
        answer_end=r"\n%end \d+ \d+ 1\n",
        last_words=b"kill-server\n",
    )


async def capture_by_command_line(folder: Path, number: int) -> None:
    """One more process for each look at the screen."""
    arguments = (*_tmux(folder, str(number)), "capture-pane", "-p")
    process = await asyncio.create_subprocess_exec(
        *arguments, stdout=asyncio.subprocess.DEVNULL, env=ENV
    )
    if await process.wait() != 0:
        raise FloorUnavailableError(f"{' '.join(arguments)} failed")


def tmux_command(folder: Path, name: str) -> tuple[str, ...]:
    """A control client of a new server of that name in the folder, with one session."""
    columns, lines = (str(length) for length in SIZE)
    session = ("new-session", "-x", columns, "-y", lines, "--", "sh")
    return (*_tmux(folder, name), "-C", *session)


def _tmux(folder: Path, name: str) -> tuple[str, ...]:
    return ("tmux", "-f", "/dev/null", "-S", str(folder / name))
