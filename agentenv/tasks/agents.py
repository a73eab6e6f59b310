"""Agents as `run_task` takes them, and the two that need no model: the oracle and the one that does nothing."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from agentenv.errors import PolicyRequestError
from agentenv.outcomes import StopReason
from agentenv.tasks.errors import NonZeroAgentExitCodeError
from agentenv.tasks.under_way import TaskRun
from agentenv.types import AgentConfig, AgentResult, AgentStep
from agentenv_tools.toolsets import build_registry

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from agentenv.harness import AgentClock, Harness
    from agentenv.session import Session
    from agentenv.task import ExecTool, Task
    from agentenv.tokens.base import Message, ParsedReply, TokenSequence
    from agentenv_tools.registry import ToolRegistry
    from agentenv_tools.schema import ToolSchema

AGENT_ERROR = "agent_error"
"""In an `AgentResult`'s metadata: the exception that is recorded although its work is judged, `Name: message`."""
MAX_LOG_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class SessionRequest:
    """What a conversation is for. A task with several steps has one for each."""

    trajectory_id: str
    schemas: tuple[ToolSchema, ...]
    """Tools that the policy may call."""
    seed: int | None = None


@dataclass(frozen=True, slots=True)
class TaskAgent:
    """An agent: how it works, and how its conversation with a policy is made."""

    name: str
    harness: Harness
    session: Callable[[SessionRequest], Session] | None = None
    """None: it has no policy. The policy behind it is the caller's to start and close."""
    config: AgentConfig = field(default_factory=AgentConfig)
    tools: Callable[[], ToolRegistry] = build_registry
    """Makes the tools it may call, anew for each run."""
    version: str = "1"
    model: str | None = None
    """For results: `provider/name` or a name."""
    takes_prior_trajectory: bool = False
    """Whether it can go on from a task's trajectory.json."""
    ignores_prior_trajectory: bool = False
    """Whether such a file changes nothing for it."""
    needs_solution: bool = False
    """Whether it runs the task's own solution."""

    def open_session(self, request: SessionRequest) -> Session:
        """A conversation for one step."""
        return NoSession() if self.session is None else self.session(request)


def oracle_agent() -> TaskAgent:
    """Runs the task's own solution/solve.sh. What it does not solve nobody can be asked to."""
    return TaskAgent("oracle", OracleHarness(), ignores_prior_trajectory=True, needs_solution=True)


def nop_agent() -> TaskAgent:
    """Does nothing. What it solves needs no agent."""
    return TaskAgent("nop", NopHarness(), ignores_prior_trajectory=True)


class NoSession:
    """The conversation of an agent without a policy. Implements `Session`."""

    sampled_tokens = 0
    messages: Sequence[Message] = ()

    def add(self, *messages: Message) -> None:
        """Nobody reads it."""

    async def sample(
        self, *, turn: int, temperature: float, max_tokens: int | None
    ) -> tuple[ParsedReply, str]:
        """Raises `PolicyRequestError`: there is nobody to ask."""
        raise PolicyRequestError("this agent has no policy, and asked for a reply")

    def sequences(self) -> list[TokenSequence]:
        """None."""
        return []


class NopHarness:
    """Ends at once. Implements `Harness`."""

    async def run(
        self, task: Task, session: Session, exec_tool: ExecTool, clock: AgentClock
    ) -> AgentResult:
        """Do nothing."""
        return _result("nothing was done", StopReason.FINAL_ANSWER)


class OracleHarness:
    """Uploads solution/ and runs its script. Implements `Harness`."""

    async def run(
        self, task: Task, session: Session, exec_tool: ExecTool, clock: AgentClock
    ) -> AgentResult:
        """Solve the task as its author did. `task.item` is the `TaskRun`."""
        run = task.item
        assert isinstance(run, TaskRun)
        step = run.step
        assert step.solution_script is not None
        await run.sandbox.upload(step.solution, "/solution")
        done = await run.sandbox.run_script(
            f"/solution/{step.solution_script}",
            timeout_s=clock.left(),
            env=run.solution_env(),
            max_output_bytes=MAX_LOG_BYTES,
        )
        output = done.stdout.text()
        await run.keep_agent_log("oracle.txt", output)
        if done.timed_out:
            return _result(output, StopReason.TIMEOUT)
        error = None
        if done.exit_code:
            name = NonZeroAgentExitCodeError.__name__
            error = f"{name}: solution/{step.solution_script} ended with exit code {done.exit_code}"
        return _result(output, StopReason.FINAL_ANSWER, error)


def _result(text: str, stop: StopReason, agent_error: str | None = None) -> AgentResult:
    return AgentResult(
        success=True,
        final_response=text[-2000:],
        stop_reason=stop,
        steps=(AgentStep(step_number=1, assistant_message=text[-2000:]),),
        metadata={} if agent_error is None else {AGENT_ERROR: agent_error},
    )
