"""Trajectories by the thousand over a simulated cluster: how they fare, and what the real pool costs the driver.

The clock is virtual; the processor time is real, and that of the pool alone: frames on the wire, the tool executor and
the engine's client come on top.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from agentenv_backends._virtual_time import run_in_virtual_time
from agentenv_backends.errors import InfrastructureError
from agentenv_backends.pool import SlotPool
from agentenv_backends.requests import ExecRequest
from agentenv_backends.settings import Limits, PoolSettings
from tests.planning.cluster import Cluster, Costs

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    Mishap = Callable[[Cluster], Awaitable[None]]

_THINK_S = 8.0
_COMMANDS = 6
_HOSTS_PER_NODE = 4
_RUSH_S = 30.0
"""Trajectories come within so long at first, as a trainer's groups do."""


@dataclass(frozen=True, slots=True)
class Size:
    """How large a run is."""

    hosts: int
    slots_per_host: int = 10
    seconds: float = 120.0
    """Virtual ones that are measured, once all slots have been taken."""
    images_there: bool = True

    @property
    def trajectories(self) -> int:
        """At the same time."""
        return self.hosts * self.slots_per_host


@dataclass(slots=True)
class Outcome:
    """What was seen."""

    size: Size
    full_s: float = 0.0
    """Virtual seconds until every slot was held once."""
    start_cpu_s: float = 0.0
    cpu_s: float = 0.0
    """Of the driver's, real, within the seconds measured."""
    commands: int = 0
    trajectories: int = 0
    retried: int = 0
    pulls: int = 0
    recovered_s: float = 0.0
    """Virtual seconds from the mishap's end until as many slots were held again."""
    waits: list[float] = field(default_factory=list)
    """Virtual seconds that trajectories waited for their slots."""

    @property
    def cpu_share(self) -> float:
        """Of one processor that the pool takes."""
        return self.cpu_s / self.size.seconds

    def wait(self, share: float) -> float:
        """A percentile of the waits."""
        ordered = sorted(self.waits) or [0.0]
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def simulate(size: Size, costs: Costs, mishap: Mishap | None = None) -> Outcome:
    """Run one to its end."""
    return run_in_virtual_time(_Run(size, costs, mishap).go())


class _Run:
    def __init__(self, size: Size, costs: Costs, mishap: Mishap | None) -> None:
        nodes = -(-size.hosts // _HOSTS_PER_NODE)
        self._cluster = Cluster(nodes, _HOSTS_PER_NODE, costs)
        for node in self._cluster.nodes:
            node.has_image = size.images_there
        self._mishap = mishap
        self._outcome = Outcome(size)
        limits = Limits(
            slots_per_host=size.slots_per_host,
            min_hosts=min(4, size.hosts),
            max_hosts=size.hosts,
            idle_host_s=600.0,
        )
        settings = PoolSettings(limits=limits, acquire_timeout_s=3600.0, launch_timeout_s=600.0)
        self._pool = SlotPool(self._cluster, settings)  # type: ignore[arg-type]
        self._measures = False

    async def go(self) -> Outcome:
        size, outcome = self._outcome.size, self._outcome
        began, cpu = asyncio.get_running_loop().time(), time.process_time()
        async with self._pool:
            tasks = [asyncio.create_task(self._agent(n)) for n in range(size.trajectories)]
            await self._until_held(size.trajectories)
            outcome.full_s = asyncio.get_running_loop().time() - began
            outcome.start_cpu_s = time.process_time() - cpu
            self._measures, cpu = True, time.process_time()
            if self._mishap is None:
                await asyncio.sleep(size.seconds)
            else:
                await self._go_through(self._mishap)
            outcome.cpu_s = time.process_time() - cpu
            self._measures = False
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        outcome.pulls = self._cluster.pulls
        return outcome

    async def _go_through(self, mishap: Mishap) -> None:
        loop = asyncio.get_running_loop()
        end = loop.time() + self._outcome.size.seconds
        await mishap(self._cluster)
        began = loop.time()
        await self._until_held(int(0.98 * self._outcome.size.trajectories))
        self._outcome.recovered_s = loop.time() - began
        await asyncio.sleep(max(0.0, end - loop.time()))

    async def _until_held(self, count: int) -> None:
        while self._pool.stats().acquired_slots < min(count, 0.98 * count):
            await asyncio.sleep(0.5)

    async def _agent(self, number: int) -> None:
        chance = self._cluster.chance
        await asyncio.sleep(chance.random() * _RUSH_S)
        serial = 0
        while True:
            serial += 1
            try:
                await self._trajectory(f"{number}-{serial}")
            except InfrastructureError:
                self._outcome.retried += self._measures

    async def _trajectory(self, name: str) -> None:
        loop, chance, outcome = asyncio.get_running_loop(), self._cluster.chance, self._outcome
        asked = loop.time()
        slot = await self._pool.acquire(name)
        if self._measures:
            outcome.waits.append(loop.time() - asked)
        try:
            for _ in range(_COMMANDS):
                await asyncio.sleep(chance.expovariate(1 / _THINK_S))
                await self._pool.execute(slot, ExecRequest("true"))
                outcome.commands += self._measures
        finally:
            await self._pool.release(slot, reset_workspace=False)
        outcome.trajectories += self._measures


# --- what goes wrong -------------------------------------------------------------------------------


async def nodes_go_one_by_one(cluster: Cluster) -> None:
    """One in a hundred, one after another; a new one comes in the place of each."""
    for node in cluster.nodes[:: max(1, 100)]:
        cluster.lose(node)
        await asyncio.sleep(5.0)
        cluster.give(node)


async def a_tenth_goes_at_once(cluster: Cluster) -> None:
    """A rack: as many new nodes come in its place, and all of them pull the image."""
    lost = cluster.nodes[::10]
    for node in lost:
        cluster.lose(node)
    await asyncio.sleep(10.0)
    for node in lost:
        cluster.give(node)
