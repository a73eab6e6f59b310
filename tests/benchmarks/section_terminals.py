"""The persistent shell and the terminal through the whole backend, beside bash and tmux driven directly.

The goals are set against a Python program that does the same operation: half its rate for the shell, its own for the
terminal; and against what such programs gave on two cores of this kind when the goals were set, in another hour. What
a bare loop over `epoll` gets out of the same programs, with one request made beforehand, stands beside them and is no
goal: nothing that tells one call from another could reach it.
"""

from __future__ import annotations

import tempfile
from contextlib import AsyncExitStack
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Self

from agentenv_backends.requests import (
    ExecRequest,
    RecordingRequest,
    ShellRequest,
    TmuxRequest,
)
from agentenv_backends.results import OpFailure, ShellResult
from tests.benchmarks import floors_terminals, programs_terminals
from tests.benchmarks.figures import P50, RATE, RATIO, Effort, Goal, Row, Section
from tests.benchmarks.load import drive, in_turns
from tests.benchmarks.local import local

if TYPE_CHECKING:
    from agentenv_backends.base import Backend, Slot
    from agentenv_backends.requests import Request
    from agentenv_backends.results import Result
    from tests.benchmarks.figures import Load
    from tests.benchmarks.load import Measurement

_TRAJECTORIES = (1, 64)
_HALF = 0.5
_CONTROL_MODE = 1.0
"""As fast as control mode itself."""
_SHELL_THEN = {1: 10_000.0, 64: 20_000.0}
"""Calls a second of bash on a pipe when the goals were set, by trajectories."""
_CONTROL_MODE_THEN = 2_400.0
"""Commands a second that tmux in control mode then took."""
_SHELL, _FRESH = "ShellRequest, local slots", "ExecRequest, local slots"
_SHELL_PROGRAM = "floor: bash used by a Python program"
_BARE_SHELL = "bash driven by bare epoll"
_NOTHING = "floor of the way: a request that does nothing"
_SCREEN, _KEYS = "TmuxRequest capture, local slots", "TmuxRequest send_keys with block"
_TMUX_PROGRAM = "floor: tmux -C, type, wait and look, Python"
_BARE_TMUX = "tmux -C driven by bare epoll, look only"
_COMMAND_LINE = "the command line of tmux, look only"


async def run(effort: Effort) -> Section:
    """A builtin in the shell, and a look at the screen, at one trajectory and at many."""
    rows: list[Row] = []
    goals: list[Goal] = []
    for trajectories in _TRAJECTORIES:
        count = min(trajectories, max(effort.trajectories))
        for measured in (_shells, _terminals):
            more_rows, more_goals = await measured(count, effort)
            rows += more_rows
            goals += more_goals
    title = "State between calls: a builtin in a persistent shell, the screen of a terminal"
    return Section("terminals", title, tuple(rows), tuple(goals))


async def _shells(count: int, effort: Effort) -> tuple[list[Row], list[Goal]]:
    inside: list[float] = []
    async with AsyncExitStack() as stack:
        ask = await stack.enter_async_context(_Slots(count, ShellRequest("true")))
        bare = await stack.enter_async_context(floors_terminals.bare_shells(count))
        program = await stack.enter_async_context(programs_terminals.shells(count))

        async def shell(number: int) -> Result:
            result = await ask(number, ShellRequest("x=1"))
            assert isinstance(result, ShellResult)
            inside.append(result.duration_s)
            return result

        loads = await in_turns(
            effort.rounds,
            {
                _SHELL: lambda: drive(shell, count, effort.seconds),
                _SHELL_PROGRAM: lambda: drive(program.call, count, effort.seconds),
                _BARE_SHELL: lambda: bare.measure(effort.seconds),
                _NOTHING: lambda: drive(
                    lambda number: ask(number, RecordingRequest()), count, effort.seconds
                ),
                _FRESH: lambda: drive(
                    lambda number: ask(number, ExecRequest("true")), count, effort.seconds
                ),
            },
        )
    floor = loads[_SHELL_PROGRAM]
    rows = [*_rows(count, loads, floor), _slot_alone(count, inside, floor)]
    ours = loads[_SHELL]
    goals = [_goal(count, ours, floor, "bash used by a Python program", _HALF)]
    if count in _SHELL_THEN:
        goals.append(_rate_goal(count, ours, "in a shell", _HALF * _SHELL_THEN[count]))
    return rows, goals


async def _terminals(count: int, effort: Effort) -> tuple[list[Row], list[Goal]]:
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="agentenv-bench-")))
        ask = await stack.enter_async_context(_Slots(count, TmuxRequest("start")))
        bare = await stack.enter_async_context(floors_terminals.bare_terminals(folder, count))
        program = await stack.enter_async_context(programs_terminals.terminals(folder, count))
        enter = TmuxRequest("send_keys", ("true", "Enter"), block=True)
        measurements: dict[str, Measurement] = {
            _SCREEN: lambda: drive(
                lambda number: ask(number, TmuxRequest("capture")), count, effort.seconds
            ),
            _BARE_TMUX: lambda: bare.measure(effort.seconds),
            _KEYS: lambda: drive(lambda number: ask(number, enter), count, effort.seconds),
            _TMUX_PROGRAM: lambda: drive(program.call, count, effort.seconds),
            _COMMAND_LINE: lambda: drive(
                lambda number: floors_terminals.capture_by_command_line(folder, number),
                count,
                effort.seconds,
            ),
        }
        loads = await in_turns(effort.rounds, measurements)
    floor = loads[_TMUX_PROGRAM]
    goals = [
        _goal(count, loads[_KEYS], floor, "tmux in control mode", _CONTROL_MODE),
        _rate_goal(count, loads[_KEYS], "in tmux", _CONTROL_MODE_THEN),
    ]
    return _rows(count, loads, floor), goals


class _Slots:
    """Slots in which a first request has been answered, as an async context manager; gives a way to ask them."""

    def __init__(self, count: int, first: Request) -> None:
        self._count = count
        self._first = first
        self._stack = AsyncExitStack()
        self._slots: list[Slot] = []

    async def __aenter__(self) -> Self:
        run = await self._stack.enter_async_context(local(self._count))
        self._backend: Backend = run.backend
        for number in range(self._count):
            self._slots.append(await self._backend.acquire(f"t{number}"))
            await self(number, self._first)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def __call__(self, number: int, request: Request) -> Result:
        result = await self._backend.execute(self._slots[number], request)
        if isinstance(result, OpFailure):
            raise RuntimeError(f"{request}: {result.message}")
        return result


def _rows(count: int, loads: dict[str, Load], floor: Load) -> list[Row]:
    return [
        Row(f"{count}: {name}", {**load.figures(), RATIO: load.rate / floor.rate})
        for name, load in loads.items()
    ]


def _slot_alone(count: int, inside: list[float], floor: Load) -> Row:
    p50 = median(inside)
    figures = {P50: p50 * 1e3} | (
        {RATE: 1 / p50, RATIO: 1 / p50 / floor.rate} if count == 1 else {}
    )
    return Row(f"{count}: ShellRequest, in the slot alone", figures, "as the slot's init times it")


def _goal(count: int, ours: Load, floor: Load, what: str, share: float) -> Goal:
    return Goal(f"of {what} at {count}", ours.rate / floor.rate, share, at_least=True)


def _rate_goal(count: int, ours: Load, where: str, rate: float) -> Goal:
    return Goal(f"calls a second {where} at {count}", ours.rate, rate, at_least=True)
