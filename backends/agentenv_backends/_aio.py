"""Waiting with a bound, also for what ignores being cancelled."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from typing import Any

T = TypeVar("T")

CANCEL_GRACE_S = 2.0
_log = logging.getLogger(__name__)


async def bounded(
    coroutine: Coroutine[Any, Any, T],
    timeout_s: float,
    what: str,
    *,
    too_late: Callable[[T], None] | None = None,
) -> T:
    """Await `coroutine` for at most `timeout_s` seconds, then cancel it and raise `TimeoutError`
    naming `what`.

    Unlike `asyncio.timeout`, this returns even when the coroutine swallows its cancellation: after
    `CANCEL_GRACE_S` it is left behind. A result it yields after it was given up is passed to
    `too_late`.
    """
    task = asyncio.ensure_future(coroutine)
    try:
        done, _ = await asyncio.wait({task}, timeout=timeout_s)
    except asyncio.CancelledError:
        await _give_up(task, what, too_late)
        raise
    if not done:
        await _give_up(task, what, too_late)
        raise TimeoutError(f"{what} took more than {timeout_s:g} s")
    return task.result()


async def _give_up(task: asyncio.Task[T], what: str, too_late: Callable[[T], None] | None) -> None:
    def settle(done: asyncio.Task[T]) -> None:
        if done.cancelled():
            return
        if (error := done.exception()) is not None:
            _log.debug("%s failed after it was given up: %s", what, error)
        elif too_late is not None:
            too_late(done.result())

    task.add_done_callback(settle)
    task.cancel()
    await asyncio.wait({task}, timeout=CANCEL_GRACE_S)


async def finish(task: asyncio.Task[Any]) -> None:
    """Wait until `task` is done, however often the waiter is cancelled meanwhile; then pass a
    cancellation on.

    For cleanup that must not be cut short by a second Ctrl-C. `task` has to be bounded by itself.
    """
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        raise cancelled
    task.result()
