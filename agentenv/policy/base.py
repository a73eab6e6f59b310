"""The policy contract: token ids in, token ids with their log-probs out."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from agentenv.types import Usage

if TYPE_CHECKING:
    from collections.abc import Sequence

    from agentenv.tokens.base import Message
    from agentenv_tools.schema import ToolCall, ToolSchema


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How to sample one completion."""

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int | None = None
    stop_token_ids: tuple[int, ...] = ()
    """Sampling ends after any of these; the id itself belongs to the completion."""
    extra: dict[str, Any] = field(default_factory=dict)
    """Further fields for the engine, sent as they are."""


@dataclass(frozen=True, slots=True)
class Completion:
    """What the engine sampled. `token_ids` and `logprobs` have equal length.

    `logprobs[i]` is the log-probability the engine gave `token_ids[i]` when it sampled it. Engines
    differ in whether that is before or after temperature; at temperature 1 and top_p 1 it is the
    same number.
    """

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    finish_reason: str
    """`stop` (a stop token was sampled) or `length` (the budget was spent)."""
    policy_version: str | None = None
    """The weights' version, if the engine tells."""
    text: str | None = None
    """The engine's own decoding, for people. Never re-tokenised."""


@dataclass(frozen=True, slots=True)
class ChatCompletion:
    """A reply of a server that returns text only: good for evaluation, refused for training."""

    text: str
    finish_reason: str
    """`stop`, `length`, or `refused`: the model or its provider declined."""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    """Of `prompt_tokens`."""
    cost_usd: float | None = None
    reasoning: str | None = None
    """Beside `text`, where the server keeps the two apart."""
    tool_calls: tuple[ToolCall, ...] = ()
    """What `ToolCallingPolicy.chat_with_tools` was answered with."""
    native: Any = field(default=None, compare=False, repr=False)
    """The reply as the client wants it back in the next request, see `Message.native`."""

    @property
    def usage(self) -> Usage | None:
        """What it took; None where the server did not tell."""
        if not self.prompt_tokens and not self.completion_tokens:
            return None
        return Usage(self.prompt_tokens, self.completion_tokens, self.cached_tokens, self.cost_usd)


class PolicyClient(Protocol):
    """A policy that samples from exact token ids.

    Every method raises `PolicyError` (or a subclass) when the engine fails, `ContextLengthError`
    when the prompt does not fit. Retries, backoff and routing happen inside; no concurrency permit
    is held while sleeping.
    """

    returns_tokens: bool
    """False: only `chat` works."""
    takes_images: bool
    """Whether messages for `chat` may hold `image_url` parts."""

    async def start(self) -> None:
        """Connect and check the engine's answers once, with the reason when it cannot be used for
        training.
        """
        ...

    async def generate(
        self, prompt_ids: Sequence[int], params: SamplingParams, *, trajectory_id: str
    ) -> Completion:
        """Sample one completion. Requests of one trajectory go to the same server while it is
        healthy.
        """
        ...

    async def chat(
        self, messages: Sequence[dict[str, Any]], params: SamplingParams, *, trajectory_id: str
    ) -> ChatCompletion:
        """One reply to a conversation in the OpenAI form, as text."""
        ...

    def raise_concurrency(self, requests: int) -> None:
        """Allow at least `requests` at once per server. Never lowers."""
        ...

    async def close(self) -> None:
        """Release connections. Idempotent."""
        ...


@runtime_checkable
class ToolCallingPolicy(Protocol):
    """A policy whose server takes tools and returns calls, so that neither is put into text."""

    async def chat_with_tools(
        self,
        messages: Sequence[Message],
        tools: Sequence[ToolSchema],
        params: SamplingParams,
        *,
        trajectory_id: str,
    ) -> ChatCompletion:
        """One reply to a conversation whose messages hold calls and results as they are. Else as `chat`."""
        ...


@runtime_checkable
class SharedPolicy(Protocol):
    """A policy whose servers several environments share by weight."""

    def weigh(self, weight: float) -> None:
        """Use the share `weight` (0 to 1) of every server's concurrency from now on, at least one request at once."""
        ...
