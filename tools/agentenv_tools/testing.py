"""Helps to test tools and whatever uses an executor, and to measure what the executor itself costs.

    @in_virtual_time
    async def test_my_tool():
        async with fake_executor(my_tool) as run:
            result = await run.executor.execute("t", ToolCall("my_tool", {"word": "x"}))

The sandboxes are those of `agentenv_backends.testing`: in memory, scripted, with faults on demand.
"""

from __future__ import annotations

import asyncio
import functools
from contextlib import asynccontextmanager
from dataclasses import dataclass
from time import process_time
from typing import TYPE_CHECKING, Any

from agentenv_backends.base import Capabilities, KnownSnapshot, PoolStats, Slot, Snapshot
from agentenv_backends.errors import CapabilityError
from agentenv_backends.requests import ExecRequest
from agentenv_backends.testing import (
    FakeProvider,
    exec_result,
    fake_pool,
    run_in_virtual_time,
)
from agentenv_tools.executor import ToolExecutor
from agentenv_tools.schema import ToolCall
from agentenv_tools.toolsets import build_registry

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence

    from agentenv_backends.errors import InfrastructureError
    from agentenv_backends.pool import SlotPool
    from agentenv_backends.requests import Request
    from agentenv_backends.results import Result
    from agentenv_tools.base import Tool
    from agentenv_tools.config import ToolExecutorConfig

__all__ = [
    "ExecutorSpeed",
    "FakeRun",
    "NullBackend",
    "fake_executor",
    "in_virtual_time",
    "measure_executor",
]


def in_virtual_time(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Run an async test in a loop whose clock jumps, so that no sleep and no deadline takes time.

    Threads, processes and sockets live in real time: use it for none of them, sync function tools
    included, except where their end is what the test awaits.
    """

    @functools.wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        run_in_virtual_time(test(*args, **kwargs))

    return run


@dataclass(frozen=True, slots=True)
class FakeRun:
    """An executor and what it stands on."""

    executor: ToolExecutor
    pool: SlotPool
    provider: FakeProvider

    def requests(self) -> list[list[Request]]:
        """What each open slot was asked, in order; slots that were asked nothing are left out."""
        asked = (
            slot.requests for host in self.provider.live.values() for slot in host.slots.values()
        )
        return [requests for requests in asked if requests]


@asynccontextmanager
async def fake_executor(
    *tools: Tool[Any],
    slots: int = 4,
    toolsets: Sequence[str] = ("default", "bash"),
    provider: FakeProvider | None = None,
    config: ToolExecutorConfig | None = None,
    **settings: Any,
) -> AsyncIterator[FakeRun]:
    """A started executor over fake hosts with `slots` slots; `settings` are those of the pool.

    Raises `AssertionError` at the end when a call or a slot is left after `close`.
    """
    provider = provider or FakeProvider()
    registry = build_registry(toolsets)
    for tool in tools:
        registry.register(tool)
    async with fake_pool(provider, slots=slots, **settings) as pool:
        executor = ToolExecutor(pool, registry, config)
        await executor.start()
        yield FakeRun(executor, pool, provider)
        await executor.close()
        _check_nothing_is_left(executor, pool)


def _check_nothing_is_left(executor: ToolExecutor, pool: SlotPool) -> None:
    stats, slots = executor.stats(), pool.stats()
    assert (stats.queue_size, stats.in_flight) == (0, 0), stats
    assert stats.finished_requests == stats.total_requests, stats
    assert (slots.acquired_slots, slots.waiting) == (0, 0), slots


# ---- What the executor costs ----


class NullBackend:
    """A `Backend` that answers every request with nothing in the next turn of the event loop."""

    default_timeout_s = 30.0
    grace_s = 5.0
    profiles = ("default",)
    capabilities = Capabilities("none", False, False, False, False)
    _answer = exec_result()

    async def start(self) -> None:
        """See `Backend.start`."""

    async def stop(self, *, purge: bool = False) -> None:
        """See `Backend.stop`."""

    async def acquire(
        self, trajectory_id: str, *, timeout_s: float | None = None, profile: str | None = None
    ) -> Slot:
        """See `Backend.acquire`. There is always a slot."""
        return Slot(trajectory_id, "null", trajectory_id=trajectory_id)

    async def release(self, slot: Slot, *, reset_workspace: bool = True) -> None:
        """See `Backend.release`."""

    async def execute(self, slot: Slot, request: Request) -> Result:
        """See `Backend.execute`."""
        await asyncio.sleep(0)
        return self._answer

    async def execute_batch(
        self, calls: Sequence[tuple[Slot, Request]]
    ) -> list[Result | InfrastructureError]:
        """See `Backend.execute_batch`."""
        return [await self.execute(slot, request) for slot, request in calls]

    async def snapshot(self, slot: Slot) -> Snapshot:
        """See `Backend.snapshot`. There is nothing to freeze."""
        raise CapabilityError("the null backend takes no snapshots")

    async def restore(self, slot: Slot, snapshot: Snapshot) -> None:
        """See `Backend.restore`."""
        raise CapabilityError("the null backend takes no snapshots")

    async def drop_snapshot(self, snapshot: Snapshot) -> None:
        """See `Backend.drop_snapshot`."""

    async def recall_snapshot(self, key: str) -> KnownSnapshot | None:
        """See `Backend.recall_snapshot`. Nothing is known."""
        return None

    async def remember_snapshot(self, key: str, snapshot: Snapshot, note: bytes) -> None:
        """See `Backend.remember_snapshot`."""

    def stats(self) -> PoolStats:
        """See `Backend.stats`."""
        return PoolStats(1, 0, 0, 0, 0, 0, 0, 0)


@dataclass(frozen=True, slots=True)
class ExecutorSpeed:
    """What `measure_executor` saw, per second of processor time: other work on the machine does not count."""

    calls_per_s: float
    """Through the executor."""
    backend_calls_per_s: float
    """The same calls given to the null backend directly."""

    @property
    def overhead_us(self) -> float:
        """Microseconds of the driver's processor that the executor adds to a call."""
        return 1e6 * (1 / self.calls_per_s - 1 / self.backend_calls_per_s)


async def measure_executor(*, trajectories: int = 64, calls_each: int = 200) -> ExecutorSpeed:
    """Time `terminal` calls over a `NullBackend`, each trajectory one call after another."""
    backend = NullBackend()
    executor = ToolExecutor(backend, build_registry())
    call = ToolCall("terminal", {"command": "true", "timeout": 5})
    request, slot = ExecRequest("true", 5.0), await backend.acquire("direct")

    async def through(name: str) -> None:
        for _ in range(calls_each):
            await executor.execute(name, call)

    async def direct(_name: str) -> None:
        for _ in range(calls_each):
            await backend.execute(slot, request)

    with_executor = await _rate(through, trajectories, calls_each)
    await executor.close()
    return ExecutorSpeed(with_executor, await _rate(direct, trajectories, calls_each))


async def _rate(work: Callable[[str], Awaitable[None]], trajectories: int, calls: int) -> float:
    started = process_time()
    await asyncio.gather(*(work(f"t{number}") for number in range(trajectories)))
    return trajectories * calls / (process_time() - started)
