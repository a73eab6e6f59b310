"""Floors of the shell and the terminal: what a Python program has to do that keeps bash or tmux open and uses them.

One coroutine for each bash or tmux, over asyncio's own streams, without a sandbox around them. A call gives what ours
gives: the command's exit code and output, or the screen after the command has shown its effect.
"""

from __future__ import annotations

import asyncio
import itertools
import shutil
from typing import TYPE_CHECKING, Self

from tests.benchmarks.floors import FloorUnavailableError
from tests.benchmarks.floors_terminals import ENV, tmux_command

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence
    from pathlib import Path
    from types import TracebackType

_ANSWER_WITHIN_S = 30.0
_LONGEST_LINE = 1 << 20


class _Program:
    """A running program that is written to and read from."""

    def __init__(self, process: asyncio.subprocess.Process, last_words: bytes) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self.requests = process.stdin
        self.answers = process.stdout
        self._process = process
        self._last_words = last_words
        self._calls = itertools.count()

    @classmethod
    async def start(cls, arguments: Sequence[str], last_words: bytes) -> Self:
        """Raises `OSError`."""
        process = await asyncio.create_subprocess_exec(
            *arguments,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env=ENV,
            limit=_LONGEST_LINE,
        )
        return cls(process, last_words)

    def mark(self) -> bytes:
        """What the output of one call ends with, and of no other."""
        return b"done-%d" % next(self._calls)

    async def end(self) -> None:
        """Have it end by itself, so that it leaves nothing in the background."""
        try:
            async with asyncio.timeout(_ANSWER_WITHIN_S):
                await self._process.communicate(self._last_words)
        except TimeoutError:
            self._process.kill()
            await self._process.wait()


class Programs:
    """`count` programs as an async context manager; awaiting `call(number)` has one of them do the work once."""

    def __init__(
        self,
        commands: Sequence[Sequence[str]],
        work: Callable[[_Program], Awaitable[object]],
        *,
        last_words: bytes,
    ) -> None:
        self._commands = commands
        self._work = work
        self._last_words = last_words
        self._programs: list[_Program] = []

    async def __aenter__(self) -> Self:
        try:
            for command in self._commands:
                self._programs.append(await _Program.start(command, self._last_words))
            async with asyncio.timeout(_ANSWER_WITHIN_S):
                for number in range(len(self._programs)):
                    await self.call(number)
        except BaseException:
            await self._end()
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._end()

    async def call(self, number: int) -> object:
        """What the work gives. Calls of one program come one after the other."""
        return await self._work(self._programs[number])

    async def _end(self) -> None:
        while self._programs:
            await self._programs.pop().end()


def shells(count: int) -> Programs:
    """A builtin in `bash`: its exit code and what it wrote."""
    return Programs([("bash", "--norc", "--noprofile")] * count, _run_builtin, last_words=b"exit\n")


async def _run_builtin(shell: _Program) -> tuple[int, bytes]:
    mark = shell.mark()
    shell.requests.write(b"x=1\nprintf '\\n%%d %%s\\n' $? %s\n" % mark)
    said = await shell.answers.readuntil(b" %s\n" % mark)
    output, _, end = said[:-1].rpartition(b"\n")
    return int(end.partition(b" ")[0]), output


def terminals(folder: Path, count: int) -> Programs:
    """A command in `tmux` in control mode: typed, waited for, and the screen. Raises `FloorUnavailableError`."""
    if shutil.which("tmux") is None:
        raise FloorUnavailableError("tmux is not installed")
    commands = [tmux_command(folder, f"program-{number}") for number in range(count)]
    return Programs(commands, _type_and_look, last_words=b"kill-server\n")


async def _type_and_look(terminal: _Program) -> list[bytes]:
    mark = terminal.mark()
    # What is typed is shown as well, and must not look like what it writes.
    typed = mark.replace(b"-", b"'-'")
    terminal.requests.write(b'send-keys "true; echo %s" Enter\n' % typed)
    async for line in terminal.answers:
        if line.startswith(b"%output ") and mark in line:
            break
    terminal.requests.write(b"capture-pane -p\n")
    async for line in terminal.answers:
        if line.startswith(b"%begin "):
            return await _block(terminal, line.replace(b"%begin", b"%end"))
    raise FloorUnavailableError("tmux has ended")


async def _block(terminal: _Program, end: bytes) -> list[bytes]:
    lines: list[bytes] = []
    async for line in terminal.answers:
        if line == end:
            return lines
        lines.append(line)
    raise FloorUnavailableError("tmux has ended")
