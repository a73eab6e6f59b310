"""Bytes on their way out of a non-blocking socket."""

from __future__ import annotations

import socket
from collections import deque
from itertools import islice
from typing import Deque, Union

_PIECES = 64


class Outbox:
    """Sends what it is given, in order, as far as the socket takes it; `size` is what still waits."""

    __slots__ = ("_parts", "_stream", "size")

    def __init__(self, stream: socket.socket) -> None:
        self._stream = stream
        self._parts: Deque[Union[bytes, memoryview]] = deque()
        self.size = 0

    def put(self, data: bytes) -> None:
        """Add to what is to be sent."""
        self._parts.append(data)
        self.size += len(data)

    def flush(self) -> bool:
        """Send what the socket takes now; True when nothing waits. Raises `OSError` when the other end is gone."""
        while self._parts:
            try:
                if len(self._parts) == 1:
                    sent = self._stream.send(self._parts[0])
                else:
                    sent = self._stream.sendmsg(list(islice(self._parts, _PIECES)))
            except BlockingIOError:
                return False
            self._drop(sent)
        return True

    def _drop(self, sent: int) -> None:
        self.size -= sent
        while sent:
            first = self._parts.popleft()
            if sent < len(first):
                self._parts.appendleft(memoryview(first)[sent:])
                return
            sent -= len(first)
