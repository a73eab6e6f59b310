"""Tool calls out of a model's text, in the Hermes form.

    <tool_call>
    {"name": "terminal", "arguments": {"command": "ls"}, "id": "optional"}
    </tool_call>

and the short form `<tool_call>terminal{"command": "ls"}</tool_call>`. The rules:

* Every block is a call or an error the model gets to read (`ToolCall.error`, with position and
  reason): nothing is dropped silently, and arguments are never made up. Each block stands alone;
  good ones run beside broken ones.
* `</tool_call>` inside a JSON string is part of the string. What a broken call had taken as its own
  text is not read again, so a call quoted inside a broken one does not run.
* Inside `<think>...</think>` nothing is a call. A first `</think>` without a `<think>` closes
  thinking that the prompt had opened: all before it is reasoning.
* Code fences mean nothing: the tags are control syntax wherever they stand outside of thinking.
* At most `max_calls` blocks are read; one error answers all the rest. Ids given twice are made
  unique.

Time is linear in the length of the text. Feed it whole completions only, never tool output or
history.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from agentenv_tools.errors import ToolCallFormatError
from agentenv_tools.json_values import JsonError, read_object, validate_json_arguments
from agentenv_tools.schema import ToolCall, new_call_id

if TYPE_CHECKING:
    from collections.abc import Iterable

DEFAULT_MAX_CALLS = 16

_OPEN, _CLOSE = "<tool_call>", "</tool_call>"
_THINK, _UNTHINK = "<think>", "</think>"
_TAG = re.compile(r"</?tool_call>|</?think>")
_CALL_TAG = re.compile(r"</?tool_call>")
_SPACE = re.compile(r"\s*+")
_SHORT_NAME = re.compile(r"([A-Za-z_][A-Za-z0-9_.-]*+)\s*+(?=\{)")
_MAX_NAME_CHARS = 128
_NEAR_CHARS = 40


@dataclass(frozen=True, slots=True)
class ParsedText:
    """A reply, taken apart."""

    content: str
    """What is outside of thinking and calls, without blanks at its ends."""
    reasoning: str | None
    tool_calls: tuple[ToolCall, ...]
    """In the order written; malformed ones have their `error` set."""


def parse_reply(
    text: str, *, max_calls: int = DEFAULT_MAX_CALLS, in_reasoning: bool = False
) -> ParsedText:
    """Take a whole reply apart. Never raises for anything a model may write.

    `in_reasoning`: the prompt ended inside `<think>`, so the reply starts there.
    """
    return _Reader(_encodable(text), max_calls).read(in_reasoning=in_reasoning)


def parse_tool_calls(text: str, *, max_calls: int = DEFAULT_MAX_CALLS) -> tuple[ToolCall, ...]:
    """The calls of a whole reply. See `parse_reply`."""
    return parse_reply(text, max_calls=max_calls).tool_calls


def build_call(
    name: object, arguments: object, *, call_id: object = None, raw_text: str = ""
) -> ToolCall:
    """A call from parts some other parser found. Anything wrong with them becomes the call's `error`."""
    uniq_id = _usable_id(call_id)
    if not isinstance(name, str) or not name.strip() or len(name) > _MAX_NAME_CHARS:
        error = f"Malformed tool call: 'name' must be text of 1 to {_MAX_NAME_CHARS} characters"
        return ToolCall("", raw_text=raw_text, uniq_id=uniq_id, error=error)
    name = _encodable(name.strip())
    try:
        return ToolCall(name, validate_json_arguments(arguments), raw_text, uniq_id)
    except ToolCallFormatError as error:
        return ToolCall(
            name, raw_text=raw_text, uniq_id=uniq_id, error=f"Malformed tool call: {error}"
        )


def finish_calls(
    calls: Iterable[ToolCall], *, max_calls: int = DEFAULT_MAX_CALLS
) -> tuple[ToolCall, ...]:
    """The calls of one reply with unique ids, and those beyond `max_calls` refused one by one."""
    refusal = f"Refused: at most {max_calls} tool calls per reply; this one was not run"
    taken: dict[str, int] = {}
    finished = []
    for index, call in enumerate(calls):
        error = call.error if index < max_calls else refusal
        finished.append(replace(call, uniq_id=_unique(call.uniq_id, taken), error=error))
    return tuple(finished)


class _Reader:
    """One pass over one reply."""

    def __init__(self, text: str, max_calls: int) -> None:
        self._text = text
        self._max_calls = max_calls
        self._calls: list[ToolCall] = []
        self._content: list[str] = []
        self._reasoning: list[str] = []

    def read(self, *, in_reasoning: bool) -> ParsedText:
        position = self._read_reasoning(0) if in_reasoning else 0
        while match := _TAG.search(self._text, position):
            self._content.append(self._text[position : match.start()])
            position = self._read_tag(match)
        self._content.append(self._text[position:])
        return ParsedText(
            content="".join(self._content).strip(),
            reasoning="\n".join(self._reasoning).strip() or None,
            tool_calls=finish_calls(self._calls, max_calls=self._max_calls + 1),
        )

    def _read_tag(self, match: re.Match[str]) -> int:
        """Handle the tag at `match`; returns where to go on."""
        tag = match[0]
        if tag == _THINK:
            return self._read_reasoning(match.end())
        if tag == _UNTHINK:
            self._end_prompted_reasoning(tag)
            return match.end()
        if len(self._calls) == self._max_calls:
            return self._refuse_rest(match.start())
        if tag == _CLOSE:
            self._malformed(match.start(), f"{_CLOSE} without {_OPEN} before it", match.end())
            return match.end()
        return self._read_block(match.start(), match.end())

    def _read_reasoning(self, start: int) -> int:
        """Everything up to `</think>`, or to the end: a reply cut while thinking makes no calls."""
        end = self._text.find(_UNTHINK, start)
        if end < 0:
            end = len(self._text)
        self._reasoning.append(self._text[start:end])
        return min(end + len(_UNTHINK), len(self._text))

    def _end_prompted_reasoning(self, tag: str) -> None:
        if self._reasoning:
            self._content.append(tag)  # thinking was closed already: only text
            return
        self._reasoning.append("".join(self._content))
        self._content.clear()
        self._calls.clear()

    def _read_block(self, opened: int, start: int) -> int:
        """The block whose content begins at `start`; returns where to go on."""
        start = _skip_space(self._text, start)
        short = _SHORT_NAME.match(self._text, start)
        body = short.end() if short else start
        if not self._text.startswith("{", body):
            reason = 'expected {"name": ..., "arguments": {...}} or name{...}'
            return self._malformed(opened, reason, body)
        try:
            span = read_object(self._text, body)
        except JsonError as error:
            return self._malformed(opened, str(error), error.end, at=error.position)
        after = _skip_space(self._text, span.end)
        if not self._text.startswith(_CLOSE, after):
            return self._malformed(opened, _why_unclosed(self._text, after), span.end, at=after)
        end = after + len(_CLOSE)
        self._calls.append(_call_of(short and short[1], span.value, self._text[opened:end]))
        return end

    def _malformed(self, opened: int, reason: str, read_to: int, *, at: int | None = None) -> int:
        """Note a malformed call that had been read up to `read_to`; returns where the next one can start."""
        tag = _CALL_TAG.search(self._text, read_to)
        end = len(self._text) if tag is None else tag.end() if tag[0] == _CLOSE else tag.start()
        position = opened if at is None else at
        near = self._text[max(opened, position - _NEAR_CHARS // 2) : position + _NEAR_CHARS // 2]
        error = (
            f"Malformed tool call at character {position} of the reply (near {near!r}): {reason}"
        )
        self._calls.append(ToolCall("", raw_text=self._text[opened:end], error=error))
        return end

    def _refuse_rest(self, start: int) -> int:
        count = max(1, self._text.count(_OPEN, start))
        error = (
            f"Refused: at most {self._max_calls} tool calls per reply; {count} more were not run"
        )
        self._calls.append(ToolCall("", error=error))
        return len(self._text)


def _call_of(short_name: str | None, value: dict[str, Any], raw_text: str) -> ToolCall:
    if short_name is not None:
        return build_call(short_name, value, raw_text=raw_text)
    call_id = value.get("uniq_id", value.get("id"))
    if "arguments" not in value:
        call = build_call(value.get("name"), {}, call_id=call_id, raw_text=raw_text)
        reason = "'arguments' is missing; give {} for a tool that takes none"
        return replace(call, error=call.error or f"Malformed tool call: {reason}")
    return build_call(value.get("name"), value["arguments"], call_id=call_id, raw_text=raw_text)


def _why_unclosed(text: str, position: int) -> str:
    if position == len(text) or text.startswith(_OPEN, position):
        return f"unterminated: {_CLOSE} is missing after the JSON object"
    return f"unexpected text between the JSON object and {_CLOSE}; write one call per {_OPEN}"


def _skip_space(text: str, position: int) -> int:
    match = _SPACE.match(text, position)
    assert match is not None
    return match.end()


def _usable_id(call_id: object) -> str:
    if isinstance(call_id, int) and not isinstance(call_id, bool):
        call_id = str(call_id)
    if isinstance(call_id, str) and 0 < len(call_id) <= _MAX_NAME_CHARS:
        return _encodable(call_id)
    return new_call_id()


def _unique(uniq_id: str, taken: dict[str, int]) -> str:
    """`uniq_id`, or the first of `uniq_id-2`, `uniq_id-3`, ... that is free."""
    candidate = uniq_id
    while candidate in taken:
        taken[uniq_id] += 1
        candidate = f"{uniq_id}-{taken[uniq_id]}"
    taken[candidate] = 1
    return candidate


def _encodable(text: str) -> str:
    """Text as it is, or with lone surrogates (half characters) replaced, so that it can be written as UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-8", "replace").decode()
    return text
