"""What the token layer gives the harness, as data."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from agentenv.types import Usage
    from agentenv_tools.schema import ImagePart, ToolCall

IGNORE_TOKEN = -100
"""The mask value of a token that is not trained on."""
MASKED_LOGPROB = 1.0
"""The log-prob value of a token that was not sampled: impossible as a log-prob, so a mix-up is seen."""


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a dialogue. `content` is untrusted text and never becomes control tokens.

    Role `tool` holds the result of one call as one line of JSON (`ToolResult.to_json`).
    """

    role: Literal["system", "user", "assistant", "tool"]
    content: str
    tool_calls: tuple[ToolCall, ...] = ()
    """Assistant only."""
    tool_call_id: str | None = None
    """Tool only: the `uniq_id` of the call it answers."""
    name: str | None = None
    """Tool only: the tool's name."""
    reasoning: str | None = None
    """Assistant only: what it thought before it answered."""
    images: tuple[ImagePart, ...] = ()
    """Tool only: for chat servers that take images. Token families here are text only and never render them: what
    `content` says of an image is all they get."""
    native: Any = field(default=None, compare=False, repr=False)
    """Assistant only: the reply as its chat client wants it back, signatures of its reasoning included. Nobody else
    looks at it."""


@dataclass(frozen=True, slots=True)
class ParsedReply:
    """A completion, read."""

    text: str
    """The whole completion as text, control tokens left out except tool-call and thinking tags."""
    content: str
    """What is meant for the user: without reasoning and tool calls."""
    reasoning: str | None
    tool_calls: tuple[ToolCall, ...]
    """In the order written; malformed ones have their `error` set. Calls inside reasoning are not calls."""
    usage: Usage | None = None
    """What the reply took; None where the engine did not tell."""


@dataclass(frozen=True, slots=True)
class Turn:
    """Where one reply lies in a sequence: `tokens[start:end]`, and `tokens[:start]` was its prompt."""

    number: int
    """From 1: which of the trajectory's replies it is."""
    start: int
    end: int
    policy_version: str | None = None
    finish_reason: str = ""


@dataclass(frozen=True, slots=True)
class TokenSequence:
    """One sequence for a trainer. The three lists have equal length.

    `masks[i]` is `tokens[i]` where the policy sampled it and -100 elsewhere; `logprobs[i]` is the engine's value there
    and 1.0 elsewhere. Every sampled token of a trajectory is owned by exactly one of its sequences.
    """

    tokens: list[int]
    masks: list[int]
    logprobs: list[float]
    policy_versions: tuple[str, ...] = ()
    """Each version that sampled a part of it, in order, without repeats."""
    metadata: dict[str, Any] = field(default_factory=dict)
    turns: tuple[Turn, ...] = ()
    """The replies in it, in order; empty where whoever made it did not say."""
