"""What the terminal's programs have written: kept for `stream`, recorded, and read for the shell's marks.

The shell marks where it prompts and where it begins a command. The marks are taken out of what is kept; no terminal
would show them.
"""

from __future__ import annotations

import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Tuple

    from .slot_recording import Recording

KEPT_BYTES = 1 << 20
"""How far `read` can go back, at least."""
PROMPTS = {"PS1": r"\[\e]7373;p\a\]\w\$ ", "PS2": r"\[\e]7373;p\a\]> ", "PS0": r"\e]7373;c\a"}
"""Variables that make a bash mark its output."""
_MARK, _PROMPT, _COMMAND = b"\x1b]7373;", b"p\x07", b"c\x07"
_WHOLE_MARKS = (_MARK + _PROMPT, _MARK + _COMMAND)
_LOST = b"\r\n[output was lost here: there was more than could be read]\r\n"


class PaneOutput:
    """The output of one terminal, from its start on."""

    def __init__(self, recording: Recording) -> None:
        self._recording = recording
        self._kept = bytearray()
        self._start = 0
        self._rest = b""
        self.prompts = 0
        """How often the shell has prompted. Drawing a prompt again counts too."""
        self.commands = 0
        """How many commands the shell has begun."""
        self.at_prompt = False
        self.last_at = time.monotonic()
        """When something was written last."""

    def take_in(self, data: bytes) -> None:
        """The programs wrote this."""
        self.last_at = time.monotonic()
        data = self._without_marks(data)
        self._recording.output(data)
        self._kept += data
        if len(self._kept) > 2 * KEPT_BYTES:
            excess = len(self._kept) - KEPT_BYTES
            del self._kept[:excess]
            self._start += excess

    def note_loss(self) -> None:
        """They wrote more, and nobody knows what or how much."""
        self.take_in(_LOST)

    def read(self, offset: int, limit: int) -> Tuple[bytes, int]:
        """Up to `limit` bytes from `offset`, or from the first that is kept; and the offset after them."""
        start = min(max(offset, self._start), self._start + len(self._kept))
        first = start - self._start
        data = bytes(self._kept[first : first + limit])
        return data, start + len(data)

    def _without_marks(self, data: bytes) -> bytes:
        data = self._rest + data
        self._rest = b""
        if b"\x1b" not in data:
            return data
        pieces = data.split(_MARK)
        clean = [pieces[0]]
        for piece in pieces[1:]:
            if piece[:2] in (_PROMPT, _COMMAND):
                self._count(piece[:2])
                clean.append(piece[2:])
            else:
                clean.append(_MARK + piece)
        return self._hold_back(b"".join(clean))

    def _count(self, mark: bytes) -> None:
        self.at_prompt = mark == _PROMPT
        if self.at_prompt:
            self.prompts += 1
        else:
            self.commands += 1

    def _hold_back(self, data: bytes) -> bytes:
        """Keep an end that may be the beginning of a mark until there is more."""
        begin = data.rfind(b"\x1b", max(0, len(data) - len(_MARK) - 1))
        if begin >= 0 and any(mark.startswith(data[begin:]) for mark in _WHOLE_MARKS):
            self._rest = data[begin:]
            return data[:begin]
        return data
