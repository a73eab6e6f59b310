"""A cluster of any size in virtual time: what launching, opening and running cost, and what goes wrong.

The pool on top is the real one. Times that machines other than the driver's take are passed over by the clock; they
come from measurements on one machine (see docs/planning.md), with a spread.
"""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from agentenv_backends.base import Capabilities
from agentenv_backends.errors import HostLostError, SlotLostError
from agentenv_backends.testing import exec_result

if TYPE_CHECKING:
    from collections.abc import Callable

    from agentenv_backends.host import Leftover
    from agentenv_backends.requests import Request
    from agentenv_backends.results import Result


@dataclass(frozen=True, slots=True)
class Costs:
    """Seconds that things take on machines other than the driver's."""

    placement_s: float = 0.01
    """The scheduler, for each allocation, one after another."""
    pull_s: float = 20.0
    """An image, on a node that has not got it, when nobody else pulls."""
    pulls_at_once: int = 40
    """That the registry serves at full speed; further ones wait."""
    start_s: float = 0.8
    """A container with its gate, and the server in it."""
    open_slot_s: float = 0.05
    close_slot_s: float = 0.02
    command_s: float = 0.25


@dataclass(eq=False, slots=True)
class Node:
    """A machine of the cluster."""

    number: int
    has_image: bool = False
    pulling: asyncio.Task[None] | None = None
    hosts: set[SimulatedHost] = field(default_factory=set)
    is_lost: bool = False


class Cluster:
    """Starts hosts on its nodes. Implements `HostProvider`."""

    def __init__(self, nodes: int, hosts_per_node: int, costs: Costs, seed: int = 1) -> None:
        self.nodes = [Node(number) for number in range(nodes)]
        self.costs = costs
        self.chance = random.Random(seed)
        self.pulls = 0
        self.launch_times: list[float] = []
        self._hosts_per_node = hosts_per_node
        self._registry = asyncio.Semaphore(costs.pulls_at_once)
        self._scheduler = asyncio.Lock()

    def spread(self, seconds: float) -> float:
        """A time around this one, as times of real machines are."""
        return seconds * self.chance.lognormvariate(0.0, 0.35)

    async def prepare(self) -> Capabilities:
        """See `HostProvider.prepare`."""
        return Capabilities("none", False, False, False, False)

    async def sweep(self, *, remove: bool = True) -> tuple[Leftover, ...]:
        """See `HostProvider.sweep`."""
        return ()

    async def launch(self, host_id: str) -> SimulatedHost:
        """See `HostProvider.launch`."""
        began = asyncio.get_running_loop().time()
        while True:
            node = await self._place()
            host = SimulatedHost(host_id, node, self)
            node.hosts.add(host)
            try:
                await self._provide_image(node)
                await asyncio.sleep(self.spread(self.costs.start_s))
            except BaseException:
                node.hosts.discard(host)
                raise
            if not node.is_lost:
                self.launch_times.append(asyncio.get_running_loop().time() - began)
                return host

    async def _place(self) -> Node:
        while True:
            async with self._scheduler:
                await asyncio.sleep(self.costs.placement_s)
            free = [
                node
                for node in self.nodes
                if not node.is_lost and len(node.hosts) < self._hosts_per_node
            ]
            if free:
                return min(free, key=lambda node: (len(node.hosts), node.number))
            await asyncio.sleep(0.5)

    async def _provide_image(self, node: Node) -> None:
        if node.has_image:
            return
        if node.pulling is None:
            node.pulling = asyncio.create_task(self._pull(node))
        await asyncio.shield(node.pulling)

    async def _pull(self, node: Node) -> None:
        async with self._registry:
            self.pulls += 1
            await asyncio.sleep(self.spread(self.costs.pull_s))
        node.has_image, node.pulling = True, None

    def lose(self, node: Node) -> None:
        """A node is gone, with all hosts on it."""
        node.is_lost = True
        hosts, node.hosts = node.hosts, set()
        for host in hosts:
            host.lose(f"node {node.number} is lost")

    def give(self, node: Node) -> None:
        """A new node in the place of a lost one, without the image."""
        node.is_lost = node.has_image = False


class SimulatedHost:
    """Answers when its time has come. Implements `Host` as far as the pool needs it here."""

    def __init__(self, host_id: str, node: Node, cluster: Cluster) -> None:
        self.host_id = host_id
        self._node = node
        self._cluster = cluster
        self._lost: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._tell_lost: Callable[[str], None] | None = None
        self._waiting: set[asyncio.Future[None]] = set()

    def on_slot_lost(self, callback: Callable[[str, SlotLostError], None]) -> None:
        """See `Host.on_slot_lost`. Slots here die with their hosts only."""

    def on_lost(self, callback: Callable[[str], None]) -> None:
        """See `Host.on_lost`."""
        self._tell_lost = callback

    def workspace_dir(self, slot_id: str) -> str:
        """See `Host.workspace_dir`."""
        return "/workspace"

    async def open_slot(self, slot_id: str) -> None:
        """See `Host.open_slot`."""
        await self._take(self._cluster.costs.open_slot_s)

    async def close_slot(self, slot_id: str) -> None:
        """See `Host.close_slot`."""
        await self._take(self._cluster.costs.close_slot_s)

    async def execute(self, slot_id: str, request: Request) -> Result:
        """See `Host.execute`."""
        await self._take(self._cluster.costs.command_s)
        return exec_result()

    async def ping(self) -> None:
        """See `Host.ping`."""
        await self._take(0.001)

    async def close(self) -> None:
        """See `Host.close`."""
        self._node.hosts.discard(self)

    def lose(self, reason: str) -> None:
        """Be gone without having been asked."""
        if not self._lost.done():
            self._lost.set_result(reason)
            for waiter in list(self._waiting):
                if not waiter.done():
                    waiter.set_exception(self._error())
            if self._tell_lost is not None:
                self._tell_lost(reason)

    async def _take(self, seconds: float) -> None:
        if self._lost.done():
            raise self._error()
        loop = asyncio.get_running_loop()
        waiter: asyncio.Future[None] = loop.create_future()
        timer = loop.call_later(self._cluster.spread(seconds), _settle, waiter)
        self._waiting.add(waiter)
        try:
            await waiter
        finally:
            timer.cancel()
            self._waiting.discard(waiter)

    def _error(self) -> HostLostError:
        return HostLostError(f"host {self.host_id} is gone: {self._lost.result()}")


def _settle(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)
