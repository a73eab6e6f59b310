"""What a host takes for snapshots: frozen and mounted where that is possible, packed and unpacked otherwise."""

from __future__ import annotations

import itertools
from statistics import median
from time import perf_counter
from typing import TYPE_CHECKING

from agentenv_backends.config import LocalConfig
from agentenv_backends.local import LocalProvider
from agentenv_backends.requests import ExecRequest
from agentenv_backends.results import ExecResult
from tests.benchmarks.figures import Effort, Goal, Row, Section

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from agentenv_backends.local import LocalHost

_FILE_BYTES = 10_240
_COPY = "cp -a in the slot"
_RESTORE = "restore, mounted"
_READY_MS = 5.0


async def run(effort: Effort) -> Section:
    """Each step on a warm host, as often as there are rounds; a figure is the median."""
    provider = LocalProvider(LocalConfig(slots=1))
    host = await provider.launch("bench")
    try:
        way = host.facts.snapshot
        bench = _Bench(host, effort.workspace_files)
        await bench.round()  # the helper for mounts starts with the first snapshot
        bench.seconds.clear()
        for _ in range(effort.rounds):
            await bench.round()
    finally:
        await host.close()
    took = {name: median(seconds) for name, seconds in bench.seconds.items()}
    rows = tuple(
        Row(name, {"ms": took_s * 1e3, "of cp -a": took_s / took[_COPY]})
        for name, took_s in took.items()
    )
    goal = Goal("ms to restore a warm slot", took[_RESTORE] * 1e3, _READY_MS, at_least=False)
    size = effort.workspace_files * _FILE_BYTES / 1e6
    title = f"snapshots of {effort.workspace_files} files, {size:.0f} MB, by {way}"
    return Section("snapshots", title, rows, (goal,) if way == "overlay" else ())


class _Bench:
    """Goes through all steps once a round, and notes how long each took."""

    def __init__(self, host: LocalHost, files: int) -> None:
        self.seconds: dict[str, list[float]] = {}
        self._host = host
        total = files * _FILE_BYTES
        self._fill = f"mkdir d; head -c {total} /dev/urandom | split -b {_FILE_BYTES} -a 4 -d - d/f"
        self._numbers = itertools.count()

    async def round(self) -> None:
        """Source, member and, for what is copied, a member of a snapshot that came as an archive."""
        host, number = self._host, next(self._numbers)
        slots = [f"{number}-{name}" for name in ("source", "member", "copy")]
        first, second = f"{number}-first", f"{number}-second"
        for slot in slots:
            await host.open_slot(slot)
        source, member, copy = slots
        await self._shell(source, self._fill)
        await self._note(_COPY, self._shell(source, "cp -a d e"))
        await self._shell(source, "rm -r e")
        await self._note("take, frozen", host.take_snapshot(source, first))
        await self._note(_RESTORE, host.restore_snapshot(member, first))
        # What is an overlay already cannot be frozen: it is packed, and unpacked where it is restored first.
        await self._note("take, packed", host.take_snapshot(member, second))
        await self._note("restore, unpacked", host.restore_snapshot(copy, second))
        for slot in slots:
            await host.close_slot(slot)
        for snapshot in (first, second):
            await host.drop_snapshot(snapshot)

    async def _note(self, step: str, work: Awaitable[None]) -> None:
        started = perf_counter()
        await work
        self.seconds.setdefault(step, []).append(perf_counter() - started)

    async def _shell(self, slot: str, command: str) -> None:
        result = await self._host.execute(slot, ExecRequest(command))
        if not isinstance(result, ExecResult) or result.exit_code:
            raise RuntimeError(f"{command!r}: {result}")
