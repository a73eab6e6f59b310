"""The driver's stream as the host sees it: frames in, frames out, over one socket or two pipes."""

from __future__ import annotations

import json
import os
import select
import time
from typing import Callable

from . import frames
from .loop import OUT, Loop
from .outbox import Outbox

MAX_UNSENT = 16 << 20
"""Bytes the driver has not taken yet, beyond which slots are not listened to."""
_RECEIVE = 1 << 18
_STALLED_POLL_S = 1.0
_GOODBYE_S = 1.0


class Ending(Exception):  # noqa: N818 - not an error: the one way out of the host's loop
    """The host ends, for this reason."""


class DriverStream:
    """Hands arriving frames to `take` and sends what it is given. Raises `Ending` out of the loop when it is over.

    `reading` and `writing` are two descriptors of its own, made non-blocking; they may lead to the same socket.
    """

    def __init__(
        self, reading: int, writing: int, loop: Loop, take: Callable[[frames.Frame], None]
    ) -> None:
        for descriptor in (reading, writing):
            os.set_blocking(descriptor, False)
        self._reading = reading
        self._writing = writing
        self._loop = loop
        self._take = take
        self._reader = frames.FrameReader()
        self._outbox = Outbox(writing)
        self._waits_for_room = False
        self.last_heard = time.monotonic()

    @property
    def is_stalled(self) -> bool:
        """Whether the driver leaves so much untaken that nothing more should be read for it."""
        return self._outbox.size > MAX_UNSENT

    def listen(self) -> None:
        """Begin to take part in the loop."""
        self._loop.watch(self._reading, self._readable)
        # Watched for nothing, an end whose other side is closed still says so.
        self._loop.watch(self._writing, self._writable, 0)

    def leave(self) -> None:
        """Take part in the loop no more."""
        self._loop.unwatch(self._reading)
        self._loop.unwatch(self._writing)

    def wait(self) -> None:
        """Handle what comes from a stalled driver, and from nobody else, for a while."""
        poller = select.poll()
        poller.register(self._writing, select.POLLOUT)
        poller.register(self._reading, select.POLLIN)
        for descriptor, events in poller.poll(_STALLED_POLL_S * 1000):
            if descriptor == self._reading:
                self._readable(events)
            else:
                self._writable(events)

    # --- sending --------------------------------------------------------------------------------------------------

    def put(self, data: bytes) -> None:
        """Add an encoded frame to what is to be sent; `flush` sends it."""
        self._outbox.put(data)

    def reply(self, frame: frames.Frame, **values: object) -> None:
        """Answer a frame."""
        self._say(frames.REPLY, frame.channel, frame.request_id, values)

    def fail(self, channel: int, request_id: int, message: str) -> None:
        """Answer that what was asked could not be done, by no fault of who asked."""
        self._say(frames.FAILED, channel, request_id, {"message": message})

    def tell(self, kind: int, channel: int, **values: object) -> None:
        """Say what nobody asked for."""
        self._say(kind, channel, 0, values)

    def _say(self, kind: int, channel: int, request_id: int, values: object) -> None:
        header = json.dumps(values, separators=(",", ":")).encode("ascii")
        self.put(frames.encode(kind, channel=channel, request_id=request_id, header=header))

    def flush(self) -> None:
        """Send what the driver takes now, and the rest when it takes more."""
        if not self._outbox.size and not self._waits_for_room:
            return
        try:
            done = self._outbox.flush()
        except OSError as error:
            raise Ending("the driver is gone") from error
        if done == self._waits_for_room:
            self._waits_for_room = not done
            self._loop.modify(self._writing, OUT if self._waits_for_room else 0)

    def say_last(self) -> None:
        """Send what is still to be sent, as far as the driver takes it within a moment."""
        deadline = time.monotonic() + _GOODBYE_S
        poller = select.poll()
        poller.register(self._writing, select.POLLOUT)
        try:
            while not self._outbox.flush() and time.monotonic() < deadline:
                poller.poll(max(0.0, deadline - time.monotonic()) * 1000)
        except OSError:
            return

    # --- receiving ------------------------------------------------------------------------------------------------

    def _writable(self, events: int) -> None:
        if events & ~OUT:
            raise Ending("the driver is gone")
        self.flush()

    def _readable(self, events: int) -> None:
        try:
            data = os.read(self._reading, _RECEIVE)
        except BlockingIOError:
            return
        except ConnectionResetError:
            data = b""
        if not data:
            raise Ending("the driver is gone")
        self.last_heard = time.monotonic()
        try:
            for frame in self._reader.feed(data):
                self._take(frame)
        except frames.FrameError as error:
            raise Ending("the driver's stream is broken: %s" % error) from error
