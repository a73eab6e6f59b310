"""The slot's persistent bash: how it is told what to do, and heard to have done it.

It is interactive (`-i`): only an interactive bash goes on to its next line when it is interrupted, whatever it is at.
It has a terminal for itself, as it would complain without one, and what it runs has none. It reads its lines from a
socket, writes output and errors to two pipes, and reports on another socket: unlike a pipe, nobody inside can open one
a second time to read what is not for him. `shell_lines` says what goes over these.

What a command can do to the shell, it does to this shell: forge its own result, close descriptors 10 or 60, end it. One
that does not report by the deadline is interrupted, and then ended. `set -e`, `-v` and `-x` hold for one call only.

Between calls the shell may be lent to the host, which then runs what ends soon by itself (`lent_shell.py`).
"""

from __future__ import annotations

import fcntl
import os
import time

from .lean import SIGINT, SIGKILL
from .refusal import RefusedError, from_os_error
from .shell_lines import (
    BEGIN,
    ERRORS,
    IDLE_CAP,
    REPORT,
    SOON_S,
    Report,
    late_line,
    line_of,
)
from .shell_stream import ShellStream
from .slot_capture import CHUNK
from .slot_processes import Children, descendants_of, signal_quietly
from .slot_session import WithdrawnError, socket_pair
from .slot_watch import POLLIN, POLLOUT

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import List, Optional, Tuple

    from .shell_loan import Begun, Returned
    from .slot_capture import Capture
    from .slot_recording import Recording
    from .slot_session import Surroundings

SIZE = (120, 40)
"""Of its recordings: a shell without a terminal has none."""
_GRACEFUL_S = 0.3
"""How long a command may take to end by itself when interrupted."""
_IN_VAIN = 2
"""What it started is killed after so many more signals. One alone can be lost on a loop: one that comes as a program in
it ends by itself is taken for that program's, and to kill the next one would have the loop end as if it were done.
"""
_SIGNALS = 13
"""How often the shell is interrupted before it is given up."""
_AGAIN_S = 0.1
"""How long it may take to come back after each but the first."""
_SIOCOUTQ = 0x5411
"""Asks a socket what the other end has not taken yet."""
_ARGUMENTS = ("bash", "--norc", "--noprofile", "--noediting", "-i")


class Shell:
    """A running bash. `recording` is told everything it writes, when it is written."""

    def __init__(self, around: Surroundings) -> None:
        bash = around.program("bash")
        self.recording: Recording = around.book.begin("shell", SIZE)
        self._around = around
        self._nonce = b""
        self._began = 0.0
        self._report = Report(b"")
        self._last_code = 0
        self._hides_eval = False
        self._unsent = b""
        self._is_late_line_due = False
        self._is_useless = False
        self._is_deaf = False
        self._start(bash)

    @property
    def has_ended(self) -> bool:
        """Whether it is gone, or of no use any more: then it is to be ended."""
        return self._is_deaf or self._is_useless or self._around.sessions.get(self._pid) is not None

    def run(
        self, command: bytes, now: float, deadline: float, cap: int, begun: Optional[Begun] = None
    ) -> Tuple[str, int]:
        """Run a command, or go on with one that has `begun`, until that time of `time.monotonic`.

        Returns how it ended, as the driver's `ExecStatus` says it, and its exit code. What it wrote is in `output`.
        """
        if cap != IDLE_CAP:
            self._out.begin(cap)
            self._err.begin(cap)
        self.recording.line(command, now)
        jobs = self._children.read() if begun is None else begun.jobs
        try:
            if self._evaluate(command, now, deadline, begun):
                self._last_code = self._report.code
                return "exited", self._last_code
            outcome = "timed_out"
        except WithdrawnError:
            outcome = "cancelled"
        self._interrupt(jobs)
        return outcome, -1

    def warn(self, text: bytes) -> None:
        """Have the next call's errors begin with this."""
        self._err.add(text)

    def output(self) -> Tuple[Capture, Capture]:
        """What it has written to its streams since the last call began; what comes now is for the next one."""
        return self._out.finish(), self._err.finish()

    def end(self) -> int:
        """Kill it, where it has not ended by itself, and all it started. Returns its wait status."""
        status = self._around.end_session(self._pid)
        self._out.close()
        self._err.close()
        self._children.close()
        self.recording.end()
        for descriptor in (self._script, self._reports, self._terminal):
            self._around.watch.close(descriptor)
        return status

    # --- lending --------------------------------------------------------------------------------------------------

    def lend(self) -> Tuple[bytes, List[int]]:
        """Let go of the shell between two calls: terms for the host, and what leads to it. No descriptors where that
        cannot be.
        """
        streams = (self._out, self._err)
        has_rests = any(self.recording.rests)
        if (
            self.has_ended
            or self._hides_eval
            or self._unsent
            or has_rests
            or self._children.file < 0
        ):
            return b"", []
        if not all(stream.is_quiet for stream in streams):
            return b"", []
        out, err = (stream.leave() for stream in streams)
        self._around.watch.forget(self._reports)
        terms = b'{"session":"%s","size":[%d,%d],"began":%.9f,"code":%d}' % (
            self.recording.session.encode("ascii"),
            *SIZE,
            self.recording.began,
            self._last_code,
        )
        return terms, [self._script, self._reports, out, err, self._children.file]

    def take_back(self, returned: Optional[Returned]) -> None:
        """Listen to the shell again; None: nothing was done with it."""
        if returned is not None:
            self._last_code = returned.last_code
            self.recording.rests = list(returned.rests)
        self._listen()

    def _listen(self) -> None:
        # Before the streams: `poll` looks in this order, so it does not find a report and miss what was written before.
        self._around.watch.add(self._reports, self._take_report)
        self._out.listen()
        self._err.listen()

    # --- starting -------------------------------------------------------------------------------------------------

    def _start(self, bash: str) -> None:
        opened: List[int] = []
        try:
            for pair in (socket_pair, socket_pair, os.pipe, os.pipe, os.openpty):
                opened += pair()
            ours, theirs = opened[::2], opened[1::2]
            targets = dict(zip(theirs, (0, REPORT, 1, ERRORS, 2)))  # noqa: B905 - newer than 3.8
            actions = [(os.POSIX_SPAWN_DUP2, *pair) for pair in targets.items()]
            self._pid = self._around.start_session(
                bash, list(_ARGUMENTS), actions, self._around.env
            )
            for descriptor in ours:
                opened.remove(descriptor)
        except OSError as error:
            self.recording.end()
            failure = from_os_error(error, "cannot start the shell")
            raise RefusedError("cannot_start", failure.message) from error
        finally:
            for descriptor in opened:
                os.close(descriptor)
        for descriptor in ours:
            os.set_blocking(descriptor, False)
        self._script, self._reports, _, _, self._terminal = ours
        self._children = Children(self._pid)
        self._out = ShellStream(self._around, ours[2], self.recording, 0)
        self._err = ShellStream(self._around, ours[3], self.recording, 1)
        self._listen()
        self._write(BEGIN)

    # --- evaluating -----------------------------------------------------------------------------------------------

    def _evaluate(
        self, command: bytes, now: float, deadline: float, begun: Optional[Begun]
    ) -> bool:
        """False when the deadline has passed."""
        if begun is None:
            self._send(command)
        else:
            self._go_on(begun)
        self._began = now
        done = self._wait(deadline)
        if self._is_deaf:
            # It cannot report any more, and ends by itself when it finds out.
            self._around.wait(self._is_gone, time.monotonic() + _GRACEFUL_S)
        elif done and not (self._report.was_evaluated or self.has_ended):
            self._hides_eval = True
            self._send(command)
            self._began = time.monotonic()
            done = self._wait(deadline)
            if done and not self._report.was_evaluated:
                self._err.add(b"the shell cannot evaluate commands any more and was ended\n")
                self._is_useless = True
        return done

    def _wait(self, deadline: float) -> bool:
        """False when the deadline has passed."""
        has_taken_it = self._has_taken_it(deadline)
        if self._is_done():
            return True
        if has_taken_it:
            self._send_late_line()
        return self._around.wait(self._is_done, deadline)

    def _has_taken_it(self, deadline: float) -> bool:
        """Wait until it is done, or bash has read all of the command and had time to get to it; False at the deadline.

        An interrupt before that would make it drop the command's first lines, and take the others for commands.
        """
        around, until = self._around, self._began + SOON_S
        while not around.wait(self._is_done, min(deadline, until)):
            if self._is_all_read() and time.monotonic() >= until:
                return True
            if time.monotonic() >= deadline:
                return False
            until = max(until, time.monotonic() + SOON_S / 5)
        return True

    def _is_all_read(self) -> bool:
        unread = fcntl.ioctl(self._script, _SIOCOUTQ, b"\0\0\0\0")
        return not self._unsent and not any(unread)

    def _is_done(self) -> bool:
        return self._report.code >= 0 or self.has_ended

    def _is_gone(self) -> bool:
        return self._around.sessions.get(self._pid) is not None

    def _send(self, command: bytes) -> None:
        self._nonce = nonce = os.urandom(8).hex().encode()
        self._report = Report(nonce)
        self._is_late_line_due = True
        self._write(line_of(command, nonce, self._last_code, hides_eval=self._hides_eval))

    def _go_on(self, begun: Begun) -> None:
        self._nonce = begun.nonce
        self._report = Report(begun.nonce)
        self._report.add(begun.report)
        self._is_late_line_due = True
        self._out.add(begun.output)
        self._err.add(begun.errors)
        if begun.unsent:
            self._write(begun.unsent)

    def _send_late_line(self) -> None:
        if self._is_late_line_due:
            self._is_late_line_due = False
            self._write(late_line(self._nonce))

    def _write(self, data: bytes) -> None:
        """Send what bash takes now; the rest follows when it takes more."""
        self._unsent += data
        self._write_more(POLLOUT)

    def _write_more(self, _: int) -> None:
        try:
            sent = os.write(self._script, self._unsent)
        except BlockingIOError:
            sent = 0
        except (
            OSError
        ):  # bash is gone, or another program has taken its place, which ends in its own time
            sent = len(self._unsent)
        self._unsent = self._unsent[sent:]
        watch = self._around.watch
        if self._unsent:
            watch.add(self._script, self._write_more, POLLOUT)
        elif self._script in watch.handlers:
            watch.forget(self._script)

    def _take_report(self, events: int) -> None:
        try:
            data = os.read(self._reports, CHUNK) if events & POLLIN else b""
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._around.watch.forget(self._reports)
            self._is_deaf = True
        elif self._report.code < 0:
            self._report.add(data)

    # --- interrupting ---------------------------------------------------------------------------------------------

    def _interrupt(self, jobs: List[int]) -> None:
        """Bring the shell back from its command, or end it. Spares the background jobs that there were before."""
        until = time.monotonic() + _GRACEFUL_S
        if self._is_late_line_due and not self._has_taken_it(until):
            self._is_useless = True
            return
        self._send_late_line()
        for signals in range(_SIGNALS):
            self.recording.input(b"\x03")
            signal_quietly(-self._pid, SIGINT)
            if self._around.wait(self._is_done, until):
                self._interrupt_rest(jobs)
                return
            if signals >= _IN_VAIN:
                for pid in descendants_of(self._pid, jobs):
                    signal_quietly(pid, SIGKILL)
            until = time.monotonic() + _AGAIN_S
        self._is_useless = True

    def _interrupt_rest(self, jobs: List[int]) -> None:
        """What bash was just starting may have missed the interrupt, and bash would wait for it in its next command."""
        for pid in descendants_of(self._pid, jobs):
            if _group_of(pid) == self._pid:
                signal_quietly(pid, SIGINT)  # background jobs ignore it


def _group_of(pid: int) -> int:
    try:
        return os.getpgid(pid)
    except ProcessLookupError:
        return 0
