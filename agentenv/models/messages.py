"""Conversations as Pydantic AI's messages, and its replies as ours."""

from __future__ import annotations

import base64
import json
from typing import TYPE_CHECKING, Any

from pydantic_ai import messages as theirs
from pydantic_ai.tools import ToolDefinition

from agentenv.tokens.base import Message
from agentenv_tools.schema import ImagePart, ToolCall

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from agentenv_tools.schema import ToolSchema


def to_request(messages: Iterable[Message]) -> list[theirs.ModelMessage]:
    """Messages of a conversation with native calls. What was not written by the model and has no reply between is one
    request.
    """
    made: list[theirs.ModelMessage] = []
    for message in messages:
        if message.role == "assistant":
            made.append(_reply_of(message))
            continue
        parts = _request_parts(message)
        if made and isinstance(made[-1], theirs.ModelRequest):
            made[-1] = theirs.ModelRequest(parts=[*made[-1].parts, *parts])
        else:
            made.append(theirs.ModelRequest(parts=parts))
    return made


def chat_to_messages(chat: Sequence[dict[str, Any]]) -> list[Message]:
    """OpenAI chat messages as ours: text, and images of a user's message."""
    return [_message_of(entry) for entry in chat]


def to_tools(schemas: Iterable[ToolSchema]) -> list[ToolDefinition]:
    """Tools as a server is told of them."""
    functions = (schema.to_openai()["function"] for schema in schemas)
    return [
        ToolDefinition(
            name=function["name"],
            description=function["description"],
            parameters_json_schema=function["parameters"],
        )
        for function in functions
    ]


def text_of(response: theirs.ModelResponse) -> str:
    """What a reply says."""
    return "".join(part.content for part in response.parts if isinstance(part, theirs.TextPart))


def reasoning_of(response: theirs.ModelResponse) -> str | None:
    """What it shows of its thinking."""
    thoughts = [
        p.content for p in response.parts if isinstance(p, theirs.ThinkingPart) and p.content
    ]
    return "\n".join(thoughts) or None


def calls_of(response: theirs.ModelResponse) -> tuple[ToolCall, ...]:
    """Its calls, with the ids that the server gave them; one whose arguments are no JSON object has its error set."""
    return tuple(_call(part) for part in response.parts if isinstance(part, theirs.ToolCallPart))


def _call(part: theirs.ToolCallPart) -> ToolCall:
    given = part.args
    if given is None or given == "":
        return ToolCall(part.tool_name, uniq_id=part.tool_call_id)
    if isinstance(given, str):
        try:
            read = json.loads(given)
        except (ValueError, RecursionError) as error:
            return _bad_call(part, given, f"its arguments are no JSON: {error}")
        if not isinstance(read, dict):
            return _bad_call(
                part, given, f"its arguments must be an object, not {type(read).__name__}"
            )
        given = read
    return ToolCall(part.tool_name, dict(given), uniq_id=part.tool_call_id)


def _bad_call(part: theirs.ToolCallPart, text: str, reason: str) -> ToolCall:
    return ToolCall(part.tool_name, raw_text=text, uniq_id=part.tool_call_id, error=reason)


def _reply_of(message: Message) -> theirs.ModelResponse:
    if isinstance(message.native, theirs.ModelResponse):
        return message.native
    parts: list[theirs.ModelResponsePart] = []
    if message.content:
        parts.append(theirs.TextPart(message.content))
    parts.extend(
        theirs.ToolCallPart(call.name, call.arguments, tool_call_id=call.uniq_id)
        for call in message.tool_calls
    )
    return theirs.ModelResponse(parts=parts)


def _request_parts(message: Message) -> list[theirs.ModelRequestPart]:
    if message.role == "system":
        return [theirs.SystemPromptPart(message.content)]
    images = [
        theirs.BinaryContent(base64.b64decode(image.data), media_type=image.media_type)
        for image in message.images
    ]
    if message.role == "user":
        return [theirs.UserPromptPart([message.content, *images] if images else message.content)]
    result = theirs.ToolReturnPart(
        tool_name=message.name or "",
        content=message.content,
        tool_call_id=message.tool_call_id or "",
    )
    if not images:
        return [result]
    shown = f"What {message.name or 'the tool'} showed:"
    return [result, theirs.UserPromptPart([shown, *images])]


def _message_of(entry: dict[str, Any]) -> Message:
    content = entry.get("content")
    role = entry["role"]
    if not isinstance(content, list):
        return Message(role, content or "")
    texts = [part["text"] for part in content if part.get("type") == "text"]
    images = [
        _image(part["image_url"]["url"]) for part in content if part.get("type") == "image_url"
    ]
    return Message(role, "\n".join(texts), images=tuple(images))


def _image(url: str) -> ImagePart:
    """A `data:` URL as an image; its size is nothing that a request needs."""
    head, _, data = url.partition(";base64,")
    return ImagePart(head.removeprefix("data:"), data, 0, 0)
