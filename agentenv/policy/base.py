"""The policy contract: token ids in, token ids with their log-probs out."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:
    from collections.abc import Sequence


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
    prompt_tokens: int = 0
    completion_tokens: int = 0


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
class SharedPolicy(Protocol):
    """A policy whose servers several environments share by weight."""

    def weigh(self, weight: float) -> None:
        """Use the share `weight` (0 to 1) of every server's concurrency from now on, at least one request at once."""
        ...
