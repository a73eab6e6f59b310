"""A backend on the emulated cluster, and looks at both, for tests."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from agentenv_backends.config import NomadConfig
from agentenv_backends.nomad.provider import NomadProvider
from agentenv_backends.pool import SlotPool
from agentenv_backends.requests import ExecRequest

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from agentenv_backends.base import Slot
    from tests.emulators.nomad.model import Alloc
    from tests.emulators.nomad.server import Nomad

WITHIN_S = 90.0
"""How long anything may take here on a busy machine."""
SMALL: dict[str, Any] = {
    "driver": "raw_exec",
    "slots": 1,
    "warm_slots": 0,
    "disk_mb": 16,
    "tmp_mb": 8,
    "memory_mb": 128,
    "scale_cooldown_s": 0.2,
    "idle_host_s": 0.2,
    "acquire_timeout_s": WITHIN_S,
    "lease_s": 60,
}
"""Settings of a small backend."""


def small(nomad: Nomad, **settings: Any) -> NomadConfig:
    """The config of a small backend on this cluster."""
    values = {**SMALL, "address": nomad.url, **settings}
    if nomad.token and "token" not in values:
        values["token"] = nomad.token
    return NomadConfig.model_validate(values)


def pool_of(nomad: Nomad, **settings: Any) -> tuple[SlotPool, NomadProvider]:
    """A pool, not started, and its provider."""
    config = small(nomad, **settings)
    provider = NomadProvider(config)
    return SlotPool(provider, config.pool_settings()), provider


@asynccontextmanager
async def running_pool(
    nomad: Nomad, **settings: Any
) -> AsyncIterator[tuple[SlotPool, NomadProvider]]:
    """A pool that is started, and its provider."""
    pool, provider = pool_of(nomad, **settings)
    async with pool:
        yield pool, provider


async def until(holds: Callable[[], Any], within_s: float = WITHIN_S) -> Any:
    """What `holds` gives as soon as that is true."""
    async with asyncio.timeout(within_s):
        while not (found := holds()):
            await asyncio.sleep(0.02)
        return found


async def says(pool: SlotPool, slot: Slot, command: str) -> str:
    """What a command writes."""
    answer: Any = await pool.execute(slot, ExecRequest(command, timeout_s=60))
    text: str = answer.stdout.text()
    return text


def live(nomad: Nomad) -> list[Alloc]:
    """Allocations that run and are meant to."""
    found = nomad.cluster.state.allocs.values()
    return [each for each in found if each.client == "running" and each.desired == "run"]


def alloc_of(nomad: Nomad, provider: NomadProvider, slot: Slot) -> Alloc:
    """The allocation that a slot is in."""
    allocation_id = provider.hosts[slot.host_id].allocation.allocation_id
    return nomad.cluster.state.allocs[allocation_id]


def count(nomad: Nomad, provider: NomadProvider) -> int:
    """How many hosts the job says there should be."""
    return int(nomad.cluster.state.jobs[provider.job_id]["TaskGroups"][0]["Count"])
