"""The trajectory server, durability on, beside Atropos' `run-api`, which keeps everything in memory and speaks JSON
alone. Both are processes of their own and given the same bytes, in turns.
"""

from __future__ import annotations

import asyncio
import json
import os
import tempfile
import time
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from agentenv.api.client import EnvironmentClient
from agentenv.api.codec import CONTENT_TYPE, encode_message, pack
from agentenv.api.group import wire_group
from tests.atropos import ATROPOS_PYTHON, why_no_atropos
from tests.benchmarks.figures import Effort, Goal, Row, Section
from tests.benchmarks.machine import ROOT
from tests.benchmarks.trajectory_load import JSON, ROWS, Delivery, Loader, long_group
from tests.interop.servers import AgentEnvServer, AtroposServer
from tests.processes import resident_memory

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from tests.interop.servers import ServerProcess

_THEIRS, _OURS, _BINARY = "run-api", "ours, JSON", "ours, binary"
_BINARY_TYPE = {"content-type": CONTENT_TYPE}
_ENDLESS = 1 << 30
"""A batch size that is never reached."""
_ROUNDS = 3
_BATCH_ROWS = 128
_SLOW_QUEUE = 2_000
"""From so many groups on, Atropos' server takes many seconds for a batch with a minimum allocation: once is enough.
So it is for its large batches."""
_MEMORY_WARM, _MEMORY_GROUPS = 60, 40
_MB = 1e6
_DISK_PROBES, _DISK_PROBE_BYTES = 30, 100_000
_DEADLINE_S = 170.0


@dataclass(frozen=True, slots=True)
class _Rivals:
    """Running servers. `theirs` is None where there is no atroposlib."""

    ours: AgentEnvServer
    theirs: AtroposServer | None

    def named(self) -> dict[str, ServerProcess]:
        """By column, theirs first."""
        first: dict[str, ServerProcess] = {} if self.theirs is None else {_THEIRS: self.theirs}
        return first | {_OURS: self.ours}


@dataclass(frozen=True, slots=True)
class _Part:
    rows: tuple[Row, ...]
    goals: tuple[Goal, ...] = ()


async def run(effort: Effort) -> Section:
    """Figures of ours alone, where there is no atroposlib."""
    async with _rivals() as rivals:
        # Memory first: what comes later would count.
        measures = (_memory, _intake, _queues, _deliveries, _event_loop)
        parts = [await measure(rivals, effort) for measure in measures]
    rows = tuple(row for part in parts for row in part.rows)
    goals = tuple(goal for part in parts for goal in part.goals)
    rival = why_no_atropos() or "Atropos' run-api"
    return Section("api", f"The trajectory server beside {rival}", rows, goals)


@asynccontextmanager
async def _rivals() -> AsyncIterator[_Rivals]:
    """New processes with nothing in them."""
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        ours = stack.enter_context(AgentEnvServer(folder / "ours"))
        theirs = None
        if not why_no_atropos():
            theirs = stack.enter_context(AtroposServer(folder / "theirs"))
        yield _Rivals(ours, theirs)


# ---- what comes in ----


async def _intake(rivals: _Rivals, effort: Effort) -> _Part:
    rows: list[Row] = []
    goals: list[Goal] = []
    for tokens in (effort.sequence_tokens // 8, effort.sequence_tokens):
        bodies = _bodies(tokens)
        for clients in (1, 4):
            rates = await _rates(rivals, bodies, clients, effort)
            label = f"groups/s in, {ROWS} x {_thousands(tokens)}, {clients} client(s)"
            rows.append(Row(label, rates | _times(rates)))
            goals += _intake_goals(label, rates)
    return _Part((*rows, *await _synced_rows(rivals, effort)), tuple(goals))


async def _synced_rows(rivals: _Rivals, effort: Effort) -> list[Row]:
    """Short groups, each on the disk before its sender is told, so that a power failure takes nothing either."""
    tokens = effort.sequence_tokens // 8
    bodies = _bodies(tokens)
    rows = [_disk_row(rivals.ours.folder)]
    with AgentEnvServer(rivals.ours.folder / "synced", "--sync-every-commit") as synced:
        for clients in (1, 4):
            rates = await _rates(_Rivals(synced, rivals.theirs), bodies, clients, effort)
            label = f"groups/s in and synced, {ROWS} x {_thousands(tokens)}, {clients} client(s)"
            rows.append(Row(label, rates | _times(rates)))
    return rows


def _disk_row(folder: Path) -> Row:
    """What one client alone waits for at least, with each group that is kept for good."""
    taken = []
    with (folder / "probe").open("wb", buffering=0) as probe:
        for _ in range(_DISK_PROBES):
            probe.write(bytes(_DISK_PROBE_BYTES))
            began = time.perf_counter()
            os.fsync(probe.fileno())
            taken.append(time.perf_counter() - began)
    return Row("ms for the disk to keep 100 kB", {_OURS: 1e3 * median(taken)})


def _bodies(tokens: int) -> dict[str, tuple[bytes, Mapping[str, str]]]:
    group = long_group(tokens)
    plain = json.dumps(group).encode(), JSON
    binary = encode_message([pack(wire_group(group))]), _BINARY_TYPE
    return {_THEIRS: plain, _OURS: plain, _BINARY: binary}


async def _rates(
    rivals: _Rivals,
    bodies: Mapping[str, tuple[bytes, Mapping[str, str]]],
    clients: int,
    effort: Effort,
) -> dict[str, float]:
    servers = rivals.named() | {_BINARY: rivals.ours}
    taken: dict[str, list[float]] = {name: [] for name in servers}
    for _ in range(min(_ROUNDS, effort.rounds)):
        for name, server in servers.items():
            body, headers = bodies[name]
            async with Loader(server.url) as load:
                await load.start(_ENDLESS)
                taken[name].append(await load.rate(body, headers, clients, effort.seconds))
    return {name: median(values) for name, values in taken.items()}


def _intake_goals(label: str, rates: Mapping[str, float]) -> list[Goal]:
    if _THEIRS not in rates:
        return []
    wanted = ((_OURS, 3.0), (_BINARY, 10.0))
    return [
        Goal(
            f"times {_THEIRS}: {label}, {name}", rates[name] / rates[_THEIRS], bound, at_least=True
        )
        for name, bound in wanted
    ]


# ---- batches of a long queue ----


async def _queues(rivals: _Rivals, effort: Effort) -> _Part:
    rows, goals = [], []
    for share in (None, 0.5):
        firsts = []
        for queued in effort.queued_groups:
            figures = {}
            for name, server in rivals.named().items():
                slow = name == _THEIRS and queued > _SLOW_QUEUE and share is not None
                rounds = 1 if slow else min(_ROUNDS, effort.rounds)
                figures[name] = 1e3 * await _first_batch(server, queued, share, rounds)
            firsts.append(figures[_OURS])
            label = f"ms to GET /batch, queue {queued:,}" + (", least share" if share else "")
            rows.append(Row(label, figures | _times(figures, less_is_better=True)))
        growth = firsts[-1] / firsts[0]
        text = f"times longer, queue {effort.queued_groups[-1]:,} than {effort.queued_groups[0]:,}"
        goals.append(Goal(text + (", least share" if share else ""), growth, 2.0, at_least=False))
    return _Part(tuple(rows), tuple(goals))


async def _first_batch(
    server: ServerProcess, queued: int, share: float | None, rounds: int
) -> float:
    taken = []
    for _ in range(rounds):
        async with Loader(server.url) as load:
            await load.start(_BATCH_ROWS)
            env_id = await load.register_env(share)
            await load.fill(queued, env_id=env_id)
            taken.append(await load.timed_batch())
    return median(taken)


# ---- large batches ----


async def _deliveries(rivals: _Rivals, effort: Effort) -> _Part:
    rows, goals = [], []
    size = f"{_BATCH_ROWS} x {_thousands(effort.sequence_tokens)}"
    plain = await _taken(rivals.named(), {"accept-encoding": "identity"}, effort)
    zipped = await _taken(rivals.named(), {"accept-encoding": "gzip"}, effort)
    binary = await _taken({_BINARY: rivals.ours}, {"accept": CONTENT_TYPE}, effort)
    for way, taken in (("plain", plain | binary), ("gzip", zipped)):
        seconds = {name: delivery.seconds for name, delivery in taken.items()}
        infos = {name: delivery.worst_info_s * 1e3 for name, delivery in taken.items()}
        label = f"s to GET /batch, {size}, {way}"
        rows.append(Row(label, seconds | _times(seconds, less_is_better=True)))
        rows.append(Row(f"ms, worst GET /info meanwhile, {way}", infos))
        for name in (name for name in taken if name != _THEIRS):
            text = f"ms, worst GET /info meanwhile, {way}, {name}"
            goals.append(Goal(text, infos[name], 50.0, at_least=False))
            if _THEIRS in seconds:
                faster = seconds[_THEIRS] / seconds[name]
                goals.append(Goal(f"times faster: {label}, {name}", faster, 5.0, at_least=True))
    return _Part(tuple(rows), tuple(goals))


async def _taken(
    servers: Mapping[str, ServerProcess], headers: Mapping[str, str], effort: Effort
) -> dict[str, Delivery]:
    taken = {}
    for name, server in servers.items():
        rounds = 1 if name == _THEIRS else min(_ROUNDS, effort.rounds)
        taken[name] = await _delivery(server, headers, effort.sequence_tokens, rounds)
    return taken


async def _delivery(
    server: ServerProcess, headers: Mapping[str, str], tokens: int, rounds: int
) -> Delivery:
    body = json.dumps(long_group(tokens)).encode()
    taken = []
    for _ in range(rounds):
        async with Loader(server.url) as load:
            await load.start(_BATCH_ROWS)
            await load.post(body, JSON, _BATCH_ROWS // ROWS)
            taken.append(await load.delivery(headers, at_least=4 * tokens * _BATCH_ROWS))
    return Delivery(
        median(each.seconds for each in taken),
        taken[0].wire_bytes,
        median(each.worst_info_s for each in taken),
    )


# ---- memory ----


async def _memory(rivals: _Rivals, effort: Effort) -> _Part:
    body = json.dumps(long_group(effort.sequence_tokens)).encode()
    figures = {}
    for name, server in rivals.named().items():
        async with Loader(server.url) as load:
            await load.start(_ENDLESS)
            await load.post(body, JSON, _MEMORY_WARM)
            before = resident_memory(server.pid)
            await load.post(body, JSON, _MEMORY_GROUPS)
            grown = resident_memory(server.pid) - before
        figures[name] = grown / _MEMORY_GROUPS / _MB
    label = f"MB of memory a queued group, {ROWS} x {_thousands(effort.sequence_tokens)}"
    goal = Goal(label, figures[_OURS], 1.0, at_least=False)
    return _Part((Row(label, figures),), (goal,))


# ---- what it costs the environment ----


async def _event_loop(rivals: _Rivals, effort: Effort) -> _Part:
    group = long_group(effort.sequence_tokens)
    times = min(_ROUNDS, effort.rounds)
    figures = {}
    if rivals.theirs is not None:
        figures[_THEIRS] = 1e3 * await _cost_of_theirs(rivals.theirs, group, times)
    figures[_BINARY] = 1e3 * await _cost_of_ours(rivals.ours, group, times)
    label = f"ms of the event loop to send {ROWS} x {_thousands(effort.sequence_tokens)}"
    row = Row(label, figures | _times(figures, less_is_better=True))
    return _Part((row,), (Goal(label, figures[_BINARY], 5.0, at_least=False),))


async def _cost_of_ours(server: ServerProcess, group: dict[str, Any], times: int) -> float:
    async with Loader(server.url) as load:
        await load.start(_ENDLESS)
    client = EnvironmentClient(server.url)
    costs = []
    try:
        for _ in range(times):
            began = time.thread_time()
            await client.send([dict(group)])
            costs.append(time.thread_time() - began)
    finally:
        await client.close()
    return median(costs)


async def _cost_of_theirs(server: ServerProcess, group: dict[str, Any], times: int) -> float:
    process = await asyncio.create_subprocess_exec(
        *(str(ATROPOS_PYTHON), "-m", "tests.benchmarks.peer_atropos"),
        cwd=ROOT,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    order = json.dumps({"url": server.url, "group": group, "times": times}).encode() + b"\n"
    try:
        async with asyncio.timeout(_DEADLINE_S):
            answer, _ = await process.communicate(order)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    costs: list[float] = json.loads(answer.splitlines()[-1])
    return median(costs)


# ---- how it is written ----


def _times(figures: Mapping[str, float], *, less_is_better: bool = False) -> dict[str, float]:
    """How many times better than theirs each of ours is."""
    if _THEIRS not in figures:
        return {}
    theirs = figures[_THEIRS]
    ours = {name: value for name, value in figures.items() if name != _THEIRS}
    return {
        f"{name.removeprefix('ours, ')}: times better": theirs / value
        if less_is_better
        else value / theirs
        for name, value in ours.items()
    }


def _thousands(tokens: int) -> str:
    return f"{tokens // 1024}k" if tokens >= 1024 else str(tokens)
