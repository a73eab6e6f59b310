"""Replies and errors of fake providers, as each provider writes them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from agentenv.testing.faults import Fault

if TYPE_CHECKING:
    from collections.abc import Callable

    from agentenv.testing.providers import ModelReply

PATHS = {
    "openai": "/v1/chat/completions",
    "anthropic": "/v1/messages",
    "gemini": "/v1beta/models/{model}:generateContent",
    "bedrock": "/model/{model}/converse",
}
_CONTEXT_LENGTH = {
    "openai": "This model's maximum context length is 100 tokens.",
    "anthropic": "prompt is too long: 300 tokens > 100 maximum",
    "gemini": "The input token count (300) exceeds the maximum number of tokens allowed (100).",
    "bedrock": "Input is too long for requested model.",
}
_OPENAI_CODES = {
    Fault.OUT_OF_BUDGET: "insufficient_quota",
    Fault.CONTEXT_LENGTH: "context_length_exceeded",
    Fault.NO_SUCH_MODEL: "model_not_found",
}
_GEMINI_STATUS = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    404: "NOT_FOUND",
    429: "RESOURCE_EXHAUSTED",
    500: "INTERNAL",
    503: "UNAVAILABLE",
}
_ANTHROPIC_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    404: "not_found_error",
    429: "rate_limit_error",
    500: "api_error",
    503: "overloaded_error",
}


def openai(reply: ModelReply, model: str) -> dict[str, Any]:
    """OpenAI's `chat.completion`."""
    message: dict[str, Any] = {"role": "assistant", "content": reply.text or None}
    if reply.reasoning:
        message["reasoning_content"] = reply.reasoning
    if reply.refused:
        message |= {"content": None, "refusal": reply.text or "I can't help with that."}
    if reply.calls:
        message["tool_calls"] = [
            {
                "id": call_id,
                "type": "function",
                "function": {"name": name, "arguments": _text(given)},
            }
            for call_id, name, given in reply.calls
        ]
    finish = "length" if reply.cut else "tool_calls" if reply.calls else "stop"
    body: dict[str, Any] = {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1_760_000_000,
        "model": model,
        "choices": [{"index": 0, "message": message, "finish_reason": finish}],
    }
    if reply.usage:
        body["usage"] = {
            "prompt_tokens": reply.prompt_tokens,
            "completion_tokens": reply.completion_tokens,
            "total_tokens": reply.prompt_tokens + reply.completion_tokens,
            "prompt_tokens_details": {"cached_tokens": reply.cached_tokens},
        }
        if reply.cost_usd is not None:
            body["usage"]["cost"] = reply.cost_usd
    return body


def anthropic(reply: ModelReply, model: str) -> dict[str, Any]:
    """Anthropic's `message`. Its `input_tokens` are those that were not cached."""
    content: list[dict[str, Any]] = []
    if reply.reasoning:
        content.append({"type": "thinking", "thinking": reply.reasoning, "signature": "signed"})
    if reply.text:
        content.append({"type": "text", "text": reply.text})
    content += [
        {"type": "tool_use", "id": call_id, "name": name, "input": given}
        for call_id, name, given in reply.calls
    ]
    stop = "max_tokens" if reply.cut else "tool_use" if reply.calls else "end_turn"
    usage = {"input_tokens": 0, "output_tokens": 0}
    if reply.usage:
        usage = {
            "input_tokens": reply.prompt_tokens - reply.cached_tokens,
            "cache_read_input_tokens": reply.cached_tokens,
            "cache_creation_input_tokens": 0,
            "output_tokens": reply.completion_tokens,
        }
    return {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": model,
        "content": content,
        "stop_reason": "refusal" if reply.refused else stop,
        "stop_sequence": None,
        "usage": usage,
    }


def gemini(reply: ModelReply, model: str) -> dict[str, Any]:
    """Gemini's `GenerateContentResponse`."""
    parts: list[dict[str, Any]] = []
    if reply.reasoning:
        parts.append({"text": reply.reasoning, "thought": True})
    if reply.text and not reply.refused:
        parts.append({"text": reply.text})
    parts += [
        {"functionCall": {"id": call_id, "name": name, "args": given}}
        for call_id, name, given in reply.calls
    ]
    stop = "MAX_TOKENS" if reply.cut else "SAFETY" if reply.refused else "STOP"
    body: dict[str, Any] = {
        "candidates": [{"content": {"role": "model", "parts": parts}, "finishReason": stop}],
        "modelVersion": model,
        "responseId": "r1",
    }
    if reply.usage:
        body["usageMetadata"] = {
            "promptTokenCount": reply.prompt_tokens,
            "candidatesTokenCount": reply.completion_tokens,
            "totalTokenCount": reply.prompt_tokens + reply.completion_tokens,
            "cachedContentTokenCount": reply.cached_tokens,
        }
    return body


def bedrock(reply: ModelReply, model: str) -> dict[str, Any]:
    """Bedrock's answer to Converse. Its `inputTokens` are those that were not cached."""
    del model
    content: list[dict[str, Any]] = []
    if reply.reasoning:
        content.append(
            {
                "reasoningContent": {
                    "reasoningText": {"text": reply.reasoning, "signature": "signed"}
                }
            }
        )
    if reply.text:
        content.append({"text": reply.text})
    content += [
        {"toolUse": {"toolUseId": call_id, "name": name, "input": given}}
        for call_id, name, given in reply.calls
    ]
    stop = "max_tokens" if reply.cut else "tool_use" if reply.calls else "end_turn"
    usage = {"inputTokens": 0, "outputTokens": 0, "totalTokens": 0}
    if reply.usage:
        usage = {
            "inputTokens": reply.prompt_tokens - reply.cached_tokens,
            "outputTokens": reply.completion_tokens,
            "totalTokens": reply.prompt_tokens + reply.completion_tokens,
            "cacheReadInputTokens": reply.cached_tokens,
        }
    return {
        "output": {"message": {"role": "assistant", "content": content}},
        "stopReason": "content_filtered" if reply.refused else stop,
        "usage": usage,
        "metrics": {"latencyMs": 1},
    }


ENCODERS: dict[str, Callable[[ModelReply, str], dict[str, Any]]] = {
    "openai": openai,
    "anthropic": anthropic,
    "gemini": gemini,
    "bedrock": bedrock,
}


_BEDROCK_TYPES = {
    400: "ValidationException",
    401: "UnrecognizedClientException",
    404: "ResourceNotFoundException",
    429: "ThrottlingException",
    500: "InternalServerException",
    503: "ServiceUnavailableException",
}


def error_headers(protocol: str, status: int) -> dict[str, str]:
    """Where Bedrock says what kind of error it is."""
    return {"x-amzn-errortype": _BEDROCK_TYPES[status]} if protocol == "bedrock" else {}


def error_body(protocol: str, fault: Fault, status: int) -> dict[str, Any]:
    """What a provider says of a fault."""
    message = f"fake: {fault}"
    if fault is Fault.CONTEXT_LENGTH:
        message = _CONTEXT_LENGTH[protocol]
    if protocol == "openai":
        code = _OPENAI_CODES.get(fault)
        return {"error": {"message": message, "type": "fake", "param": None, "code": code}}
    if protocol == "anthropic":
        if fault is Fault.OUT_OF_BUDGET:
            message = "Your credit balance is too low to access the Anthropic API."
        return {"type": "error", "error": {"type": _ANTHROPIC_TYPES[status], "message": message}}
    if protocol == "gemini":
        return {"error": {"code": status, "message": message, "status": _GEMINI_STATUS[status]}}
    return {"message": message}


def _text(arguments: dict[str, Any] | str) -> str:
    return arguments if isinstance(arguments, str) else json.dumps(arguments)
