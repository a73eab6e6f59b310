"""Waiting for what a test is about, instead of sleeping."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

_POLL_S = 0.02


async def eventually(
    condition: Callable[[], object], what: str | Callable[[], str], *, within_s: float = 15.0
) -> None:
    """Return when `condition()` is true. Raises `AssertionError`, naming `what`, when it does not become true."""
    deadline = asyncio.get_running_loop().time() + within_s
    while not condition():
        if asyncio.get_running_loop().time() > deadline:
            reason = what() if callable(what) else what
            raise AssertionError(f"not within {within_s:g} s: {reason}")
        await asyncio.sleep(_POLL_S)
