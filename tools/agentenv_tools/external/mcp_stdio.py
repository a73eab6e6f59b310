"""An MCP server as a process of this machine: messages of bounded size, and no process left behind.

The `mcp` library has a transport like this. Ours exists because that one reads messages of any size into memory,
keeps nothing of what the server complains of, and leaves the server's own children alive when the driver is killed.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import subprocess
import sys
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import anyio
from mcp.shared.message import SessionMessage
from mcp.types import ErrorData, JSONRPCError, JSONRPCMessage
from pydantic import ValidationError

from agentenv_tools.errors import ToolServerUnavailableError
from agentenv_tools.external import mcp_guard

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping, Sequence

    from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream

logger = logging.getLogger(__name__)

MAX_MESSAGE_BYTES = 8_000_000
TOO_LARGE = -32_099
"""JSON-RPC error code under which a call learns that its answer was too large to be read."""

_KEPT_VARIABLES = ("PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "LC_ALL", "TMPDIR", "TERM")
_DEFAULT_PATH = "/usr/local/bin:/usr/bin:/bin"
_LEAVE_S = 2.0
"""How long a server may take to leave by itself after its input has ended, and again after SIGTERM."""
_KILL_S = 15.0
_COMPLAINTS_CHARS = 2_000
_LAST_WORDS_CHARS = 400
_ID = re.compile(rb'^\s*\{.{0,200}?"id"\s*:\s*(\d{1,15})', re.DOTALL)


class GuardedProcess:
    """A program below `mcp_guard`, and our ends of its three streams.

    `start`, then `connect`; `end` and `close` in any case.
    """

    def __init__(
        self, process: subprocess.Popen[bytes], watch: int, mask: Callable[[str], str]
    ) -> None:
        self._process = process
        self._mask = mask
        self._watch: int | None = watch
        self._pidfd = os.pidfd_open(process.pid)
        self._exited = asyncio.Event()
        self._transports: list[asyncio.BaseTransport] = []
        self._writer: asyncio.StreamWriter | None = None
        self.reader = asyncio.StreamReader(MAX_MESSAGE_BYTES)
        self.errors = asyncio.StreamReader(MAX_MESSAGE_BYTES)
        self.complaints = ""
        """The end of what it wrote to its standard error."""

    @classmethod
    def start(
        cls,
        command: Sequence[str],
        env: Mapping[str, str],
        cwd: str | None,
        mask: Callable[[str], str],
    ) -> GuardedProcess:
        """In a session of its own, so that a Ctrl-C meant for the driver passes it by. Raises `OSError`.

        `mask` takes secrets out of what it complained of.
        """
        watched, watch = os.pipe()
        guard = [sys.executable, "-I", "-S", mcp_guard.__file__, str(watched), str(_LEAVE_S)]
        try:
            process = subprocess.Popen(  # noqa: S603 - what the configuration says
                [*guard, *command],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                pass_fds=[watched],
                start_new_session=True,
                cwd=cwd,
                env=dict(env),
            )
        except BaseException:
            os.close(watch)
            raise
        finally:
            os.close(watched)
        return cls(process, watch, mask)

    async def connect(self) -> asyncio.StreamWriter:
        """Begin to read what it says; returns the way to its input."""
        process, loop = self._process, asyncio.get_running_loop()
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        loop.add_reader(self._pidfd, self._on_exit)
        for reader, pipe in ((self.reader, process.stdout), (self.errors, process.stderr)):
            protocol = asyncio.StreamReaderProtocol(reader)
            transport, _ = await loop.connect_read_pipe(lambda p=protocol: p, pipe)  # type: ignore[misc]
            self._transports.append(transport)
        out, flow = await loop.connect_write_pipe(asyncio.streams.FlowControlMixin, process.stdin)
        self._transports.append(out)
        self._writer = asyncio.StreamWriter(out, flow, None, loop)
        return self._writer

    async def end(self) -> None:
        """Close its input, then make it leave: by itself, by SIGTERM, by SIGKILL. Bounded."""
        try:
            if self._writer is not None:
                self._writer.close()
                await self.exited(_LEAVE_S)
        finally:
            self.release()
        if not await self.exited(_LEAVE_S + _KILL_S):
            logger.error("the guard of process %d does not end, killing it", self._process.pid)
            self._process.kill()
            await self.exited(_LEAVE_S)

    def release(self) -> None:
        """Let go of the pipe the guard watches: it ends everything, whether we are there or not. Idempotent."""
        watch, self._watch = self._watch, None
        if watch is not None:
            os.close(watch)

    def close(self) -> None:
        """Let go of its streams. After `end`."""
        self.release()
        try:
            for transport in self._transports:
                _close(transport)
            for pipe in (self._process.stdin, self._process.stdout, self._process.stderr):
                if pipe is not None:
                    pipe.close()
        finally:
            self._process.poll()
            if self._pidfd >= 0:
                asyncio.get_running_loop().remove_reader(self._pidfd)
                os.close(self._pidfd)
                self._pidfd = -1

    async def ended(self) -> None:
        """Return when it has ended."""
        await self._exited.wait()

    async def exited(self, timeout_s: float) -> bool:
        """Whether it ends within that time."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._exited.wait()
        except TimeoutError:
            return False
        return True

    def verdict(self) -> str:
        """How it ended and what it complained of."""
        code = self._process.poll()
        ended = "it closed its output" if code is None else f"it ended with exit status {code}"
        # Masked before it is cut and joined: half a secret, or one whose lines were joined, is not known as one.
        last_words = " ".join(self._mask(self.complaints).split())[-_LAST_WORDS_CHARS:]
        return f"{ended}; its last words: {last_words}" if last_words else ended

    def _on_exit(self) -> None:
        asyncio.get_running_loop().remove_reader(self._pidfd)
        self._exited.set()


def _close(transport: asyncio.BaseTransport) -> None:
    if isinstance(transport, asyncio.WriteTransport) and transport.get_write_buffer_size():
        transport.abort()  # nobody will read what is still in there
    else:
        transport.close()


def environment(given: Mapping[str, str], environ: Mapping[str, str]) -> dict[str, str]:
    """What a server's process gets: a few harmless variables of ours, and what it was given."""
    kept = {name: environ[name] for name in _KEPT_VARIABLES if name in environ}
    return {"PATH": _DEFAULT_PATH} | kept | dict(given)


@asynccontextmanager
async def stdio_streams(
    command: Sequence[str],
    env: Mapping[str, str],
    cwd: str | None,
    mask: Callable[[str], str],
    broken: Callable[[str], None],
) -> AsyncIterator[
    tuple[
        MemoryObjectReceiveStream[SessionMessage | Exception],
        MemoryObjectSendStream[SessionMessage],
    ]
]:
    """What a `ClientSession` reads from and writes to. `broken` is told when the server is of no more use.

    Enter and leave it in one task. Raises `ToolServerUnavailableError` when the process cannot be started.
    """
    try:
        process = GuardedProcess.start(command, env, cwd, mask)
    except OSError as error:
        raise ToolServerUnavailableError(f"{command[0]} cannot be started: {error}") from error
    to_session, session_reads = anyio.create_memory_object_stream[SessionMessage | Exception](0)
    session_writes, from_session = anyio.create_memory_object_stream[SessionMessage](0)
    tasks: list[asyncio.Task[None]] = []
    try:
        writer = await process.connect()
        work = (
            _read(process, to_session, mask, broken),
            _write(from_session, writer, broken),
            _listen(process),
            _watch(process, broken),
        )
        tasks += map(asyncio.create_task, work)
        yield session_reads, session_writes
    finally:
        try:
            await process.end()
        finally:
            process.close()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            for stream in (to_session, session_reads, session_writes, from_session):
                stream.close()


async def _read(
    process: GuardedProcess,
    to_session: MemoryObjectSendStream[SessionMessage | Exception],
    mask: Callable[[str], str],
    broken: Callable[[str], None],
) -> None:
    async with to_session:
        while True:
            message: JSONRPCMessage | str | None
            try:
                message = _parsed(await process.reader.readuntil(b"\n"), mask)
            except asyncio.IncompleteReadError:
                await process.exited(1.0)  # its exit status comes by another way
                message = process.verdict()
            except asyncio.LimitOverrunError:
                message = await _too_large(process.reader)
            if isinstance(message, str):
                broken(message)
                return
            if message is not None:
                await to_session.send(SessionMessage(message))


async def _too_large(reader: asyncio.StreamReader) -> JSONRPCMessage | str:
    """Skip a message; what stands for it is an error for the call that it answered."""
    start = await reader.read(512)
    while True:
        try:
            await reader.readuntil(b"\n")
            break
        except asyncio.LimitOverrunError as overrun:
            await reader.readexactly(overrun.consumed)
        except asyncio.IncompleteReadError:
            break
    found = _ID.match(start)
    reason = f"a message of more than {MAX_MESSAGE_BYTES} bytes"
    if found is None:
        return f"it sent {reason}"
    error = ErrorData(code=TOO_LARGE, message=f"the answer is {reason}; ask for less")
    return JSONRPCMessage(JSONRPCError(jsonrpc="2.0", id=int(found[1]), error=error))


def _parsed(line: bytes, mask: Callable[[str], str]) -> JSONRPCMessage | str | None:
    """A message; None for what a server that does not know better prints; text for what is broken."""
    if not line.lstrip().startswith(b"{"):
        logger.debug("not a message: %r", line[:200])
        return None
    try:
        return JSONRPCMessage.model_validate_json(line)
    except ValidationError:
        shown = mask(line.decode("utf-8", "replace"))[:200]
        return f"it sent something that is no JSON-RPC message: {shown!r}"


async def _write(
    from_session: MemoryObjectReceiveStream[SessionMessage],
    writer: asyncio.StreamWriter,
    broken: Callable[[str], None],
) -> None:
    async with from_session:
        try:
            async for message in from_session:
                text = message.message.model_dump_json(by_alias=True, exclude_none=True)
                writer.write(text.encode() + b"\n")
                await writer.drain()
        except OSError:
            await asyncio.sleep(0.2)  # the reader knows more, if it notices too
            broken("it does not read its input any more")


async def _listen(process: GuardedProcess) -> None:
    while chunk := await process.errors.read(65_536):
        text = chunk.decode("utf-8", "replace")
        process.complaints = (process.complaints + text)[-_COMPLAINTS_CHARS:]
        logger.debug("a server says: %s", text)


async def _watch(process: GuardedProcess, broken: Callable[[str], None]) -> None:
    await process.ended()
    await asyncio.sleep(0.2)  # what it still said is read first
    broken(process.verdict())
