"""A group over one workspace of many files: each member sets it up by itself, or one set-up is shared."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import TYPE_CHECKING, Any

from agentenv._shared_setup import SharedSetup
from agentenv.task import Task
from agentenv.types import AgentConfig
from agentenv.workbench import ExecutorWorkbench
from agentenv_backends.config import LocalConfig
from agentenv_tools import ToolCall, ToolExecutor
from agentenv_tools.toolsets import build_registry
from tests.benchmarks.figures import Effort, Goal, Row, Section

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from agentenv.task import ExecTool
    from agentenv_backends.base import Backend

_MEMBERS = 8
_FILE_BYTES = 10_240
_TASK = Task(instruction="", item=None, agent=AgentConfig())
_READY_MS, _GROUP_RATIO = 5.0, 1.1


@dataclass(frozen=True, slots=True)
class _Cost:
    ready_s: float
    """From the start until every member may begin."""
    after_setup_s: float
    """From the end of the set-up until a member may begin, median of the members."""
    memory_mib: float
    """What all workspaces together take of the machine's memory."""


async def run(effort: Effort) -> Section:
    """One workspace alone, eight by themselves, and eight from one, in turns."""
    command = _set_up_command(effort.workspace_files)
    one, own, shared = [], [], []
    for _ in range(effort.rounds):
        one.append(await _by_themselves(command, 1))
        own.append(await _by_themselves(command, _MEMBERS))
        shared.append(await _from_one(command))
    alone = median(cost.ready_s for cost in one)
    rows = (
        Row("1, its own set-up", _figures(one, alone)),
        Row(f"{_MEMBERS}, each its own set-up", _figures(own, alone)),
        Row(f"{_MEMBERS}, sharing one set-up", _figures(shared, alone)),
    )
    ready = 1e3 * median(cost.after_setup_s for cost in shared)
    ratio = median(cost.ready_s for cost in shared) / alone
    goals = (
        Goal(
            "ms until a member is ready once the set-up is done", ready, _READY_MS, at_least=False
        ),
        Goal("set-ups' time for a group of eight", ratio, _GROUP_RATIO, at_least=False),
    )
    size = effort.workspace_files * _FILE_BYTES / 1e6
    title = f"a workspace of {effort.workspace_files} files, {size:.0f} MB"
    return Section("setup", title, rows, goals)


def _set_up_command(files: int) -> str:
    total = files * _FILE_BYTES
    return f"mkdir repo && head -c {total} /dev/urandom | split -b {_FILE_BYTES} -a 4 -d - repo/f"


def _figures(costs: list[_Cost], alone: float) -> dict[str, float]:
    ready = median(cost.ready_s for cost in costs)
    return {
        "ready ms": ready * 1e3,
        "of one": ready / alone,
        "after ms": 1e3 * median(cost.after_setup_s for cost in costs),
        "MiB": median(cost.memory_mib for cost in costs),
    }


class _Verifier:
    """A set-up and nothing else."""

    def __init__(self, command: str) -> None:
        self._command = command
        self.done_at = 0.0

    async def prepare(
        self, task: Task, *, trajectory_id: str, exec_tool: ExecTool
    ) -> dict[str, Any]:
        result = await exec_tool(ToolCall("terminal", {"command": self._command}))
        if not result.success:
            raise RuntimeError(result.error)
        self.done_at = perf_counter()
        return {}

    async def verify(self, *_: Any, **__: Any) -> Any:
        raise NotImplementedError("nothing is judged here")


async def _by_themselves(command: str, members: int) -> _Cost:
    async with _pool() as (executor, _):
        before = _shared_memory_mib()
        started = perf_counter()
        await asyncio.gather(*(_own_set_up(executor, command, n) for n in range(members)))
        ended = perf_counter()
        return _Cost(ended - started, 0.0, _shared_memory_mib() - before)


async def _own_set_up(executor: ToolExecutor, command: str, number: int) -> None:
    workbench = ExecutorWorkbench(executor, f"t{number}")

    async def exec_tool(call: ToolCall) -> Any:
        return await workbench.call(call, limit_s=None)

    await _Verifier(command).prepare(_TASK, trajectory_id=f"t{number}", exec_tool=exec_tool)


async def _from_one(command: str) -> _Cost:
    verifier = _Verifier(command)
    async with _pool() as (executor, backend):
        setup = SharedSetup(
            None,
            verifier,
            workbench=lambda _, trajectory_id: ExecutorWorkbench(executor, trajectory_id),
            drop=backend.drop_snapshot,
            timeout_s=60,
        )
        ready: list[float] = []

        async def member(number: int) -> None:
            await setup.enter(_TASK, ExecutorWorkbench(executor, f"t{number}"))
            ready.append(perf_counter())

        before = _shared_memory_mib()
        started = perf_counter()
        await asyncio.gather(*(member(number) for number in range(_MEMBERS)))
        cost = _Cost(
            max(ready) - started,
            median(ready) - verifier.done_at,
            _shared_memory_mib() - before,
        )
        await setup.close()
        return cost


@asynccontextmanager
async def _pool() -> AsyncIterator[tuple[ToolExecutor, Backend]]:
    """An executor over a pool in which a slot stands ready for everybody."""
    backend = LocalConfig(slots=2 * _MEMBERS, warm_slots=_MEMBERS + 1).build()
    await backend.start()
    try:
        async with asyncio.timeout(30):
            while backend.stats().available_slots <= _MEMBERS:
                await asyncio.sleep(0.01)
        executor = ToolExecutor(backend, build_registry())
        try:
            yield executor, backend
        finally:
            await executor.close()
    finally:
        await backend.stop()


def _shared_memory_mib() -> float:
    """What files in memory take on this machine: workspaces are such."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    (shmem,) = (line for line in lines if line.startswith("Shmem:"))
    return int(shmem.split()[1]) / 1024
