"""Deadlines of calls, nearly all of which are met: one timer for all, set again only when it has rung.

A timer for each call would be made and thrown away with it, which costs more than what most calls do in between.
"""

from __future__ import annotations

import asyncio
from math import inf
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


class Deadlines:
    """Calls back at times of the running loop, unless told before that there is no need any more."""

    def __init__(self) -> None:
        self._due: dict[object, tuple[float, Callable[[], None]]] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._rings_at = inf

    def add(self, key: object, at: float, overdue: Callable[[], None]) -> None:
        """Call `overdue()` at that time of the loop, or right after, unless `key` has been removed by then."""
        self._due[key] = (at, overdue)
        if at < self._rings_at:
            self._set(at)

    def remove(self, key: object) -> None:
        """There is no need any more. Unknown keys are no error."""
        self._due.pop(key, None)

    def close(self) -> None:
        """Call nobody back any more."""
        self._due.clear()
        if self._timer is not None:
            self._timer.cancel()
        self._timer, self._rings_at = None, inf

    def _set(self, at: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._rings_at = at
        self._timer = asyncio.get_running_loop().call_at(at, self._ring)

    def _ring(self) -> None:
        # A loop may call a moment early: what this was set for counts as due.
        now = max(asyncio.get_running_loop().time(), self._rings_at)
        self._timer, self._rings_at = None, inf
        over = [key for key, (at, _) in self._due.items() if at <= now]
        try:
            for key in over:
                _, overdue = self._due.pop(key, (0.0, _nothing))
                overdue()
        finally:  # one that raises takes nobody else's deadline with it
            if self._due:
                self._set(min(at for at, _ in self._due.values()))


def _nothing() -> None:
    """It was removed by one that was due with it."""
