"""Processor time of this process's containers, where the engine runs on this machine: a second measure of a command,
which other work on the machine disturbs less than its rate.
"""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

import aiodocker

from agentenv_backends._owner import Owner
from agentenv_backends.docker.owners import OWNER_LABEL
from tests.processes import processor_time

if TYPE_CHECKING:
    from tests.benchmarks.figures import Load
    from tests.benchmarks.load import Measurement


async def main_processes() -> frozenset[int]:
    """The main processes of this process's containers, as this machine sees them."""
    filters = json.dumps({"label": [f"{OWNER_LABEL}={Owner.me().label()}"]})
    async with aiodocker.Docker() as docker:
        found = await docker.containers.list(filters=filters)
        return frozenset([(await container.show())["State"]["Pid"] for container in found])


async def with_cost(measure: Measurement, containers: frozenset[int]) -> Load:
    """A measurement with what it took of processor time here and below these processes. The engine is not counted."""
    processes = (os.getpid(), *containers)
    before = sum(map(processor_time, processes))
    load = await measure()
    return load.having_cost(sum(map(processor_time, processes)) - before)
