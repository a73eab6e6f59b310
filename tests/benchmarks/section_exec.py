"""A fresh shell through the whole executor, beside what the same shell costs with less around it."""

from __future__ import annotations

import tempfile
from contextlib import AsyncExitStack
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from agentenv.lag import LagMonitor
from tests.benchmarks import floors
from tests.benchmarks.figures import RATIO, Effort, Goal, Row, Section
from tests.benchmarks.load import drive, in_turns
from tests.benchmarks.local import local

if TYPE_CHECKING:
    from tests.benchmarks.figures import Load
    from tests.benchmarks.load import Measurement

_WITH_RIVALS = 64
_SHARE_OF_FLOOR = {64: 0.75, 256: 0.75}
_LAG_AT = 256
_OURS, _FLOOR = "executor, local slots", "floor: C init in live slots"
_PER_COMMAND, _PLAIN = "a bubblewrap per command", "asyncio, no isolation"


async def run(effort: Effort) -> Section:
    """`bash -c true` at rising numbers of trajectories."""
    rows: list[Row] = []
    goals: list[Goal] = []
    with tempfile.TemporaryDirectory(prefix="agentenv-bench-") as folder:
        try:
            init, reason = floors.compile_init(Path(folder)), ""
        except floors.FloorUnavailableError as error:
            init, reason = None, str(error)
        for trajectories in effort.trajectories:
            loads, lag_s = await _at(trajectories, effort, init)
            rows += _rows(trajectories, loads)
            goals += _goals(trajectories, loads, lag_s)
    if reason:
        rows.append(Row(_FLOOR, {}, f"not measured: {reason}"))
    return Section("exec", "Fresh-shell calls: `bash -c true`", tuple(rows), tuple(goals))


async def _at(
    trajectories: int, effort: Effort, init: Path | None
) -> tuple[dict[str, Load], float]:
    lags: list[float] = []
    seconds = effort.seconds
    async with AsyncExitStack() as stack:
        run = await stack.enter_async_context(local(trajectories))
        await run.warm_up(trajectories)

        async def ours() -> Load:
            async with LagMonitor() as lag:
                load = await drive(lambda number: run.shell(number, "true"), trajectories, seconds)
                lags.append(lag.p99_s)
            return load

        measurements: dict[str, Measurement] = {_OURS: ours}
        if init is not None:
            slots = await stack.enter_async_context(floors.LiveSlots(init, trajectories))
            measurements[_FLOOR] = lambda: slots.measure(seconds)
        if trajectories == _WITH_RIVALS:
            measurements[_PER_COMMAND] = lambda: drive(
                floors.sandboxed_shell, trajectories, seconds
            )
            measurements[_PLAIN] = lambda: drive(floors.plain_shell, trajectories, seconds)
        loads = await in_turns(effort.rounds, measurements)
    return loads, median(lags)


def _rows(trajectories: int, loads: dict[str, Load]) -> list[Row]:
    floor = loads.get(_FLOOR)
    rows = []
    for name, load in loads.items():
        figures = load.figures()
        if floor is not None:
            figures[RATIO] = load.rate / floor.rate
        rows.append(Row(f"{trajectories}: {name}", figures))
    return rows


def _goals(trajectories: int, loads: dict[str, Load], lag_s: float) -> list[Goal]:
    goals = []
    ours, floor = loads[_OURS], loads.get(_FLOOR)
    if floor is not None and trajectories == 1:
        added_ms = (ours.p50 - floor.p50) * 1e3
        goals.append(Goal("ms added at p50 with one trajectory", added_ms, 1.0, at_least=False))
    if floor is not None and trajectories in _SHARE_OF_FLOOR:
        share = ours.rate / floor.rate
        wanted = _SHARE_OF_FLOOR[trajectories]
        goals.append(Goal(f"of the floor at {trajectories}", share, wanted, at_least=True))
    if trajectories == _LAG_AT:
        text = f"ms event-loop lag (p99) with {_LAG_AT} calls in flight"
        goals.append(Goal(text, lag_s * 1e3, 50.0, at_least=False))
    return goals
