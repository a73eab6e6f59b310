"""A slot as its host sees it: one process, one stream, one request at a time."""

from __future__ import annotations

import json
import socket
import struct
from collections import deque
from typing import Deque, List, Optional

from . import frames
from .launcher import SlotProcess
from .outbox import Outbox

STARTING, SERVING, ENDING = "starting", "serving", "ending"
MAX_QUEUED = 64
_CREDENTIALS = struct.Struct("3i")
_RECEIVE = 1 << 18


class SlotBrokenError(Exception):
    """What a slot said is not what a slot says: it is ended."""


class Slot:
    """Holds requests that wait for their turn; one is with the slot's init at any time, so that one is withdrawable."""

    def __init__(self, channel: int, slot_id: str, process: SlotProcess, open_request: int) -> None:
        self.channel = channel
        self.slot_id = slot_id
        self.process = process
        self.state = STARTING
        self.was_starting = False
        """Whether it ended before it could serve."""
        self.writing = False
        """Whether the loop watches for room in the stream."""
        self.open_request = open_request
        self.close_requests: List[int] = []
        self.reason = ""
        self.outbox = Outbox(process.stream)
        self.reader = frames.FrameReader()
        self._queue: Deque[frames.Frame] = deque()
        self._current: Optional[int] = None
        self.queued_bytes = 0
        process.stream.setblocking(False)
        self.outbox.put(frames.encode(frames.SETUP, channel=channel, header=process.setup))

    def submit(self, frame: frames.Frame) -> bool:
        """Take a request on; False when too many wait already. Send with `flush` afterwards."""
        if self._current is None and self.state == SERVING:
            self._dispatch(frame)
            return True
        if len(self._queue) >= MAX_QUEUED:
            return False
        self._queue.append(frame)
        self.queued_bytes += len(frame.raw)
        return True

    def cancel(self, frame: frames.Frame) -> bool:
        """Withdraw a request. True when it had not begun, so that it ends here and now."""
        if frame.request_id == self._current:
            self.outbox.put(frame.raw)
            return False
        for waiting in self._queue:
            if waiting.request_id == frame.request_id:
                self._queue.remove(waiting)
                self.queued_bytes -= len(waiting.raw)
                return True
        return False

    def receive(self) -> Optional[List[bytes]]:
        """Answers that have arrived, ready for the driver; None when the slot's end is closed.

        Raises `SlotBrokenError` for anything but the answer to the request that the slot has.
        """
        try:
            if self.state == STARTING:
                data = self._receive_first()
            else:
                data = self.process.stream.recv(_RECEIVE)
        except BlockingIOError:
            return []
        except ConnectionResetError:
            return None
        if not data:
            return None
        try:
            return [self._accept(frame) for frame in self.reader.feed(data)]
        except frames.FrameError as error:
            raise SlotBrokenError(str(error)) from error

    def _receive_first(self) -> bytes:
        """The kernel vouches for the sender's process id, as seen from here."""
        data, extra, _, _ = self.process.stream.recvmsg(
            _RECEIVE, socket.CMSG_SPACE(_CREDENTIALS.size)
        )
        for level, kind, content in extra:
            if level == socket.SOL_SOCKET and kind == socket.SCM_CREDENTIALS and data:
                self.process.init_pid = _CREDENTIALS.unpack(content)[0]
        self.process.stream.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 0)
        return data

    def _accept(self, frame: frames.Frame) -> bytes:
        if frame.channel != self.channel:
            raise SlotBrokenError("a frame for channel %d" % frame.channel)
        if self.state == STARTING and frame.kind == frames.READY:
            return self._ready()
        if frame.kind != frames.REPLY or frame.request_id != self._current:
            raise SlotBrokenError("an answer that nobody asked for")
        raw = frame.raw
        group = self.process.parts.group
        if frame.flags:
            oom = frame.flags == frames.MAYBE_OOM and group is not None and group.note_oom_kills()
            raw = frames.with_flags(raw, frames.WAS_OOM if oom else 0)
        self._next()
        return raw

    def _ready(self) -> bytes:
        self.state = SERVING
        self._next()
        header = json.dumps({"workspace": self.process.workspace}).encode("ascii")
        return frames.encode(
            frames.REPLY, channel=self.channel, request_id=self.open_request, header=header
        )

    def _next(self) -> None:
        self._current = None
        if self._queue:
            frame = self._queue.popleft()
            self.queued_bytes -= len(frame.raw)
            self._dispatch(frame)

    def _dispatch(self, frame: frames.Frame) -> None:
        if self.process.parts.group is not None:
            self.process.parts.group.note_oom_kills()
        self._current = frame.request_id
        self.outbox.put(frame.raw)
