"""Keeping what a command writes within bounds while it is read from a pipe."""

from __future__ import annotations

import fcntl

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import List, Tuple

MAX_OUTPUT = 16 << 20
"""The most that is kept of one stream."""
CHUNK = 1 << 16
"""Bytes of one reading."""
_LARGE_PIPE = 1 << 20
LAST_READS = _LARGE_PIPE // CHUNK + 2
"""Readings that empty a pipe which nobody writes to any more."""
_F_SETPIPE_SZ = 1031


class Capture:
    """The first and the last bytes of a stream of any length."""

    __slots__ = ("_head", "_head_room", "_tail", "_tail_cap", "total")

    def __init__(self, cap: int) -> None:
        self._head_room = cap - cap // 2
        self._tail_cap = cap // 2
        self._head: List[bytes] = []
        self._tail = bytearray()
        self.total = 0

    def add(self, data: bytes) -> None:
        """Take in the next bytes."""
        self.total += len(data)
        room = self._head_room
        if room:
            self._head.append(data[:room])
            self._head_room = max(0, room - len(data))
            data = data[room:]
        if data and self._tail_cap:
            self._tail += data[-self._tail_cap :]
            if len(self._tail) > 2 * self._tail_cap:
                del self._tail[: -self._tail_cap]

    def continue_from(self, earlier: Capture) -> None:
        """Begin with what another one has taken in; call first of all."""
        if not earlier.total:
            return
        head, tail = earlier.parts()
        self.add(head)
        self.total += earlier.total - len(head) - len(tail)
        self.add(tail)

    def parts(self) -> Tuple[bytes, bytes]:
        """Head and tail."""
        if not self.total:
            return b"", b""
        tail = self._tail[-self._tail_cap :] if self._tail_cap else b""
        return b"".join(self._head), bytes(tail)


def packed(out: Capture, err: Capture) -> Tuple[bytes, bytes]:
    """Both as one text, and as JSON the sizes of its parts and of what there was in all."""
    if not (out.total or err.total):
        return b"[0,0,0,0,0,0]", b""
    out_head, out_tail = out.parts()
    err_head, err_tail = err.parts()
    sizes = b"[%d,%d,%d,%d,%d,%d]" % (
        len(out_head),
        len(out_tail),
        out.total,
        len(err_head),
        len(err_tail),
        err.total,
    )
    return sizes, b"".join((out_head, out_tail, err_head, err_tail))


def enlarge_pipe(fd: int) -> None:
    """A stream that fills its first pipe is a long one: fewer, larger reads. Refusal by the kernel costs only speed."""
    try:
        fcntl.fcntl(fd, _F_SETPIPE_SZ, _LARGE_PIPE)
    except OSError:
        return
