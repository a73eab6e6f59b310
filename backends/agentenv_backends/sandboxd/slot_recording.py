"""What a slot's shell and terminal recorded: events of asciinema's kinds, kept until they are handed out.

All recordings of a slot share `MAX_BYTES`. When they are used up, the recording that has more to say says no more until
what is kept has been handed out; the bytes are counted.
"""

from __future__ import annotations

import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import List, Optional, Tuple

MAX_BYTES = 1 << 20
_EVENT_BYTES = 64
"""What an event counts for beside its text."""
_MERGE_S = 0.01
"""Output that follows so closely belongs to the same event."""


class Recording:
    """One shell or terminal. Times are seconds since it was begun; texts are cut between characters only."""

    def __init__(
        self, book: Book, session: str, size: Tuple[int, int], began: Optional[float] = None
    ) -> None:
        self._book = book
        self.session = session
        self._session = session.encode("ascii")
        self._size = self._first_size = size
        self.began = time.monotonic() if began is None else began
        self._events: List[Tuple[float, bytes, bytes]] = []
        """Time, kind and text of each."""
        self.rests = [b"", b""]
        """The unfinished character at the end of each stream."""
        self._dropped = 0
        self.ended = False

    def output(self, data: bytes, stream: int = 0) -> None:
        """It wrote this, on the first or second of its streams."""
        if self._dropped or len(data) + _EVENT_BYTES > self._book.room:
            self.drop(len(data))
            return
        rest = self.rests[stream]
        text, self.rests[stream] = whole_characters(rest + data if rest else data)
        if not text:
            return
        now = time.monotonic() - self.began
        at_s, kind, before = self._events[-1] if self._events else (now, b"", b"")
        if kind == b"o" and now - at_s < _MERGE_S:
            self._events[-1] = (at_s, b"o", before + text)
            self._book.room -= len(text)
        else:
            self._add(now, b"o", text)

    def input(self, text: bytes) -> None:
        """This was typed."""
        if self._dropped or len(text) + _EVENT_BYTES > self._book.room:
            self.drop(len(text))
        else:
            self._add(time.monotonic() - self.began, b"i", text)

    def line(self, text: bytes, now: float) -> None:
        """This line, without its end, was typed after a prompt at that time of `time.monotonic`, and shown as terminals
        do.
        """
        shown = self.rests[0] + b"$ " + text.replace(b"\n", b"\r\n") + b"\r\n"
        size = len(text) + 1 + len(shown)
        if self._dropped or size + 2 * _EVENT_BYTES > self._book.room:
            self.drop(size)
            return
        self.rests[0] = b""
        at_s = now - self.began
        self._events += ((at_s, b"i", text + b"\n"), (at_s, b"o", shown))
        self._book.room -= size + 2 * _EVENT_BYTES

    def resize(self, size: Tuple[int, int]) -> None:
        """It has another size, in columns and rows."""
        if size != self._size:
            self._size = size
            self._add(time.monotonic() - self.began, b"r", b"%dx%d" % size)

    def drop(self, count: int) -> None:
        """So many bytes are not kept, and none after them until the next `take`."""
        self._dropped += count
        self.rests = [b"", b""]

    def end(self) -> None:
        """There is nothing to come; what there is will still be handed out."""
        self.ended = True

    def take(self, headers: List[bytes], texts: List[bytes]) -> None:
        """Add what is new, if anything is: as JSON with the lengths of the texts, and the texts."""
        if not (self._events or self._dropped):
            return
        rows = []
        for at_s, kind, text in self._events:
            rows.append(b'[%.6f,"%s",%d]' % (at_s, kind, len(text)))
            texts.append(text)
        columns, lines = self._first_size
        headers.append(
            b'["%s",%d,%d,%d,[%s]]'
            % (self._session, columns, lines, self._dropped, b",".join(rows))
        )
        self._events, self._dropped, self._first_size = [], 0, self._size

    def _add(self, at_s: float, kind: bytes, text: bytes) -> None:
        self._events.append((at_s, kind, text))
        self._book.room -= len(text) + _EVENT_BYTES


class Book:
    """All recordings of a slot."""

    def __init__(self) -> None:
        self.room = MAX_BYTES
        """Bytes that are still kept."""
        self._recordings: List[Recording] = []
        self._begun = 0

    def begin(self, kind: str, size: Tuple[int, int]) -> Recording:
        """Record another session, named after its kind and number."""
        self._begun += 1
        recording = Recording(self, "%s-%d" % (kind, self._begun), size)
        self._recordings.append(recording)
        return recording

    def resume(self, session: str, size: Tuple[int, int], began: float) -> Recording:
        """Go on with a session that another book has begun."""
        recording = Recording(self, session, size, began)
        self._recordings.append(recording)
        return recording

    def take(self) -> Tuple[bytes, bytes]:
        """Everything new, to be handed out: a JSON list, and the texts of its events one after the other."""
        headers: List[bytes] = []
        texts: List[bytes] = []
        lasting: List[Recording] = []
        for recording in self._recordings:
            recording.take(headers, texts)
            if not recording.ended:
                lasting.append(recording)
        self._recordings, self.room = lasting, MAX_BYTES
        return b"[%s]" % b",".join(headers), b"".join(texts)


def whole_characters(data: bytes) -> Tuple[bytes, bytes]:
    """Cut off a UTF-8 character at the end that is still to be completed. What is no UTF-8 stays whole."""
    for length in range(1, min(3, len(data)) + 1):
        byte = data[-length]
        if byte < 0x80:
            break
        if byte >= 0xC0:
            needed = 2 if byte < 0xE0 else 3 if byte < 0xF0 else 4
            return (data[:-length], data[-length:]) if length < needed else (data, b"")
    return data, b""
