"""Real local sandboxes for tests that break them: the usual parts, with the hosts in reach."""

from __future__ import annotations

import asyncio
import os
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from agentenv_backends.config import LocalConfig
from agentenv_backends.local import LocalProvider
from agentenv_backends.pool import SlotPool
from agentenv_tools import ToolCall, ToolExecutor, ToolExecutorConfig
from agentenv_tools.toolsets import build_registry
from tests.faults.footprint import Footprint
from tests.processes import children
from tests.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from agentenv_tools import ToolResult
    from tests.processes import Process

_ACQUIRE_S = 60.0


@dataclass(frozen=True, slots=True)
class Sandboxes:
    """A pool of local slots, a tool executor on it, and what they leave in the system."""

    pool: SlotPool
    executor: ToolExecutor
    footprint: Footprint

    async def call(
        self, trajectory: str, command: str, *, timeout_s: float | None = None
    ) -> ToolResult:
        """A `terminal` call."""
        return await self.executor.execute(
            trajectory, ToolCall("terminal", {"command": command}), timeout_s
        )


def local_pool(slots: int, **settings: Any) -> tuple[SlotPool, LocalProvider]:
    """A pool of local sandboxes, not started, and its provider."""
    config = LocalConfig(slots=slots, acquire_timeout_s=_ACQUIRE_S, **settings)
    provider = LocalProvider(config)
    return SlotPool(provider, config.pool_settings()), provider


def hosts_of(provider: LocalProvider) -> set[Process]:
    """The sandbox servers that run now."""
    pids = {host.pid for host in provider.hosts.values()}
    return {process for process in children(os.getpid()) if process.pid in pids}


def slots_of(provider: LocalProvider) -> set[Process]:
    """The outermost process of each slot that is open now."""
    below = {child for host in hosts_of(provider) for child in children(host.pid)}
    return {child for child in below if child.name == "bwrap"}  # the other is the helper for mounts


@asynccontextmanager
async def sandboxes(slots: int, **settings: Any) -> AsyncIterator[Sandboxes]:
    """Started; at the end stopped, and nothing of them may be left: processes, cgroups or folders."""
    footprint = Footprint(os.getpid())
    pool, _ = local_pool(slots, **settings)
    async with pool:
        executor = ToolExecutor(
            pool, build_registry(), ToolExecutorConfig(acquire_timeout_s=_ACQUIRE_S)
        )
        try:
            yield Sandboxes(pool, executor, footprint)
            footprint.look()
        finally:
            await executor.close()
    await footprint.gone()
    stats = executor.stats()
    assert (stats.queue_size, stats.in_flight, stats.cleanup_failures) == (0, 0, 0)


@dataclass(slots=True)
class Neighbour:
    """A trajectory that goes on working while something happens to others."""

    calls: int = 0
    wrong: list[ToolResult] = field(default_factory=list)


@asynccontextmanager
async def working_neighbour(run: Sandboxes) -> AsyncIterator[Neighbour]:
    """Another trajectory appends to a file and counts its lines all the while; every answer must be right."""
    neighbour = Neighbour()

    async def work() -> None:
        while True:
            result = await run.call("neighbour", "echo line >> file; wc -l < file")
            neighbour.calls += 1
            if not result.success or result.output.strip() != str(neighbour.calls):
                neighbour.wrong.append(result)

    worker = asyncio.create_task(work())
    try:
        await eventually(lambda: neighbour.calls, "the neighbour's first call")
        yield neighbour
        before = neighbour.calls
        await eventually(lambda: worker.done() or neighbour.calls > before, "a further call of it")
    finally:
        worker.cancel()
        await asyncio.wait({worker})
    assert worker.cancelled(), worker.exception()
    assert neighbour.wrong == []
