"""The stream to a container's main process, as the engine gives it: one connection that carries
standard input as it is, and standard output and error cut into chunks with a header each.

    kind u8 (1: output, 2: error) | 0 0 0 | length u32 | bytes
"""

from __future__ import annotations

import asyncio
import struct
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    import aiohttp

_HEADER = struct.Struct(">B3xI")
_OUTPUT, _ERROR = 1, 2
_COMPLAINTS_KEPT = 2000


class StreamError(Exception):
    """The engine sent what is no chunk of a container's output."""


class Demultiplexer:
    """Takes the chunks apart. Holds no output: what has come of a chunk is passed on at once."""

    def __init__(self) -> None:
        self.complaints = b""
        """The end of what the process wrote to its standard error."""
        self._kind = 0
        self._left = 0
        self._header = b""

    def feed(self, data: bytes) -> bytes:
        """The standard output in `data`. Raises `StreamError`."""
        output: list[bytes] = []
        position = 0
        while position < len(data):
            if not self._left:
                position = self._read_header(data, position)
                continue
            piece = data[position : position + self._left]
            position += len(piece)
            self._left -= len(piece)
            if self._kind == _OUTPUT:
                output.append(piece)
            else:
                self.complaints = (self.complaints + piece)[-_COMPLAINTS_KEPT:]
        return output[0] if len(output) == 1 else b"".join(output)

    def _read_header(self, data: bytes, position: int) -> int:
        end = position + _HEADER.size - len(self._header)
        self._header += data[position:end]
        if len(self._header) == _HEADER.size:
            self._kind, self._left = _HEADER.unpack(self._header)
            if self._kind not in (_OUTPUT, _ERROR):
                raise StreamError(f"no chunk begins with {self._header!r}")
            self._header = b""
        return min(end, len(data))


class AttachedStream(asyncio.Transport, asyncio.Protocol):
    """A transport for whoever speaks with the main process, and the protocol of the engine's
    connection below it. Flow control passes through in both directions.

    When the stream has ended by itself, `explain()` is awaited first (it has to be bounded), and
    what it returns is the text of the exception that `connection_lost` gets.
    """

    def __init__(self, protocol: asyncio.Protocol, explain: Callable[[], Awaitable[str]]) -> None:
        super().__init__()
        self._protocol: asyncio.BaseProtocol = protocol
        self._receiver = protocol
        self._explain = explain
        self._demultiplexer = Demultiplexer()
        self._response: aiohttp.ClientResponse | None = None
        self._connection: asyncio.Transport | None = None
        self._closing = False
        self._fault = ""
        self._explaining: asyncio.Task[None] | None = None

    @property
    def complaints(self) -> str:
        """The end of what the main process wrote to its standard error."""
        return self._demultiplexer.complaints.decode("utf-8", "replace").strip()

    def take_over(self, response: aiohttp.ClientResponse) -> None:
        """Make the connection of an upgraded response ours; tells the protocol that it is there.

        Raises `ConnectionError` when the connection has ended meanwhile.
        """
        self._response = response
        handler = response.connection.protocol if response.connection is not None else None
        connection = handler.transport if handler is not None else None
        if handler is None or connection is None:
            raise ConnectionError("the engine closed the stream at once")
        self._connection = connection
        self._receiver.connection_made(self)
        rest = _Rest(self)
        handler.set_parser(rest, rest)  # hands over what came with the response's head
        connection.set_protocol(self)

    # --- the protocol of the connection ------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        """Called by asyncio: chunks from the engine."""
        try:
            output = self._demultiplexer.feed(data)
        except StreamError as error:
            self._fault = str(error)
            self._abort()
            return
        if output:
            self._receiver.data_received(output)

    def connection_lost(self, exc: Exception | None) -> None:
        """Called by asyncio: the stream has ended."""
        self._release()
        if self._closing:
            self._receiver.connection_lost(None)
            return
        self._closing = True
        self._fault = self._fault or (str(exc) if exc else "")
        self._explaining = asyncio.get_running_loop().create_task(self._tell_why())

    async def _tell_why(self) -> None:
        reason = self._fault
        try:
            reason = " ".join(filter(None, (self._fault, await self._explain(), self.complaints)))
        finally:
            self._receiver.connection_lost(ConnectionError(reason))

    def pause_writing(self) -> None:
        """Called by asyncio: the engine does not take what it is sent."""
        self._receiver.pause_writing()

    def resume_writing(self) -> None:
        """Called by asyncio: it does again."""
        self._receiver.resume_writing()

    # --- the transport -----------------------------------------------------------------------------

    def write(self, data: Any) -> None:
        """Send to the main process's standard input."""
        if not self._closing:
            self._socket.write(data)

    def is_closing(self) -> bool:
        """Whether nothing can be sent any more."""
        return self._closing

    def abort(self) -> None:
        """Drop the stream at once."""
        self._closing = True
        self._abort()

    def close(self) -> None:
        """Send what waits, then end the stream."""
        self._closing = True
        self._socket.close()

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """See `asyncio.WriteTransport`."""
        self._socket.set_write_buffer_limits(high, low)

    def get_write_buffer_size(self) -> int:
        """Bytes that wait to be sent."""
        return self._socket.get_write_buffer_size()

    def pause_reading(self) -> None:
        """See `asyncio.ReadTransport`."""
        self._socket.pause_reading()

    def resume_reading(self) -> None:
        """See `asyncio.ReadTransport`."""
        self._socket.resume_reading()

    def is_reading(self) -> bool:
        """See `asyncio.ReadTransport`."""
        return self._socket.is_reading()

    def get_protocol(self) -> asyncio.BaseProtocol:
        """See `asyncio.BaseTransport`."""
        return self._receiver

    @property
    def _socket(self) -> asyncio.Transport:
        assert self._connection is not None, "the stream has not been taken over"
        return self._connection

    def _abort(self) -> None:
        if self._connection is not None:
            self._connection.abort()
        self._release()

    def _release(self) -> None:
        """Let go of the client's side, whose session waits for open connections when it is closed."""
        if self._response is not None:
            self._response.close()


class _Rest:
    """What aiohttp calls a payload and its parser: gets the bytes that followed the response's head."""

    def __init__(self, stream: AttachedStream) -> None:
        self._stream = stream

    def feed_data(self, data: bytes) -> tuple[bool, bytes]:
        self._stream.data_received(data)
        return False, b""

    def feed_eof(self) -> None:
        """The connection's end is heard of elsewhere, and so is an error."""

    def set_exception(self, *_: object) -> None:
        """See `feed_eof`."""

    def is_eof(self) -> bool:
        return True
