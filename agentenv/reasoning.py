"""What `thinking_mode`, `reasoning_effort` and `max_reasoning_tokens` ask of a model family and of a chat server."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from agentenv.config import BaseEnvConfig


def wants_reasoning(config: BaseEnvConfig) -> bool:
    """Whether the configuration asks for thinking at all."""
    return (
        config.thinking_mode
        or config.reasoning_effort is not None
        or config.max_reasoning_tokens is not None
    )


def template_options(config: BaseEnvConfig) -> dict[str, Any]:
    """Variables for the model family's chat template; empty leaves its own default."""
    return {"enable_thinking": True} if wants_reasoning(config) else {}


def chat_options(config: BaseEnvConfig, base_url: str) -> dict[str, Any]:
    """Fields for a chat server's request body: OpenAI's own form for OpenAI, the common one elsewhere.

    An effort wins over a number of tokens, as servers take only one of them.
    """
    if not wants_reasoning(config):
        return {}
    if "api.openai.com" in base_url:
        return {"reasoning_effort": config.reasoning_effort or "medium"}
    reasoning: dict[str, Any] = {"enabled": True}
    if config.reasoning_effort is not None:
        reasoning["effort"] = config.reasoning_effort
    elif config.max_reasoning_tokens is not None:
        reasoning["max_tokens"] = config.max_reasoning_tokens
    return {"reasoning": reasoning}
