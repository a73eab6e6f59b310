"""`ProfiledPools`: one backend over several pools, of which each hands out slots of another kind."""

from __future__ import annotations

import asyncio
from dataclasses import fields
from typing import TYPE_CHECKING, Self

from agentenv_backends._aio import finish
from agentenv_backends.base import Capabilities, PoolStats
from agentenv_backends.errors import CapabilityError, HostLostError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from agentenv_backends.base import KnownSnapshot, Slot, Snapshot
    from agentenv_backends.errors import InfrastructureError
    from agentenv_backends.pool import SlotPool
    from agentenv_backends.requests import Request
    from agentenv_backends.results import Result


class ProfiledPools:
    """Implements `Backend`. `acquire(..., profile=...)` chooses the pool; None: the first one.

    Hosts of different pools have different names, which tell the pool of a slot and of a snapshot. Snapshots stay
    within their pool, and none is found again by a key: an equal set-up may need another kind of sandbox.
    """

    def __init__(self, pools: Mapping[str, SlotPool]) -> None:
        self._pools = dict(pools)
        self._first = next(iter(self._pools.values()))
        self._of_host: dict[str, SlotPool] = {}
        self.default_timeout_s = self._first.default_timeout_s
        self.grace_s = max(pool.grace_s for pool in self._pools.values())

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_exc: object) -> None:
        await self.stop()

    @property
    def profiles(self) -> Sequence[str]:
        """Their names, in the order given."""
        return tuple(self._pools)

    @property
    def capabilities(self) -> Capabilities:
        """What every profile can do; `isolation` is the first one's. Valid after `start`."""
        each = [pool.capabilities for pool in self._pools.values()]
        names = [field.name for field in fields(Capabilities) if field.name != "isolation"]
        shared = {name: all(getattr(one, name) for one in each) for name in names}
        return Capabilities(isolation=each[0].isolation, **shared)

    async def start(self) -> None:
        """Start every pool. Raises what the first that fails raises; nothing is left running then."""
        starts = [asyncio.ensure_future(pool.start()) for pool in self._pools.values()]
        try:
            await asyncio.gather(*starts)
        except BaseException:
            await self.stop()
            await asyncio.gather(*starts, return_exceptions=True)
            raise

    async def stop(self, *, purge: bool = False) -> None:
        """End every host. See `Backend.stop`."""
        stops = (pool.stop(purge=purge) for pool in self._pools.values())
        await finish(asyncio.ensure_future(_all(*stops)))

    async def acquire(
        self, trajectory_id: str, *, timeout_s: float | None = None, profile: str | None = None
    ) -> Slot:
        """Take a slot of `profile`. See `Backend.acquire`."""
        pool = self._first if profile is None else self._pools.get(profile)
        if pool is None:
            raise CapabilityError(f"no profile {profile!r}; there is: {', '.join(self._pools)}")
        slot = await pool.acquire(trajectory_id, timeout_s=timeout_s)
        self._of_host[slot.host_id] = pool
        return slot

    async def release(self, slot: Slot, *, reset_workspace: bool = True) -> None:
        """Give a slot back. See `Backend.release`."""
        await self._pool_of(slot.host_id).release(slot, reset_workspace=reset_workspace)

    async def execute(self, slot: Slot, request: Request) -> Result:
        """Carry one request. See `Backend.execute`."""
        return await self._pool_of(slot.host_id).execute(slot, request)

    async def execute_batch(
        self, calls: Sequence[tuple[Slot, Request]]
    ) -> list[Result | InfrastructureError]:
        """Carry several requests at once. See `Backend.execute_batch`."""
        answers: dict[int, Result | InfrastructureError] = {}

        async def part(pool: SlotPool) -> None:
            places = [n for n, (slot, _) in enumerate(calls) if self._pool_of(slot.host_id) is pool]
            if places:
                found = await pool.execute_batch([calls[n] for n in places])
                answers.update(zip(places, found, strict=True))

        await asyncio.gather(*map(part, self._pools.values()))
        return [answers[n] for n in range(len(calls))]

    async def snapshot(self, slot: Slot) -> Snapshot:
        """Freeze the slot's workspace. See `Backend.snapshot`."""
        return await self._pool_of(slot.host_id).snapshot(slot)

    async def restore(self, slot: Slot, snapshot: Snapshot) -> None:
        """Give an unused slot the contents of a snapshot of the same profile. See `Backend.restore`."""
        pool = self._pool_of(slot.host_id)
        if pool is not self._pool_of(snapshot.host_id):
            raise HostLostError(f"snapshot {snapshot.snapshot_id} lies on hosts of another profile")
        await pool.restore(slot, snapshot)

    async def drop_snapshot(self, snapshot: Snapshot) -> None:
        """Let go of a snapshot. See `Backend.drop_snapshot`."""
        await self._pool_of(snapshot.host_id).drop_snapshot(snapshot)

    async def recall_snapshot(self, key: str) -> KnownSnapshot | None:
        """None: see the class."""
        return None

    async def remember_snapshot(self, key: str, snapshot: Snapshot, note: bytes) -> None:
        """Nothing is kept: see the class."""

    def stats(self) -> PoolStats:
        """The counts of all pools together, as of now."""
        each = [pool.stats() for pool in self._pools.values()]
        names = [field.name for field in fields(PoolStats) if field.name != "started"]
        sums = {name: sum(getattr(stats, name) for stats in each) for name in names}
        return PoolStats(**sums, started=all(stats.started for stats in each))

    def _pool_of(self, host_id: str) -> SlotPool:
        """Of a slot or snapshot that does not come from here the first one says so."""
        return self._of_host.get(host_id, self._first)


async def _all(*work: object) -> None:
    await asyncio.gather(*work)  # type: ignore[call-overload]
