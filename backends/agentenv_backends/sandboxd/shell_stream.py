"""What a persistent shell writes, as its init reads it: during its calls and between them."""

from __future__ import annotations

import os

from .shell_lines import IDLE_CAP, as_on_terminal
from .slot_capture import CHUNK, LAST_READS, Capture, enlarge_pipe
from .slot_watch import POLLIN

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .slot_recording import Recording
    from .slot_session import Surroundings

_NOTHING = Capture(0)


class ShellStream:
    """One of the two pipes that the shell writes to."""

    def __init__(self, around: Surroundings, fd: int, recording: Recording, number: int) -> None:
        self._watch = around.watch
        self._fd = fd
        self._recording = recording
        self._number = number
        self._capture = Capture(IDLE_CAP)
        self._has_fresh = True
        """Whether the capture is as it was made, between two calls."""
        self._has_more = False
        """Whether the last reading may have left something in the pipe."""
        self._has_ended = False

    @property
    def is_quiet(self) -> bool:
        """Whether nothing waits to be handed out or read, and more may come."""
        return self._has_fresh and not self._has_more and not self._has_ended

    def listen(self) -> None:
        """Take in what comes."""
        if self._fd >= 0 and not self._has_ended:
            # Another may have read a part of what there was.
            self._has_more = True
            self._watch.add(self._fd, self._take_in)

    def leave(self) -> int:
        """Listen no more: the descriptor for another who does."""
        self._watch.forget(self._fd)
        return self._fd

    def begin(self, cap: int) -> None:
        """Keep so much from now on; what background jobs have written since the last call comes first."""
        fresh = Capture(cap)
        fresh.continue_from(self._capture)
        self._capture, self._has_fresh = fresh, False

    def finish(self) -> Capture:
        """What was kept. What comes from now on is the next call's."""
        if self._has_more:
            self.drain()
        if self._has_fresh:
            return _NOTHING
        capture, self._capture, self._has_fresh = self._capture, Capture(IDLE_CAP), True
        return capture

    def add(self, data: bytes) -> None:
        """Take in what was written."""
        if not data:
            return
        self._capture.add(data)
        self._has_fresh = False
        self._recording.output(as_on_terminal(data), self._number)

    def drain(self) -> None:
        """Read what is there, and no more than a pipe holds: a background job may write without end."""
        for _ in range(LAST_READS):
            if self._fd < 0 or not self._take_in(POLLIN):
                return

    def close(self) -> None:
        """Read what is there and close. Once more does no harm."""
        self.drain()
        if self._fd >= 0:
            self._watch.close(self._fd)
            self._fd = -1

    def _take_in(self, events: int) -> bool:
        """Read what has come; False when there was nothing."""
        try:
            data = os.read(self._fd, CHUNK) if events & POLLIN else b""
        except BlockingIOError:
            self._has_more = False
            return False
        if not data:
            self._watch.forget(self._fd)
            self._has_ended = True
            return False
        if len(data) == CHUNK and self._capture.total == 0:
            enlarge_pipe(self._fd)
        self._has_more = len(data) == CHUNK
        self.add(data)
        return True
