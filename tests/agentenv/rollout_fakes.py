"""A session that replies by script and a workbench that answers by function: a rollout without engine or sandbox."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from agentenv.errors import ContextLengthError
from agentenv.task import Verdict
from agentenv.tokens.base import Message, ParsedReply, TokenSequence
from agentenv_backends.base import Snapshot
from agentenv_backends.results import Recording
from agentenv_tools.schema import ToolCall, ToolResult

Reply = ParsedReply | Exception | Callable[[], Awaitable[ParsedReply]]


def answer(text: str) -> ParsedReply:
    return ParsedReply(text=text, content=text, reasoning=None, tool_calls=())


def calls(*names: str, **arguments: Any) -> ParsedReply:
    made = tuple(
        ToolCall(name, dict(arguments), uniq_id=f"call-{n}") for n, name in enumerate(names)
    )
    return ParsedReply(text="<calls>", content="", reasoning=None, tool_calls=made)


class ScriptedSession:
    """Replies by script; one token each."""

    def __init__(self, *replies: Reply, finish_reason: str = "stop") -> None:
        self.replies = list(replies)
        self.messages: list[Message] = []
        self.sampled_tokens = 0
        self.finish_reason = finish_reason
        self.sampled_with: list[dict[str, Any]] = []

    def add(self, *messages: Message) -> None:
        self.messages.extend(messages)

    async def sample(
        self, *, turn: int, temperature: float, max_tokens: int | None
    ) -> tuple[ParsedReply, str]:
        self.sampled_with.append(
            {"turn": turn, "temperature": temperature, "max_tokens": max_tokens}
        )
        if not self.replies:
            raise ContextLengthError("the script is over")
        reply = self.replies.pop(0)
        if isinstance(reply, Exception):
            raise reply
        parsed = reply if isinstance(reply, ParsedReply) else await reply()
        self.sampled_tokens += 1
        self.messages.append(Message("assistant", parsed.content, parsed.tool_calls))
        return parsed, self.finish_reason

    def sequences(self) -> list[TokenSequence]:
        n = self.sampled_tokens
        return [TokenSequence([7] * (n + 1), [-100] + [7] * n, [1.0] + [-0.5] * n)] if n else []


class FunctionWorkbench:
    """Answers each call by a function and notes what happened, in order."""

    def __init__(self, respond: Callable[[ToolCall], Awaitable[ToolResult]] | None = None) -> None:
        self.respond = respond
        self.log: list[str] = []
        self.limits: list[float | None] = []
        self.slot_wait: Callable[[], Awaitable[None]] | None = None

    async def ready(self, call: ToolCall) -> None:
        if self.slot_wait is not None:
            await self.slot_wait()

    async def call(self, call: ToolCall, *, limit_s: float | None) -> ToolResult:
        self.log.append(f"call {call.name}")
        self.limits.append(limit_s)
        return (
            await self.respond(call)
            if self.respond
            else ToolResult(True, "ok", uniq_id=call.uniq_id)
        )

    async def recordings(self) -> tuple[Recording, ...]:
        return ()

    async def quiesce(self) -> None:
        self.log.append("quiesce")

    async def snapshot(self) -> Snapshot | None:
        self.log.append("snapshot")
        return Snapshot("taken", "h1")

    async def restore(self, snapshot: Snapshot) -> None:
        self.log.append(f"restore {snapshot.snapshot_id}")

    async def release(self) -> None:
        await asyncio.sleep(0)
        self.log.append("release")


class FunctionVerifier:
    """Prepares and judges by functions."""

    def __init__(self, verdict: Any = 1.0, *, prepare: Any = None, use_tool: bool = False) -> None:
        self.verdict = verdict
        self.prepared_by = prepare
        self.use_tool = use_tool
        self.seen_meta: dict[str, Any] | None = None

    async def prepare(self, task: Any, *, trajectory_id: str, exec_tool: Any) -> dict[str, Any]:
        if self.prepared_by is not None:
            return await self.prepared_by(exec_tool)  # type: ignore[no-any-return]
        return {"prepared": True}

    async def verify(
        self,
        task: Any,
        result: Any,
        *,
        trajectory_id: str,
        exec_tool: Any,
        workspace_meta: dict[str, Any],
    ) -> Verdict:
        self.seen_meta = workspace_meta
        if self.use_tool:
            await exec_tool(ToolCall("verify"))
        verdict = self.verdict() if callable(self.verdict) else self.verdict
        if asyncio.iscoroutine(verdict):
            verdict = await verdict
        if isinstance(verdict, Exception):
            raise verdict
        return Verdict(verdict)
