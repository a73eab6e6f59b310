"""JSON, one value a line: strictly valid, one line whatever the reader takes for a line break, torn
lines told apart.

Writing: UTF-8; lone surrogates become `?`; NaN and infinities become the strings `"NaN"`,
`"Infinity"`, `"-Infinity"`; what JSON does not know becomes what it means (numpy scalars and
arrays, enums, paths, sets) or its `repr`; U+2028, U+2029 and U+0085 are escaped. Long lists of
numbers are encoded in slices, so a thread that encodes a large group does not keep the interpreter
from running an event loop beside it.

Reading: see `scan`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, is_dataclass
from enum import Enum
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

import orjson
from pydantic import BaseModel

if TYPE_CHECKING:
    from pathlib import Path

_SLICE = 2048
_MAX_DEPTH = 100
_NUMBER_TYPES = frozenset({int, float})
_LINE_BREAKS = {"\u2028": "\\u2028", "\u2029": "\\u2029", "\x85": "\\u0085"}


def encode_line(value: Any) -> bytes:
    """`value` as one line of JSON with its newline. Never raises for what `value` holds."""
    return "".join(_pieces(value, 0)).encode("utf-8", "replace") + b"\n"


def encode_json(value: Any) -> bytes:
    """`value` as JSON, as `encode_line` would have it but for line breaks: several times as fast where it is plain."""
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    except (TypeError, ValueError, RecursionError):  # something that JSON does not know
        return encode_line(value).rstrip()
    return text.encode("utf-8", "replace")


def json_plain(value: Any) -> Any:
    """`value` as a reader of its line gets it back: dicts, lists and scalars, each key once (the last counts)."""
    return json.loads(encode_line(value))


def _pieces(value: Any, depth: int) -> Iterator[str]:
    if depth > _MAX_DEPTH:
        yield _scalar("<nested too deep>")
    elif isinstance(value, Mapping):
        yield from _mapping_pieces(value, depth)
    elif isinstance(value, list | tuple):
        yield from _list_pieces(value, depth)
    else:
        yield _scalar(value) if _is_scalar(value) else "".join(_pieces(_plain(value), depth + 1))


def _mapping_pieces(value: Mapping[Any, Any], depth: int) -> Iterator[str]:
    separator = "{"
    for key, entry in value.items():
        yield f"{separator}{_scalar(key if isinstance(key, str) else str(key))}:"
        yield from _pieces(entry, depth + 1)
        separator = ","
    yield "}" if separator == "," else "{}"


def _list_pieces(value: list[Any] | tuple[Any, ...], depth: int) -> Iterator[str]:
    separator = "["
    for start in range(0, len(value), _SLICE):
        part = value[start : start + _SLICE]
        yield separator + (
            _numbers(part) or ",".join("".join(_pieces(entry, depth + 1)) for entry in part)
        )
        separator = ","
    yield "]" if value else "[]"


def _numbers(values: list[Any] | tuple[Any, ...]) -> str | None:
    """A slice of plain finite numbers without its brackets, or None when it holds anything else."""
    if not _NUMBER_TYPES.issuperset(map(type, values)):
        return None
    try:
        finite = all(map(math.isfinite, values))
        return orjson.dumps(values)[1:-1].decode() if finite else None
    except (OverflowError, orjson.JSONEncodeError):  # a huge integer, which the slow way can write
        return None


def _is_scalar(value: Any) -> bool:
    return value is None or type(value) in (str, int, float, bool)


def _scalar(value: Any) -> str:
    if type(value) is float and not math.isfinite(value):
        value = "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    text = json.dumps(value, ensure_ascii=False)
    if isinstance(value, str) and not value.isascii():
        for character, escape in _LINE_BREAKS.items():
            text = text.replace(character, escape)
    return text


def _plain(value: Any) -> Any:
    """What a value that JSON does not know means, one step nearer to plain."""
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, BaseModel):
        return value.model_dump(mode="python")
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    if isinstance(value, set | frozenset):
        return sorted(value, key=repr)
    for base in (str, bool, int, float):
        if isinstance(value, base):
            return base(value)
    if isinstance(value, PurePath):
        return str(value)
    to_list = getattr(value, "tolist", None)  # numpy and torch
    return to_list() if callable(to_list) else repr(value)


def loads_strictly(raw: bytes) -> Any:
    """One JSON value. Raises `ValueError` for what is none, for a key that stands twice in one object, for NaN and for
    infinities; `RecursionError` for nesting beyond the interpreter's.
    """
    return json.loads(raw.decode(), object_pairs_hook=_unique, parse_constant=_refuse)


@dataclass(frozen=True, slots=True)
class Line:
    """A line that is a JSON object."""

    number: int
    """From 1."""
    offset: int
    """Bytes before it."""
    value: dict[str, Any]


@dataclass(frozen=True, slots=True)
class BadLine:
    """A line that cannot be used, and why."""

    number: int
    offset: int
    size: int
    reason: str
    torn: bool
    """It is the last and has no newline: its writer was interrupted.

    Any other bad line is damage.
    """


def scan(path: Path) -> Iterator[Line | BadLine]:
    """Every line of a file, good or bad, one at a time; blank ones are passed over. A byte order
    mark is no error.

    Bad is: not JSON, not an object, not UTF-8, the same key twice in an object, NaN and infinities.
    Raises `OSError`.
    """
    offset = 0
    with path.open("rb") as stream:
        for number, raw in enumerate(stream, start=1):
            text = raw.removeprefix(b"\xef\xbb\xbf") if number == 1 else raw
            if text.strip():
                yield _read_line(number, offset, text)
            offset += len(raw)


def _read_line(number: int, offset: int, raw: bytes) -> Line | BadLine:
    torn = not raw.endswith(b"\n")
    try:
        value = loads_strictly(raw)
    except (ValueError, RecursionError) as error:
        reason = f"{type(error).__name__}: {error}"
        return BadLine(number, offset, len(raw), "cut short" if torn else reason, torn)
    if not isinstance(value, dict):
        return BadLine(
            number, offset, len(raw), f"an object is expected, not {type(value).__name__}", torn
        )
    return Line(number, offset, value)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {twice!r} stands twice in one object")
    return value


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is not JSON")
