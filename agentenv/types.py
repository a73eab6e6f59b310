"""The data an environment exchanges with its trainer and with its agent. No behaviour."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NotRequired, TypedDict

if TYPE_CHECKING:
    from agentenv.outcomes import StopReason
    from agentenv.tokens.base import TokenSequence
    from agentenv_tools.schema import ToolCall, ToolResult

Item = Any
"""One element of an environment's dataset. The framework passes it along and never looks inside."""


class SequenceData(TypedDict):
    """One token sequence. The three lists have equal length; see `TokenSequence`."""

    tokens: list[int]
    masks: list[int]
    inference_logprobs: list[float]


class ScoredDataItem(TypedDict):
    """One trajectory, scored. `tokens`, `masks` and `inference_logprobs` have equal length."""

    tokens: list[int]
    masks: list[int]
    scores: float
    inference_logprobs: NotRequired[list[float]]
    advantages: NotRequired[list[float] | None]
    ref_logprobs: NotRequired[list[float] | None]
    messages: NotRequired[list[dict[str, Any]] | None]
    group_overrides: NotRequired[dict[str, Any] | None]
    overrides: NotRequired[dict[str, Any] | None]
    images: NotRequired[Any]
    earlier_sequences: NotRequired[list[SequenceData]]
    """Present when the trajectory's history was rewritten on the way: the sequences before the last, which is the one
    in `tokens`. Each becomes a row of the group, with the same score."""


class ScoredDataGroup(TypedDict):
    """A group of scored trajectories, as trainers of the Atropos protocol read it. Always all fourteen keys.

    The outer length of `tokens`, `masks`, `scores` and `inference_logprobs` is the number of rows; `overrides` has one
    dict per row; `messages` one conversation per row, or it is None.
    """

    tokens: list[list[int]]
    masks: list[list[int]]
    scores: list[float]
    advantages: list[list[float]] | None
    ref_logprobs: list[list[float]] | None
    messages: list[list[dict[str, Any]]] | None
    generation_params: dict[str, Any] | None
    inference_logprobs: list[list[float]] | None
    overrides: list[dict[str, Any]] | None
    group_overrides: dict[str, Any] | None
    images: Any
    env_id: int | None
    distill_token_ids: list[list[list[int]]] | None
    distill_logprobs: list[list[list[float]]] | None


@dataclass(frozen=True, slots=True)
class AgentConfig:
    """How the agent works on one task."""

    temperature: float = 0.7
    max_tokens: int | None = None
    """Tokens of one reply; None leaves what the trajectory's budget still allows."""
    max_steps: int = 50
    """Replies of the policy in one trajectory."""
    system_prompt: str | None = None
    """Put in front of the tools' description."""
    tool_delay_s: float = 0.0
    """Pause before each tool call."""
    working_dir: str | None = None
    """Where commands start, relative to the workspace."""
    sandbox_profile: str | None = None
    """Kind of sandbox, of those that the backend's config names in `profiles`; None: the default one."""


@dataclass(frozen=True, slots=True)
class Usage:
    """What replies of a policy took."""

    prompt_tokens: int = 0
    """Cached ones included."""
    completion_tokens: int = 0
    cached_tokens: int = 0
    """Prompt tokens that the provider had kept from before."""
    cost_usd: float | None = None
    """None: nobody told, and no price is known."""

    def __add__(self, other: Usage) -> Usage:
        """Both together. The cost is what is known of it."""
        costs = [cost for cost in (self.cost_usd, other.cost_usd) if cost is not None]
        return Usage(
            self.prompt_tokens + other.prompt_tokens,
            self.completion_tokens + other.completion_tokens,
            self.cached_tokens + other.cached_tokens,
            sum(costs) if costs else None,
        )


@dataclass(frozen=True, slots=True)
class AgentStep:
    """One reply of the policy and what its tool calls gave."""

    step_number: int
    """From 1."""
    assistant_message: str
    """The whole reply as text, tool calls and reasoning included."""
    tool_calls: tuple[ToolCall, ...] = ()
    tool_results: tuple[ToolResult, ...] = ()
    generation_s: float = 0.0
    tools_s: float = 0.0
    content: str | None = None
    """The reply without reasoning and tool calls; None: whoever made the step did not take the reply apart."""
    reasoning: str | None = None
    usage: Usage | None = None
    """None where the engine did not tell."""
    started_at: float | None = None
    """Seconds since the epoch when the reply was asked for."""


@dataclass(frozen=True, slots=True)
class AgentResult:
    """What the agent did with a task."""

    success: bool
    """False when the agent itself failed; a spent budget or a wrong answer is no failure of this kind."""
    final_response: str
    """The last reply, without reasoning and tool calls."""
    stop_reason: StopReason
    steps: tuple[AgentStep, ...] = ()
    sequences: tuple[TokenSequence, ...] = ()
    messages: tuple[dict[str, Any], ...] = ()
    """The conversation in the OpenAI form. Content is text, but for images the policy was shown: then it is a list of
    parts. The images of every result are in `steps`."""
    total_tokens: int = 0
    """Tokens the policy sampled."""
    error: str | None = None
    metadata: dict[str, Any] = field(default_factory=dict)

    @property
    def num_steps(self) -> int:
        """How many replies the policy gave."""
        return len(self.steps)

    @property
    def total_tool_calls(self) -> int:
        """How many tool calls were made, malformed ones included."""
        return sum(len(step.tool_calls) for step in self.steps)

    @property
    def usage(self) -> Usage:
        """What all replies took, as far as the engine told."""
        told = (step.usage for step in self.steps if step.usage is not None)
        return sum(told, Usage())

    @property
    def trajectory_data(self) -> TokenSequence | None:
        """The last token sequence, or None where the policy returns no tokens."""
        return self.sequences[-1] if self.sequences else None
