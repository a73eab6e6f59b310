"""The stream to a command in a sandbox: its standard input and output, as the service's client gives them.

The client numbers bytes in both directions and repeats what was not answered, so that nothing is lost or doubled
while the service stumbles. It also tries for long, or for ever: so whenever it fails or is slow, the sandbox is looked
at, and the stream ends as soon as that is gone, or cannot be reached for `patience_s`.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any, TypeVar

from modal import exception as theirs

from agentenv_backends._aio import bounded
from agentenv_backends.errors import EngineError
from agentenv_backends.modal.service import as_modal_error

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine

_log = logging.getLogger(__name__)
T = TypeVar("T")

PIECE = 1 << 20
"""Bytes sent in one call."""
_HIGH_WATER = 8 << 20
_SLOW_S = 1.0
"""A call that takes longer makes one wonder."""
_PAUSE_S = 0.25
_PATIENCE_S = 10.0
_LAST_WORDS_S = 3.0
_COMPLAINTS_KEPT = 2000
_FAILURES = (theirs.Error, OSError, TimeoutError)


class ExecStream(asyncio.Transport):
    """A transport for whoever speaks with a command.

    `look()` says how the sandbox ended, None while it runs, and raises `EngineError` when that cannot be told.
    When the stream has ended by itself, the text of the exception that `connection_lost` gets says why.
    """

    def __init__(
        self,
        process: Any,
        look: Callable[[], Awaitable[str | None]],
        *,
        patience_s: float = _PATIENCE_S,
    ) -> None:
        super().__init__()
        self._process = process
        self._look = look
        self._patience_s = patience_s
        self._receiver: asyncio.Protocol | None = None
        self._unsent = bytearray()
        self._high, self._low = _HIGH_WATER, _HIGH_WATER // 4
        self._is_full = False
        self._closing = False
        self._wanted = asyncio.Event()
        """There is something to send."""
        self._may_read = asyncio.Event()
        self._may_read.set()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._last_words: asyncio.Task[str] | None = None

    def begin(self, receiver: asyncio.Protocol) -> None:
        """Tell `receiver` that the stream is there, and carry bytes from now on."""
        self._receiver = receiver
        receiver.connection_made(self)
        self._spawn(self._send_all())
        self._spawn(self._receive_all())

    async def wait_closed(self) -> None:
        """Return when it carries nothing any more; for after `abort`."""
        while self._tasks:
            await asyncio.wait(self._tasks)

    # --- sending ----------------------------------------------------------------------------------------

    async def _send_all(self) -> None:
        while True:
            await self._wanted.wait()
            piece = bytes(self._unsent[:PIECE])
            reason = await self._send(piece)
            if reason is not None:
                self._end(reason)
                return
            del self._unsent[: len(piece)]
            if not self._unsent:
                self._wanted.clear()
            self._tell_whether_full()

    async def _send(self, piece: bytes) -> str | None:
        """None when it was taken, else why the stream is at its end."""
        stdin = self._process.stdin
        stdin.write(piece)
        draining = asyncio.ensure_future(stdin.drain.aio())
        try:
            while True:
                done, _ = await asyncio.wait({draining}, timeout=_SLOW_S)
                error = draining.exception() if done else None
                if done and error is None:
                    return None
                if (reason := await self._why_it_is_over(error)) is not None:
                    return reason
                if done:  # what was not taken is still there, with its number
                    draining = asyncio.ensure_future(stdin.drain.aio())
        finally:
            draining.cancel()

    # --- receiving --------------------------------------------------------------------------------------

    async def _receive_all(self) -> None:
        while True:
            try:
                await self._receive()
            except _FAILURES as error:
                reason = await self._why_it_is_over(error)
            else:
                reason = await self._how_it_ended()
            if reason is not None:
                self._end(reason)
                return

    async def _receive(self) -> None:
        """Pass on what the command writes, until it ends."""
        assert self._receiver is not None
        async for data in self._process.stdout:
            self._receiver.data_received(data)
            await self._may_read.wait()

    async def _how_it_ended(self) -> str:
        """The command has ended, and so perhaps has its sandbox. Whoever notices asks, and it is found out once."""
        if self._last_words is None:
            self._last_words = self._spawn(self._find_out_how_it_ended())
        return await asyncio.shield(self._last_words)

    async def _find_out_how_it_ended(self) -> str:
        code, complaints = "unknown", ""
        try:
            code = await bounded(self._process.wait.aio(), _LAST_WORDS_S, "the exit code")
            said = await bounded(self._process.stderr.read.aio(), _LAST_WORDS_S, "its complaints")
            complaints = said[-_COMPLAINTS_KEPT:].decode("utf-8", "replace").strip()
        except _FAILURES as error:
            _log.debug("a command in a sandbox ended, and that is all: %s", error)
        ended = await self._why_it_is_over(None)
        return " ".join(
            filter(None, (ended or f"the sandbox server in it ended (code {code}).", complaints))
        )

    # --- both -------------------------------------------------------------------------------------------

    async def _why_it_is_over(self, error: BaseException | None) -> str | None:
        """Why nothing more will come of this stream; None when it may go on.

        `error` is what the client raised, None when it is only slow.
        """
        for_good = error is not None and not as_modal_error("go on", _plain(error)).transient
        now = asyncio.get_running_loop().time
        deadline = now() + self._patience_s
        while True:
            try:
                reason = await self._look()
            except EngineError as problem:
                if now() > deadline or not problem.transient:
                    return str(problem)
                await asyncio.sleep(_PAUSE_S)
                continue
            if reason is None and for_good:
                return await self._how_it_ended()
            if reason is None and error is not None:
                await asyncio.sleep(_PAUSE_S)
            return reason

    def _spawn(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _end(self, reason: str) -> None:
        if self._closing:
            return
        self.abort()
        assert self._receiver is not None
        self._receiver.connection_lost(ConnectionError(reason))

    # --- the transport ----------------------------------------------------------------------------------

    def write(self, data: Any) -> None:
        """Send to the command's standard input."""
        if not self._closing and data:
            self._unsent += data
            self._wanted.set()
            self._tell_whether_full()

    def is_closing(self) -> bool:
        """Whether nothing can be sent any more."""
        return self._closing

    def abort(self) -> None:
        """Drop the stream at once. The receiver is not told."""
        self._closing = True
        for task in self._tasks - {_current_task()}:
            task.cancel()

    def close(self) -> None:
        """The same as `abort`: the end of a stream means nothing to the service."""
        self.abort()

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """See `asyncio.WriteTransport`."""
        self._high = _HIGH_WATER if high is None else high
        self._low = self._high // 4 if low is None else low
        self._tell_whether_full()

    def get_write_buffer_size(self) -> int:
        """Bytes that wait to be sent."""
        return len(self._unsent)

    def pause_reading(self) -> None:
        """See `asyncio.ReadTransport`."""
        self._may_read.clear()

    def resume_reading(self) -> None:
        """See `asyncio.ReadTransport`."""
        self._may_read.set()

    def is_reading(self) -> bool:
        """See `asyncio.ReadTransport`."""
        return self._may_read.is_set() and not self._closing

    def get_protocol(self) -> asyncio.BaseProtocol:
        """See `asyncio.BaseTransport`."""
        assert self._receiver is not None
        return self._receiver

    def _tell_whether_full(self) -> None:
        if self._receiver is None or self._closing:
            return
        if not self._is_full and len(self._unsent) > self._high:
            self._is_full = True
            self._receiver.pause_writing()
        elif self._is_full and len(self._unsent) <= self._low:
            self._is_full = False
            self._receiver.resume_writing()


def _current_task() -> asyncio.Task[Any] | None:
    try:
        return asyncio.current_task()
    except RuntimeError:
        return None


def _plain(error: BaseException) -> Exception:
    return error if isinstance(error, Exception) else RuntimeError(repr(error))
