"""The harness: the loop in which a policy calls tools until it answers."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Protocol

from agentenv.control.pause import PauseGate
from agentenv.errors import ContextLengthError, PolicyTimeoutError
from agentenv.outcomes import StopReason
from agentenv.tokens.base import Message
from agentenv.tokens.messages import to_chat_messages
from agentenv.types import AgentResult, AgentStep
from agentenv_backends.errors import SlotExhaustedError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from agentenv.session import Session
    from agentenv.task import ExecTool, Task
    from agentenv.tokens.base import ParsedReply
    from agentenv_tools.schema import ToolResult


MAX_IMAGE_CHARS = 20_000_000
"""Base64 characters of images in one trajectory's tool results; further images are left out."""


_STOPS = {"length": StopReason.MAX_TOKENS, "refused": StopReason.REFUSED}
"""What a reply without calls means, by its finish reason, where it is no final answer."""


class Harness(Protocol):
    """A way for an agent to work on a task."""

    async def run(
        self, task: Task, session: Session, exec_tool: ExecTool, clock: AgentClock
    ) -> AgentResult:
        """Work until the agent answers or a budget is spent.

        Raises `PolicyError` or `agentenv_backends` `InfrastructureError` when something other than the agent failed.
        An agent that used up its slot's memory has failed itself: a result without success.
        """
        ...


class AgentClock:
    """The time an agent has. Waiting that is not the agent's doing can be left out of it."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._deadline = time.monotonic() + seconds

    def left(self) -> float:
        """Seconds until the deadline; 0 when it has passed."""
        return max(0.0, self._deadline - time.monotonic())

    def exempt(self, seconds: float) -> None:
        """Give back time the agent spent waiting for something of ours."""
        self._deadline += seconds


class ToolLoop:
    """Reply, call tools, read their results, until a reply calls none.

    Tool calls of one reply run one after the other, in the order written. A malformed call is answered with what is
    wrong with it. `turn_timeout_s` bounds each reply: overrunning it is the engine's fault (`PolicyTimeoutError`).
    While `gate` is closed no reply is asked for; pauses count against neither the turn nor the agent.
    """

    def __init__(self, *, turn_timeout_s: float, gate: PauseGate | None = None) -> None:
        self._turn_timeout_s = turn_timeout_s
        self._gate = gate or PauseGate()

    async def run(
        self, task: Task, session: Session, exec_tool: ExecTool, clock: AgentClock
    ) -> AgentResult:
        """Work until the agent answers or a budget is spent."""
        if task.agent.system_prompt:
            session.add(Message(role="system", content=task.agent.system_prompt))
        session.add(Message(role="user", content=task.instruction))
        steps: list[AgentStep] = []
        while True:
            try:
                stop = await self._step(task, session, exec_tool, clock, steps)
            except ContextLengthError:
                stop = StopReason.MAX_TOKENS
            except SlotExhaustedError as error:
                return self._result(session, steps, StopReason.ERROR, error=str(error))
            if stop is not None:
                return self._result(session, steps, stop)

    async def _step(
        self,
        task: Task,
        session: Session,
        exec_tool: ExecTool,
        clock: AgentClock,
        steps: list[AgentStep],
    ) -> StopReason | None:
        """One reply and its tool calls; None means: go on."""
        if len(steps) >= task.agent.max_steps:
            return StopReason.MAX_STEPS
        if clock.left() <= 0:
            return StopReason.TIMEOUT
        started, started_at = time.monotonic(), time.time()
        sampled = await self._reply(task, session, clock, turn=len(steps) + 1)
        if sampled is None:
            return StopReason.TIMEOUT
        reply, finish_reason = sampled
        generated = time.monotonic()
        results, in_time = await self._call_tools(task, session, reply, exec_tool, clock, steps)
        steps.append(
            AgentStep(
                step_number=len(steps) + 1,
                assistant_message=reply.text,
                tool_calls=reply.tool_calls,
                tool_results=tuple(results),
                generation_s=generated - started,
                tools_s=time.monotonic() - generated,
                content=reply.content,
                reasoning=reply.reasoning,
                usage=reply.usage,
                started_at=started_at,
            )
        )
        if not in_time:
            return StopReason.TIMEOUT
        if reply.tool_calls:
            return None
        return _STOPS.get(finish_reason, StopReason.FINAL_ANSWER)

    async def _reply(
        self, task: Task, session: Session, clock: AgentClock, *, turn: int
    ) -> tuple[ParsedReply, str] | None:
        """One reply; None when the agent's time ran out while the policy wrote.

        A reply that alone has taken half of the time the whole rollout has is the engine's failure, not the agent's.
        """
        clock.exempt(await self._gate.wait())
        limit = min(self._turn_timeout_s, clock.left())
        paused_before_s = self._gate.paused_s
        try:
            async with self._gate.turn(limit) as deadline:
                return await session.sample(
                    turn=turn, temperature=task.agent.temperature, max_tokens=task.agent.max_tokens
                )
        except TimeoutError as error:
            if not deadline.expired():
                raise
            if limit < min(self._turn_timeout_s, clock.seconds / 2):
                return None
            raise PolicyTimeoutError(
                f"no reply within {limit:.1f} s in turn {turn} (turn_timeout_s={self._turn_timeout_s:g}, "
                f"rollout_timeout_s={clock.seconds:g})"
            ) from error
        finally:
            clock.exempt(self._gate.paused_s - paused_before_s)

    async def _call_tools(
        self,
        task: Task,
        session: Session,
        reply: ParsedReply,
        exec_tool: ExecTool,
        clock: AgentClock,
        steps: list[AgentStep],
    ) -> tuple[list[ToolResult], bool]:
        """Run the calls of one reply; False when the agent's time ran out on the way."""
        results: list[ToolResult] = []
        held = sum(_image_chars(step.tool_results) for step in steps)
        for call in reply.tool_calls:
            if task.agent.tool_delay_s:
                await asyncio.sleep(task.agent.tool_delay_s)
            if clock.left() <= 0:
                return results, False
            result = _with_room(await exec_tool(call), MAX_IMAGE_CHARS - held)
            held += _image_chars([result])
            results.append(result)
            session.add(
                Message(
                    role="tool",
                    content=result.to_json(),
                    tool_call_id=call.uniq_id,
                    name=call.name,
                    images=result.images,
                )
            )
        return results, True

    def _result(
        self,
        session: Session,
        steps: list[AgentStep],
        stop: StopReason,
        *,
        error: str | None = None,
    ) -> AgentResult:
        final = next((m.content for m in reversed(session.messages) if m.role == "assistant"), "")
        return AgentResult(
            success=bool(steps) and error is None,
            final_response=final,
            stop_reason=stop,
            steps=tuple(steps),
            sequences=tuple(session.sequences()),
            messages=tuple(to_chat_messages(session.messages, images=True)),
            total_tokens=session.sampled_tokens,
            error=error or (None if steps else "the prompt left no room for a reply"),
        )


def _image_chars(results: Iterable[ToolResult]) -> int:
    return sum(len(image.data) for result in results for image in result.images)


def _with_room(result: ToolResult, room: int) -> ToolResult:
    """`result`, without its images where they take more than is left for images."""
    if _image_chars([result]) <= room:
        return result
    note = f"[not shown: images of one trajectory are {MAX_IMAGE_CHARS // 4 * 3} bytes at most]"
    return replace(result, images=(), output=f"{result.output}\n{note}".lstrip())
