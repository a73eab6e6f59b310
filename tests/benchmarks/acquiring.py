"""How long callers wait for a slot, from a pool that had time to prepare and from one that has nothing ready."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from time import perf_counter
from typing import TYPE_CHECKING

from tests.benchmarks.figures import P50, P99, percentile

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from agentenv_backends.base import Backend, Slot
    from agentenv_backends.config import DockerConfig, LocalConfig

_REFILL_S = 40.0


async def warm(config: LocalConfig | DockerConfig, burst: int, bursts: int) -> list[float]:
    """Seconds of each acquire, where `burst` slots are ready before each burst of as many acquires."""
    seconds: list[float] = []
    async with _pool(config) as backend:
        for _ in range(bursts):
            await _wait_for(backend, burst)
            slots, times = await _acquire(backend, burst)
            seconds += times
            for slot in slots:
                await backend.release(slot, reset_workspace=False)
    return seconds


async def cold(config: LocalConfig | DockerConfig, count: int) -> list[float]:
    """Seconds of each acquire, one after another, where nothing is prepared and nothing comes back.

    `config` has room for one more slot: the one that every start opens.
    """
    async with _pool(config) as backend:
        await backend.acquire("takes the slot that every start opens")
        return (await _acquire(backend, count))[1]


def figures(seconds: list[float]) -> dict[str, float]:
    """As columns of a row."""
    return {P50: percentile(seconds, 0.5) * 1e3, P99: percentile(seconds, 0.99) * 1e3}


@asynccontextmanager
async def _pool(config: LocalConfig | DockerConfig) -> AsyncIterator[Backend]:
    backend = config.build()
    await backend.start()
    try:
        yield backend
    finally:
        await backend.stop()


async def _acquire(backend: Backend, count: int) -> tuple[list[Slot], list[float]]:
    slots, seconds = [], []
    for number in range(count):
        started = perf_counter()
        slots.append(await backend.acquire(f"t{number}"))
        seconds.append(perf_counter() - started)
    return slots, seconds


async def _wait_for(backend: Backend, free: int) -> None:
    async with asyncio.timeout(_REFILL_S):
        while backend.stats().available_slots < free:
            await asyncio.sleep(0.01)
