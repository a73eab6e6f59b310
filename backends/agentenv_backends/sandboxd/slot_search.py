"""Finding files by name and lines by content. Runs in a child of the init (`slot_child`)."""

from __future__ import annotations

import os
import stat
import time

from .lean import json_text
from .refusal import RefusedError
from .slot_files import FILE_FLAGS, MAX_LISTED_ENTRIES, read_range
from .slot_walk import Walk

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, Dict, Iterable, Iterator, List, Optional, Tuple

    from .slot_files import Workspace

    Search = Callable[[str], int]

MAX_ANSWER = 8 << 20
MAX_MATCHES = 10_000
MAX_CONTEXT = 50
MAX_SEARCHED_FILE = 8 << 20
"""Larger files are skipped."""
MAX_LINE = 500
"""Characters of a line that are shown."""
GLOB_S = 10.0
"""After this long a walk says what it has found so far."""
_SPECIAL = frozenset("\\.^$*+?{}[]|()")


def glob(workspace: Workspace, header: Dict[str, Any]) -> Tuple[bytes, bytes]:
    """Paths of files that match, as JSON."""
    limit = _in_range("max_results", header["max"], 1, MAX_LISTED_ENTRIES)
    walk = Walk([header["pattern"]], header["ignore"], time.monotonic() + GLOB_S)
    rows = _Rows(limit)
    rows.take(json_text(file.path) for file in walk.files(workspace, header["cwd"]))
    return rows.answer(cut=walk.cut)


def grep(workspace: Workspace, header: Dict[str, Any]) -> Tuple[bytes, bytes]:
    """Lines in which a regular expression is found, as JSON."""
    limit = _in_range("max_results", header["max"], 1, MAX_MATCHES)
    context = _in_range("context_lines", header["context"], 0, MAX_CONTEXT)
    lines = _Lines(header["pattern"], context)
    walk = Walk(header["include"] or ["*"], [], float("inf"))
    rows = _Rows(limit)
    skipped = 0
    for file in walk.files(workspace, header["cwd"]):
        if not file.regular:
            continue
        text = _read_text(file.folder, file.name)
        if text is None:
            skipped += 1
            continue
        path = json_text(file.path)
        if not rows.take("[%s,%s]" % (path, row) for row in lines.find(text)):
            break
    return rows.answer(cut=walk.cut, skipped=skipped)


class _Rows:
    """JSON texts up to a number and a size."""

    def __init__(self, limit: int) -> None:
        self._rows: List[str] = []
        self._room = MAX_ANSWER
        self._limit = limit
        self._cut = False

    def take(self, rows: Iterable[str]) -> bool:
        """Take in what fits; False when something did not."""
        for row in rows:
            self._room -= len(row)
            if len(self._rows) == self._limit or self._room < 0:
                self._cut = True
                return False
            self._rows.append(row)
        return True

    def answer(self, *, cut: bool, skipped: int = 0) -> Tuple[bytes, bytes]:
        """Header and body."""
        truncated = b"true" if cut or self._cut else b"false"
        header = b'{"truncated":%s,"skipped":%d}' % (truncated, skipped)
        return header, ("[" + ",".join(self._rows) + "]").encode("ascii")


# --- searching --------------------------------------------------------------------------------------------------------


class _Lines:
    """The lines of a text in which a pattern is found, as parts of JSON rows."""

    def __init__(self, pattern: str, context: int) -> None:
        self._context = context
        if _SPECIAL.isdisjoint(pattern):
            self._literal = pattern
            self._search: Search = lambda line: line.find(pattern)
        else:
            self._search, self._literal = _compiled(pattern)

    def find(self, text: str) -> Iterator[str]:
        """Number, text and, where context is asked for, the lines around."""
        if self._literal and self._literal not in text:
            return
        if "\r\n" in text:
            text = text.replace("\r\n", "\n")
        lines = _split(text) if self._context or not self._literal else []
        candidates = self._holding_literal(text) if self._literal else enumerate(lines)
        for number, line in candidates:
            at = self._search(line)
            if at >= 0:
                yield self._row(number, line, at, lines)

    def _holding_literal(self, text: str) -> Iterator[Tuple[int, str]]:
        """Only the lines that hold what every match must hold."""
        number = start = 0
        at = text.find(self._literal)
        while at >= 0:
            begin = text.rfind("\n", start, at) + 1 or start
            end = text.find("\n", at)
            end = len(text) if end < 0 else end
            number += text.count("\n", start, begin)
            yield number, text[begin:end]
            start = begin
            at = text.find(self._literal, end + 1)

    def _row(self, number: int, line: str, at: int, lines: List[str]) -> str:
        row = "%d,%s" % (number + 1, json_text(_cut(line, at)))
        if not self._context:
            return row
        before = lines[max(0, number - self._context) : number]
        after = lines[number + 1 : number + 1 + self._context]
        return "%s,%s,%s" % (row, _json_list(before), _json_list(after))


def _split(text: str) -> List[str]:
    """Lines, without the nothing after the last line end."""
    lines = text.split("\n")
    if not lines[-1]:
        lines.pop()
    return lines


def _json_list(lines: List[str]) -> str:
    return "[" + ",".join(json_text(_cut(line, 0)) for line in lines) + "]"


def _cut(line: str, at: int) -> str:
    """A line as it is shown: not long, and with the place of the match in it."""
    if len(line) <= MAX_LINE:
        return line
    begin = 0 if at < MAX_LINE else at - MAX_LINE // 4
    shown = line[begin : begin + MAX_LINE]
    return ("..." if begin else "") + shown + ("..." if begin + MAX_LINE < len(line) else "")


def _compiled(pattern: str) -> Tuple[Search, str]:
    """How to search a line, and a text that each line with a match holds ("" when none is known)."""
    import re  # noqa: PLC0415 - costs more than a search for plain text, and stays out of the init
    import warnings  # noqa: PLC0415

    warnings.simplefilter("ignore")
    try:
        expression = re.compile(pattern)
    except re.error as error:
        where = "" if error.pos is None else " at position %d" % error.pos
        raise RefusedError("bad_request", "pattern: %s%s" % (error.msg, where)) from error
    except (OverflowError, RecursionError) as error:
        raise RefusedError("bad_request", "pattern: too large") from error

    def search(line: str) -> int:
        match = expression.search(line)
        return -1 if match is None else match.start()

    return search, _required(pattern) if not expression.flags & (re.I | re.X) else ""


def _required(pattern: str) -> str:
    """The longest run of plain characters that stand side by side at the top level of a pattern."""
    try:
        from re import _parser as parser  # type: ignore[attr-defined]  # noqa: PLC0415
    except ImportError:  # before Python 3.11
        import sre_parse as parser  # noqa: PLC0415
    runs = [""]
    for operation, argument in parser.parse(pattern):
        if operation is parser.LITERAL:
            runs[-1] += chr(argument)
        else:
            runs.append("")
    return max(runs, key=len)


def _read_text(folder: int, name: str) -> Optional[str]:
    """A file's text; None when it is none, too large, or cannot be read."""
    try:
        descriptor = os.open(name, os.O_RDONLY | FILE_FLAGS, dir_fd=folder)
    except OSError:
        return None
    try:
        info = os.fstat(descriptor)
        if not stat.S_ISREG(info.st_mode) or info.st_size > MAX_SEARCHED_FILE:
            return None
        return _as_text(read_range(descriptor, 0, info.st_size))
    except OSError:
        return None
    finally:
        os.close(descriptor)


def _as_text(data: bytes) -> Optional[str]:
    """UTF-8 without a NUL byte as text; None for anything else."""
    if b"\0" in data:
        return None
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return None


def _in_range(name: str, value: Any, least: int, most: int) -> int:
    number = int(value)
    if not least <= number <= most:
        raise RefusedError("bad_request", "%s is %d to %d, not %d" % (name, least, most, number))
    return number
