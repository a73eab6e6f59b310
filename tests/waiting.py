"""Waiting for what a test is about, instead of sleeping.

The deadlines bound a test that fails, and say nothing about how long anything may take: on a loaded machine any step
can take many seconds.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

WITHIN_S = 60.0
"""Until when a condition is waited for."""
_POLL_S = 0.02


async def eventually(
    condition: Callable[[], object],
    what: str | Callable[[], str],
    *,
    within_s: float = WITHIN_S,
    poll_s: float = _POLL_S,
) -> None:
    """Return when `condition()` is true. Raises `AssertionError`, naming `what`, when it does not become true."""
    give_up = time.monotonic() + within_s
    while not condition():
        _check_time(give_up, what, within_s)
        await asyncio.sleep(poll_s)


def wait_until(
    condition: Callable[[], object], what: str | Callable[[], str], *, within_s: float = WITHIN_S
) -> None:
    """`eventually`, for tests without an event loop."""
    give_up = time.monotonic() + within_s
    while not condition():
        _check_time(give_up, what, within_s)
        time.sleep(_POLL_S)


def _check_time(give_up: float, what: str | Callable[[], str], within_s: float) -> None:
    if time.monotonic() > give_up:
        reason = what() if callable(what) else what
        raise AssertionError(f"not within {within_s:g} s: {reason}")
