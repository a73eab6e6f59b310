"""Bytes on their way out of a non-blocking stream."""

from __future__ import annotations

import os
from collections import deque
from itertools import islice
from typing import Deque, Union

_PIECES = 64


class Outbox:
    """Sends what it is given, in order, as far as the socket or pipe takes it; `size` is what still waits."""

    __slots__ = ("_descriptor", "_parts", "size")

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._parts: Deque[Union[bytes, memoryview]] = deque()
        self.size = 0

    def put(self, data: bytes) -> None:
        """Add to what is to be sent."""
        self._parts.append(data)
        self.size += len(data)

    def flush(self) -> bool:
        """Send what is taken now; True when nothing waits. Raises `OSError` when the other end is gone."""
        while self._parts:
            try:
                if len(self._parts) == 1:
                    sent = os.write(self._descriptor, self._parts[0])
                else:
                    sent = os.writev(self._descriptor, list(islice(self._parts, _PIECES)))
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
