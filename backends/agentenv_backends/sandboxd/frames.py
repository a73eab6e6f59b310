"""The frames that driver, host and slot exchange over byte streams. One codec for all three.

    magic u16 | kind u8 | flags u8 | channel u32 | request id u64 | header length u32 | body length u32
    header: JSON, at most 1 MiB    body: raw bytes, at most 64 MiB

`channel` is the driver's number for a slot (0: the host itself), so the host passes frames on without reading their
headers. A stream that breaks any of these rules cannot be trusted to be in step again: `FrameError` ends it.

This file also runs inside slots, so it imports nothing that costs start-up time.
"""

from __future__ import annotations

import struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import List

MAGIC = 0xAE01
MAX_HEADER = 1 << 20
MAX_BODY = 64 << 20

# Driver to host (REQUEST and CANCEL go on to the slot; SETUP and GIVE_BACK are from the host to a slot).
HELLO, OPEN, CLOSE, REQUEST, CANCEL, PING, SHUTDOWN, SETUP, SNAPSHOT, GIVE_BACK = range(1, 11)
# Host to driver (READY and REPLY come from the slot; LEND and RECALL do, and stay with the host: see `shell_loan`).
REPLY, FAILED, SLOT_LOST, CLOSING, READY, LEND, RECALL = range(16, 23)
KINDS = frozenset((*range(1, 11), *range(16, 23)))

MAYBE_OOM = 1
"""Flag, slot to host: this command ended as one killed for lack of memory does; only the host can tell."""
WAS_OOM = 2
"""Flag, host to driver: it was."""

_PREFIX = struct.Struct("!HBBIQII")
PREFIX_SIZE = _PREFIX.size
_FLAGS_OFFSET = 3
_pack = _PREFIX.pack
_unpack_from = _PREFIX.unpack_from


class FrameError(Exception):
    """The byte stream is not a sequence of frames."""


class Frame:
    """One received frame. `raw` is the whole of it, ready to be passed on."""

    __slots__ = ("_header_end", "channel", "flags", "kind", "raw", "request_id")

    def __init__(
        self, kind: int, flags: int, channel: int, request_id: int, raw: bytes, header_end: int
    ) -> None:
        self.kind = kind
        self.flags = flags
        self.channel = channel
        self.request_id = request_id
        self.raw = raw
        self._header_end = header_end

    @property
    def header(self) -> bytes:
        """The header's JSON text."""
        return self.raw[PREFIX_SIZE : self._header_end]

    @property
    def body(self) -> bytes:
        """The raw bytes after the header."""
        return self.raw[self._header_end :]


def encode(
    kind: int,
    *,
    channel: int = 0,
    request_id: int = 0,
    header: bytes = b"",
    body: bytes = b"",
    flags: int = 0,
) -> bytes:
    """A frame as bytes. Raises `FrameError` when header or body is over its limit."""
    header_length, body_length = len(header), len(body)
    if header_length > MAX_HEADER or body_length > MAX_BODY:
        _check_sizes(header_length, body_length)
    prefix = _pack(MAGIC, kind, flags, channel, request_id, header_length, body_length)
    return prefix + header + body


def with_flags(raw: bytes, flags: int) -> bytes:
    """The same frame with other flags."""
    return raw[:_FLAGS_OFFSET] + bytes((flags,)) + raw[_FLAGS_OFFSET + 1 :]


def _check_sizes(header_length: int, body_length: int) -> None:
    if header_length > MAX_HEADER:
        raise FrameError("a header of %d bytes; the limit is %d" % (header_length, MAX_HEADER))
    if body_length > MAX_BODY:
        raise FrameError("a body of %d bytes; the limit is %d" % (body_length, MAX_BODY))


class FrameReader:
    """Cuts a byte stream into frames. Holds at most one unfinished frame, so never more than a frame's limit."""

    def __init__(self) -> None:
        self._rest = bytearray()
        self._need = PREFIX_SIZE

    @property
    def pending(self) -> int:
        """Bytes of an unfinished frame held back."""
        return len(self._rest)

    def feed(self, data: bytes) -> List[Frame]:
        """The frames that `data` completes. Raises `FrameError`; the reader is of no use afterwards."""
        if self._rest:
            self._rest += data
            if len(self._rest) < self._need:
                return []
            data = bytes(self._rest)
            self._rest = bytearray()
        frames, used = self._cut(data)
        if used < len(data):
            self._rest += data[used:] if used else data
        return frames

    def _cut(self, data: bytes) -> tuple[List[Frame], int]:
        frames: List[Frame] = []
        start, size = 0, len(data)
        while size - start >= PREFIX_SIZE:
            magic, kind, flags, channel, request_id, header_length, body_length = _unpack_from(
                data, start
            )
            if magic != MAGIC or kind not in KINDS:
                raise FrameError("no frame begins with %r" % data[start : start + PREFIX_SIZE])
            if header_length > MAX_HEADER or body_length > MAX_BODY:
                _check_sizes(header_length, body_length)
            header_end = PREFIX_SIZE + header_length
            length = header_end + body_length
            if size - start < length:
                self._need = length
                return frames, start
            raw = data if length == size else data[start : start + length]
            frames.append(Frame(kind, flags, channel, request_id, raw, header_end))
            start += length
        self._need = PREFIX_SIZE
        return frames, start
