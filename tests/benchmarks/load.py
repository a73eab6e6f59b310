"""Putting load on something: trajectories that call one after another, for a given time, in turns with their rivals."""

from __future__ import annotations

import asyncio
import os
from time import perf_counter
from typing import TYPE_CHECKING

from tests.benchmarks.figures import Load
from tests.processes import processor_time

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    Call = Callable[[int], Awaitable[object]]
    Measurement = Callable[[], Awaitable[Load]]


async def drive(
    call: Call,
    trajectories: int,
    seconds: float,
    *,
    think_s: float = 0.0,
    timed: Callable[[object], bool] = lambda answer: True,
    to_the_end: bool = False,
) -> Load:
    """Have each trajectory make one call after another, `think_s` apart, until the time is over.

    Calls that end later are awaited and not counted. Where calls are so slow that this would leave out most of them,
    `to_the_end` counts all, over the time until the last has ended. `timed` chooses, by a call's answer, whose latency
    counts.
    """
    latencies: list[float] = []
    done = calls = 0
    began = perf_counter()
    deadline = began + seconds

    async def trajectory(number: int) -> None:
        nonlocal calls, done
        await asyncio.sleep(think_s * number / trajectories)
        while (started := perf_counter()) < deadline:
            answer = await call(number)
            ended = perf_counter()
            calls += 1
            if to_the_end or ended <= deadline:
                done += 1
                if timed(answer):
                    latencies.append(ended - started)
            if think_s:
                await asyncio.sleep(think_s)

    async with asyncio.TaskGroup() as group:
        for number in range(trajectories):
            group.create_task(trajectory(number))
    return Load.of(done, latencies, perf_counter() - began if to_the_end else seconds, calls)


async def in_turns(rounds: int, measurements: Mapping[str, Measurement]) -> dict[str, Load]:
    """Take each measurement once a round, so that noise of the machine falls on all of them; medians by name."""
    loads: dict[str, list[Load]] = {name: [] for name in measurements}
    for _ in range(rounds):
        for name, measure in measurements.items():
            before = processor_time(os.getpid())
            load = await measure()
            if not load.cpu_s:  # it may know better
                load = load.having_cost(processor_time(os.getpid()) - before)
            loads[name].append(load)
    return {name: Load.median(taken) for name, taken in loads.items()}
