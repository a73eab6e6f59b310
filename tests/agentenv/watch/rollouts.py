"""Rollouts for a board to watch, without engine or sandbox."""

from collections.abc import Callable

from agentenv.outcomes import Outcome, StopReason
from agentenv.rollout import RolloutRecord
from agentenv.task import Task, Verdict
from agentenv.tokens.base import ParsedReply
from agentenv.types import AgentConfig, Usage
from agentenv.watch import Board
from agentenv_tools.schema import ToolCall, ToolResult


def scored(trajectory_id: str, cause: str | None = None) -> RolloutRecord:
    """A record with a reward of one half."""
    return RolloutRecord(
        trajectory_id, Outcome.SCORED, StopReason.FINAL_ANSWER, 0.5, None, cause=cause
    )


def begin(board: Board, name: str, cancel: Callable[[], None] = lambda: None) -> None:
    """A rollout of a task of this name, which is its trajectory id as well."""
    board.started(name, Task(f"do {name}", {"id": name}, AgentConfig()), cancel)


def say(board: Board, name: str, text: str) -> None:
    """A step of it with one call, all of whose texts are `text`."""
    usage = Usage(100, 20, cost_usd=0.5)
    call = ToolCall(text, {text: text})
    board.reply(name, ParsedReply(text, text, text, (call,), usage))
    board.tool_started(name, call)
    board.tool_finished(name, call, ToolResult(False, text, error=text))


def end(board: Board, name: str, cause: str | None = None) -> None:
    """It is judged, and over."""
    board.verifying(name)
    board.verified(name, Verdict(0.5))
    board.ended(name, scored(name, cause))
