"""Environments whose verifier does not end: one hangs in a thread, one catches its cancellation."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from tests.faults.ledger_env import LedgerEnv

_HANGS_S = 300.0
_HANGING_FROM = 3


class ThreadedEnv(LedgerEnv):
    """Scores in a thread, which nothing can end."""

    async def verify_and_score_trajectory(
        self, item: Any, final_response: str, **more: Any
    ) -> tuple[float, dict[str, Any]]:
        if item > _HANGING_FROM:
            await asyncio.to_thread(time.sleep, _HANGS_S)
        return 1.0, {}


class StubbornEnv(LedgerEnv):
    """Takes no cancellation for an answer."""

    async def verify_and_score_trajectory(
        self, item: Any, final_response: str, **more: Any
    ) -> tuple[float, dict[str, Any]]:
        end = time.monotonic() + _HANGS_S
        while item > _HANGING_FROM and time.monotonic() < end:
            try:
                await asyncio.sleep(_HANGS_S)
            except asyncio.CancelledError:
                continue
        return 1.0, {}
