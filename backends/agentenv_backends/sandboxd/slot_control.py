"""A tmux control client: commands in, replies and notifications out, over two pipes that live as long as the terminal.

One command costs a line each way, where the command line of tmux costs a process. Replies come in blocks
(`%begin` ... `%end` or `%error`), in the order of the commands; notifications between blocks only.
"""

from __future__ import annotations

import _codecs
import os

from .slot_capture import CHUNK
from .slot_watch import POLLIN

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Callable, List, Optional, Sequence

    from .slot_session import Surroundings

PANE = b"%0"
"""The first pane of a server, the only one we look at."""
MAX_REPLY = 16 << 20
MOST_AT_ONCE = 4095
"""Bytes of commands, without the last line's end, that a pipe takes whole or not at all."""
_MAX_LINE = 1 << 20
_MAX_COMPLAINT = 1000
_OURS = b"1"
"""Flag of a block that answers this client, and not the command line it was started with."""


class TmuxGoneError(Exception):
    """Tmux has ended, or says nothing any more. The message is why, as far as it said so."""


class Reply:
    """What tmux answers to a command."""

    def __init__(self) -> None:
        self.lines: List[bytes] = []
        self.size = 0
        self.is_done = False
        self.failed = False


class Control:
    """The stream of a control client. `on_output` gets what the pane's programs wrote, raw, and `on_loss` is called
    where tmux has left some of it out because we were too slow.
    """

    def __init__(
        self,
        around: Surroundings,
        commands: int,
        replies: int,
        on_output: Callable[[bytes], None],
        on_loss: Callable[[], None],
    ) -> None:
        self._around = around
        self._commands = commands
        self._replies = replies
        self._on_output = on_output
        self._on_loss = on_loss
        self._rest = b""
        self._expected: List[Reply] = []
        self._current: Optional[Reply] = None
        self._block_end = b""
        self._complaint = b""
        self.is_attached = False
        """Whether it has a session. A command that arrives before is refused for want of a client."""
        self.has_ended = False
        """Whether nothing more will come."""
        os.set_blocking(commands, False)
        os.set_blocking(replies, False)
        around.watch.add(replies, self._take_in)

    def attach(self, until: float) -> None:
        """Wait, no longer than that, until it has a session."""
        self._around.wait(lambda: self.is_attached or self.has_ended, until)

    def ask(self, command: bytes, until: float) -> Reply:
        """Have a command done. Raises `TmuxGoneError` when there is no answer by then, and `WithdrawnError`."""
        return self.ask_together((command,), until)

    def ask_together(self, commands: Sequence[bytes], until: float) -> Reply:
        """The same with some commands, at least one, that are sent at once: the reply of the first that failed, or of
        the last. They are for one writing: no more than `MOST_AT_ONCE` bytes, or just one.
        """
        replies = self._tell(commands)
        last = replies[-1]
        if not self._around.wait(lambda: last.is_done or self.has_ended, until):
            self.has_ended = True
        if not last.is_done:
            raise TmuxGoneError(self._complaint.decode("utf-8", "replace").strip())
        for reply in replies:
            if reply.failed:
                return reply
        return last

    def close(self) -> None:
        """Let go of the pipes, after a last look at what came."""
        self._take_in(POLLIN)
        self._around.watch.close(self._replies)
        os.close(self._commands)

    def _tell(self, commands: Sequence[bytes]) -> List[Reply]:
        replies = [Reply() for _ in commands]
        self._expected += replies
        try:
            # Commands wait for their answers, so the pipe is never full while tmux reads it.
            os.write(self._commands, b"\n".join(commands) + b"\n")
        except BrokenPipeError:
            pass  # its last words are still to be read
        except OSError:
            self.has_ended = True
        return replies

    def _take_in(self, events: int) -> None:
        try:
            data = os.read(self._replies, CHUNK) if events & POLLIN else b""
        except BlockingIOError:
            return
        lines = (self._rest + data).split(b"\n")
        self._rest = lines.pop()
        for line in lines:
            self._take_line(line)
        if not data or len(self._rest) > _MAX_LINE:
            self.has_ended = True
            self._complaint += self._rest[:_MAX_COMPLAINT]
            self._around.watch.forget(self._replies)

    def _take_line(self, line: bytes) -> None:
        if self._current is not None:
            self._take_reply_line(self._current, line)
        elif line.startswith((b"%output ", b"%extended-output ")):
            self._take_output(line)
        elif line.startswith(b"%begin "):
            _, _, identity = line.partition(b" ")
            self._block_end = identity
            ours = identity.rpartition(b" ")[2] == _OURS and self._expected
            self._current = self._expected.pop(0) if ours else Reply()
        elif line.startswith(b"%session-changed "):
            self.is_attached = True
        elif line.startswith(b"%pause "):
            self._on_loss()
            self._tell((b"refresh-client -A %s:continue" % PANE,))
        elif line.startswith(b"%exit ") or not line.startswith(b"%"):
            said = line.partition(b"%exit ")[2] or line
            self._complaint = (self._complaint + said + b"\n")[:_MAX_COMPLAINT]

    def _take_reply_line(self, reply: Reply, line: bytes) -> None:
        kind, _, identity = line.partition(b" ")
        if identity == self._block_end and kind in (b"%end", b"%error"):
            reply.is_done, reply.failed = True, kind == b"%error"
            self._current = None
        elif reply.size <= MAX_REPLY:
            reply.size += len(line) + 1
            reply.lines.append(line)

    def _take_output(self, line: bytes) -> None:
        """`%output PANE TEXT`, or `%extended-output PANE AGE : TEXT`."""
        kind, _, rest = line.partition(b" ")
        pane, _, text = rest.partition(b" ")
        if kind == b"%extended-output":
            text = text.partition(b" : ")[2]
        if pane == PANE:
            try:
                # Exactly the escapes that tmux makes: a backslash and three octal digits.
                text = _codecs.escape_decode(text)[0]
            except (ValueError, Warning):
                return  # not tmux's
            self._on_output(text)
