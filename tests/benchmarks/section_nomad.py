"""A fresh shell in a cluster's hosts, beside the same in local slots, and what the cluster is asked meanwhile.

The cluster is the emulated one, in a process of its own; its hosts are processes of this machine, reached over TCP.
"""

from __future__ import annotations

import asyncio
import sys
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING

from agentenv_backends.config import LocalConfig, NomadConfig
from agentenv_backends.nomad.provider import NomadProvider
from agentenv_backends.pool import SlotPool
from tests.benchmarks.figures import Effort, Goal, Row, Section
from tests.benchmarks.load import drive, in_turns
from tests.benchmarks.local import over, running

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.benchmarks.figures import Load

_HOSTS = 8
_MOST = 64
_SHARE = 0.8
_LOCAL, _SPREAD = "local, one host", f"local, {_HOSTS} hosts"
_NOMAD = f"Nomad, {_HOSTS} hosts"
_SMALL = {"memory_mb": 128, "disk_mb": 16, "tmp_mb": 8, "acquire_timeout_s": 90.0}


async def run(effort: Effort) -> Section:
    """`bash -c true` with 64 trajectories over 8 hosts (fewer when less is to be measured)."""
    count = min(_MOST, max(effort.trajectories))
    hosts = min(_HOSTS, count)
    sizes = {**_SMALL, "slots": -(-count // hosts), "max_hosts": hosts}
    async with AsyncExitStack() as stack:
        address = await stack.enter_async_context(_cluster())
        nomad = NomadConfig.model_validate({**sizes, "driver": "raw_exec", "address": address})
        provider = NomadProvider(nomad)
        pool = SlotPool(provider, nomad.pool_settings())
        places = {
            _LOCAL: running(LocalConfig.model_validate({**_SMALL, "slots": count})),
            _SPREAD: running(LocalConfig.model_validate(sizes)),
            _NOMAD: over(pool),
        }
        measurements = {}
        for name, place in places.items():
            slots = await stack.enter_async_context(place)
            await slots.warm_up(count)
            shell = partial(slots.shell, command="true")
            measurements[name] = partial(drive, shell, count, effort.seconds)
        before = provider.calls
        loads = await in_turns(effort.rounds, measurements)
        asked = provider.calls - before
    return _section(count, loads, asked, effort)


def _section(count: int, loads: dict[str, Load], asked: int, effort: Effort) -> Section:
    local, nomad = loads[_LOCAL], loads[_NOMAD]
    rows = [
        Row(f"{count}: {name}", {**load.figures(), "of local": load.rate / local.rate})
        for name, load in loads.items()
    ]
    commands = max(1.0, nomad.rate * effort.seconds * effort.rounds)
    goals = (
        Goal(f"of local's commands per second at {count}", nomad.rate / local.rate, _SHARE, True),
        Goal("requests to the cluster per 1,000 commands", 1000 * asked / commands, 1.0, False),
    )
    return Section("nomad", "Fresh-shell calls in a cluster: `bash -c true`", tuple(rows), goals)


@asynccontextmanager
async def _cluster() -> AsyncIterator[str]:
    """The address of an emulated cluster."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.emulators.nomad.server"), stdout=asyncio.subprocess.PIPE
    )
    try:
        assert process.stdout is not None
        yield (await process.stdout.readline()).decode().strip()
    finally:
        process.terminate()
        await process.wait()
