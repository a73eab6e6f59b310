"""Pausing rollouts while a trainer exchanges the policy's weights."""

from __future__ import annotations

import asyncio
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from agentenv.errors import PolicyTimeoutError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

LONGEST_PAUSE_S = 86_400.0
"""For gates that people close: whoever pauses may not be back before tomorrow. Not infinite, since deadlines are moved
by it and back again."""


class PausedTooLongError(PolicyTimeoutError):
    """The policy stayed paused beyond the limit: whoever paused it is probably gone. The rollout is retried."""


class PauseGate:
    """While it is closed, no turn and no group begins; turns under way go on, with their deadlines held.

    `pause` and `resume` are idempotent and act at once. A waiter goes on when the gate is open, never during a pause
    that began before it could run; every resume that lasts wakes all of them. For one event loop; from another thread
    use `loop.call_soon_threadsafe(gate.pause)`.
    """

    def __init__(self, *, limit_s: float = 1800.0) -> None:
        """`limit_s`: how long anyone waits in one pause before giving up."""
        self.limit_s = limit_s
        self._open = asyncio.Event()
        self._open.set()
        self._idle = asyncio.Event()
        self._idle.set()
        self._since: float | None = None
        self._before_s = 0.0
        self._turns = 0
        self._deadlines: set[asyncio.Timeout] = set()

    @property
    def paused(self) -> bool:
        """Whether it is closed."""
        return self._since is not None

    @property
    def paused_s(self) -> float:
        """Seconds it has been closed in all. The difference of two readings is what a deadline should leave out."""
        return self._before_s + (0.0 if self._since is None else time.monotonic() - self._since)

    def pause(self) -> None:
        """Close it."""
        if self._since is not None:
            return
        self._since = time.monotonic()
        self._open.clear()
        self._shift_deadlines(self.limit_s)

    def resume(self) -> None:
        """Open it."""
        if self._since is None:
            return
        paused_for = time.monotonic() - self._since
        self._before_s += paused_for
        self._since = None
        self._open.set()
        self._shift_deadlines(paused_for - self.limit_s)

    async def wait(self) -> float:
        """Wait until it is open; the seconds that took. Raises `PausedTooLongError`."""
        started = time.monotonic()
        while self.paused:
            await self._opened()
        return time.monotonic() - started

    async def drained(self) -> None:
        """Wait until no turn is under way. Has no deadline of its own: turns have theirs."""
        await self._idle.wait()

    @asynccontextmanager
    async def timeout(self, seconds: float | None) -> AsyncIterator[asyncio.Timeout]:
        """`asyncio.timeout` that counts no pauses, each up to `limit_s`. Gives the same object, raises the same."""
        async with asyncio.timeout(seconds) as deadline:
            self._deadlines.add(deadline)
            if self._since is not None:
                _shift(deadline, max(0.0, self.limit_s - (time.monotonic() - self._since)))
            try:
                yield deadline
            finally:
                self._deadlines.discard(deadline)

    @asynccontextmanager
    async def turn(self, seconds: float) -> AsyncIterator[asyncio.Timeout]:
        """Bound one turn, as `timeout` does; `drained` waits for it. Begin it when `wait` has returned."""
        async with self.timeout(seconds) as deadline:
            self._turns += 1
            self._idle.clear()
            try:
                yield deadline
            finally:
                self._turns -= 1
                if not self._turns:
                    self._idle.set()

    async def _opened(self) -> None:
        try:
            async with asyncio.timeout(self.limit_s) as deadline:
                await self._open.wait()
        except TimeoutError as error:
            if not deadline.expired():
                raise
            raise PausedTooLongError(
                f"the policy is still paused after {self.limit_s:g} s (pause_timeout_s): has whoever paused it ended "
                f"without resuming?"
            ) from error

    def _shift_deadlines(self, seconds: float) -> None:
        for deadline in self._deadlines:
            _shift(deadline, seconds)


def _shift(deadline: asyncio.Timeout, seconds: float) -> None:
    when = deadline.when()
    if when is not None and not deadline.expired():
        deadline.reschedule(when + seconds)
