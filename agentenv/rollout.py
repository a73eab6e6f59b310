"""The core primitive: one rollout, from a task to a record with exactly one outcome.

A feature that cannot be an argument or an observer of `rollout` does not belong in the core.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol

from agentenv._hook import describe, run_hook
from agentenv.errors import PolicyError, VerifierError
from agentenv.harness import AgentClock
from agentenv.observer import Observation, Withdrawal
from agentenv.outcomes import Outcome, StopReason
from agentenv.task import Verdict
from agentenv_backends.errors import InfrastructureError, SlotExhaustedError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Sequence

    from agentenv.harness import Harness
    from agentenv.observer import RolloutObserver
    from agentenv.session import Session
    from agentenv.task import Task, Verifier
    from agentenv.tokens.base import Message
    from agentenv.types import AgentResult
    from agentenv_backends.base import Snapshot
    from agentenv_backends.results import Recording
    from agentenv_tools.schema import ToolCall, ToolResult

logger = logging.getLogger(__name__)

BUDGET_STOPS = frozenset(
    {StopReason.MAX_STEPS, StopReason.MAX_TOKENS, StopReason.TIMEOUT, StopReason.REFUSED}
)
"""Ends that are no failure: the verifier judges what the agent had done by then."""


class Workbench(Protocol):
    """The tools of one trajectory, as a rollout needs them."""

    async def ready(self, call: ToolCall) -> None:
        """Have what `call` needs: wait for a slot, if it runs in one. Raises `InfrastructureError`."""
        ...

    async def call(self, call: ToolCall, *, limit_s: float | None) -> ToolResult:
        """Run one call, within its own deadline and `limit_s`. Raises `InfrastructureError`."""
        ...

    async def recordings(self) -> tuple[Recording, ...]:
        """What persistent shells and terminals recorded so far. Never raises `InfrastructureError`.

        Their last seconds are lost by `quiesce` and `release`, so it is asked before each.
        """
        ...

    async def quiesce(self) -> None:
        """Kill whatever the agent left running in its slot. Raises `InfrastructureError`."""
        ...

    async def snapshot(self) -> Snapshot | None:
        """Freeze the workspace; None when no slot was needed so far. Raises `InfrastructureError`."""
        ...

    async def restore(self, snapshot: Snapshot) -> None:
        """Wait for a slot and start from `snapshot` in it, before any call. Raises `InfrastructureError`."""
        ...

    async def release(self) -> None:
        """Give the slot back, to be reset. Idempotent; never raises `InfrastructureError`."""
        ...


class Workspace(Protocol):
    """A workspace that was set up for several rollouts."""

    async def enter(self, task: Task, workbench: Workbench) -> dict[str, Any]:
        """Give `workbench` contents of its own; returns what the set-up returned, for verification.

        Raises what a set-up of the rollout's own would.
        """
        ...


@dataclass(frozen=True, slots=True)
class RolloutRecord:
    """Everything one rollout left. `reward` is None unless the outcome is trainable."""

    trajectory_id: str
    outcome: Outcome
    stop_reason: StopReason
    reward: float | None
    result: AgentResult | None
    cause: str | None = None
    """What failed, for every outcome but SCORED."""
    score_metadata: dict[str, Any] = field(default_factory=dict)
    duration_s: float = 0.0
    tool_seconds: float = 0.0
    recordings: tuple[Recording, ...] = ()
    """What its persistent shells and terminals recorded, as far as it could be had."""
    unfinished: tuple[Message, ...] = ()
    """The conversation as far as it went, where the agent's work was cut off and `result` is None."""

    @property
    def trainable(self) -> bool:
        """Whether it may be trained on: its outcome allows that and it has sampled tokens."""
        return self.outcome.trainable and self.result is not None and self.result.total_tokens > 0


def cancelled_record(trajectory_id: str) -> RolloutRecord:
    """The record of a rollout that was withdrawn."""
    return RolloutRecord(trajectory_id, Outcome.CANCELLED, StopReason.CANCELLED, None, None)


@dataclass(frozen=True, slots=True)
class RolloutLimits:
    """Deadlines in seconds, in rising order: hooks and calls below the rollout's own."""

    rollout_timeout_s: float
    verify_timeout_s: float
    max_tool_timeout_s: float = 600.0


async def rollout(  # noqa: PLR0913 - all that a rollout is made of
    task: Task,
    *,
    harness: Harness,
    session: Session,
    workbench: Workbench,
    verifier: Verifier,
    limits: RolloutLimits,
    trajectory_id: str,
    workspace: Workspace | None = None,
    observers: Sequence[RolloutObserver] = (),
) -> RolloutRecord:
    """Let an agent work on a task and judge the result. Without `workspace` the verifier prepares one for it alone.

    `observers` are told what happens while it does, and can withdraw the rollout. Never raises but for cancellation;
    whatever happens is in the record's outcome. The slot is released, to be reset, before this returns, also when it is
    cancelled.
    """
    told = Observation(trajectory_id, observers)
    attempt = _Attempt(task, trajectory_id, workbench, limits, workspace, told)
    try:
        record = await _judged(attempt, harness, session, verifier)
    except BaseException:
        told.tell("ended", cancelled_record(trajectory_id))
        raise
    told.tell("ended", record)
    return record


async def _judged(
    attempt: _Attempt, harness: Harness, session: Session, verifier: Verifier
) -> RolloutRecord:
    """The attempt's record, its slot given back."""
    started = time.monotonic()
    withdrawal = Withdrawal()
    record = cancelled_record(attempt.trajectory_id)
    try:
        with withdrawal:
            attempt.told.tell("started", attempt.task, withdrawal.cancel)
            record = await attempt.run(harness, session, verifier)
        if record.result is None:
            record = replace(record, unfinished=tuple(session.messages))
        record = replace(record, recordings=await attempt.workbench.recordings())
    finally:
        await finish(attempt.workbench.release())
    return replace(record, duration_s=time.monotonic() - started)


class _Attempt:
    """One rollout under way."""

    def __init__(
        self,
        task: Task,
        trajectory_id: str,
        workbench: Workbench,
        limits: RolloutLimits,
        workspace: Workspace | None,
        told: Observation,
    ) -> None:
        self.task = task
        self.trajectory_id = trajectory_id
        self.workbench = workbench
        self.limits = limits
        self.workspace = workspace
        self.told = told
        self.clock: AgentClock | None = None

    async def run(self, harness: Harness, session: Session, verifier: Verifier) -> RolloutRecord:
        result: AgentResult | None = None
        try:
            meta = await self._prepare(verifier)
            self.clock = AgentClock(self.limits.rollout_timeout_s)
            exec_tool = self.told.tool(self._agent_tool)
            result = await harness.run(self.task, self.told.session(session), exec_tool, self.clock)
            if not _worked(result):
                return self._record(
                    Outcome.AGENT_FAILED, result, cause=result.error or "no tokens were sampled"
                )
            verdict = await self._verify(verifier, result, meta)
        except (InfrastructureError, PolicyError) as error:
            # What the agent left in its slot killed it: to retry that for free would let it dodge its score.
            exhausted = isinstance(error, SlotExhaustedError) and result is not None
            outcome = Outcome.AGENT_FAILED if exhausted else Outcome.INFRASTRUCTURE_FAILED
            return self._record(outcome, result, cause=describe(error))
        except VerifierError as error:
            return self._record(Outcome.VERIFIER_FAILED, result, cause=describe(error))
        except (
            Exception
        ) as error:  # a fault of ours must cost one rollout, not the run, and no reward
            logger.exception("trajectory %s failed unexpectedly", self.trajectory_id)
            return self._record(Outcome.INFRASTRUCTURE_FAILED, result, cause=describe(error))
        return self._record(Outcome.SCORED, result, verdict=verdict)

    async def _prepare(self, verifier: Verifier) -> dict[str, Any]:
        if self.workspace is not None:
            return await self.workspace.enter(self.task, self.workbench)
        return await run_hook(
            "workspace set-up",
            lambda exec_tool: verifier.prepare(
                self.task, trajectory_id=self.trajectory_id, exec_tool=exec_tool
            ),
            self.workbench,
            self.limits.verify_timeout_s,
        )

    async def _verify(
        self, verifier: Verifier, result: AgentResult, meta: dict[str, Any]
    ) -> Verdict:
        self.told.tell("verifying")
        await self.workbench.recordings()
        await self.workbench.quiesce()
        verdict = await run_hook(
            "verification",
            lambda exec_tool: verifier.verify(
                self.task,
                result,
                trajectory_id=self.trajectory_id,
                exec_tool=exec_tool,
                workspace_meta=meta,
            ),
            self.workbench,
            self.limits.verify_timeout_s,
        )
        verdict = Verdict(finite_reward(verdict.reward), verdict.metadata)
        self.told.tell("verified", verdict)
        return verdict

    async def _agent_tool(self, call: ToolCall) -> ToolResult:
        """A call of the agent: it never outlasts the rollout's deadline, and waiting for a slot is not its fault."""
        assert self.clock is not None
        started = time.monotonic()
        await self.workbench.ready(call)
        self.clock.exempt(time.monotonic() - started)
        limit_s = min(self.limits.max_tool_timeout_s, self.clock.left())
        return await self.workbench.call(call, limit_s=limit_s)

    def _record(
        self,
        outcome: Outcome,
        result: AgentResult | None,
        *,
        cause: str | None = None,
        verdict: Verdict | None = None,
    ) -> RolloutRecord:
        reward = verdict.reward if verdict else 0.0 if outcome is Outcome.AGENT_FAILED else None
        return RolloutRecord(
            trajectory_id=self.trajectory_id,
            outcome=outcome,
            stop_reason=result.stop_reason if result else StopReason.ERROR,
            reward=reward,
            result=result,
            cause=cause,
            score_metadata=verdict.metadata if verdict else {},
            tool_seconds=sum(step.tools_s for step in result.steps) if result else 0.0,
        )


def finite_reward(reward: object) -> float:
    """The reward as a float. Raises `VerifierError` for anything that is no finite number (booleans included)."""
    if isinstance(reward, bool) or not isinstance(reward, int | float):
        item = getattr(reward, "item", None)  # numpy and torch scalars
        with suppress(Exception):  # an array of several, or anything else that only looks like one
            reward = item() if callable(item) else reward
    try:
        if not isinstance(reward, bool) and isinstance(reward, int | float):
            value = float(reward)
            if math.isfinite(value):
                return value
    except OverflowError:
        pass  # an integer beyond any float
    raise VerifierError(
        f"the reward must be a finite number, not {repr(reward)[:200]} ({type(reward).__name__})"
    )


def _worked(result: AgentResult) -> bool:
    """Whether the agent did something to judge: it answered or spent a budget, and it wrote at least a token."""
    return (result.success or result.stop_reason in BUDGET_STOPS) and result.num_steps > 0


async def finish(work: Awaitable[None]) -> None:
    """Await teardown to its end even if the caller is cancelled meanwhile, then let the cancellation through."""
    task = asyncio.ensure_future(work)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        raise cancelled
    task.result()
