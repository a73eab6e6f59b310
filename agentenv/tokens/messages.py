"""Dialogues as plain chat messages: for people, for chat-only servers, and for chat templates
without tool support.

The form is Hermes': the tools in the system prompt, calls between `<tool_call>` tags, and the
results of one reply's calls joined into one user message of `<tool_response>` blocks.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from agentenv.tokens.base import Message
    from agentenv_tools.schema import ImagePart, ToolCall, ToolSchema

    Content = str | list[dict[str, Any]]

_TOOLS = """\
You are a function calling AI model. You may call one or more functions to assist with the user \
query. Don't make assumptions about what values to plug into functions. The signatures of the \
functions are within <tools></tools> XML tags:
<tools>
{tools}
</tools>

For each function call, return a JSON object with the function's name and arguments within \
<tool_call></tool_call> XML tags:
<tool_call>
{{"name": <function-name>, "arguments": <args-json-object>}}
</tool_call>

The results come back within <tool_response></tool_response> XML tags. When you need no further \
call, answer without one."""


def as_it_is(text: str) -> str:
    """`text`, unchanged."""
    return text


def system_prompt(
    tools: Sequence[ToolSchema], extra: str | None = None, *, quote: Callable[[str], str] = as_it_is
) -> str:
    """The Hermes function-calling prompt for `tools`, after `extra`; only `extra` where there are
    no tools.

    `quote` is applied to everything that is not part of the form.
    """
    parts = [quote(extra)] if extra else []
    if tools:
        lines = "\n".join(quote(tool.to_prompt()) for tool in tools)
        parts.append(_TOOLS.format(tools=lines))
    return "\n\n".join(parts)


def to_chat_messages(
    messages: Iterable[Message],
    *,
    quote: Callable[[str], str] = as_it_is,
    images: bool = False,
) -> list[dict[str, Any]]:
    """`messages` as OpenAI chat messages that hold text only, or text and images.

    An assistant's message holds its reasoning, its content and its calls as it wrote them. `quote`
    is applied to everything that is not part of the form. With `images`, the results of a reply's
    calls that hold images become a list of content parts: the API takes images in a user's message,
    which ours are, and in no tool's.
    """
    chat: list[dict[str, Any]] = []
    answering_calls = False
    for message in messages:
        if message.role == "tool":
            block = f"<tool_response>\n{quote(message.content)}\n</tool_response>"
            if not answering_calls:
                chat.append({"role": "user", "content": ""})
            shown = message.images if images else ()
            chat[-1]["content"] = _with_result(chat[-1]["content"], block, shown)
        else:
            content = (
                _assistant_text(message, quote)
                if message.role == "assistant"
                else quote(message.content)
            )
            chat.append({"role": message.role, "content": content})
        answering_calls = message.role == "tool"
    return chat


def _with_result(content: Content, block: str, images: Sequence[ImagePart]) -> Content:
    """What a user's message holds, and one more result of a tool: text as long as there is no image."""
    if isinstance(content, str):
        text = f"{content}\n{block}" if content else block
        if not images:
            return text
        content, block = [], text
    parts = [{"type": "image_url", "image_url": {"url": image.url}} for image in images]
    return [*content, {"type": "text", "text": block}, *parts]


def _assistant_text(message: Message, quote: Callable[[str], str]) -> str:
    thought = f"<think>\n{quote(message.reasoning)}\n</think>\n\n" if message.reasoning else ""
    said = [quote(message.content)] if message.content else []
    return thought + "\n".join([*said, *(_call_text(call, quote) for call in message.tool_calls)])


def _call_text(call: ToolCall, quote: Callable[[str], str]) -> str:
    if not call.raw_text:
        body = json.dumps({"name": call.name, "arguments": call.arguments}, ensure_ascii=False)
        return f"<tool_call>\n{quote(body)}\n</tool_call>"
    opening, closing = "<tool_call>", "</tool_call>"
    if call.raw_text.startswith(opening) and call.raw_text.endswith(closing):
        return opening + quote(call.raw_text[len(opening) : -len(closing)]) + closing
    return quote(call.raw_text)
