"""A slot as its host sees it: one process, one stream, one request at a time."""

from __future__ import annotations

import json
import os
import signal
import socket
import struct
from collections import deque
from typing import Any, Callable, Deque, Dict, List, Optional, Union

from . import frames
from .lent_shell import SHELL_REQUEST, LentShell, Outside, can_be_kept
from .outbox import Outbox
from .process import SlotProcess
from .shell_loan import DESCRIPTORS

OUT_OF_MEMORY = ": the slot used up its memory and the kernel killed it"
"""Tells the end that a command can bring upon its own slot from all others."""
STARTING, SERVING, ENDING = "starting", "serving", "ending"
MAX_QUEUED = 64
_RECEIVE = 1 << 18
_KILLED = 128 + signal.SIGKILL
_FIRST_OWN_REQUEST = 1 << 63
"""Numbers of requests that the host makes itself; a driver never gets that far."""


class SlotBrokenError(Exception):
    """What a slot said is not what a slot says: it is ended."""


class SlotHitError(Exception):
    """The kernel killed for want of memory where several slots share it: what that did to this one cannot be told."""

    def __init__(self) -> None:
        super().__init__(
            "memory that it shares with other slots ran out, and the kernel killed something: what is left of its work "
            "cannot be judged"
        )


class HostWork:
    """What the host itself does with a slot, in its turn among the requests: nothing else reaches the slot then."""

    __slots__ = ("begin", "raw", "request_id")

    def __init__(self, request_id: int, begin: Callable[[], None]) -> None:
        self.request_id = request_id
        self.begin = begin
        self.raw = b""


class Slot:
    """Holds requests that wait for their turn; one is with the slot's init at any time, so that one is withdrawable."""

    outside: Outside
    """Set before the slot serves."""

    def __init__(self, channel: int, slot_id: str, process: SlotProcess, open_request: int) -> None:
        self.channel = channel
        self.slot_id = slot_id
        self.process = process
        self.state = STARTING
        self.was_starting = False
        """Whether it ended before it could serve."""
        self.was_used = False
        """Whether anything was done in it yet."""
        self.writing = False
        """Whether the loop watches for room in the stream."""
        self.open_request = open_request
        self.close_requests: List[int] = []
        self.reason = ""
        self.died_by_itself = False
        """Whether nothing here had it end."""
        self.exhausted = False
        """Whether it ended by the doing of what ran in it."""
        self.reset_pid = 0
        """The process that proves that nothing of it is left."""
        self.resets = 0
        self.outbox = Outbox(process.stream.fileno())
        self.reader = frames.FrameReader()
        self._queue: Deque[Union[frames.Frame, HostWork]] = deque()
        self._current: Optional[int] = None
        self._work: Optional[HostWork] = None
        self._own_requests = _FIRST_OWN_REQUEST
        self._on_answer: Optional[Callable[[frames.Frame], None]] = None
        self._descriptor = -1
        self._passed: List[int] = []
        """Descriptors that have come, until what they are for has."""
        self._shell: Optional[LentShell] = None
        self.queued_bytes = 0
        process.stream.setblocking(False)
        self.outbox.put(frames.encode(frames.SETUP, channel=channel, header=process.setup))

    def note_death(self, status: int) -> None:
        """Its init has ended with that wait status: complete the reason. Call once, while the kernel's counts stand."""
        errors, memory = self.process.error_text(), self.process.memory
        self.process.pid = self.process.init_pid = 0
        out_of_memory = memory is not None and memory.note_oom_kills()
        used_up = out_of_memory and memory is not None and memory.reached_memory_limit()
        # Root of a container can end any process there; nobody else wants this one's end.
        self.exhausted = used_up or (self.process.is_root and self.died_by_itself)
        self.reason = self.reason or "it was closed"
        self.reason += OUT_OF_MEMORY if out_of_memory else _described(status)
        if errors:
            self.reason += ": " + errors

    def was_hit(self) -> bool:
        """Whether others' need of memory may have cost this slot a process since it was first used."""
        memory = self.process.memory
        shared = memory is not None and memory.is_shared
        return shared and self.was_used and memory is not None and memory.note_oom_kills()

    def submit(self, frame: Union[frames.Frame, HostWork]) -> bool:
        """Take a request or the host's own work on; False when too many wait already. Flush the outbox afterwards."""
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
            if self._work is None:
                self._return_shell()
                self.outbox.put(frame.raw)
            return False
        for waiting in self._queue:
            if waiting.request_id == frame.request_id:
                self._queue.remove(waiting)
                self.queued_bytes -= len(waiting.raw)
                return True
        return False

    # --- the host's own work --------------------------------------------------------------------------------------

    def ask(
        self,
        header: Dict[str, Any],
        on_answer: Callable[[frames.Frame], None],
        descriptor: int = -1,
    ) -> None:
        """Have the init do something as part of the host's own work; it may ask for `descriptor`."""
        self._own_requests += 1
        self._on_answer, self._descriptor = on_answer, descriptor
        text = json.dumps(dict(header, channel=self.channel)).encode("ascii")
        self.outbox.put(
            frames.encode(
                frames.REQUEST,
                channel=self.channel,
                request_id=self._own_requests,
                header=text,
            )
        )

    def finish_work(self) -> None:
        """The host's own work is done: requests go on. Flush the outbox afterwards."""
        self._work = self._on_answer = None
        self._next()

    def _accept_own(self, frame: frames.Frame) -> bytes:
        """What the init says during the host's own work; none of it is for the driver."""
        on_answer = self._on_answer
        if frame.kind == frames.READY and self._descriptor >= 0:
            rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack("i", self._descriptor))
            self._descriptor = -1
            try:
                self.process.stream.sendmsg([b"\0"], [rights])
            except OSError as error:
                raise SlotBrokenError("it took no descriptor: %s" % error) from error
        elif frame.kind == frames.REPLY and frame.request_id == self._own_requests and on_answer:
            self._on_answer = None
            on_answer(frame)
        else:
            raise SlotBrokenError("an answer that nobody asked for")
        return b""

    # --- answers --------------------------------------------------------------------------------------------------

    def receive(self) -> Optional[List[bytes]]:
        """Answers that have arrived, ready for the driver; None when the slot's end is closed.

        Raises `SlotBrokenError` for anything but the answer to the request that the slot has, `SlotHitError` where that
        answer is worth nothing.
        """
        try:
            if self.state == STARTING:
                data = self.process.receive_first(_RECEIVE)
            else:
                data, passed = self.process.receive(_RECEIVE, DESCRIPTORS)
                self._passed += passed
        except BlockingIOError:
            return []
        except ConnectionResetError:
            return None
        if not data:
            return None
        try:
            answers = [self._accept(frame) for frame in self.reader.feed(data)]
        except frames.FrameError as error:
            raise SlotBrokenError(str(error)) from error
        if self._passed and not self.reader.pending:
            raise SlotBrokenError("descriptors that nobody asked for")
        return [answer for answer in answers if answer]

    def _accept(self, frame: frames.Frame) -> bytes:
        if frame.channel != self.channel:
            raise SlotBrokenError("a frame for channel %d" % frame.channel)
        if self.state == STARTING and frame.kind == frames.READY:
            return self._ready()
        if frame.kind == frames.LEND:
            return self._borrow(frame)
        if frame.kind == frames.RECALL:
            self._return_shell()
            return b""
        if self._work is not None:
            return self._accept_own(frame)
        if frame.kind != frames.REPLY or frame.request_id != self._current:
            raise SlotBrokenError("an answer that nobody asked for")
        raw = self._judged(frame.raw, frame.flags)
        self._next()
        return raw

    def _judged(self, raw: bytes, flags: int) -> bytes:
        """An answer with what only the host can tell of it. Raises `SlotHitError` where it is worth nothing."""
        if self.was_hit():
            raise SlotHitError
        if flags:
            memory = self.process.memory
            oom = flags == frames.MAYBE_OOM and memory is not None and memory.note_oom_kills()
            raw = frames.with_flags(raw, frames.WAS_OOM if oom else 0)
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

    def _dispatch(self, frame: Union[frames.Frame, HostWork]) -> None:
        if isinstance(frame, HostWork):
            self._return_shell()
            self._current, self._work = frame.request_id, frame
            frame.begin()
            return
        self.was_used = True
        if self.process.memory is not None:
            self.process.memory.note_oom_kills()
        self._current = frame.request_id
        shell = self._shell
        if shell is None or not frame.header.startswith(SHELL_REQUEST) or not shell.begin(frame):
            self._return_shell()
            self.outbox.put(frame.raw)

    # --- its shell ------------------------------------------------------------------------------------------------

    def leave_shell(self) -> None:
        """Let go of a lent shell, as the slot ends. Once more does no harm."""
        if self._shell is not None:
            self._shell.close()
            self._shell = None
        for descriptor in self._passed:
            os.close(descriptor)
        self._passed = []

    def _borrow(self, frame: frames.Frame) -> bytes:
        """The init lends its shell. What has been sent to it meanwhile has ended that loan already."""
        if self.process.is_root:
            raise SlotBrokenError("a shell that is nobody's to lend")
        if self._current is not None or not can_be_kept(self._passed):
            self.leave_shell()
            if self._current is None:
                self.outbox.put(frames.encode(frames.GIVE_BACK, channel=self.channel))
            return b""
        passed, self._passed = self._passed, []
        self._shell = LentShell(
            self.outside.loop, frame, passed, self._shell_answered, self._hand_back
        )
        return b""

    def _return_shell(self) -> None:
        """Have the init go on with the shell, and with what is under way in it. Flush the outbox afterwards."""
        shell, self._shell = self._shell, None
        if shell is not None:
            self.outbox.put(shell.give_back())
            if shell.frame is not None:
                self.outbox.put(shell.frame.raw)

    def _hand_back(self) -> None:
        self._return_shell()
        self.outside.flush()

    def _shell_answered(self, raw: bytes, code: int) -> None:
        try:
            raw = self._judged(raw, frames.MAYBE_OOM if code == _KILLED else 0)
        except SlotHitError as error:
            self.outside.end(str(error))
            return
        self.outside.answer(raw)
        self._next()
        self.outside.flush()


def _described(status: int) -> str:
    """A wait status for people; nothing for an ordinary end."""
    if os.WIFSIGNALED(status):
        return " (killed by signal %d)" % os.WTERMSIG(status)
    code = os.WEXITSTATUS(status)
    return " (exit code %d)" % code if code else ""
