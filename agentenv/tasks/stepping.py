"""A task's steps as one rollout: the harness that goes through them, and the verifier that adds them up."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from agentenv._hook import describe
from agentenv.errors import AgentEnvError, VerifierError
from agentenv.harness import AgentClock
from agentenv.observer import Judgement
from agentenv.rollout import BUDGET_STOPS
from agentenv.task import Task, Verdict
from agentenv.tasks.agents import SessionRequest
from agentenv.tasks.backend_values import LOG_FOLDERS, VERIFIER_LOGS
from agentenv.tasks.errors import SetupCommandError
from agentenv.tasks.preparation import prepare_sandbox, prepare_step
from agentenv.tasks.results import Timing, main_reward
from agentenv.workbench import ExecutorWorkbench
from agentenv_backends.errors import BackendError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from agentenv.observer import Observation
    from agentenv.session import Session
    from agentenv.task import ExecTool
    from agentenv.tasks.agents import TaskAgent
    from agentenv.tasks.under_way import TaskRun
    from agentenv.tasks.verification import Judge
    from agentenv.tokens.base import TokenSequence
    from agentenv.types import AgentResult
    from agentenv_tools.executor import ToolExecutor
    from agentenv_tools.schema import ToolCall, ToolResult, ToolSchema


def now() -> datetime:
    """The time, with its zone."""
    return datetime.now(UTC)


@dataclass(slots=True)
class StepOutcome:
    """What became of one step."""

    run: TaskRun
    result: AgentResult | None = None
    rewards: dict[str, float] | None = None
    judged: bool = False
    """Whether the tests ran to their end; `rewards` is None also where there are none."""
    failure: BaseException | None = None
    agent_started: datetime | None = None
    agent_finished: datetime | None = None
    verifier_started: datetime | None = None
    verifier_finished: datetime | None = None

    @property
    def agent_execution(self) -> Timing | None:
        """When the agent worked."""
        return self._timing(self.agent_started, self.agent_finished)

    @property
    def verifier(self) -> Timing | None:
        """When its work was judged."""
        return self._timing(self.verifier_started, self.verifier_finished)

    def events(self) -> list[tuple[str, datetime]]:
        """What happened when, for the run's log."""
        name = f" {self.run.step.name}" if self.run.step.name else ""
        marks = {
            "agent-start": self.agent_started,
            "agent-end": self.agent_finished,
            "verification-start": self.verifier_started,
            "verification-end": self.verifier_finished,
        }
        return [(f"{event}{name}", at) for event, at in marks.items() if at is not None]

    @staticmethod
    def _timing(started: datetime | None, finished: datetime | None) -> Timing | None:
        return None if started is None else Timing(started_at=started, finished_at=finished)


@dataclass(slots=True)
class Progress:
    """How far a run has come."""

    outcomes: list[StepOutcome] = field(default_factory=list)
    failure: BaseException | None = None
    """What the preparation or a single step's verification raised."""
    prepared_at: datetime | None = None

    def rewards(self, strategy: str | None) -> dict[str, float] | None:
        """Of all steps that were judged: per name the mean, a missing one counting 0, or those of the last step."""
        if strategy == "final":
            return self.outcomes[-1].rewards if self.outcomes else None
        judged = [outcome.rewards for outcome in self.outcomes if outcome.rewards is not None]
        if not judged:
            return None
        names = list(dict.fromkeys(name for rewards in judged for name in rewards))
        return {
            name: sum(rewards.get(name, 0.0) for rewards in judged) / len(judged) for name in names
        }


class TaskWorkbench(ExecutorWorkbench):
    """The tools of one run. While a step has a time of its own, no call outlasts it."""

    def __init__(
        self, executor: ToolExecutor, trajectory_id: str, schemas: tuple[ToolSchema, ...]
    ) -> None:
        super().__init__(executor, trajectory_id)
        self.schemas = schemas
        """Of the tools that the agent may call."""
        self.clock: AgentClock | None = None

    async def call(self, call: ToolCall, *, limit_s: float | None) -> ToolResult:
        """Run one call, within its own deadline, `limit_s` and the step's time."""
        if self.clock is not None:
            left_s = self.clock.left()
            limit_s = left_s if limit_s is None else min(limit_s, left_s)
        return await super().call(call, limit_s=limit_s)


class TaskVerifier:
    """Prepares the sandbox of a task and judges it. Implements `Verifier`; serves one rollout."""

    def __init__(self, first: TaskRun, judge: Judge, progress: Progress, told: Observation) -> None:
        self._first = first
        self._judge = judge
        self._progress = progress
        self._told = told

    async def prepare(
        self, task: Task, *, trajectory_id: str, exec_tool: ExecTool
    ) -> dict[str, Any]:
        """Fill the sandbox, and wait until it is healthy."""
        try:
            await prepare_sandbox(self._first)
            await self._judge.look_before(self._first.sandbox)
        except (AgentEnvError, BackendError) as error:
            self._progress.failure = error
            raise
        self._progress.prepared_at = now()
        return {}

    async def verify(
        self,
        task: Task,
        result: AgentResult,
        *,
        trajectory_id: str,
        exec_tool: ExecTool,
        workspace_meta: dict[str, Any],
    ) -> Verdict:
        """Run the tests; of a task with steps, which were judged on the way, add up."""
        progress = self._progress
        directory = self._first.directory
        if not directory.is_multi_step:
            (outcome,) = progress.outcomes
            await judged(outcome, self._judge, self._told, last=True)
        strategy = directory.config.multi_step_reward_strategy
        rewards = progress.rewards(strategy if directory.is_multi_step else None)
        failure = progress.outcomes[-1].failure
        if rewards is None and failure is not None:
            raise failure
        return Verdict(main_reward(rewards), {"rewards": rewards})


async def judged(outcome: StepOutcome, judge: Judge, told: Observation, *, last: bool) -> None:
    """Judge a step. What goes wrong is noted in its outcome, and raised."""
    outcome.verifier_started = now()
    try:
        outcome.rewards = await judge.judge(outcome.run, last=last)
        outcome.judged = True
    except (AgentEnvError, BackendError) as error:
        outcome.failure = error
        raise
    finally:
        outcome.verifier_finished = now()
        told.tell("judged", _judgement(outcome))


def _judgement(outcome: StepOutcome) -> Judgement:
    failure = None if outcome.failure is None else describe(outcome.failure)
    said = "".join(outcome.run.tests_said)
    return Judgement(outcome.run.step.name, outcome.rewards, said, failure)


class SteppingHarness:
    """Lets an agent work on a task's steps, one after the other. Implements `Harness`.

    A task without `[[steps]]` has one, which the rollout's verifier judges. Of others each is judged here before the
    next begins, which it does not where the step failed or its rewards are too low.
    """

    def __init__(
        self,
        agent: TaskAgent,
        runs: Sequence[TaskRun],
        judge: Judge,
        progress: Progress,
        workbench: TaskWorkbench,
        told: Observation,
    ) -> None:
        """`told` hears of the steps, and of the replies of those after the first, whose session is the rollout's."""
        self._agent = agent
        self._runs = runs
        self._judge = judge
        self._progress = progress
        self._workbench = workbench
        self._told = told

    async def run(
        self, task: Task, session: Session, exec_tool: ExecTool, clock: AgentClock
    ) -> AgentResult:
        """Work on every step. Raises as the agent's own harness does."""
        if self._runs[0].step.name is None:
            return await self._work(self._runs[0], task, session, exec_tool, clock)
        for number, run in enumerate(self._runs):
            step_session = session if number == 0 else self._session(task, number)
            if not await self._step(run, task, step_session, exec_tool, number):
                break
        results = [o.result for o in self._progress.outcomes if o.result is not None]
        if not results:
            failure = self._progress.outcomes[0].failure
            assert failure is not None
            raise failure
        return joined(results)

    async def _step(
        self, run: TaskRun, task: Task, session: Session, exec_tool: ExecTool, number: int
    ) -> bool:
        """One of several steps; whether the next may begin."""
        if number:
            await run.sandbox.empty(*LOG_FOLDERS, mode="0777")
            await run.sandbox.empty(VERIFIER_LOGS, "/tests")
        try:
            await prepare_step(run)
        except SetupCommandError as error:
            self._progress.outcomes.append(StepOutcome(run, failure=error))
            return False
        self._told.tell("step_started", run.step.name, instruction_of(run))
        limit_s = run.options.effective_agent_timeout_s(run.step.agent.timeout_sec)
        clock = self._workbench.clock = AgentClock(limit_s)
        result = await self._work(run, task, session, exec_tool, clock)
        outcome = self._progress.outcomes[-1]
        if not result.success and result.stop_reason not in BUDGET_STOPS:
            return False
        await run.sandbox.kill_everything()
        try:
            await judged(outcome, self._judge, self._told, last=run is self._runs[-1])
        except VerifierError:
            return False
        return _reached(run.step.min_reward, outcome.rewards) or not run.options.verify

    async def _work(
        self, run: TaskRun, task: Task, session: Session, exec_tool: ExecTool, clock: AgentClock
    ) -> AgentResult:
        outcome = StepOutcome(run, agent_started=now())
        self._progress.outcomes.append(outcome)
        try:
            outcome.result = await self._agent.harness.run(
                replace(task, instruction=instruction_of(run), item=run), session, exec_tool, clock
            )
        except (AgentEnvError, BackendError) as error:
            outcome.failure = error
            raise
        finally:
            outcome.agent_finished = now()
        return outcome.result

    def _session(self, task: Task, number: int) -> Session:
        seed = None if task.seed is None else task.seed + number
        trajectory_id = task.metadata["trajectory_id"]
        session = self._agent.open_session(
            SessionRequest(f"{trajectory_id}-{number}", self._workbench.schemas, seed)
        )
        return self._told.session(session)


def instruction_of(run: TaskRun) -> str:
    """What the agent is told."""
    return "\n\n".join((run.step.instruction.rstrip("\n"), *run.options.extra_instructions))


def _reached(
    needed: float | Mapping[str, float] | None, rewards: Mapping[str, float] | None
) -> bool:
    if needed is None:
        return True
    gates = needed if not isinstance(needed, float | int) else {"reward": needed}
    return all((rewards or {}).get(name, float("-inf")) >= least for name, least in gates.items())


def _renumbered_sequences(results: Sequence[AgentResult]) -> Iterator[TokenSequence]:
    """Every sequence, its turns numbered through as the steps are."""
    before = 0
    for result in results:
        for sequence in result.sequences:
            turns = (replace(turn, number=turn.number + before) for turn in sequence.turns)
            yield replace(sequence, turns=tuple(turns))
        before += result.num_steps


def joined(results: Sequence[AgentResult]) -> AgentResult:
    """Several results as one: steps numbered through, all messages and sequences."""
    if len(results) == 1:
        return results[0]
    steps = [step for result in results for step in result.steps]
    last = results[-1]
    return replace(
        last,
        success=all(result.success for result in results),
        steps=tuple(replace(step, step_number=n) for n, step in enumerate(steps, 1)),
        sequences=tuple(_renumbered_sequences(results)),
        messages=tuple(message for result in results for message in result.messages),
        total_tokens=sum(result.total_tokens for result in results),
        error=next((result.error for result in results if result.error), None),
    )
