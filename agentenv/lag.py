"""How late the event loop is: the first thing to look at when everything is slow."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from typing import Self

logger = logging.getLogger(__name__)

_INTERVAL_S = 0.05
_WARN_S = 0.25
_KEPT = 4096


class LagMonitor:
    """Sleeps a fixed time over and over and notes by how much it overslept; warns of a single long block."""

    def __init__(self) -> None:
        self._samples: deque[float] = deque(maxlen=_KEPT)
        self._task: asyncio.Task[None] | None = None

    @property
    def p99_s(self) -> float:
        """The 99th percentile of the last few thousand samples, in seconds; 0.0 before the first."""
        ordered = sorted(self._samples)
        return ordered[int(len(ordered) * 0.99)] if ordered else 0.0

    @property
    def max_s(self) -> float:
        """The worst of them."""
        return max(self._samples, default=0.0)

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._watch(), name="loop-lag")
        return self

    async def __aexit__(self, *exc: object) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})

    async def _watch(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            started = loop.time()
            await asyncio.sleep(_INTERVAL_S)
            late = loop.time() - started - _INTERVAL_S
            self._samples.append(max(0.0, late))
            if late > _WARN_S:
                logger.warning("the event loop was blocked for %.0f ms", late * 1000)
