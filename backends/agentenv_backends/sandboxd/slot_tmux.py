"""The slot's terminal: a tmux server of its own with one session, driven by a control client.

The control client is the root of the session's processes: the server, which leaves its parents, stays below it. When
the client ends (the shell left, somebody killed the server or detached the client), all of it is ended.

`block` goes by the shell's marks (`slot_pane.py`). Where a program has taken the shell's prompt away it goes by who is
in the terminal's foreground: a shell that sleeps there is taken for one that waits for input, also when it waits for a
background job.
"""

from __future__ import annotations

import os
import time

from .lean import find_program
from .refusal import RefusedError, from_os_error
from .slot_control import MOST_AT_ONCE, PANE, Control, TmuxGoneError
from .slot_pane import PROMPTS, PaneOutput
from .slot_processes import stat_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Dict, List, Sequence, Tuple

    from .slot_control import Reply
    from .slot_session import Surroundings

LEAST_SIZE, LARGEST_SIZE = (20, 10), (500, 200)
_HISTORY_LINES = 5_000
_PATIENCE_S = 4.0
"""How long after a request's deadline tmux may still answer; the driver waits a little longer."""
_ATTACH_S = 2.0
_FIRST_PROMPT_S = 2.0
_QUIET_S = 0.15
"""A prompt after which nothing comes for so long is no passing one."""
_LONG_QUIET_S = 1.0
_LOOK_S = 0.03
_SUBMITTING = ("Enter", "C-m", "C-j", "KPEnter")
_TYPED = {"Enter": b"\r", "Tab": b"\t", "Escape": b"\x1b", "Space": b" ", "BSpace": b"\x7f"}
_LONGEST_NAME = 24
"""Longer keys are text, whatever they say."""
_PIECE = 500
_NAMES_AT_ONCE = 32
_NEEDS_NO_ESCAPE = bytes(
    byte for byte in range(32, 256) if byte != 127 and byte not in b'"\\$#~;{}'
)
_STATE, _GROUP, _FOREGROUND_GROUP = 0, 2, 5
_OPTIONS = (
    ("set-option", "-g", "history-limit", str(_HISTORY_LINES)),
    ("set-option", "-g", "status", "off"),
    ("set-option", "-g", "set-clipboard", "off"),
)


class Seen:
    """What an action found."""

    def __init__(self) -> None:
        self.screen = b""
        self.output = b""
        self.next_offset = 0
        self.timed_out = False


class Tmux:
    """A running terminal. Methods raise `TmuxGoneError` when it is not, and `WithdrawnError`."""

    def __init__(self, around: Surroundings, size: Tuple[int, int]) -> None:
        tmux = around.program("tmux")
        self._around = around
        self._recording = around.book.begin("tmux", size)
        self._output = PaneOutput(self._recording)
        self._size = size
        self._shell = ""
        """Process id of the shell in it."""
        self._answer_by = 0.0
        self._socket = os.path.join(
            around.env.get("TMPDIR", "/tmp"),  # noqa: S108 - the slot's own
            ".agentenv-tmux-" + os.urandom(4).hex(),
        )
        self._start(tmux)

    @property
    def has_ended(self) -> bool:
        """Whether it is gone, or of no use any more: then it is to be ended."""
        return self._control.has_ended or self._around.sessions.get(self._pid) is not None

    def begin(self, deadline: float) -> None:
        """Wait until it can be typed at."""
        self._answer_by = deadline + _PATIENCE_S
        self._control.attach(min(time.monotonic() + _ATTACH_S, self._answer_by))
        self._ask(b"refresh-client -f pause-after=2")
        self._ask_size()
        reply = self._ask(b"display-message -p -t %s '#{pane_pid}'" % PANE)
        self._shell = b"".join(reply.lines).decode("ascii", "replace")
        prompted_by = min(time.monotonic() + _FIRST_PROMPT_S, self._answer_by)
        self._around.wait(lambda: self._output.prompts > 0 or self.has_ended, prompted_by)

    def resize(self, size: Tuple[int, int], deadline: float) -> None:
        """Give it another size, in columns and lines."""
        self._answer_by = deadline + _PATIENCE_S
        if size != self._size:
            self._size = size
            self._ask_size()
            self._recording.resize(size)

    def act(self, header: Dict[str, Any], deadline: float) -> Seen:
        """Type, wait, and look, as a request says. What is to be typed has been checked."""
        self._answer_by = deadline + _PATIENCE_S
        seen, action, typed_at = Seen(), header["action"], time.monotonic()
        before = (self._output.at_prompt, self._output.prompts, self._output.commands)
        if action == "send_keys":
            self._type(header["keys"])
        if header["wait"]:
            until = min(deadline, time.monotonic() + header["wait"])
            self._around.wait(lambda: self.has_ended, until)
        if action == "send_keys" and header["block"]:
            seen.timed_out = not self._wait_for_shell(
                before, typed_at, _submissions(header["keys"]), deadline
            )
        if action == "stream":
            seen.output, seen.next_offset = self._output.read(header["offset"], header["max"])
        elif action == "capture" or header["wait"] or header["block"]:
            seen.screen = self._screen(history=header["history"])
        return seen

    def end(self) -> None:
        """Kill it and all that runs in it."""
        self._around.end_session(self._pid)
        self._control.close()
        self._recording.end()
        try:
            os.unlink(self._socket)
        except OSError:
            return  # nobody made it, or somebody removed it

    # --- starting -------------------------------------------------------------------------------------------------

    def _start(self, tmux: str) -> None:
        opened: List[int] = []
        try:
            opened += os.pipe()
            opened += os.pipe()
            stdin, commands, replies, stdout = opened
            actions = [
                (os.POSIX_SPAWN_DUP2, stdin, 0),
                (os.POSIX_SPAWN_DUP2, stdout, 1),
                (os.POSIX_SPAWN_DUP2, stdout, 2),
            ]
            env = dict(self._around.env, HISTFILE="", **PROMPTS)
            self._pid = self._around.start_session(tmux, self._arguments(), actions, env)
            opened = [stdin, stdout]
        except OSError as error:
            self._recording.end()
            failure = from_os_error(error, "cannot start tmux")
            raise RefusedError("cannot_start", failure.message) from error
        finally:
            for descriptor in opened:
                os.close(descriptor)
        self._control = Control(
            self._around, commands, replies, self._output.take_in, self._output.note_loss
        )

    def _arguments(self) -> List[Any]:
        arguments = ["tmux", "-f", "/dev/null", "-S", self._socket, "-C", "start-server"]
        for option in _OPTIONS:
            arguments += (";", *option)
        columns, lines = (str(number) for number in self._size)
        arguments += (";", "new-session", "-x", columns, "-y", lines, "--")
        bash = find_program("bash", self._around.env["PATH"])
        return arguments + ([bash, "--norc", "--noprofile"] if bash else ["/bin/sh"])

    # --- asking tmux ----------------------------------------------------------------------------------------------

    def _ask(self, *commands: bytes) -> Reply:
        reply = self._control.ask_together(commands, self._answer_by)
        if reply.failed:
            raise TmuxGoneError(b"\n".join(reply.lines).decode("utf-8", "replace"))
        return reply

    def _ask_size(self) -> None:
        self._ask(b"refresh-client -C %dx%d" % self._size)

    def _type(self, keys: Sequence[str]) -> None:
        for key in keys:
            self._recording.input(_as_typed(key, key.encode("utf-8", "surrogateescape")))
        together: List[bytes] = []
        size = 0
        for command in _typing(keys):
            if together and size + len(command) >= MOST_AT_ONCE:
                self._ask(*together)
                together, size = [], 0
            together.append(command)
            size += len(command) + 1
        if together:
            self._ask(*together)

    def _screen(self, *, history: bool) -> bytes:
        if self.has_ended:
            return b""
        command = b"capture-pane -p -t " + PANE + (b" -S -" if history else b"")
        return b"\n".join(self._ask(command).lines).rstrip(b" \n")

    # --- waiting --------------------------------------------------------------------------------------------------

    def _wait_for_shell(
        self,
        before: Tuple[bool, int, int],
        typed_at: float,
        submissions: int,
        deadline: float,
    ) -> bool:
        """Wait until the shell is back from what was typed; False at the deadline."""
        was_at_prompt, prompts, commands = before
        output, prompted = self._output, prompts + max(1, submissions)

        def is_back() -> bool:
            if self.has_ended:
                return True
            quiet_s = time.monotonic() - output.last_at
            if output.at_prompt:
                begun = output.commands > commands or not was_at_prompt
                # A shell shows that a line was ended; until it has, it may only be slow to.
                answered = not submissions or was_shown or output.last_at > since
                quiet_enough = quiet_s >= (_QUIET_S if answered else _LONG_QUIET_S)
                return (begun and output.prompts >= prompted) or quiet_enough
            return quiet_s >= _LONG_QUIET_S and self._shell_sleeps_in_foreground()

        # Typed text is shown before anything comes of it; until then the terminal is not quiet.
        was_shown = output.last_at >= typed_at
        since = output.last_at = time.monotonic()
        while time.monotonic() < deadline:
            if self._around.wait(is_back, min(deadline, time.monotonic() + _LOOK_S)):
                return True
        return False

    def _shell_sleeps_in_foreground(self) -> bool:
        fields = stat_of(self._shell) if self._shell.isdigit() else []
        return (
            bool(fields) and fields[_STATE] == b"S" and fields[_GROUP] == fields[_FOREGROUND_GROUP]
        )


def check(header: Dict[str, Any]) -> None:
    """Refuse what no terminal takes, by `RefusedError`."""
    action, size = header["action"], tuple(header["size"])
    if action not in ("start", "send_keys", "capture", "stream", "stop"):
        raise RefusedError("bad_request", "action: %r is none" % (action,))
    if action == "start" and not all(
        low <= value <= high
        for low, value, high in zip(LEAST_SIZE, size, LARGEST_SIZE)  # noqa: B905 - newer than 3.8
    ):
        raise RefusedError(
            "bad_request",
            "a terminal is %dx%d to %dx%d, columns and lines; asked for was %dx%d"
            % (*LEAST_SIZE, *LARGEST_SIZE, *size),
        )
    if any("\0" in key for key in header["keys"]):
        raise RefusedError("bad_request", "keys: a NUL character cannot be typed; C-Space can")
    if header["offset"] < 0 or header["max"] < 0:
        raise RefusedError("bad_request", "offset and max_bytes are not negative")


def _submissions(keys: Sequence[str]) -> int:
    """How many lines are ended by these keys."""
    return sum(1 if key in _SUBMITTING else key.count("\n") + key.count("\r") for key in keys)


def _typing(keys: Sequence[str]) -> List[bytes]:
    """Commands of tmux that type these; keys that follow each other share one."""
    commands: List[bytes] = []
    names: List[bytes] = []
    for key in keys:
        if len(key) <= _LONGEST_NAME:
            names.append(_quoted(key.encode("utf-8", "surrogateescape")))
            if len(names) < _NAMES_AT_ONCE:
                continue
        if names:
            commands.append(b"send-keys -t %s -- %s" % (PANE, b" ".join(names)))
            names = []
        if len(key) > _LONGEST_NAME:
            for start in range(0, len(key), _PIECE):
                piece = key[start : start + _PIECE].encode("utf-8", "surrogateescape")
                commands.append(b"send-keys -l -t %s -- %s" % (PANE, _quoted(piece)))
    if names:
        commands.append(b"send-keys -t %s -- %s" % (PANE, b" ".join(names)))
    return commands


def _quoted(text: bytes) -> bytes:
    """As one argument of a command of tmux."""
    if not text.translate(None, _NEEDS_NO_ESCAPE):
        return b'"%s"' % text
    return b'"%s"' % b"".join(
        b"\\%03o" % byte if byte < 32 or byte == 127 or byte in b'"\\$#~;{}' else bytes((byte,))
        for byte in text
    )


def _as_typed(key: str, raw: bytes) -> bytes:
    """What a keyboard would have sent, where that is simple."""
    if len(key) == 3 and key.startswith("C-") and "a" <= key[2].lower() <= "z":
        return bytes((ord(key[2]) & 31,))
    return _TYPED.get(key, raw)
