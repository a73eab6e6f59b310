"""What a collector keeps of each item, and of all of them."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from agentenv.collected import GroupUnderWay

if TYPE_CHECKING:
    import asyncio

    from agentenv.collected import CollectedGroup
    from agentenv.types import Item


@dataclass(slots=True, eq=False)
class Work:
    """An item on its way to a group."""

    index: int
    item: Item
    attempts: int = 0
    policy_version: int | None = None
    started_at: float = 0.0
    withdrawn: str | None = None
    """Why it was taken back, when it was."""

    def under_way(self) -> GroupUnderWay:
        """How it stands."""
        return GroupUnderWay(self.index, self.item, self.policy_version, self.started_at)


@dataclass(slots=True)
class CollectionState:
    """What is where."""

    backlog: deque[Work] = field(default_factory=deque)
    running: dict[asyncio.Task[None], Work] = field(default_factory=dict)
    ready: deque[CollectedGroup] = field(default_factory=deque)
    fetching: asyncio.Task[Item | None] | None = None
    next_index: int = 0
    finished: int = 0
    """Groups that became ready, taken or not."""
    exhausted: bool = False
    failures_in_a_row: int = 0
    not_before: float = 0.0
    stop_at: float | None = None
