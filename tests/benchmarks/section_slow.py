"""What one slow call costs everybody else."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from tests.benchmarks.figures import Effort, Goal, Row, Section
from tests.benchmarks.load import drive, in_turns
from tests.benchmarks.local import local

if TYPE_CHECKING:
    from tests.benchmarks.figures import Load

_OTHERS = 63
_CALLS_PER_S = 400
"""Of all others together: well below what the machine can do, so that waiting is not for a processor."""
_WITHOUT, _WITH = "no slow call", "one call sleeps"


async def run(effort: Effort) -> Section:
    """Latency of 63 trajectories' calls with and without one call that sleeps all the while."""
    others = min(_OTHERS, max(effort.trajectories))
    length_s = float(effort.slow_call_s)
    think_s = others / _CALLS_PER_S
    async with local(others + 1) as run:
        await run.warm_up(others + 1)

        async def without(seconds: float = length_s / 2) -> Load:
            return await drive(
                lambda number: run.shell(number, "true"), others, seconds, think_s=think_s
            )

        async def with_slow_call() -> Load:
            slow = asyncio.create_task(run.shell(others, f"sleep {length_s:g}"))
            load = await without(length_s)
            if slow.done():  # it slept from before the first call until after the last
                slow.result()
            await slow
            return load

        loads = await in_turns(min(2, effort.rounds), {_WITHOUT: without, _WITH: with_slow_call})
    rows = tuple(Row(name, load.figures()) for name, load in loads.items())
    added_ms = (loads[_WITH].p99 - loads[_WITHOUT].p99) * 1e3
    goal = Goal("ms added at p99 by the slow call", added_ms, 50.0, at_least=False)
    title = f"{others} trajectories while one call sleeps {length_s:g} s"
    return Section("slow", title, rows, (goal,))
