"""Why a rollout ended, and what becomes of its record. One table, used everywhere."""

from __future__ import annotations

from enum import StrEnum


class StopReason(StrEnum):
    """Why the harness stopped."""

    FINAL_ANSWER = "final_answer"
    """The policy answered without calling a tool."""
    MAX_STEPS = "max_steps"
    """The step budget ran out."""
    MAX_TOKENS = "max_tokens"
    """The token budget ran out: a reply was cut, or the next prompt would not fit."""
    TIMEOUT = "timeout"
    """The rollout's deadline passed."""
    REFUSED = "refused"
    """The policy declined the task."""
    ERROR = "error"
    """Something other than the agent failed; the outcome says what."""
    CANCELLED = "cancelled"
    """The caller withdrew the rollout."""


class Outcome(StrEnum):
    """How a rollout ended. Every rollout has exactly one."""

    SCORED = "scored"
    """The verifier gave a reward; a budget that ran out or a refusal is still scored."""
    AGENT_FAILED = "agent_failed"
    """The agent failed as the source interface defines it: score 0.0, kept if it has tokens."""
    VERIFIER_FAILED = "verifier_failed"
    """Scoring raised, hung or returned no finite number: no reward exists."""
    INFRASTRUCTURE_FAILED = "infrastructure_failed"
    """The sandbox, the inference engine or the network failed: retried, never scored."""
    CANCELLED = "cancelled"
    """The rollout was withdrawn."""

    @property
    def trainable(self) -> bool:
        """Whether a record that ended so may be trained on (it also needs tokens)."""
        return self in (Outcome.SCORED, Outcome.AGENT_FAILED)

    @property
    def retryable(self) -> bool:
        """Whether a fresh attempt may do better through no change of the agent."""
        return self is Outcome.INFRASTRUCTURE_FAILED
