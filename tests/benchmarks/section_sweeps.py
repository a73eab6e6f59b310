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
    from collections.abc import Mapping

_CONCURRENCY = 16
_IN_SANDBOX_SHARE = 20
"""One in so many samples is also measured with a command in a sandbox."""
_WITHIN_S = 1_500.0
_PEAK, _SECONDS, _RATE = "peak MB", "seconds", "samples/s"
_FASTER, _LIGHTER, _READS = 3.0, 5.0, 10.0


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
    kinds = [_OURS]
    if python:
        kinds.append(_Kind("inspect_ai", python, "tests.benchmarks.peer_inspect"))
    rows: list[Row] = []
    goals: list[Goal] = []
    with tempfile.TemporaryDirectory() as folder:
        for step in (_sweeps, _sweeps_in_sandboxes, _reading):
            try:
                found, ratios = await step(kinds, Path(folder), effort)
            except PeerUnavailableError as error:
                rows.append(Row("inspect_ai", {}, f"not measured: {error}"))
                kinds = [_OURS]
                found, ratios = await step(kinds, Path(folder), effort)
            rows += found
            goals += ratios
    if len(kinds) == 1 and not python:
        rows.append(Row("inspect_ai", {}, f"not measured: {PEERS} names no Python that has it"))
    return Section("sweeps", title, tuple(rows), tuple(goals))


async def _sweeps(kinds: list[_Kind], folder: Path, effort: Effort) -> tuple[list[Row], list[Goal]]:
    count = effort.sweep_samples
    found = {kind.name: await _sweep(kind, folder / f"{kind.name}-plain", count) for kind in kinds}
    rows = [_row(f"{name}, no sandbox", figures) for name, figures in found.items()]
    return rows, _ratios("no sandbox", found)


async def _sweeps_in_sandboxes(
    kinds: list[_Kind], folder: Path, effort: Effort
) -> tuple[list[Row], list[Goal]]:
    count = max(_CONCURRENCY, effort.sweep_samples // _IN_SANDBOX_SHARE)
    found = {
        kind.name: await _sweep(kind, folder / f"{kind.name}-sandbox", count, "local")
        for kind in kinds
    }
    note = f"{count:,} samples, one command each; nothing is kept apart"
    rows = [_row(f"{name}, local", figures, note) for name, figures in found.items()]
    isolated = await _sweep(_OURS, folder / "isolated", count, "isolated")
    note = f"{count:,} samples, each in a sandbox that is reset after it"
    return [*rows, _row("ours, isolated", isolated, note)], _ratios("local", found)


async def _reading(
    kinds: list[_Kind], folder: Path, effort: Effort
) -> tuple[list[Row], list[Goal]]:
    count = effort.stored_samples
    found = {}
    for kind in kinds:
        target = folder / f"{kind.name}-many"
        log = str(target)
        if kind is _OURS:
            await _order(kind, "write", log, count)
        else:
            target.mkdir(exist_ok=True)
            some = await _sweep(kind, folder / f"{kind.name}-some", min(count, 200))
            log = str((await _order(kind, "write", log, count, some["log"]))["log"])
        found[kind.name] = await _order(kind, "read", log)
    rows = [
        Row(f"{name}, open {count:,} and summarise", {_SECONDS: figures["seconds"]})
        for name, figures in found.items()
    ]
    if len(found) == 1:
        return rows, []
    faster = found["inspect_ai"]["seconds"] / found["ours"]["seconds"]
    return rows, [Goal("times faster to open and summarise", faster, _READS, at_least=True)]


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
    faster = theirs["seconds"] / ours["seconds"]
    lighter = theirs["peak_bytes"] / ours["peak_bytes"]
    return [
        Goal(f"times faster than inspect_ai, {where}", faster, _FASTER, at_least=True),
        Goal(f"times less memory than inspect_ai, {where}", lighter, _LIGHTER, at_least=True),
    ]


async def _sweep(kind: _Kind, folder: Path, samples: int, *sandbox: str) -> dict[str, Any]:
    return await _order(kind, "sweep", str(folder), samples, _CONCURRENCY, *sandbox)


async def _order(kind: _Kind, *words: str | int) -> dict[str, Any]:
    """What a process of that kind answers. Raises `PeerUnavailableError` when it cannot."""
    process = await asyncio.create_subprocess_exec(
        *(kind.python, "-m", kind.module, *map(str, words)),
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(_WITHIN_S):
            said, errors = await process.communicate()
    except TimeoutError as error:
        raise PeerUnavailableError(f"{kind.name}: no answer within {_WITHIN_S:g} s") from error
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    lines = said.decode(errors="replace").splitlines()
    if process.returncode or not lines:
        last = errors.decode(errors="replace").strip().splitlines()[-1:]
        raise PeerUnavailableError(f"{kind.name} failed: {last}")
    answer: dict[str, Any] = json.loads(lines[-1])
    if reason := answer.get("missing"):
        raise PeerUnavailableError(str(reason))
    return answer
