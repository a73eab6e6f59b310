"""A cast as screens, for a report: what a terminal showed at the moments when that changed.

The terminal emulation is pyte's; what reaches it is sorted out first, because a cast holds whatever a model printed.
Only well-formed sequences are passed on, without strings for titles or the clipboard; parameters, sizes, events,
screens and their bytes are bounded; rendering a cast ends after `MAX_SECONDS` where a sequence was found that makes
the emulator slow. Colours are left out.
"""

from __future__ import annotations

import re
import time
from dataclasses import dataclass, field
from functools import lru_cache, partial
from itertools import groupby, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyte
from pyte import modes
from wcwidth import wcwidth

from agentenv.run.casts import CASTS_FOLDER, parse_cast, parse_size, read_cast

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from agentenv_backends.results import Recording, TerminalEvent

MAX_CAST_BYTES = 1_000_000
"""How much of a cast is replayed."""
MAX_FRAMES = 500
MAX_FRAME_CHARS = 400_000
"""Characters of all frames of a cast together."""
MAX_SECONDS = 3.0
MIN_FRAME_S = 0.04
"""Events closer to each other than this share a frame."""

_ALTERNATE_SCREENS = frozenset(mode << 5 for mode in (47, 1047, 1049))
_REFUSED_MODES = frozenset({modes.DECCOLM, modes.DECSCNM})
"""132 columns, and inverting all: costly to emulate, and nothing uses them."""
_MAX_PENDING_CHARS = 8_192
_CLOCK_EVERY = 64
_MAX_CASTS = 64

_TOKEN = re.compile(
    r"(?P<control>\x1b\[[0-9;?]{0,48}[@-~])"
    r"|(?P<other_control>\x1b\[[0-?]*[ -/]*[@-~])"
    r"|(?P<string>\x1b[\]PX^_][^\x07\x1b]*(?:\x07|\x1b\\))"
    r"|(?P<unfinished>\x1b(?:\[[0-?]*[ -/]*|[\]PX^_][^\x07\x1b]*\x1b?|[ -/]*)?\Z)"
    r"|(?P<charset>\x1b[ -/]+[0-~])"
    r"|(?P<escape>\x1b[0-~])"
    r"|(?P<dropped>[\x1b\x00-\x06\x0e-\x1f\x7f-\x9f])"
    r"|(?P<text>[^\x1b\x00-\x06\x0e-\x1f\x7f-\x9f]+)"
)
_PASSED_ON = frozenset({"control", "escape", "text"})


@dataclass(frozen=True, slots=True)
class Replay:
    """A session's frames. Each holds `t` (milliseconds), `at` (where the cursor is, or None) and `rows`, the rows
    that changed; `size` where that did.
    """

    session: str
    frames: list[dict[str, Any]]
    notes: list[str]

    def to_json(self, path: str) -> dict[str, Any]:
        """For the page."""
        return {"session": self.session, "path": path, "frames": self.frames, "notes": self.notes}


class Replays:
    """Renders the casts of one report, until together they took `max_chars` or `max_seconds`."""

    def __init__(
        self, run_dir: Path, *, max_chars: int = 10_000_000, max_seconds: float = 30.0
    ) -> None:
        self._run_dir = run_dir
        self._chars_left = max_chars
        self._ends = time.monotonic() + max_seconds

    def of(self, paths: object) -> list[dict[str, Any]]:
        """Each cast that a trajectory names, rendered or with the reason why not."""
        named = paths[:_MAX_CASTS] if isinstance(paths, list | tuple) else ()
        return [self._one(path) for path in named if isinstance(path, str)]

    def of_casts(self, casts: Iterable[tuple[str, bytes]]) -> list[dict[str, Any]]:
        """Casts that are at hand, by session."""
        return [
            self._rendered("", session, partial(parse_cast, cast, session, MAX_CAST_BYTES))
            for session, cast in islice(casts, _MAX_CASTS)
        ]

    def _one(self, path: str) -> dict[str, Any]:
        name = Path(path).name  # whatever a line says, only this folder is read
        file = self._run_dir / CASTS_FOLDER / name
        session = name.removesuffix(".cast").rpartition(".")[2]
        return self._rendered(path, session, partial(read_cast, file, MAX_CAST_BYTES))

    def _rendered(
        self, path: str, session: str, read: Callable[[], tuple[Recording, bool]]
    ) -> dict[str, Any]:
        if self._chars_left <= 0 or time.monotonic() > self._ends:
            note = "Not in this page, which holds as many terminals as it may."
            return Replay(session, [], [note]).to_json(path[:300])
        try:
            recording, more = read()
        except (OSError, ValueError, RecursionError) as error:
            return Replay(session, [], [f"It cannot be read: {error}"[:300]]).to_json(path[:300])
        replay = render(recording, max_chars=min(self._chars_left, MAX_FRAME_CHARS))
        if more:
            replay.notes.append(f"Only the first {MAX_CAST_BYTES:,} bytes of the file are shown.")
        self._chars_left -= sum(_size(frame) for frame in replay.frames)
        return replay.to_json(path[:300])


def render(
    recording: Recording, *, max_seconds: float = MAX_SECONDS, max_chars: int = MAX_FRAME_CHARS
) -> Replay:
    """The frames of a recording. Never raises for what is in it; takes bounded time and memory."""
    terminal = _Terminal(recording.width, recording.height)
    frames: list[dict[str, Any]] = []
    notes: list[str] = []
    deadline, chars = time.monotonic() + max_seconds, 0
    for moment in _moments(recording.events):
        terminal.apply(moment, deadline)
        frame = terminal.frame(moment[-1].at_s)
        if frame is not None:
            chars += _size(frame)
            frames.append(frame)
        if time.monotonic() > deadline:
            notes.append(f"It ends here: rendering took longer than {max_seconds:g} s.")
            break
        if chars > max_chars:
            notes.append("It ends here: its screens take more room than one terminal may have.")
            break
    return Replay(recording.session, frames, notes)


def _moments(events: Sequence[TerminalEvent]) -> list[list[TerminalEvent]]:
    """Events by the frame that they share: those that are close, and neighbours where there are too many."""
    shown = [event for event in events if event.kind != "i"]
    moments: list[list[TerminalEvent]] = []
    for event in shown:
        if moments and event.at_s - moments[-1][0].at_s < MIN_FRAME_S:
            moments[-1].append(event)
        else:
            moments.append([event])
    step = -(-len(moments) // MAX_FRAMES)
    if step <= 1:
        return moments
    joined = groupby(enumerate(moments), key=lambda entry: entry[0] // step)
    return [[event for _, moment in group for event in moment] for _, group in joined]


def _size(frame: dict[str, Any]) -> int:
    return 40 + sum(8 + len(row) for row in frame["rows"].values())


class _Terminal:
    """A pyte screen that takes anything, and what of it the last frame showed."""

    def __init__(self, width: int, height: int) -> None:
        self._screen = _Screen(width, height)
        self._stream = pyte.Stream(self._screen)
        self._pending = ""
        self._shown: dict[int, str] = {}
        self._size: tuple[int, int] | None = None
        self._cursor: list[int] | None = None

    def apply(self, events: Sequence[TerminalEvent], deadline: float) -> None:
        """Take what was printed; stops at the deadline."""
        for event in events:
            if event.kind == "r":
                size = parse_size(event.data)
                if size is not None:
                    self._screen.resize(lines=size[1], columns=size[0])
            elif not self._print(event.data, deadline):
                return

    def frame(self, at_s: float) -> dict[str, Any] | None:
        """What changed since the last frame; None when nothing did."""
        screen = self._screen
        size = (screen.columns, screen.lines)
        if size != self._size:
            self._shown.clear()
            screen.dirty.update(range(screen.lines))
        rows = {}
        for row in sorted(screen.dirty):
            text = screen.row(row) if row < screen.lines else ""
            if self._shown.get(row, "") != text:
                rows[row] = self._shown[row] = text
        screen.dirty.clear()
        cursor = screen.cursor_place()
        if not rows and cursor == self._cursor and size == self._size:
            return None
        frame: dict[str, Any] = {"t": round(at_s * 1000), "at": cursor, "rows": rows}
        if size != self._size:
            frame["size"] = list(size)
        self._cursor, self._size = cursor, size
        return frame

    def _print(self, data: str, deadline: float) -> bool:
        for number, token in enumerate(self._tokens(data)):
            if number % _CLOCK_EVERY == 0 and time.monotonic() > deadline:
                return False
            try:
                self._stream.feed(token)
            except Exception:  # noqa: BLE001, S112 - pyte raises anything for parameters it did not expect
                continue
        return True

    def _tokens(self, data: str) -> Iterator[str]:
        """Well-formed pieces that a screen can do something with. An unfinished sequence waits for the next data."""
        data, self._pending = self._pending + data, ""
        for found in _TOKEN.finditer(data):
            if found.lastgroup == "unfinished":
                self._pending = found[0] if len(found[0]) <= _MAX_PENDING_CHARS else ""
            elif found.lastgroup == "text":
                yield from _pieces(found[0])
            elif found.lastgroup in _PASSED_ON:
                yield found[0]


def _pieces(text: str) -> Iterator[str]:
    """Text without characters that take no room, which pyte would heap on one cell, in pieces of bounded length."""
    if not text.isascii():
        text = "".join(filter(_takes_room, text))
    for start in range(0, len(text), 1_000):
        yield text[start : start + 1_000]


@lru_cache(maxsize=4_096)
def _takes_room(character: str) -> bool:
    return character < "\x80" or wcwidth(character) > 0


@dataclass(slots=True)
class _Saved:
    """The normal screen, while a program shows another one."""

    buffer: dict[int, Any] = field(default_factory=dict)
    x: int = 0
    y: int = 0


class _Screen(pyte.Screen):
    """Without what takes time out of proportion, and with the alternate screen that editors and pagers use."""

    def __init__(self, columns: int, lines: int) -> None:
        self._normal: _Saved | None = None
        super().__init__(columns, lines)

    def row(self, number: int) -> str:
        """A row as text, without trailing blanks."""
        line = self.buffer.get(number)
        if not line:
            return ""
        last = min(max(line), self.columns - 1)
        return "".join(line[column].data for column in range(last + 1)).rstrip()

    def cursor_place(self) -> list[int] | None:
        """Characters before the cursor, which may be fewer than columns, and its row; None while it is hidden."""
        if self.cursor.hidden:
            return None
        row = self.cursor.y
        line = self.buffer[row]
        columns = range(min(self.cursor.x, self.columns - 1))
        return [sum(len(line[column].data) if column in line else 1 for column in columns), row]

    def reset(self) -> None:
        """Also back to the normal screen, with no cursor saved."""
        self._normal = None
        self.savepoints.clear()
        super().reset()

    def set_mode(self, *numbers: int, **keywords: Any) -> None:
        """See `pyte.Screen.set_mode`."""
        if keywords.get("private") and self._touches_alternate(numbers) and self._normal is None:
            self._normal = _Saved(dict(self.buffer), self.cursor.x, self.cursor.y)
            self._clear()
        super().set_mode(*_allowed(numbers, keywords), **keywords)

    def reset_mode(self, *numbers: int, **keywords: Any) -> None:
        """See `pyte.Screen.reset_mode`."""
        saved = self._normal
        if keywords.get("private") and self._touches_alternate(numbers) and saved is not None:
            self._clear()
            self.buffer.update(saved.buffer)
            self.cursor.x, self.cursor.y = saved.x, saved.y
            self.ensure_hbounds()
            self.ensure_vbounds()
            self._normal = None
        super().reset_mode(*_allowed(numbers, keywords), **keywords)

    def erase_in_display(self, how: int = 0, *others: Any, **keywords: Any) -> None:
        """See `pyte.Screen.erase_in_display`; whole rows go at once."""
        rows = {
            0: range(self.cursor.y + 1, self.lines),
            1: range(self.cursor.y),
            2: range(self.lines),
        }.get(how, range(0))
        for row in rows:
            self.buffer.pop(row, None)
        self.dirty.update(rows)
        if how in (0, 1):
            self.erase_in_line(how)

    def save_cursor(self) -> None:
        """See `pyte.Screen.save_cursor`; a terminal has one place for it, not a pile."""
        self.savepoints.clear()
        super().save_cursor()

    def alignment_display(self) -> None:
        """Fills the screen with E. Left out."""

    def _clear(self) -> None:
        self.buffer.clear()
        self.dirty.update(range(self.lines))

    @staticmethod
    def _touches_alternate(numbers: Sequence[int]) -> bool:
        return any(number << 5 in _ALTERNATE_SCREENS for number in numbers)


def _allowed(numbers: Sequence[int], keywords: dict[str, Any]) -> list[int]:
    shift = 5 if keywords.get("private") else 0
    return [number for number in numbers if number << shift not in _REFUSED_MODES]
