"""Very many slots alive at once: how long they take to open, what each weighs, and what they do together."""

from __future__ import annotations

import os
from time import perf_counter

from tests.benchmarks.figures import Effort, Row, Section
from tests.benchmarks.load import drive
from tests.benchmarks.local import local
from tests.processes import descendants, proportional_memory

_MIB = 1 << 20


async def run(effort: Effort) -> Section:
    """Open them all by a first call of as many trajectories, weigh them, then keep them busy."""
    count = effort.slots_alive
    async with local(count) as run:
        started = perf_counter()
        await run.warm_up(count)
        opened_s = perf_counter() - started
        processes = descendants(os.getpid())
        weight = sum(proportional_memory(process.pid) for process in processes)
        load = await drive(
            lambda number: run.shell(number, "true"), count, max(3.0, effort.seconds)
        )
        started = perf_counter()
    closed_s = perf_counter() - started
    figures = {
        "open s": opened_s,
        "slots/s": count / opened_s,
        "MiB a slot": weight / count / _MIB,
        "processes": float(len(processes)),
        "close s": closed_s,
    }
    note = "memory: proportional set size of the slots' processes and the sandbox server"
    rows = (
        Row(f"{count} slots alive", figures, note),
        Row(f"{count} trajectories calling", load.figures()),
    )
    return Section("slots", f"{count} slots alive at once, one after another call in each", rows)
