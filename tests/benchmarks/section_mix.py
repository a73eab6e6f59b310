"""A mix with few slow calls, against an executor that runs its batches one after another."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from agentenv_backends.requests import ExecRequest
from tests.benchmarks.figures import RATE, Effort, Goal, Row, Section
from tests.benchmarks.load import drive, in_turns
from tests.benchmarks.local import local
from tests.benchmarks.serial_batches import SerialBatches

if TYPE_CHECKING:
    from tests.benchmarks.figures import Load

_TRAJECTORIES = 64
_SLOW_SHARE = 0.01
_OURS, _SERIAL = "executor", "batches one after another, 20 ms window"


async def run(effort: Effort) -> Section:
    """64 trajectories; one call in a hundred sleeps for a second. Latencies are those of the other calls."""
    trajectories = min(_TRAJECTORIES, max(effort.trajectories))
    seconds = 4 * effort.seconds
    async with local(2 * trajectories) as run:
        await run.warm_up(trajectories)
        slots = [await run.backend.acquire(f"s{number}") for number in range(trajectories)]
        rival = SerialBatches(run.backend)

        async def ours() -> Load:
            draw = random.Random(0)

            async def call(number: int) -> bool:
                slow = draw.random() < _SLOW_SHARE
                await run.shell(number, "sleep 1" if slow else "true")
                return slow

            return await drive(call, trajectories, seconds, timed=lambda slow: not slow)

        async def serial() -> Load:
            draw = random.Random(0)

            async def call(number: int) -> bool:
                slow = draw.random() < _SLOW_SHARE
                await rival.execute(slots[number], ExecRequest("sleep 1" if slow else "true"))
                return slow

            return await drive(call, trajectories, seconds, timed=lambda slow: not slow)

        try:
            loads = await in_turns(min(3, effort.rounds), {_OURS: ours, _SERIAL: serial})
        finally:
            await rival.close()
            for slot in slots:
                await run.backend.release(slot)
    base = loads[_SERIAL]
    rows = tuple(
        Row(name, {**load.figures(), "of serial": load.rate / base.rate})
        for name, load in loads.items()
    )
    better = loads[_OURS].figures()[RATE] / base.figures()[RATE]
    title = f"1 % of calls sleep for 1 s, {trajectories} trajectories (latency of the others)"
    return Section("mix", title, rows, (Goal("times the serial rate", better, 1.0, at_least=True),))
