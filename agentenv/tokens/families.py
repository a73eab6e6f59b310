"""Model families of the `renderers` library, made safe for untrusted content."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any, get_args

import renderers  # type: ignore[import-untyped]
from jinja2 import TemplateError
from renderers.base import (  # type: ignore[import-untyped]
    MODEL_RENDERER_MAP,
    ParsedToolCall,
    ToolCallParseStatus,
)
from renderers.reasoning import (  # type: ignore[import-untyped]
    prompt_ends_in_reasoning,
)

from agentenv.errors import ConfigError
from agentenv.tokens.base import ParsedReply
from agentenv_tools.parsing import DEFAULT_MAX_CALLS, build_call, finish_calls, parse_reply
from agentenv_tools.schema import ToolCall

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from agentenv.tokens.base import Message
    from agentenv.tokens.tokenizer import InertTokenizer
    from agentenv_tools.schema import ToolSchema

_HERMES = frozenset({"qwen3", "qwen3-vl"})
"""Families that write calls in Hermes' form: read by the same parser as text from a chat server."""
_NOT_FAMILIES = frozenset({"auto", "default", "custom", "gpt-oss"})
"""`gpt-oss` is written by a tokenizer of its own, which the inert one cannot stand in for."""
_RENDER_ERRORS = (
    ValueError,
    TypeError,
    KeyError,
    AttributeError,
    AssertionError,
    NotImplementedError,
    TemplateError,
)
_READABLE = frozenset({ToolCallParseStatus.OK, ToolCallParseStatus.UNKNOWN_TOOL})
_REASONS = {
    ToolCallParseStatus.INVALID_JSON: "it is no valid JSON",
    ToolCallParseStatus.UNCLOSED_BLOCK: "unterminated: the closing tag is missing",
    ToolCallParseStatus.MISSING_NAME: "it names no function",
    ToolCallParseStatus.MALFORMED_STRUCTURE: "it does not have the form of a tool call",
}


def known_families() -> list[str]:
    """The names `load_renderer` accepts beside `auto` and `template`."""
    configs = get_args(get_args(renderers.RendererConfig)[0])
    return sorted({config.model_fields["name"].default for config in configs} - _NOT_FAMILIES)


def family_for(tokenizer: Any) -> str:
    """The family of a model by its exact name, else `template`: nothing is guessed."""
    family = MODEL_RENDERER_MAP.get(getattr(tokenizer, "name_or_path", ""))
    return family if family in known_families() else "template"


class FamilyDialect:
    """A renderer of the library behind our contract."""

    notes: tuple[str, ...] = ()

    def __init__(self, tokenizer: InertTokenizer, family: str, options: Mapping[str, Any]) -> None:
        self.family = family
        self._tokenizer = tokenizer
        try:
            config = renderers.config_from_name(family)
            self._renderer = renderers.create_renderer(
                tokenizer, config, chat_template_kwargs=dict(options)
            )
        except Exception as error:
            name = getattr(tokenizer, "name_or_path", "")
            raise ConfigError(
                f"renderer {family!r} does not fit the tokenizer {name!r}: {error}. "
                "Choose the family the model was trained with, or `template` for the tokenizer's own chat template"
            ) from error
        self.stop_token_ids = tuple(dict.fromkeys(self._renderer.get_stop_token_ids()))

    def render(self, messages: Sequence[Message], tools: Sequence[ToolSchema]) -> list[int]:
        """The dialogue and the generation prompt."""
        try:
            return list(
                self._renderer.render_ids(
                    self._escaped_messages(messages),
                    tools=self._escaped_tools(tools),
                    add_generation_prompt=True,
                )
            )
        except _RENDER_ERRORS as error:
            roles = ", ".join(message.role for message in messages)
            raise ConfigError(
                f"renderer {self.family!r} cannot render a dialogue of [{roles}]: {error}"
            ) from error

    def bridge(
        self,
        prompt_ids: list[int],
        completion_ids: list[int],
        new_messages: Sequence[Message],
        tools: Sequence[ToolSchema],
    ) -> list[int] | None:
        """Prompt, completion and what follows, if the family keeps them as they are."""
        try:
            bridged = self._renderer.bridge_to_next_turn(
                prompt_ids,
                completion_ids,
                self._escaped_messages(new_messages),
                tools=self._escaped_tools(tools),
            )
        except _RENDER_ERRORS as error:
            raise ConfigError(
                f"renderer {self.family!r} cannot continue a dialogue: {error}"
            ) from error
        return None if bridged is None else list(bridged.token_ids)

    def parse(
        self, completion_ids: list[int], prompt_ids: list[int], tools: Sequence[ToolSchema]
    ) -> ParsedReply:
        """Read a completion."""
        text = self._tokenizer.readable(completion_ids)
        if self.family in _HERMES:
            thinking = prompt_ends_in_reasoning(
                self._tokenizer, prompt_ids, stop_ids=frozenset(self.stop_token_ids)
            )
            reply = parse_reply(
                self._tokenizer.readable(self._before_stop(completion_ids)), in_reasoning=thinking
            )
            return ParsedReply(text, reply.content, reply.reasoning, reply.tool_calls)
        try:
            parsed = self._renderer.parse_response(
                completion_ids,
                tools=[tool.to_openai() for tool in tools] or None,
                prompt_ids=prompt_ids or None,
            )
        except (RecursionError, *_RENDER_ERRORS) as error:
            reason = (
                f"Malformed tool call: the reply cannot be read ({type(error).__name__}: {error})"
            )
            return ParsedReply(text, "", None, (ToolCall("", raw_text=text, error=reason),))
        ids = self._before_stop(completion_ids)
        calls = [self._tool_call(call, ids) for call in parsed.tool_calls[: DEFAULT_MAX_CALLS + 1]]
        return ParsedReply(
            text, parsed.content, parsed.reasoning_content or None, finish_calls(calls)
        )

    def _before_stop(self, ids: list[int]) -> list[int]:
        end = next((i for i, token in enumerate(ids) if token in self.stop_token_ids), len(ids))
        return ids[:end]

    def _tool_call(self, parsed: ParsedToolCall, ids: list[int]) -> ToolCall:
        """A call as the library found it, with everything that is wrong with it as its `error`."""
        written = parsed.raw
        if parsed.token_span is not None:
            written = self._tokenizer.decode(ids[slice(*parsed.token_span)])
        if parsed.status in _READABLE:
            arguments = None if _lacks_arguments(parsed) else parsed.arguments
            return build_call(parsed.name, arguments, call_id=parsed.id, raw_text=written)
        error = f"Malformed tool call: {_REASONS.get(parsed.status, parsed.status)}"
        if parsed.status is ToolCallParseStatus.INVALID_JSON:
            error += _json_error(parsed.raw)
        return ToolCall(parsed.name or "", raw_text=written, error=error)

    def _escaped_messages(self, messages: Sequence[Message]) -> list[Any]:
        return [self._escaped_message(message) for message in messages]

    def _escaped_message(self, message: Message) -> dict[str, Any]:
        escape = self._tokenizer.escape
        broken = [call.raw_text for call in message.tool_calls if call.error is not None]
        content = "\n".join(part for part in [message.content, *broken] if part)
        escaped: dict[str, Any] = {"role": message.role, "content": escape(content)}
        calls = [
            {
                "type": "function",
                "id": escape(call.uniq_id),
                "function": {"name": escape(call.name), "arguments": self._escaped(call.arguments)},
            }
            for call in message.tool_calls
            if call.error is None
        ]
        optional = {
            "tool_calls": calls,
            "reasoning_content": message.reasoning and escape(message.reasoning),
            "tool_call_id": message.tool_call_id and escape(message.tool_call_id),
            "name": message.name and escape(message.name),
        }
        return escaped | {key: value for key, value in optional.items() if value}

    def _escaped_tools(self, tools: Sequence[ToolSchema]) -> list[Any] | None:
        return [self._escaped(tool.to_openai()) for tool in tools] or None

    def _escaped(self, value: Any) -> Any:
        """A JSON value with every string in it escaped, keys too."""
        if isinstance(value, str):
            return self._tokenizer.escape(value)
        if isinstance(value, dict):
            return {self._escaped(key): self._escaped(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self._escaped(item) for item in value]
        return value


def _lacks_arguments(parsed: ParsedToolCall) -> bool:
    """Whether the library made up empty arguments: the call is a JSON object that gives none."""
    if parsed.arguments != {} or not parsed.raw.lstrip().startswith("{"):
        return False
    return not re.search(r'"(arguments|parameters)"\s*:', parsed.raw)


def _json_error(text: str) -> str:
    """Where and why `text` is no JSON, as the end of a sentence."""
    try:
        json.loads(text)
    except json.JSONDecodeError as error:
        return f" at character {error.pos}: {error.msg}"
    except (ValueError, RecursionError) as error:
        return f": {error}"
    return ""
