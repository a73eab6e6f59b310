"""The core primitive: one rollout, from a task to a record with exactly one outcome.

A feature that cannot be an argument or an observer of `rollout` does not belong in the core.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from agentenv.errors import PolicyError, VerifierError
from agentenv.harness import AgentClock
from agentenv.outcomes import Outcome, StopReason
from agentenv.task import Verdict
from agentenv_backends.errors import InfrastructureError, SlotExhaustedError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from agentenv.harness import Harness
    from agentenv.session import Session
    from agentenv.task import ExecTool, Task, Verifier
    from agentenv.types import AgentResult
    from agentenv_tools.schema import ToolCall, ToolResult

logger = logging.getLogger(__name__)
_T = TypeVar("_T")

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

    async def quiesce(self) -> None:
        """Kill whatever the agent left running in its slot. Raises `InfrastructureError`."""
        ...

    async def release(self) -> None:
        """Give the slot back, to be reset. Idempotent; never raises `InfrastructureError`."""
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

    @property
    def trainable(self) -> bool:
        """Whether it may be trained on: its outcome allows that and it has sampled tokens."""
        return self.outcome.trainable and self.result is not None and self.result.total_tokens > 0


@dataclass(frozen=True, slots=True)
class RolloutLimits:
    """Deadlines in seconds, in rising order: hooks and calls below the rollout's own."""

    rollout_timeout_s: float
    verify_timeout_s: float
    max_tool_timeout_s: float = 600.0


async def rollout(
    task: Task,
    *,
    harness: Harness,
    session: Session,
    workbench: Workbench,
    verifier: Verifier,
    limits: RolloutLimits,
    trajectory_id: str,
) -> RolloutRecord:
    """Let an agent work on a task and judge the result.

    Never raises but for cancellation; whatever happens is in the record's outcome. The slot is released, to be reset,
    before this returns, also when it is cancelled.
    """
    started = time.monotonic()
    try:
        record = await _Attempt(task, trajectory_id, workbench, limits).run(
            harness, session, verifier
        )
    finally:
        await finish(workbench.release())
    return replace(record, duration_s=time.monotonic() - started)


class _Attempt:
    """One rollout under way."""

    def __init__(
        self, task: Task, trajectory_id: str, workbench: Workbench, limits: RolloutLimits
    ) -> None:
        self.task = task
        self.trajectory_id = trajectory_id
        self.workbench = workbench
        self.limits = limits
        self.clock: AgentClock | None = None

    async def run(self, harness: Harness, session: Session, verifier: Verifier) -> RolloutRecord:
        result: AgentResult | None = None
        try:
            meta = await self._prepare(verifier)
            self.clock = AgentClock(self.limits.rollout_timeout_s)
            result = await harness.run(self.task, session, self._agent_tool, self.clock)
            if not _worked(result):
                return self._record(
                    Outcome.AGENT_FAILED, result, cause=result.error or "no tokens were sampled"
                )
            verdict = await self._verify(verifier, result, meta)
        except (InfrastructureError, PolicyError) as error:
            # What the agent left in its slot killed it: to retry that for free would let it dodge its score.
            exhausted = isinstance(error, SlotExhaustedError) and result is not None
            outcome = Outcome.AGENT_FAILED if exhausted else Outcome.INFRASTRUCTURE_FAILED
            return self._record(outcome, result, cause=_describe(error))
        except VerifierError as error:
            return self._record(Outcome.VERIFIER_FAILED, result, cause=_describe(error))
        except (
            Exception
        ) as error:  # a fault of ours must cost one rollout, not the run, and no reward
            logger.exception("trajectory %s failed unexpectedly", self.trajectory_id)
            return self._record(Outcome.INFRASTRUCTURE_FAILED, result, cause=_describe(error))
        return self._record(Outcome.SCORED, result, verdict=verdict)

    async def _prepare(self, verifier: Verifier) -> dict[str, Any]:
        return await self._hook(
            "workspace set-up",
            lambda exec_tool: verifier.prepare(
                self.task, trajectory_id=self.trajectory_id, exec_tool=exec_tool
            ),
        )

    async def _verify(
        self, verifier: Verifier, result: AgentResult, meta: dict[str, Any]
    ) -> Verdict:
        await self.workbench.quiesce()
        verdict = await self._hook(
            "verification",
            lambda exec_tool: verifier.verify(
                self.task,
                result,
                trajectory_id=self.trajectory_id,
                exec_tool=exec_tool,
                workspace_meta=meta,
            ),
        )
        return Verdict(finite_reward(verdict.reward), verdict.metadata)

    async def _hook(self, what: str, work: Callable[[ExecTool], Awaitable[_T]]) -> _T:
        """Await one of the environment's hooks within its deadline, from which waiting for a slot is left out.

        Only infrastructure's errors keep their class; anything else the environment's code raises is `VerifierError`.
        A hook that catches infrastructure's error and answers all the same has judged nothing: the error is raised.
        """
        timeout_s = self.limits.verify_timeout_s
        failures: list[InfrastructureError] = []
        try:
            async with asyncio.timeout(timeout_s) as deadline:

                async def exec_tool(call: ToolCall) -> ToolResult:
                    try:
                        with _paused(deadline):
                            await self.workbench.ready(call)
                        return await self.workbench.call(call, limit_s=None)
                    except InfrastructureError as error:
                        failures.append(error)
                        raise

                done = await work(exec_tool)
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            # Nobody withdrew this rollout: the hook awaited something of its own that was cancelled.
            raise VerifierError(f"{what} awaited something that was cancelled") from error
        except (InfrastructureError, PolicyError, VerifierError):
            raise
        except Exception as error:  # the environment's own code may raise anything
            if isinstance(error, TimeoutError) and deadline.expired():
                raise VerifierError(
                    f"{what} did not end within verify_timeout_s={timeout_s:g}"
                ) from error
            if failures:
                raise failures[0] from error
            _report_once(what, error)
            raise VerifierError(f"{what} raised {_describe(error)}") from error
        if failures:
            raise failures[0]
        return done

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


_reported: set[str] = set()


def _report_once(what: str, error: Exception) -> None:
    """Show where the environment's code raised, once for each kind of fault: a bug may hit every rollout of a run."""
    kind = f"{what}: {type(error).__name__} at {_origin(error)}"
    level = logging.DEBUG if kind in _reported else logging.WARNING
    _reported.add(kind)
    logger.log(level, "%s raised; later ones like it are only counted", what, exc_info=error)


def _origin(error: Exception) -> str:
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}" if trace else "?"


def _describe(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"[:2000]


def _worked(result: AgentResult) -> bool:
    """Whether the agent did something to judge: it answered or spent a budget, and it wrote at least a token."""
    return (result.success or result.stop_reason in BUDGET_STOPS) and result.num_steps > 0


@contextmanager
def _paused(deadline: asyncio.Timeout) -> Iterator[None]:
    """Stop a deadline's clock; nested and concurrent pauses count once."""
    when = deadline.when()
    if when is None:
        yield
        return
    loop = asyncio.get_running_loop()
    left = when - loop.time()
    deadline.reschedule(None)
    try:
        yield
    finally:
        if not deadline.expired():
            deadline.reschedule(loop.time() + left)


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
