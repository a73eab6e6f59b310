"""A sweep over trivial samples, and opening one that holds many, beside inspect_ai with its mock model.

Each measurement is a process of its own, since memory is one of the figures. Nothing is displayed on either side.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.benchmarks.figures import Effort, Goal, Row, Section
from tests.benchmarks.machine import ROOT
from tests.benchmarks.peers import PEERS, PeerUnavailableError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

_CONCURRENCY = 16
_ISOLATED_SHARE = 20
"""One in so many samples is also measured where sandboxes are kept apart, which the peer has nothing like."""
_LIMIT_SHARE = 0.95
"""Of the section's time: after that nobody is waited for, and what was measured by then is reported."""
_PEAK, _SECONDS, _RATE = "peak MB", "seconds", "samples/s"
_FASTER, _LIGHTER, _READS = 3.0, 5.0, 10.0


class _LateError(PeerUnavailableError):
    """The section's time is over."""


@dataclass(frozen=True, slots=True)
class _Kind:
    """Who is measured."""

    name: str
    python: str
    module: str


_OURS = _Kind("ours", sys.executable, "tests.benchmarks.sweep_load")


async def run(effort: Effort) -> Section:
    """Time and memory of a sweep, without and with a sandbox; and of opening a sweep of many samples."""
    title = f"a sweep over {effort.sweep_samples:,} trivial samples, {_CONCURRENCY} at once"
    python = os.environ.get(PEERS)
    peers = [_Kind("inspect_ai", python, "tests.benchmarks.peer_inspect")] if python else []
    rows: list[Row] = []
    goals: list[Goal] = []
    if not python:
        rows.append(Row("inspect_ai", {}, f"not measured: {PEERS} names no Python that has it"))
    with tempfile.TemporaryDirectory() as folder:
        until = asyncio.get_running_loop().time() + effort.section_limit_s * _LIMIT_SHARE
        bench = _Bench(peers, Path(folder), effort, until)
        for step in (bench.sweeps, bench.sweeps_in_sandboxes, bench.reading):
            try:
                found, ratios = await step()
            except _LateError as error:
                rows.append(Row(_OURS.name, {}, f"not measured: {error}"))
                break
            rows += found
            goals += ratios
    return Section("sweeps", title, tuple(rows), tuple(goals))


@dataclass(frozen=True, slots=True)
class _Bench:
    """What is measured, one step after the other. What fails or takes too long costs its own figure and no other."""

    peers: list[_Kind]
    folder: Path
    effort: Effort
    until: float
    """When the section's time is over, by the loop's clock."""

    async def sweeps(self) -> tuple[list[Row], list[Goal]]:
        """Without a sandbox."""
        count = self.effort.sweep_samples
        found, rows = await self._of_each(lambda kind: self._sweep(kind, "plain", count))
        rows += [_row(f"{name}, no sandbox", figures) for name, figures in found.items()]
        return rows, _ratios("no sandbox", found)

    async def sweeps_in_sandboxes(self) -> tuple[list[Row], list[Goal]]:
        """With what both call local, and with what we have beside."""
        count = self.effort.sweep_samples
        found, rows = await self._of_each(lambda kind: self._sweep(kind, "local", count, "local"))
        note = f"{count:,} samples, one command each; nothing is kept apart"
        rows += [_row(f"{name}, local", figures, note) for name, figures in found.items()]
        count = max(_CONCURRENCY, count // _ISOLATED_SHARE)
        isolated = await self._sweep(_OURS, "isolated", count, "isolated")
        note = f"{count:,} samples, each in a sandbox that is reset after it"
        goals = _ratios("local", found)
        if "inspect_ai" in found:
            goals.append(_faster("local, ours isolated", isolated, found["inspect_ai"]))
        return [*rows, _row("ours, isolated", isolated, note)], goals

    async def reading(self) -> tuple[list[Row], list[Goal]]:
        """Opening what holds many samples."""
        found, rows = await self._of_each(self._read)
        label = f"open {self.effort.stored_samples:,} and summarise"
        rows += [
            Row(f"{name}, {label}", {_SECONDS: figures["seconds"]})
            for name, figures in found.items()
        ]
        if len(found) == 1:
            return rows, []
        faster = found["inspect_ai"]["seconds"] / found["ours"]["seconds"]
        return rows, [Goal("times faster to open and summarise", faster, _READS, at_least=True)]

    async def _of_each(
        self, measure: Callable[[_Kind], Awaitable[dict[str, Any]]]
    ) -> tuple[dict[str, dict[str, Any]], list[Row]]:
        """What was measured of whom; and a row for each peer that could not be."""
        found = {_OURS.name: await measure(_OURS)}
        rows = []
        for kind in self.peers:
            try:
                found[kind.name] = await measure(kind)
            except PeerUnavailableError as error:
                rows.append(Row(kind.name, {}, f"not measured: {error}"))
        return found, rows

    async def _sweep(self, kind: _Kind, name: str, samples: int, *sandbox: str) -> dict[str, Any]:
        folder = self.folder / f"{kind.name}-{name}"
        return await self._order(kind, "sweep", str(folder), samples, _CONCURRENCY, *sandbox)

    async def _read(self, kind: _Kind) -> dict[str, Any]:
        count = self.effort.stored_samples
        target = self.folder / f"{kind.name}-many"
        log = str(target)
        if kind is _OURS:
            await self._order(kind, "write", log, count)
        else:
            target.mkdir()
            some = await self._sweep(kind, "some", min(count, 200))
            log = str((await self._order(kind, "write", log, count, some["log"]))["log"])
        return await self._order(kind, "read", log)

    async def _order(self, kind: _Kind, *words: str | int) -> dict[str, Any]:
        """What a process of that kind answers. Raises `PeerUnavailableError` when it cannot."""
        process = await asyncio.create_subprocess_exec(
            *(kind.python, "-m", kind.module, *map(str, words)),
            cwd=ROOT,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            async with asyncio.timeout_at(self.until):
                said, errors = await process.communicate()
        except TimeoutError as error:
            raise _LateError(
                f"{words[0]}: no answer within the section's {self.effort.section_limit_s:g} s"
            ) from error
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        return _answer(kind, process.returncode, said, errors)


def _answer(kind: _Kind, status: int | None, said: bytes, errors: bytes) -> dict[str, Any]:
    lines = said.decode(errors="replace").splitlines()
    if status or not lines:
        last = errors.decode(errors="replace").strip().splitlines()[-1:]
        raise PeerUnavailableError(f"{kind.name} failed: {last}")
    answer: dict[str, Any] = json.loads(lines[-1])
    if reason := answer.get("missing"):
        raise PeerUnavailableError(str(reason))
    return answer


def _row(label: str, figures: Mapping[str, Any], note: str = "") -> Row:
    seconds = figures["seconds"]
    shown = {
        _SECONDS: seconds,
        _RATE: figures["samples"] / seconds,
        _PEAK: figures["peak_bytes"] / 1e6,
    }
    return Row(label, shown, note)


def _ratios(where: str, found: Mapping[str, Mapping[str, Any]]) -> list[Goal]:
    if len(found) == 1:
        return []
    ours, theirs = found["ours"], found["inspect_ai"]
    lighter = theirs["peak_bytes"] / ours["peak_bytes"]
    return [
        _faster(where, ours, theirs),
        Goal(f"times less memory than inspect_ai, {where}", lighter, _LIGHTER, at_least=True),
    ]


def _faster(where: str, ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> Goal:
    faster = ours["samples"] / ours["seconds"] * theirs["seconds"] / theirs["samples"]
    return Goal(f"times faster than inspect_ai, {where}", faster, _FASTER, at_least=True)
