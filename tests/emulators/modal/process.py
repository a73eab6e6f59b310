"""A command in a sandbox: its output can be read from any offset, its input written at one, as often as it takes."""

import asyncio
import contextlib
import os
import signal
from collections.abc import Mapping

PIECE = 256 << 10
UNREAD = 4 << 20
"""What a process may write ahead of whoever reads it; then it waits."""
KEPT = 8 << 20
"""What can be read once more."""
OUTPUT, ERROR = 1, 2


class Output:
    """What a process wrote to one of its descriptors."""

    def __init__(self) -> None:
        self._kept = bytearray()
        self._start = 0
        self._read_to = 0
        self._ended = False
        self._changed = asyncio.Condition()

    async def fill(self, reader: asyncio.StreamReader) -> None:
        while data := await reader.read(PIECE):
            async with self._changed:
                self._kept += data
                self._changed.notify_all()
                await self._changed.wait_for(lambda: self._end - self._read_to < UNREAD)
        await self.end()

    async def end(self) -> None:
        async with self._changed:
            self._ended = True
            self._changed.notify_all()

    async def read(self, offset: int) -> bytes:
        """What there is from `offset` on, at least a byte; nothing at the end."""
        async with self._changed:
            self._read_to = max(self._read_to, offset)
            self._forget(self._read_to - KEPT)
            self._changed.notify_all()
            await self._changed.wait_for(lambda: self._end > offset or self._ended)
            if offset < self._start:
                raise LookupError(f"what was written before byte {self._start} is gone")
            return bytes(self._kept[offset - self._start : offset - self._start + PIECE])

    @property
    def _end(self) -> int:
        return self._start + len(self._kept)

    def _forget(self, before: int) -> None:
        if before > self._start + KEPT:
            del self._kept[: before - self._start]
            self._start = before


class Command:
    """A process and its streams."""

    def __init__(self, process: asyncio.subprocess.Process, timeout_s: float) -> None:
        self.process = process
        self.outputs = {OUTPUT: Output(), ERROR: Output()}
        self.written = 0
        """Bytes of input taken so far."""
        self.input_closed = False
        self.exited = asyncio.Event()
        self.watching = asyncio.create_task(self._watch(timeout_s))

    @classmethod
    async def start(
        cls, argv: list[str], environment: Mapping[str, str], timeout_s: float = 0.0
    ) -> "Command":
        """`timeout_s` 0: it may run as long as it likes."""
        pipe = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec(
            *argv, stdin=pipe, stdout=pipe, stderr=pipe, env=environment, start_new_session=True
        )
        return cls(process, timeout_s)

    @property
    def code(self) -> int | None:
        """As the operating system tells it: negative for a signal."""
        return self.process.returncode

    async def write(self, offset: int, data: bytes, *, eof: bool = False) -> None:
        """Take what was not taken yet. Raises `BrokenPipeError` when it has ended, `LookupError` for a gap."""
        if offset > self.written:
            raise LookupError(f"input from byte {self.written} on is missing")
        stdin = self.process.stdin
        assert stdin is not None
        new = data[self.written - offset :]
        if new:
            if self.exited.is_set() or self.input_closed:
                raise BrokenPipeError
            stdin.write(new)
            self.written += len(new)
            await stdin.drain()
        if eof:
            self.input_closed = True
            stdin.close()

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)

    async def _watch(self, timeout_s: float) -> None:
        out, err = self.process.stdout, self.process.stderr
        assert out is not None
        assert err is not None
        pumps = [
            asyncio.create_task(self.outputs[OUTPUT].fill(out)),
            asyncio.create_task(self.outputs[ERROR].fill(err)),
        ]
        try:
            async with asyncio.timeout(timeout_s or None):
                await self.process.wait()
        except TimeoutError:
            self.kill()
            await self.process.wait()
        self.exited.set()
        await asyncio.wait(pumps)
