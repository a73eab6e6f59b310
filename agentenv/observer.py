"""What happens in a rollout, told to whoever watches it.

    class Printer(RolloutObserver):
        def reply(self, trajectory_id: str, reply: ParsedReply) -> None:
            print(trajectory_id, reply.content)

An observer is called on the event loop, returns at once, and changes nothing: what it raises is logged, and it is not
told of that rollout any more.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from types import TracebackType

    from agentenv.rollout import RolloutRecord
    from agentenv.session import Session
    from agentenv.task import ExecTool, Task, Verdict
    from agentenv.tokens.base import Message, ParsedReply, TokenSequence
    from agentenv_tools.schema import ToolCall, ToolResult

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Judgement:
    """What the tests of a task directory, or of one of its steps, came to."""

    step: str | None
    """None: the task has no steps."""
    rewards: Mapping[str, float] | None
    """None: there are no tests, or they gave none."""
    output: str
    """What the tests printed, secrets masked."""
    failure: str | None = None
    """Why there is no reward."""


class RolloutObserver:
    """Told of rollouts while they run. One observer can serve any number of them.

    Derive from it and give it the methods that matter: the others do nothing, also those of events that come later.
    """

    def started(self, trajectory_id: str, task: Task, cancel: Callable[[], None]) -> None:
        """A rollout begins. `cancel` withdraws it: it ends soon, with a record whose outcome is CANCELLED.

        Called on the event loop; once the rollout has ended, or is only giving its slot back, that does nothing.
        """

    def step_started(self, trajectory_id: str, name: str, instruction: str) -> None:
        """The agent is given a step of a task directory that has several, the first included."""

    def reply(self, trajectory_id: str, reply: ParsedReply) -> None:
        """The policy wrote something."""

    def tool_started(self, trajectory_id: str, call: ToolCall) -> None:
        """A call of the agent begins, with the wait for a slot if it needs one."""

    def tool_finished(self, trajectory_id: str, call: ToolCall, result: ToolResult) -> None:
        """It has its result."""

    def verifying(self, trajectory_id: str) -> None:
        """The agent has ended, and its work is judged."""

    def judged(self, trajectory_id: str, judgement: Judgement) -> None:
        """The tests of a task directory ended; of one with steps, of each before the next begins."""

    def verified(self, trajectory_id: str, verdict: Verdict) -> None:
        """There is a reward."""

    def ended(self, trajectory_id: str, record: RolloutRecord) -> None:
        """The rollout is over and its slot given back. The last call, in every case, cancellation included."""


class Observation:
    """What one rollout tells all of its observers. One that fails is told nothing more of this rollout."""

    def __init__(self, trajectory_id: str, observers: Sequence[RolloutObserver]) -> None:
        self.trajectory_id = trajectory_id
        self._observers = list(observers)

    def tell(self, event: str, *about: Any) -> None:
        """Call the method of this name. Never raises."""
        for observer in list(self._observers):
            try:
                getattr(observer, event)(self.trajectory_id, *about)
            except Exception:  # watching must not change what is watched
                self._observers.remove(observer)
                logger.exception("%s failed in %s", type(observer).__name__, event)

    def session(self, session: Session) -> Session:
        """`session`, whose replies are told."""
        return _ToldSession(session, self) if self._observers else session

    def tool(self, exec_tool: ExecTool) -> ExecTool:
        """`exec_tool`, whose calls and results are told."""
        if not self._observers:
            return exec_tool

        async def told(call: ToolCall) -> ToolResult:
            self.tell("tool_started", call)
            result = await exec_tool(call)
            self.tell("tool_finished", call, result)
            return result

        return told


class _ToldSession:
    """A session whose replies are told. Implements `Session`."""

    def __init__(self, session: Session, observation: Observation) -> None:
        self._session = session
        self._observation = observation
        self.sampled_tokens = session.sampled_tokens

    @property
    def messages(self) -> Sequence[Message]:
        return self._session.messages

    def add(self, *messages: Message) -> None:
        self._session.add(*messages)

    async def sample(
        self, *, turn: int, temperature: float, max_tokens: int | None
    ) -> tuple[ParsedReply, str]:
        reply, finish_reason = await self._session.sample(
            turn=turn, temperature=temperature, max_tokens=max_tokens
        )
        self.sampled_tokens = self._session.sampled_tokens
        self._observation.tell("reply", reply)
        return reply, finish_reason

    def sequences(self) -> list[TokenSequence]:
        return self._session.sequences()


class Withdrawal:
    """A block that can be cancelled from outside without the task around it being cancelled, as `asyncio.timeout` is.

    After the block `withdrawn` says whether that ended it.
    """

    def __init__(self) -> None:
        self.withdrawn = False
        self._asked = False
        self._task: asyncio.Task[Any] | None = None
        self._cancelling = 0

    def cancel(self) -> None:
        """Cancel the block, soon. Does nothing before and after it, nor a second time."""
        # Not at once: a task that cancels itself meets its cancellation where it waits next, maybe after the block.
        asyncio.get_running_loop().call_soon(self._cancel)

    def _cancel(self) -> None:
        if self._task is not None and not self._asked:
            self._asked = True
            self._task.cancel()

    def __enter__(self) -> None:
        self._task = asyncio.current_task()
        assert self._task is not None
        self._cancelling = self._task.cancelling()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool:
        task, self._task = self._task, None
        assert task is not None
        if not self._asked or task.uncancel() > self._cancelling:
            return False
        self.withdrawn = kind is not None and issubclass(kind, asyncio.CancelledError)
        return self.withdrawn
