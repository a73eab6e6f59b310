"""Sweeps over tasks that need neither engine nor sandbox, whose results are functions of their seeds."""

import asyncio
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from agentenv.errors import VerifierError
from agentenv.evaluation.reader import SweepReader
from agentenv.evaluation.runner import Sweep
from agentenv.evaluation.schema import TaskEntry
from agentenv.evaluation.sources import SampleResult
from agentenv.evaluation.spec import Arm, SweepConfig
from agentenv.evaluation.store import SweepStore
from agentenv.outcomes import Outcome, StopReason
from agentenv.rollout import RolloutRecord
from agentenv.run.record import TrajectoryRecord
from agentenv.stopping import cancel_all
from agentenv.task import Verdict
from agentenv.types import AgentResult, AgentStep, Usage
from agentenv_tools.schema import ToolCall, ToolResult


def config(**changes: Any) -> SweepConfig:
    values: dict[str, Any] = {
        "tasks": {"numbers": {"environment": "none", "count": 5}},
        "models": {"a": {}, "b": {}},
        "attempts": 2,
        "concurrency": 3,
        "retry": {"wait_s": 0.0},
    }
    return SweepConfig.model_validate(values | changes)


def record(
    trajectory_id: str,
    reward: float | None,
    *,
    outcome: Outcome = Outcome.SCORED,
    text: str = "done",
    cause: str | None = None,
) -> RolloutRecord:
    call = ToolCall("terminal", {"command": "ls"}, uniq_id="call-1")
    result = ToolResult(success=bool(reward), output=text)
    step = AgentStep(1, text, (call,), (result,), usage=Usage(100, 20))
    agent = AgentResult(
        success=True,
        final_response=text,
        stop_reason=StopReason.FINAL_ANSWER,
        steps=(step,),
        messages=({"role": "user", "content": text}, {"role": "assistant", "content": text}),
        total_tokens=20,
    )
    return RolloutRecord(
        trajectory_id,
        outcome,
        StopReason.FINAL_ANSWER,
        reward,
        agent,
        cause=cause,
        score_metadata={"said": text},
        duration_s=0.5,
    )


def by_seed(
    source: "NumbersSource", task: str, seed: int | None, trajectory_id: str
) -> RolloutRecord:
    """Solved or not by seed and model alone."""
    solved = ((seed or 0) // 7 + len(source.arm.model)) % 3 > 0
    return record(trajectory_id, float(solved), text=f"{task} {seed}")


Run = Callable[["NumbersSource", str, int | None, str], RolloutRecord]


@dataclass
class NumbersSource:
    """Tasks are numbers. `sweep` notes what was run, closed and cancelled."""

    config: SweepConfig
    arm: Arm
    run_one: Run = by_seed
    price: float | None = None
    hang: bool = False
    is_final: bool = False
    writes: bool = False
    """Whether each sample leaves files."""
    noted: list[str] = field(default_factory=list)

    async def open(self, *, only_judge: bool = False) -> list[TaskEntry]:
        self.noted.append(f"open {self.arm.model}")
        count = self.config.tasks[self.arm.task_set].count or 0
        return [TaskEntry(str(number), f"number {number}") for number in range(count)]

    async def run(
        self, task: str, *, seed: int | None, trajectory_id: str, folder: Path
    ) -> SampleResult:
        self.noted.append(f"run {trajectory_id}")
        await asyncio.sleep(0)
        while self.hang:
            await asyncio.sleep(3600)
        if self.writes:
            (folder / "agent").mkdir(parents=True)
            (folder / "agent" / "log.txt").write_text(trajectory_id)
        found = self.run_one(self, task, seed, trajectory_id)
        if self.writes:
            (folder / "result.json").write_text(f"{found.reward}")
        usage = found.result.usage if found.result else Usage()
        spent = Usage(usage.prompt_tokens, usage.completion_tokens, 0, self.price)
        return SampleResult(found, spent, is_final=self.is_final)

    async def judge(self, task: str, record: TrajectoryRecord, folder: Path | None) -> Verdict:
        if task == "3":
            raise VerifierError("3 cannot be judged")
        return Verdict(0.25, {"judged": "again"})

    async def cancel(self, work: Collection[asyncio.Task[Any]]) -> None:
        self.noted.append(f"cancel {len(work)}")
        await cancel_all(work)

    async def close(self) -> None:
        self.noted.append(f"close {self.arm.model}")


async def sweep_into(
    path: Path, made: SweepConfig, *, stop_after: int | None = None, **source: Any
) -> Sweep:
    """Run a sweep over numbers, to its end or until so many samples were begun."""
    store = await SweepStore.open(path, made)
    noted: list[str] = source.pop("noted", [])
    try:
        sweep = Sweep(
            made, store, source=lambda c, arm: NumbersSource(c, arm, noted=noted, **source)
        )
        running = asyncio.create_task(sweep.run())
        while stop_after is not None and not running.done():
            await asyncio.sleep(0)
            if sum(note.startswith("run") for note in noted) >= stop_after:
                sweep.stop("the test says so", 0.0)
                break
        await running
        return sweep
    finally:
        await store.close()


def results(path: Path) -> dict[tuple[Any, ...], tuple[Any, ...]]:
    """What a sweep found: everything but times and numbers of the database."""
    with SweepReader(path) as reader:
        arms, tasks = reader.arms(), {info.task: info.name for info in reader.tasks()}
        found = {}
        for stored in reader.samples():
            row = stored.row
            key = (arms[row.arm], tasks[row.task], row.seed, row.attempt)
            assert key not in found, "each sample once"
            trajectory = reader.trajectory(stored.sample)
            found[key] = (row.outcome, row.reward, row.output_tokens, trajectory["final_response"])
        return found


def outputs(path: Path) -> dict[str, Path]:
    """The folder of each sample that has one, by its trajectory's id. There are no others."""
    with SweepReader(path) as reader:
        found = {
            stored.row.trajectory_id: path / stored.row.output_dir
            for stored in reader.samples()
            if stored.row.output_dir
        }
    assert set(found.values()) == set((path / "outputs").glob("*/*"))
    return found
