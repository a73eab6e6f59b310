"""Reading JSON that a model wrote: bounded in size, depth and time, and never a guess.

What comes out can always be written as valid UTF-8 JSON again: no NaN, no infinity, no number
beyond a double's range, no lone surrogate, no duplicate key. Literal newlines and tabs inside
strings are accepted.
"""

from __future__ import annotations

import json
import math
import re
from typing import TYPE_CHECKING, Any, NamedTuple

from agentenv_tools.errors import ToolCallFormatError

if TYPE_CHECKING:
    from collections.abc import Iterator

MAX_CHARS = 262_144
"""Characters of one call, and of all text in its arguments together."""
MAX_DEPTH = 64
"""How deeply objects and lists may be nested."""
MAX_VALUES = 20_000
"""Values in one call, at all levels together."""

# A string is taken whole, up to its closing quote or the end of what is read. Possessive
# quantifiers keep it linear.
_STRUCTURE = re.compile(r'"[^"\\]*+(?:\\.[^"\\]*+)*+(?P<close>"|\\?\Z)|[{}\[\]<]', re.DOTALL)
_SURROGATE = re.compile("[\ud800-\udfff]")
_MAX_NUMBER_BITS = 1024


class JsonError(ToolCallFormatError):
    """Text is no acceptable JSON. `position` is where, `end` is how far the text was taken to be part of it."""

    def __init__(self, reason: str, position: int, end: int | None = None) -> None:
        super().__init__(reason)
        self.position = position
        self.end = position if end is None else end


class _Span(NamedTuple):
    end: int
    value: Any


def validate_json_arguments(arguments: object) -> dict[str, Any]:
    """A call's arguments, wherever they come from: an object, or the text of one (decoded once).

    Raises `ToolCallFormatError` for anything else, with a reason the model can act on. Never makes
    up arguments.
    """
    if isinstance(arguments, str):
        arguments = _decode_text(arguments)
    if not isinstance(arguments, dict):
        raise ToolCallFormatError(
            f"'arguments' must be a JSON object such as {{}}, not {_kind(arguments)}"
        )
    if problem := _problem_in(arguments):
        raise ToolCallFormatError(problem)
    return arguments


def read_object(text: str, start: int) -> _Span:
    """The JSON object that starts at `text[start]` (a `{`), and where it ends. Raises `JsonError`.

    A `<` outside of a string ends the search for the closing brace, so that a broken object does
    not swallow what follows it.
    """
    end = _end_of_object(text, start)
    try:
        value = json.loads(text[start:end], strict=False, object_pairs_hook=_unique_keys)
    except json.JSONDecodeError as error:
        raise JsonError(error.msg, start + error.pos, end) from None
    except ValueError as error:  # duplicate keys, or an integer of thousands of digits
        raise JsonError(str(error), start, end) from None
    if problem := _problem_in(value):
        raise JsonError(problem, start, end)
    return _Span(end, value)


def _end_of_object(text: str, start: int) -> int:
    depth = 0
    limit = min(len(text), start + MAX_CHARS)
    for count, match in enumerate(_STRUCTURE.finditer(text, start, limit)):
        mark = text[match.start()]
        if count > 3 * MAX_VALUES:  # a value is at most two brackets and a key
            raise JsonError(f"more than {MAX_VALUES} values", match.start(), len(text))
        if mark in "{[":
            depth += 1
            if depth > MAX_DEPTH:
                raise JsonError(f"nested deeper than {MAX_DEPTH} levels", match.start(), len(text))
        elif mark in "}]":
            depth -= 1
            if depth == 0:
                return match.end()
        elif mark == "<":
            raise JsonError("the JSON object is not closed", match.start())
        elif match["close"] != '"':
            return _too_long_or_unclosed(text, match.start(), limit, "a string in it is not closed")
    return _too_long_or_unclosed(text, limit, limit, "the JSON object is not closed")


def _too_long_or_unclosed(text: str, position: int, limit: int, reason: str) -> int:
    if limit < len(text):
        reason = f"longer than {MAX_CHARS} characters"
    raise JsonError(reason, position, len(text))


def _decode_text(text: str) -> Any:
    stripped = text.strip()
    if not stripped.startswith("{"):
        raise ToolCallFormatError("'arguments' must be a JSON object, not text that holds none")
    span = read_object(stripped, 0)
    if span.end != len(stripped):
        raise ToolCallFormatError("'arguments' is text with more in it than one JSON object")
    return span.value


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {twice[:80]!r} occurs twice")
    return value


def _problem_in(value: Any) -> str | None:
    """Why a decoded value is not acceptable."""
    chars = 0
    for count, (item, depth) in enumerate(_walk(value)):
        if depth > MAX_DEPTH:
            return f"nested deeper than {MAX_DEPTH} levels"
        if problem := _problem_in_one(item):
            return problem
        chars += len(item) if isinstance(item, str) else 0
        if chars > MAX_CHARS:
            return f"longer than {MAX_CHARS} characters"
        if count > 2 * MAX_VALUES:  # keys are walked over as well
            return f"more than {MAX_VALUES} values"
    return None


def _walk(value: Any) -> Iterator[tuple[Any, int]]:
    """Each value and key with its depth, without recursion."""
    pending = [(value, 0)]
    while pending:
        item, depth = pending.pop()
        yield item, depth
        if isinstance(item, dict):
            pending.extend((child, depth + 1) for pair in item.items() for child in pair)
        elif isinstance(item, list):
            pending.extend((child, depth + 1) for child in item)


def _problem_in_one(item: object) -> str | None:
    if isinstance(item, str):
        surrogate = _SURROGATE.search(item)
        return (
            "a \\ud800-\\udfff escape without its other half is no character" if surrogate else None
        )
    if isinstance(item, dict):
        return None if all(isinstance(key, str) for key in item) else "keys must be text"
    return None if isinstance(item, list) else _problem_in_scalar(item)


def _problem_in_scalar(item: object) -> str | None:
    if item is None or isinstance(item, bool):
        return None
    if isinstance(item, int):
        return "number too large" if item.bit_length() > _MAX_NUMBER_BITS else None
    if isinstance(item, float):
        return (
            None
            if math.isfinite(item)
            else "NaN, Infinity and numbers beyond 1e308 are no JSON numbers"
        )
    return f"{type(item).__name__} is no JSON value"


def _kind(value: object) -> str:
    if value is None:
        return "null"
    return {list: "a list", bool: "a boolean", int: "a number", float: "a number"}.get(
        type(value), type(value).__name__
    )
