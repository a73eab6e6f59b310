"""A slot's persistent shell and its terminal: made when first asked for, attended to whatever else happens."""

from __future__ import annotations

import os
import time

from .frames import MAYBE_OOM
from .lean import SIGKILL
from .refusal import RefusedError
from .slot_capture import MAX_OUTPUT, packed
from .slot_control import TmuxGoneError
from .slot_session import WithdrawnError
from .slot_shell import Shell

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Dict, Optional, Tuple

    from .shell_loan import Begun, Returned
    from .slot_capture import Capture
    from .slot_session import Surroundings
    from .slot_tmux import Seen, Tmux

    Answer = Tuple[bytes, bytes, int]


_MAX_COMMAND = 4 << 20


class Terminals:
    """Answers what is asked of the shell and the terminal, and ends what is left of those that have ended."""

    def __init__(self, around: Surroundings) -> None:
        self._around = around
        self._shell: Optional[Shell] = None
        self._tmux: Optional[Tmux] = None
        self._notice = b""
        self._is_lent = self._is_recalled = self._has_just_run = False
        self._begun: Optional[Begun] = None
        """The command that the host has begun in the shell, until its request follows."""

    def answer(self, request_id: int, header: Dict[str, Any], body: bytes) -> Answer:
        """Header, body and flags of the answer to such a request. Raises `RefusedError`."""
        self._bury()
        self._around.request_id = request_id
        if header["op"] == "shell":
            self._has_just_run = True
            return self._run(header, body)
        if header["op"] == "tmux":
            return self._drive(header)
        recordings, texts = self._around.book.take()
        return b'{"recordings":%s}' % recordings, texts, 0

    def idle(self) -> None:
        """Take in what they write until the host has something to say. Raises `HostGoneError`."""
        while self._shell is not None or self._tmux is not None:
            if self._around.attend(None):
                return
            self._bury()
            if self._is_lent and not self._is_recalled and self._shell_has_ended():
                self._is_recalled = True
                self._around.recall()

    def lend(self, channel: int) -> None:
        """Let the host have the shell until `take_back`, if one can be lent and was of use to the latest request."""
        was_used, self._has_just_run = self._has_just_run, False
        if not was_used or self._shell is None or self._notice:
            return
        terms, descriptors = self._shell.lend()
        if descriptors:
            self._is_lent, self._is_recalled = True, False
            self._around.lend(channel, terms, descriptors)

    def take_back(self, returned: Optional[Returned]) -> None:
        """The host has the shell no more; None: it never did anything with it. Once more does no harm."""
        if self._is_lent and self._shell is not None:
            self._is_lent = False
            self._shell.take_back(returned)
            self._begun = returned.begun if returned is not None else None

    def end(self) -> None:
        """Let go of both; all their processes have been killed."""
        for session in (self._shell, self._tmux):
            if session is not None:
                session.end()
        self._shell = self._tmux = None
        self._notice = b""
        self._is_lent = False
        self._begun = None

    def _shell_has_ended(self) -> bool:
        return self._shell is not None and self._shell.has_ended

    def _bury(self) -> None:
        """End what has ended by itself, with all it has left. This waits until no command runs: its processes cannot be
        told apart from what a shell has left. What a shell is lent for, or is to go on with, may be how it ended.
        """
        is_ours = not self._is_lent and self._begun is None
        if self._shell is not None and self._shell.has_ended and is_ours:
            self._notice = b"the shell ended after the last command (%s); this is a new one\n" % (
                _described(self._shell.end())
            )
            self._shell = None
        if self._tmux is not None and self._tmux.has_ended:
            self._end_tmux()

    # --- the shell ------------------------------------------------------------------------------------------------

    def _run(self, header: Dict[str, Any], command: bytes) -> Answer:
        begun, self._begun = self._begun, None
        began, cap = begun.at if begun else time.monotonic(), int(header["max"])
        if not 0 <= cap <= MAX_OUTPUT:
            raise RefusedError("bad_request", "max_output_bytes is 0 to %d" % MAX_OUTPUT)
        if b"\0" in command:
            raise RefusedError("bad_request", "the command holds a NUL byte")
        if len(command) > _MAX_COMMAND:
            raise RefusedError(
                "too_large",
                "a command of %d bytes; a persistent shell takes %d" % (len(command), _MAX_COMMAND),
            )
        if self._shell is None:
            self._shell = Shell(self._around)
        shell = self._shell
        if self._notice:
            shell.warn(self._notice)
            self._notice = b""
        outcome, code = shell.run(command, began, began + header["timeout"], cap, begun)
        ended = shell.has_ended
        if ended:
            outcome, code = _outcome_of_end(outcome, shell.end())
            self._shell = None
        return self._shell_answer(outcome, code, time.monotonic() - began, ended, shell.output())

    def _shell_answer(
        self,
        outcome: str,
        code: int,
        seconds: float,
        ended: bool,
        output: Tuple[Capture, Capture],
    ) -> Answer:
        if outcome == "timed_out":
            code = 124
        elif outcome == "cancelled":
            code = 128 + SIGKILL
        recordings, texts = self._around.book.take()
        sizes, body = packed(*output)
        answer = (
            b'{"status":"%s","code":%d,"seconds":%.6f,"ended":%s,"sizes":%s,"recordings":%s}'
            % (
                outcome.encode(),
                code,
                seconds,
                _json_bool(ended),
                sizes,
                recordings,
            )
        )
        return answer, body + texts, MAYBE_OOM if code == 128 + SIGKILL else 0

    # --- the terminal ---------------------------------------------------------------------------------------------

    def _drive(self, header: Dict[str, Any]) -> Answer:
        from .slot_tmux import Seen, check  # noqa: PLC0415 - few slots ever need it

        deadline = time.monotonic() + header["timeout"]
        check(header)
        seen = Seen()
        try:
            if header["action"] == "start":
                self._start_tmux(header, deadline)
            elif self._tmux is None:
                raise RefusedError("no_session", "there is no terminal; start one")
            elif header["action"] == "stop":
                self._end_tmux()
            else:
                seen = self._tmux.act(header, deadline)
        except TmuxGoneError as error:
            self._end_tmux()
            raise _gone(header["action"], str(error)) from error
        except WithdrawnError:
            if header["action"] == "start":
                self._end_tmux()  # half begun
        if self._tmux is not None and self._tmux.has_ended:
            self._end_tmux()
        return self._tmux_answer(seen)

    def _start_tmux(self, header: Dict[str, Any], deadline: float) -> None:
        from .slot_tmux import Tmux  # noqa: PLC0415 - few slots ever need it

        columns, lines = header["size"]
        if self._tmux is not None and header["reset"]:
            self._end_tmux()
        if self._tmux is None:
            self._tmux = Tmux(self._around, (columns, lines))
            self._tmux.begin(deadline)
        else:
            self._tmux.resize((columns, lines), deadline)

    def _end_tmux(self) -> None:
        if self._tmux is not None:
            self._tmux.end()
            self._tmux = None

    def _tmux_answer(self, seen: Seen) -> Answer:
        recordings, texts = self._around.book.take()
        answer = (
            b'{"running":%s,"screen":%d,"output":%d,"next":%d,"timed_out":%s,"recordings":%s}'
            % (
                _json_bool(self._tmux is not None),
                len(seen.screen),
                len(seen.output),
                seen.next_offset,
                _json_bool(seen.timed_out),
                recordings,
            )
        )
        return answer, seen.screen + seen.output + texts, 0


def _outcome_of_end(outcome: str, status: int) -> Tuple[str, int]:
    """How a command ended with which the shell did."""
    if outcome != "exited":
        return outcome, -1
    if os.WIFSIGNALED(status):
        return "signaled", 128 + os.WTERMSIG(status)
    return outcome, os.WEXITSTATUS(status)


def _gone(action: str, said: str) -> RefusedError:
    said = ": " + said if said else ""
    if action == "start":
        message = "tmux does not start here; it needs a socket in the folder for temporary files"
        return RefusedError("cannot_start", message + said)
    return RefusedError("no_session", "the terminal has just ended%s; start another" % said)


def _json_bool(value: bool) -> bytes:
    return b"true" if value else b"false"


def _described(status: int) -> bytes:
    if os.WIFSIGNALED(status):
        return b"killed by signal %d" % os.WTERMSIG(status)
    return b"exit code %d" % os.WEXITSTATUS(status)
