"""How many requests may be under way at once."""

from __future__ import annotations

import asyncio
import math
from collections import deque
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


class Limiter:
    """Permits, first come first served. The capacity can be raised for good, and shared: a weight scales it both ways.

    A permit is returned on every way out of `permit`, cancellation at any moment included. Waiting
    can be ended from outside by `refuse_waiters`. Belongs to one event loop; not thread-safe.
    """

    def __init__(self, capacity: int) -> None:
        if capacity < 1:
            raise ValueError(f"a limiter needs a capacity of at least 1, not {capacity}")
        self._whole = capacity
        self._weight = 1.0
        self._in_use = 0
        self._waiters: deque[asyncio.Future[None]] = deque()

    @property
    def capacity(self) -> int:
        """How many permits there are: the weight's share of the whole, rounded up, and at least one."""
        return max(1, math.ceil(self._whole * self._weight))

    @property
    def in_use(self) -> int:
        """How many are held now."""
        return self._in_use

    @property
    def waiting(self) -> int:
        """How many are being waited for now."""
        return sum(not waiter.done() for waiter in self._waiters)

    @asynccontextmanager
    async def permit(self) -> AsyncIterator[None]:
        """Hold one permit inside the block."""
        await self._acquire()
        try:
            yield
        finally:
            self._release()

    def raise_to(self, capacity: int) -> None:
        """Have at least `capacity` permits at weight 1; waiters get the new ones at once."""
        self._whole = max(self._whole, capacity)
        self._hand_out()

    def weigh(self, weight: float) -> None:
        """Use the share `weight` (0 to 1) of the whole from now on.

        Raised, waiters get the new permits at once; lowered, those that are held come back as their calls end.
        """
        self._weight = min(1.0, max(0.0, weight))
        self._hand_out()

    def refuse_waiters(self, error: Exception) -> None:
        """End every present wait with `error`. Permits that are held stay held."""
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():
                waiter.set_exception(error)

    async def _acquire(self) -> None:
        if self._in_use < self.capacity and not self._waiters:
            self._in_use += 1
            return
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        try:
            await waiter
        except asyncio.CancelledError:
            self._forget(waiter)
            raise

    def _forget(self, waiter: asyncio.Future[None]) -> None:
        # Cancelled in the moment between being handed a permit and waking up: the permit goes to
        # the next one.
        if waiter.done() and not waiter.cancelled() and waiter.exception() is None:
            self._release()
            return
        if waiter in self._waiters:
            self._waiters.remove(waiter)
        self._hand_out()

    def _release(self) -> None:
        self._in_use -= 1
        self._hand_out()

    def _hand_out(self) -> None:
        while self._waiters and self._in_use < self.capacity:
            waiter = self._waiters.popleft()
            if not waiter.done():
                self._in_use += 1
                waiter.set_result(None)
