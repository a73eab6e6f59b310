"""How requests leave the executor: at once, in bounded groups, counted."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from agentenv_tools.stats import Counters


class Departures:
    """Lets at most `max_batch_size` requests per host leave within one turn of the event loop.

    Nothing ever waits for company. Requests that happen to leave in the same turn are what a
    transport can write in one piece; that is the batch that is counted.
    """

    def __init__(self, max_batch_size: int, counters: Counters) -> None:
        self._max = max_batch_size
        self._counters = counters
        self._leaving: dict[str, int] = {}
        self._next_turn: asyncio.Event | None = None

    async def leave(self, host_id: str) -> None:
        """Return when a request to this host may be handed over."""
        while self._leaving.get(host_id, 0) >= self._max:
            await self._turn_end().wait()  # so that a burst never holds the loop for long
        if not self._leaving:
            asyncio.get_running_loop().call_soon(self._end_turn)
        self._leaving[host_id] = self._leaving.get(host_id, 0) + 1

    def _turn_end(self) -> asyncio.Event:
        if self._next_turn is None:
            self._next_turn = asyncio.Event()
        return self._next_turn

    def _end_turn(self) -> None:
        self._counters.batches += len(self._leaving)
        self._counters.batched_requests += sum(self._leaving.values())
        self._leaving.clear()
        if self._next_turn is not None:
            self._next_turn.set()
            self._next_turn = None
