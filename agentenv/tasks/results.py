"""What one run of a task gives: Harbor's `TrialResult` with the fields of `AgentRunner`'s `RunResult` on top. Data."""

from __future__ import annotations

from collections.abc import Mapping  # noqa: TC003 - pydantic reads it
from datetime import datetime  # noqa: TC003 - pydantic reads it
from pathlib import Path  # noqa: TC003 - pydantic reads it
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from agentenv.tasks.failures import FailureCause, failure_policy

if TYPE_CHECKING:
    from agentenv.rollout import RolloutRecord
else:
    RolloutRecord = Any  # kept as it is: pydantic has nothing to check about it


class _Data(BaseModel):
    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, arbitrary_types_allowed=True
    )


class TrajectoryItem(_Data):
    """One tool call and what it gave."""

    tool_name: str
    tool_input: dict[str, Any]
    tool_output: str


class Timing(_Data):
    """When something was done."""

    started_at: datetime | None = None
    finished_at: datetime | None = None


class ExceptionInfo(_Data):
    """What went wrong."""

    exception_type: str
    exception_message: str
    exception_traceback: str = ""
    occurred_at: datetime


class ModelUsage(_Data):
    """Tokens and cost; None: not known."""

    n_input_tokens: int | None = None
    """Those from a cache included."""
    n_cache_tokens: int | None = None
    n_output_tokens: int | None = None
    cost_usd: float | None = None


class AgentContext(ModelUsage):
    """What the agent used."""

    model_usage: dict[str, ModelUsage] | None = None
    rollout_details: list[dict[str, Any]] | None = None
    """Tokens of each sequence, in order: {prompt_token_ids, completion_token_ids, logprobs, extra}, a list per turn
    each; the agent's own first, further ones where its history was rewritten. None where no engine told tokens."""
    metadata: dict[str, Any] | None = None


class ModelInfo(_Data):
    """Which model."""

    name: str
    provider: str | None = None


class AgentInfo(_Data):
    """Which agent."""

    name: str
    version: str
    model_info: ModelInfo | None = None


class VerifierResult(_Data):
    """What the tests gave."""

    rewards: dict[str, float] | None = None


class StepResult(_Data):
    """One step of a task with several."""

    step_name: str
    agent_result: AgentContext | None = None
    verifier_result: VerifierResult | None = None
    exception_info: ExceptionInfo | None = None
    agent_execution: Timing | None = None
    verifier: Timing | None = None


class TaskResult(_Data):
    """One run of a task."""

    success: bool
    """Whether `reward` is at least 1."""
    reward: float
    """Of the rewards: `reward`, else the only one, else their mean. 0 where there is none."""
    duration: float
    """Seconds."""
    trajectory: list[TrajectoryItem] = Field(default_factory=list)
    error: str | None = None
    output_dir: Path
    """This run's own folder."""

    id: str
    task_name: str
    trial_name: str
    trial_uri: str
    task_id: dict[str, str]
    """`{path}` of a local task."""
    source: str | None = None
    task_checksum: str
    config: dict[str, Any]
    """What the run was asked for, without secrets."""
    agent_info: AgentInfo
    agent_result: AgentContext | None = None
    verifier_result: VerifierResult | None = None
    verifier_environment_mode: Literal["shared", "separate"] | None = None
    exception_info: ExceptionInfo | None = None
    started_at: datetime | None = None
    finished_at: datetime | None = None
    environment_setup: Timing | None = None
    agent_setup: Timing | None = None
    agent_execution: Timing | None = None
    verifier: Timing | None = None
    step_results: list[StepResult] | None = None
    """None for a task without steps."""

    warnings: list[str] = Field(default_factory=list)
    """What of the task was not honoured, and what could not be collected."""
    record: RolloutRecord | None = Field(default=None, exclude=True, repr=False)
    """What the rollout left: messages, tokens, recordings. None where it never began. Not in result.json."""

    @property
    def failure_cause(self) -> FailureCause | None:
        """Whose failure it was; None where nothing went wrong."""
        info = self.exception_info
        return None if info is None else failure_policy(info.exception_type).cause

    @property
    def should_retry(self) -> bool:
        """Whether a fresh attempt may do better through no change of the agent."""
        info = self.exception_info
        return info is not None and failure_policy(info.exception_type).retry

    @property
    def counts(self) -> bool:
        """Whether it belongs into statistics: a failure of the sandbox does not."""
        info = self.exception_info
        return info is None or failure_policy(info.exception_type).grade

    @property
    def reward_valid(self) -> bool:
        """Whether there are rewards, and nothing went wrong but that the agent's budget ran out or it refused."""
        rewards = self.verifier_result is not None and self.verifier_result.rewards is not None
        budget = (None, FailureCause.AGENT_EXHAUSTED_BUDGET, FailureCause.AGENT_REFUSED_TASK)
        causes = [self.failure_cause]
        noted = (step.exception_info for step in self.step_results or ())
        causes += [failure_policy(info.exception_type).cause for info in noted if info is not None]
        return rewards and all(cause in budget for cause in causes)


def main_reward(rewards: Mapping[str, float] | None) -> float:
    """One number for several: `reward`, else the only one, else their mean; 0 where there is none."""
    if not rewards:
        return 0.0
    if "reward" in rewards:
        return rewards["reward"]
    return sum(rewards.values()) / len(rewards)
