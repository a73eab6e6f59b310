"""What a rollout works on, and what judges it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from agentenv.types import AgentConfig, AgentResult, Item
    from agentenv_tools.schema import ToolCall, ToolResult

    ExecTool = Callable[[ToolCall], Awaitable[ToolResult]]


@dataclass(frozen=True, slots=True)
class Task:
    """One task for an agent."""

    instruction: str
    """What the agent is told."""
    item: Item
    """The dataset element it was made of."""
    agent: AgentConfig
    seed: int | None = None
    """Seeds the policy's completions of this rollout."""
    metadata: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a verifier found. `reward` is finite."""

    reward: float
    metadata: dict[str, Any] = field(default_factory=dict)


class Verifier(Protocol):
    """Prepares a trajectory's workspace and judges what the agent left in it, both inside the trajectory's slot."""

    async def prepare(
        self, task: Task, *, trajectory_id: str, exec_tool: ExecTool
    ) -> dict[str, Any]:
        """Set the workspace up before the agent starts; what is returned comes back to `verify`."""
        ...

    async def verify(
        self,
        task: Task,
        result: AgentResult,
        *,
        trajectory_id: str,
        exec_tool: ExecTool,
        workspace_meta: dict[str, Any],
    ) -> Verdict:
        """Judge. The agent's processes are dead by now. Any exception but infrastructure's means: no reward exists."""
        ...


def item_id(item: Item) -> str | None:
    """The name an item has by itself, from its `id` or `task_id`; None when it has none."""
    value = (
        item.get("id")
        if isinstance(item, dict)
        else getattr(item, "id", getattr(item, "task_id", None))
    )
    return None if value is None else str(value)
