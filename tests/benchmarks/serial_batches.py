"""The rival of the mixed load: an executor that collects calls for a while, runs them together, and waits for them all.

That is the obvious way to batch tool calls. It is written here over the same backend, to show what it costs.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from agentenv_backends.errors import InfrastructureError

if TYPE_CHECKING:
    from agentenv_backends.base import Backend, Slot
    from agentenv_backends.requests import Request
    from agentenv_backends.results import Result


class SerialBatches:
    """Runs one batch after another; a call waits for its batch's slowest, and for that of the batch before."""

    def __init__(self, backend: Backend, *, window_s: float = 0.02) -> None:
        self._backend = backend
        self._window_s = window_s
        self._waiting: list[tuple[Slot, Request, asyncio.Future[Result]]] = []
        self._arrived = asyncio.Event()
        self._worker = asyncio.create_task(self._work())

    async def execute(self, slot: Slot, request: Request) -> Result:
        """Carry one request with the next batch. Raises `InfrastructureError`."""
        answer: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._waiting.append((slot, request, answer))
        self._arrived.set()
        return await answer

    async def close(self) -> None:
        """Take no more batches."""
        self._worker.cancel()
        await asyncio.wait({self._worker})

    async def _work(self) -> None:
        while True:
            await self._arrived.wait()
            await asyncio.sleep(self._window_s)
            batch, self._waiting = self._waiting, []
            self._arrived.clear()
            results = await self._backend.execute_batch(
                [(slot, request) for slot, request, _ in batch]
            )
            for (_, _, answer), result in zip(batch, results, strict=True):
                if isinstance(result, InfrastructureError):
                    answer.set_exception(result)
                else:
                    answer.set_result(result)
