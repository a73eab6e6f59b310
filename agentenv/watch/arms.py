"""The rollouts of one of several models that share a page."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from agentenv.observer import RolloutObserver

if TYPE_CHECKING:
    from collections.abc import Callable

    from agentenv.observer import Judgement
    from agentenv.rollout import RolloutRecord
    from agentenv.task import Task, Verdict
    from agentenv.tokens.base import ParsedReply
    from agentenv.types import Usage
    from agentenv.watch.board import Board
    from agentenv_tools.schema import ToolCall, ToolResult


class ArmObserver(RolloutObserver):
    """Tells a board of rollouts, with what they are part of, and with what replies cost at this model's price."""

    def __init__(self, board: Board, label: str, charged: Callable[[Usage], Usage]) -> None:
        """`label` stands beside the tasks; `charged` gives the usage of a reply its cost."""
        self._board = board
        self._label = label
        self._charged = charged

    def started(self, trajectory_id: str, task: Task, cancel: Callable[[], None]) -> None:
        """See `Board.begin`."""
        self._board.begin(trajectory_id, task, cancel, self._label)

    def reply(self, trajectory_id: str, reply: ParsedReply) -> None:
        """With its cost."""
        if reply.usage is not None:
            reply = replace(reply, usage=self._charged(reply.usage))
        self._board.reply(trajectory_id, reply)

    def step_started(self, trajectory_id: str, name: str, instruction: str) -> None:
        """As it is."""
        self._board.step_started(trajectory_id, name, instruction)

    def tool_started(self, trajectory_id: str, call: ToolCall) -> None:
        """As it is."""
        self._board.tool_started(trajectory_id, call)

    def tool_finished(self, trajectory_id: str, call: ToolCall, result: ToolResult) -> None:
        """As it is."""
        self._board.tool_finished(trajectory_id, call, result)

    def verifying(self, trajectory_id: str) -> None:
        """As it is."""
        self._board.verifying(trajectory_id)

    def judged(self, trajectory_id: str, judgement: Judgement) -> None:
        """As it is."""
        self._board.judged(trajectory_id, judgement)

    def verified(self, trajectory_id: str, verdict: Verdict) -> None:
        """As it is."""
        self._board.verified(trajectory_id, verdict)

    def ended(self, trajectory_id: str, record: RolloutRecord) -> None:
        """As it is."""
        self._board.ended(trajectory_id, record)
