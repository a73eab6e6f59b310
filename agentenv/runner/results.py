"""What runs of tasks give. Data."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from agentenv.tasks.results import TaskResult as TaskRunResult
    from agentenv.tasks.results import TrajectoryItem
    from agentenv.types import Usage


@dataclass(frozen=True, slots=True)
class RunResult:
    """One run of a task."""

    success: bool
    """Whether `reward` is at least 1."""
    reward: float
    duration: float
    """Seconds."""
    trajectory: list[TrajectoryItem]
    """One item a tool call, with `tool_name`, `tool_input` and `tool_output`."""
    error: str | None
    """What went wrong, where something did; a task that was not solved is no error."""
    output_dir: Path
    """This run's own folder."""
    counts: bool = True
    """Whether the run says something of the model. One whose sandbox or provider failed does not, however often a
    provider's failures may be counted elsewhere: it is no wrong answer."""
    details: TaskRunResult | None = field(default=None, repr=False, compare=False)
    """All that is in result.json."""

    @property
    def usage(self) -> Usage | None:
        """Tokens and cost, as far as the provider told; None where the agent did not run."""
        record = self.details.record if self.details is not None else None
        return record.result.usage if record is not None and record.result is not None else None


@dataclass(frozen=True, slots=True)
class TaskResult:
    """One attempt at a task of a batch."""

    task_path: Path
    success: bool
    reward: float
    duration: float
    error: str | None = None
    output_dir: Path | None = None
    """None: the run could not begin, `error` says why."""
    attempt: int = 1
    counts: bool = True
    """Whether it says something of the model; else it is in neither `passed` nor `failed` nor the mean."""
    result: RunResult | None = field(default=None, repr=False, compare=False)


@dataclass(frozen=True, slots=True)
class BatchResult:
    """A batch. `total_tasks` is `passed + failed + not_counted`; with several attempts each counts."""

    total_tasks: int
    passed: int
    failed: int
    mean_reward: float
    """Over those that count; 0 where there is none."""
    duration: float
    tasks: list[TaskResult]
    """In the order of the paths, and then of the attempts."""
    not_counted: int = 0
    """Runs that failed for reasons that are not the model's: shown, never counted as wrong."""
    output_dir: Path | None = None
