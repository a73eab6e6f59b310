"""A run's progress that disturbs the run as it goes on."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from agentenv.run.progress import QuietProgress

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from agentenv.rollout import RolloutRecord

SHARE = 0.05
"""Mishaps for each rollout that ends."""


class Disturbing(QuietProgress):
    """Calls `mishap` for every twentieth rollout that ends, without the run waiting for it."""

    def __init__(self) -> None:
        super().__init__()
        self._owed = 0.0
        self._work: set[asyncio.Task[None]] = set()

    @property
    def rollouts(self) -> int:
        """Rollouts that have ended."""
        return sum(self.counters.outcomes.values())

    def rollout_ended(self, record: RolloutRecord) -> None:
        super().rollout_ended(record)
        self._owed += SHARE
        if self._owed >= 1:
            self._owed -= 1
            self.meanwhile(self.mishap())

    async def mishap(self) -> None:
        raise NotImplementedError

    def meanwhile(self, work: Coroutine[Any, Any, None]) -> None:
        """Have that done beside the run."""
        self._work.add(asyncio.create_task(work))

    async def finish(self) -> None:
        """Return when all of that is over. Raises what went wrong in it."""
        await asyncio.gather(*self._work)
