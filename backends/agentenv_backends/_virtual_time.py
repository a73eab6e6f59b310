"""An event loop whose clock jumps to the next timer instead of waiting for it."""

from __future__ import annotations

import asyncio
import selectors
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Coroutine
    from typing import Any

T = TypeVar("T")

_PATIENCE_S = 5.0
"""Real seconds to wait for threads or sockets when no timer is left, before calling it a
deadlock."""


class DeadlockError(RuntimeError):
    """Every task waits and no timer is set: nothing can ever happen again."""


class _JumpingSelector(selectors.SelectSelector):
    """Reports what is ready; where the loop would sleep, it moves the clock instead."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if ready or timeout == 0:
            return ready
        if timeout is not None:
            self.now += timeout
            return ready
        ready = super().select(_PATIENCE_S)
        if not ready:
            raise DeadlockError("every task waits and no timer is set")
        return ready


class _VirtualTimeLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self._jumping = _JumpingSelector()
        super().__init__(self._jumping)

    def time(self) -> float:
        return self._jumping.now


def run_in_virtual_time(main: Coroutine[Any, Any, T]) -> T:
    """Run `main` to its end in a loop of its own, in which `asyncio.sleep(3600)` takes no time.

    For code that waits on timers and on other tasks only: processes, sockets and threads live in
    real time and would see the clock jump. Raises `DeadlockError` when everything waits for ever.
    """
    with asyncio.Runner(loop_factory=_VirtualTimeLoop) as runner:
        return runner.run(main)
