"""A slot's persistent shell while its init has lent it to the host.

With many slots at work each call finds the memory of its init in no cache, which then costs more than all the rest of
the call. The host's is warm. So what ends soon, says little and needs nobody to be killed is done here; everything else
goes back to the init at once, with what has come of it: a shell that is silent for `SOON_S`, that says more than
`_MOST`, or says something while nothing runs.
"""

from __future__ import annotations

import json
import os
import resource
import time
from functools import partial
from typing import Callable, List, NamedTuple, Optional, Tuple

from . import frames
from .loop import IN, Loop
from .shell_lines import SOON_S, Report, as_on_terminal, line_of
from .shell_loan import DESCRIPTORS, Begun, Returned
from .slot_capture import CHUNK, MAX_OUTPUT, Capture, packed
from .slot_processes import Children
from .slot_recording import Book

SHELL_REQUEST = b'{"op":"shell",'
"""How the header of every request for the shell begins."""
_MOST = 1 << 16
"""Bytes of output that are taken in before the init goes on with the command."""
_LONGEST = 1 << 15
"""Bytes of a command that a socket with nothing in it surely takes."""
_SHORTEST_S = 4 * SOON_S
"""A command with less time is the init's from the beginning."""
_NOTHING = Capture(0)


def can_be_kept(descriptors: List[int]) -> bool:
    """Whether all that lead to a shell have come, and leave this process room for slots that are yet to begin."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return len(descriptors) == DESCRIPTORS and max(descriptors) < soft // 2


class Outside(NamedTuple):
    """What a slot needs of its host to run commands in a lent shell."""

    loop: Loop
    answer: Callable[[bytes], None]
    """Send a frame to the driver."""
    flush: Callable[[], None]
    """Send what is in the slot's outbox."""
    end: Callable[[str], None]
    """End the slot, for a reason."""


class LentShell:
    """Runs a command at a time. `on_answer` has its encoded answer and exit code; `on_return` is called when the init
    must have the shell back, by `give_back`.
    """

    def __init__(
        self,
        loop: Loop,
        frame: frames.Frame,
        descriptors: List[int],
        on_answer: Callable[[bytes, int], None],
        on_return: Callable[[], None],
    ) -> None:
        terms = json.loads(frame.header)
        self._loop = loop
        self._channel = frame.channel
        self._script, self._reports, self._out_fd, self._err_fd, children = descriptors
        self._children = Children(0, children)
        self._on_answer = on_answer
        self._on_return = on_return
        self._book = Book()
        self._recording = self._book.resume(terms["session"], tuple(terms["size"]), terms["began"])
        self._last_code: int = terms["code"]
        self._nonce = b""
        self._report = Report(b"")
        self._jobs: List[int] = []
        self._unsent = b""
        self._began = 0.0
        self._cap = 0
        self._written: Tuple[List[bytes], List[bytes]] = ([], [])
        self._total = 0
        self._is_timed = self._is_over = False
        self.frame: Optional[frames.Frame] = None
        """The request that is under way."""
        for descriptor in (self._script, self._reports, self._out_fd, self._err_fd):
            os.set_blocking(descriptor, False)
        # In this order, as the init does.
        loop.watch(self._reports, self._take_report)
        loop.watch(self._out_fd, partial(self._take_output, self._out_fd, 0))
        loop.watch(self._err_fd, partial(self._take_output, self._err_fd, 1))

    def begin(self, frame: frames.Frame) -> bool:
        """Begin a request for the shell; False where it is the init's, and nothing has been done."""
        header, command = json.loads(frame.header), frame.body
        cap = header["max"]
        if (
            "key" in header
            or header["timeout"] < _SHORTEST_S
            or not 0 <= cap <= MAX_OUTPUT
            or len(command) > _LONGEST
            or b"\0" in command
        ):
            return False
        now, nonce = time.monotonic(), os.urandom(8).hex().encode()
        jobs = self._children.read()
        line = line_of(command, nonce, self._last_code)
        try:
            sent = os.write(self._script, line)
        except OSError:  # it is full, or bash is gone
            return False
        self._began, self._nonce, self._jobs, self._unsent = now, nonce, jobs, line[sent:]
        self._report = Report(nonce)
        self._cap, self._total = cap, 0
        if self._written[0] or self._written[1]:
            self._written = ([], [])
        self._recording.line(command, now)
        self.frame = frame
        if self._unsent:
            self._on_return()
        elif not self._is_timed:
            self._is_timed = True
            self._loop.later(SOON_S, self._look_at_clock)
        return True

    def give_back(self) -> bytes:
        """Let go of the shell: the frame that tells the init so. The request under way is to follow."""
        self.close()
        rests = self._recording.rests
        if self.frame is None:
            returned = Returned(self._last_code, rests)
        else:
            # The init records the command again, from its beginning.
            begun = Begun(self._nonce, self._began, self._jobs)
            begun.output, begun.errors = (b"".join(data) for data in self._written)
            begun.report, begun.unsent = self._report.text, self._unsent
            returned = Returned(self._last_code, [b"", b""], begun)
        header, body = returned.encode()
        return frames.encode(frames.GIVE_BACK, channel=self._channel, header=header, body=body)

    def close(self) -> None:
        """Close the descriptors. Once more does no harm."""
        if self._is_over:
            return
        self._is_over = True
        for descriptor in (self._reports, self._out_fd, self._err_fd, self._script):
            self._loop.unwatch(descriptor)
            os.close(descriptor)
        self._children.close()

    def _look_at_clock(self) -> None:
        self._is_timed = False
        if self._is_over or self.frame is None:
            return
        left = self._began + SOON_S - time.monotonic()
        if left <= 0:
            self._on_return()
        else:
            self._is_timed = True
            self._loop.later(left, self._look_at_clock)

    def _take_output(self, descriptor: int, number: int, events: int) -> None:
        if self.frame is None or not self._read(descriptor, number):
            self._on_return()

    def _read(self, descriptor: int, number: int) -> bool:
        """Read what has come; False where the init has to see to the rest."""
        try:
            data = os.read(descriptor, CHUNK)
        except BlockingIOError:
            return True
        if not data:
            self._loop.unwatch(descriptor)
            return True
        self._written[number].append(data)
        self._total += len(data)
        self._recording.output(as_on_terminal(data), number)
        return self._total < _MOST

    def _take_report(self, events: int) -> None:
        try:
            data = os.read(self._reports, CHUNK) if events & IN else b""
        except BlockingIOError:
            return
        except OSError:
            data = b""
        report, frame = self._report, self.frame
        report.add(data)
        self._total += len(data)
        if not data or frame is None or self._total >= _MOST:
            self._on_return()
        elif report.code >= 0:
            # What was written before the report is there.
            all_read = self._read(self._out_fd, 0) and self._read(self._err_fd, 1)
            if all_read and report.was_evaluated:
                self._end_call(frame, report.code)
            else:
                self._on_return()

    def _end_call(self, frame: frames.Frame, code: int) -> None:
        self._last_code, self.frame = code, None
        recordings, texts = self._book.take()
        sizes, body = packed(*(self._captured(data) for data in self._written))
        header = (
            b'{"status":"exited","code":%d,"seconds":%.6f,"ended":false,"sizes":%s,"recordings":%s}'
            % (code, time.monotonic() - self._began, sizes, recordings)
        )
        answer = frames.encode(
            frames.REPLY,
            channel=frame.channel,
            request_id=frame.request_id,
            header=header,
            body=body + texts,
        )
        self._on_answer(answer, code)

    def _captured(self, written: List[bytes]) -> Capture:
        if not written:
            return _NOTHING
        capture = Capture(self._cap)
        for data in written:
            capture.add(data)
        return capture
