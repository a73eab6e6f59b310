"""What happens in a run, told to whoever wants to show it while it happens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

    from agentenv.harness import AgentClock, Harness
    from agentenv.session import Session
    from agentenv.task import ExecTool, Task
    from agentenv.tokens.base import Message, ParsedReply, TokenSequence
    from agentenv.types import AgentResult
    from agentenv_tools.schema import ToolCall, ToolResult


class RunListener(Protocol):
    """Called on the event loop; returns at once."""

    def replied(self, reply: ParsedReply) -> None:
        """The model said something."""
        ...

    def called(self, call: ToolCall) -> None:
        """A tool call begins."""
        ...

    def answered(self, call: ToolCall, result: ToolResult) -> None:
        """It has its result."""
        ...

    def verifying(self) -> None:
        """The agent has ended, and its work is judged."""
        ...


@dataclass(frozen=True, slots=True)
class ToldHarness:
    """A harness whose replies and calls are told to a listener. Implements `Harness`."""

    harness: Harness
    listener: RunListener

    async def run(
        self, task: Task, session: Session, exec_tool: ExecTool, clock: AgentClock
    ) -> AgentResult:
        """As the harness inside does."""

        async def told(call: ToolCall) -> ToolResult:
            self.listener.called(call)
            result = await exec_tool(call)
            self.listener.answered(call, result)
            return result

        result = await self.harness.run(task, _ToldSession(session, self.listener), told, clock)
        self.listener.verifying()
        return result


class _ToldSession:
    """A session whose replies are told. Implements `Session`."""

    def __init__(self, session: Session, listener: RunListener) -> None:
        self._session = session
        self._listener = listener
        self.sampled_tokens = session.sampled_tokens

    @property
    def messages(self) -> Sequence[Message]:
        return self._session.messages

    def add(self, *messages: Message) -> None:
        self._session.add(*messages)

    async def sample(
        self, *, turn: int, temperature: float, max_tokens: int | None
    ) -> tuple[ParsedReply, str]:
        reply, finish = await self._session.sample(
            turn=turn, temperature=temperature, max_tokens=max_tokens
        )
        self.sampled_tokens = self._session.sampled_tokens
        self._listener.replied(reply)
        return reply, finish

    def sequences(self) -> list[TokenSequence]:
        return self._session.sequences()
