"""Commands in containers, with a shell and without: slots that live, beside `docker exec` and others' sandboxes."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from agentenv_backends.config import DockerConfig
from tests.benchmarks.container_cost import main_processes, with_cost
from tests.benchmarks.docker_exec import PROGRAM, exec_container
from tests.benchmarks.figures import Effort, Goal, Row, Section
from tests.benchmarks.load import drive, in_turns
from tests.benchmarks.local import running
from tests.benchmarks.peers import PeerUnavailableError, swe_rex
from tests.docker_engine import DOCKER, IMAGE, why_no_engine

if TYPE_CHECKING:
    from tests.benchmarks.docker_exec import ExecContainer
    from tests.benchmarks.figures import Load
    from tests.benchmarks.load import Call, Measurement
    from tests.benchmarks.peers import SweRex

_MOST = 64
_SPREAD_OVER = 8
_TIMES_EXEC = 50.0
_PEERS_FROM = 8
_PEER_CONTAINERS = 8
_EXECS_PER_S = 16
"""A slow engine's: long enough is measured for each trajectory to have its turn."""
_OURS, _SPREAD = "executor, slots of one container", f"executor, slots of {_SPREAD_OVER} containers"
_EXEC, _EXEC_CLI = "docker exec, engine's interface", "docker exec, command line"
_OUR_PROGRAM, _EXEC_PROGRAM = "`true` alone, executor", "`true` alone, docker exec"
"""Both without a shell: what is compared is the way to the command, not how long a shell takes to start."""
_REX, _REX_SESSION = "SWE-ReX, execute", "SWE-ReX, session"
_INSPECT = Row(
    "inspect_ai's Docker sandbox",
    {},
    "not measured: each of its commands is a `docker compose exec`, which does no less than `docker exec` by the "
    "command line",
)


async def run(effort: Effort) -> Section:
    """`bash -c true`, and `true` without a shell, at rising numbers of trajectories.

    Calls per second count all calls, to the end of the last.
    """
    title = "Commands in containers: `bash -c true`"
    if reason := await asyncio.to_thread(why_no_engine):
        return Section("docker", title, (Row(_OURS, {}, f"not measured: {reason}"),))
    counts = [count for count in effort.trajectories if count <= _MOST]
    rows: list[Row] = []
    goals: list[Goal] = []
    async with AsyncExitStack() as stack:
        rivals = _Rivals(await stack.enter_async_context(exec_container(IMAGE)))
        try:
            containers = min(_PEER_CONTAINERS, max(counts))
            rivals.peer = await stack.enter_async_context(swe_rex(IMAGE, containers))
            note = f"{rivals.peer.version}, over {containers} containers"
        except PeerUnavailableError as error:
            note = str(error)
        rows.append(Row(_REX, {}, note))
        for count in counts:
            loads = await _at(count, effort, rivals)
            rows += _rows(count, loads)
            goals += _goals(count, loads)
    return Section("docker", title, (*rows, _INSPECT), tuple(goals))


class _Rivals:
    """What is measured beside our own slots."""

    def __init__(self, container: ExecContainer) -> None:
        self.peer: SweRex | None = None
        self._container = container

    def at(self, count: int, seconds: float) -> dict[str, Measurement]:
        """By name."""
        exec_s = max(seconds, count / _EXECS_PER_S)
        found: dict[str, Measurement] = {
            _EXEC: lambda: _drive(self._container.by_interface, count, exec_s),
            _EXEC_PROGRAM: lambda: _drive(
                partial(self._container.by_interface, command=PROGRAM), count, exec_s
            ),
        }
        if count == _MOST:
            found[_EXEC_CLI] = lambda: _drive(self._container.by_command_line, count, exec_s)
        if self.peer is not None:
            found[_REX] = partial(self.peer.measure, "execute", count, seconds)
            if count == _PEERS_FROM:
                found[_REX_SESSION] = partial(self.peer.measure, "session", count, seconds)
        return found


async def _at(count: int, effort: Effort, rivals: _Rivals) -> dict[str, Load]:
    async with AsyncExitStack() as stack:
        measurements: dict[str, Measurement] = {}
        known: frozenset[int] = frozenset()
        for name, containers in ((_OURS, 1), (_SPREAD, _SPREAD_OVER)):
            if containers > 1 and count != _MOST:
                continue
            sizes = {"slots": count // containers, "max_hosts": containers}
            config = DockerConfig.model_validate(DOCKER | sizes)
            slots = await stack.enter_async_context(running(config))
            await slots.warm_up(count)
            shell = partial(slots.shell, command="true")
            load = partial(_drive, shell, count, effort.seconds)
            own = await main_processes() - known
            measurements[name] = partial(with_cost, load, own)
            if containers == 1:
                load = partial(_drive, slots.program, count, effort.seconds)
                measurements[_OUR_PROGRAM] = partial(with_cost, load, own)
            known |= own
        measurements |= rivals.at(count, effort.seconds)
        return await in_turns(min(2 if count == _MOST else 3, effort.rounds), measurements)


async def _drive(call: Call, count: int, seconds: float) -> Load:
    return await drive(call, count, seconds, to_the_end=True)


def _rows(count: int, loads: dict[str, Load]) -> list[Row]:
    # What rivals do in their containers cannot be seen from here, and the driver's share alone says little.
    ours = {name: loads[name] for name in (_OURS, _OUR_PROGRAM, _SPREAD) if name in loads}
    shown = {name: replace(load, cpu_s=0.0) for name, load in loads.items()} | ours
    return [
        Row(
            f"{count}: {name}",
            {**load.figures(), "of docker exec": load.rate / _rival(name, loads).rate},
        )
        for name, load in shown.items()
    ]


def _rival(name: str, loads: dict[str, Load]) -> Load:
    return loads[_EXEC_PROGRAM if name in (_OUR_PROGRAM, _EXEC_PROGRAM) else _EXEC]


def _goals(count: int, loads: dict[str, Load]) -> list[Goal]:
    ours = loads[_OURS].rate
    goals = []
    if count == _MOST:
        for name, what in ((_OUR_PROGRAM, "without a shell"), (_OURS, "with one")):
            times = loads[name].rate / _rival(name, loads).rate
            goal = f"times docker exec at {count}, {what}"
            goals.append(Goal(goal, times, _TIMES_EXEC, at_least=True))
    if count >= _PEERS_FROM and _REX in loads:
        times = ours / loads[_REX].rate
        goals.append(Goal(f"times SWE-ReX's execute at {count}", times, 1.0, at_least=True))
    return goals
