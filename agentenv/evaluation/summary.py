"""What came of a sweep, in numbers: one summary for each arm, and which of two is better.

A sample without a reward (infrastructure or the verifier failed, or it was cancelled) is no score: it is left out of
every estimate, and counted beside it.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from agentenv.errors import SweepError
from agentenv.evaluation.comparison import compare_tasks
from agentenv.evaluation.statistics import (
    Estimate,
    mean_of_tasks,
    pass_at_k,
    pass_hat_k,
    task_mean,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from agentenv.evaluation.comparison import PairedDifference
    from agentenv.evaluation.reader import Columns, SweepReader
    from agentenv.evaluation.spec import Arm

_ALL_K = 5
_MORE_K = (8, 10, 16, 20, 25, 32, 50, 64, 100, 128, 200, 256, 500, 512, 1000, 1024)


@dataclass(frozen=True, slots=True)
class ArmSummary:
    """One model under one of the settings on one task set."""

    number: int
    arm: Arm
    planned: int
    """Samples it is to have."""
    ended: int
    """Samples it has."""
    scored: int
    """Of those, how many have a reward; all below is of them, but tokens and costs."""
    outcomes: dict[str, int]
    tasks: int
    """Tasks with at least one reward."""
    score: Estimate | None
    """Mean reward, each task weighing the same."""
    pass_at: dict[int, Estimate]
    """By k, from 1 to the attempts at a task. Tasks with fewer rewards than k are left out: see `Estimate.tasks`."""
    pass_hat: dict[int, Estimate]
    input_tokens: int
    output_tokens: int
    cost_usd: float | None
    """None: nobody told. Else what is known of it, see `cost_complete`."""
    cost_complete: bool
    latency_p50_s: float | None
    latency_p95_s: float | None
    tool_calls: int
    tool_errors: int
    tried_again: int
    """Tries beyond the first, for want of infrastructure."""
    causes: tuple[tuple[str, int], ...]
    """Why samples have no reward, most frequent first."""

    @property
    def lost(self) -> int:
        """Samples that ended without a reward."""
        return self.ended - self.scored


def summarise(reader: SweepReader) -> list[ArmSummary]:
    """Every arm that was begun, in the order of the specification."""
    columns = reader.columns()
    sizes = reader.task_counts()
    return [
        _summary(reader, number, arm, sizes[arm.task_set], columns.of_arm(number))
        for number, arm in reader.arms().items()
    ]


def _summary(
    reader: SweepReader, number: int, arm: Arm, tasks: int, columns: Columns
) -> ArmSummary:
    numbers = columns.numbers
    reward = numbers["reward"]
    has_reward = ~np.isnan(reward)
    tried, solved, totals = by_task(numbers["task"][has_reward], reward[has_reward], reader)
    binary = bool(np.isin(reward[has_reward], (0.0, 1.0)).all())
    cost, seconds = numbers["cost_usd"], numbers["duration_s"][has_reward]
    known = ~np.isnan(cost)
    latency = np.quantile(seconds, [0.5, 0.95]).tolist() if len(seconds) else [None, None]
    return ArmSummary(
        number=number,
        arm=arm,
        planned=tasks * reader.samples_per_task,
        ended=len(reward),
        scored=int(has_reward.sum()),
        outcomes=dict(Counter(columns.outcome)),
        tasks=len(tried),
        score=task_mean(tried, totals, binary=binary),
        pass_at=_by_k(pass_at_k, tried, solved),
        pass_hat=_by_k(pass_hat_k, tried, solved),
        input_tokens=int(numbers["input_tokens"].sum()),
        output_tokens=int(numbers["output_tokens"].sum()),
        cost_usd=float(cost[known].sum()) if known.any() else None,
        cost_complete=bool(known.all()),
        latency_p50_s=latency[0],
        latency_p95_s=latency[1],
        tool_calls=int(numbers["tool_calls"].sum()),
        tool_errors=int(numbers["tool_errors"].sum()),
        tried_again=int((numbers["tries"] - 1).sum()),
        causes=tuple(reader.causes(number)) if not has_reward.all() else (),
    )


def by_task(task: Any, reward: Any, reader: SweepReader) -> tuple[Any, Any, Any]:
    """Samples, solved samples and the sum of rewards of each task that has a sample."""
    different, place = np.unique(task, return_inverse=True)
    size = len(different)
    tried = np.bincount(place, minlength=size)
    solved = np.bincount(place, weights=reward >= reader.success_at, minlength=size)
    totals = np.bincount(place, weights=reward, minlength=size)
    return tried, solved, totals


def _by_k(estimator: Any, tried: Any, solved: Any) -> dict[int, Estimate]:
    most = int(tried.max()) if len(tried) else 0
    found = {}
    for k in [*range(1, min(_ALL_K, most) + 1), *(k for k in _MORE_K if k < most), most]:
        if k and k not in found:
            estimate = mean_of_tasks(estimator(tried, solved, k), bounded=True)
            if estimate is not None:
                found[k] = _exact_where_single(estimate, tried, solved, k)
    return found


def _exact_where_single(estimate: Estimate, tried: Any, solved: Any, k: int) -> Estimate:
    """The exact interval, where each task was tried once or there is one task: as `task_mean` has it."""
    if k > 1:
        return estimate
    return task_mean(tried, solved, binary=True) or estimate


# ---------------------------------------------------------------------------------------- comparison


@dataclass(frozen=True, slots=True)
class Choice:
    """Arms of a sweep that are compared as one: a model, under settings, on all task sets."""

    model: str | None = None
    """None: the only one there is."""
    settings: str | None = None


def chosen_arms(reader: SweepReader, choice: Choice) -> dict[int, Arm]:
    """The arms meant. Raises `SweepError` when there is none, or more than one model or settings are meant."""
    arms = {
        number: arm
        for number, arm in reader.arms().items()
        if choice.model in (None, arm.model) and choice.settings in (None, arm.settings)
    }
    names = sorted({(arm.model, arm.settings) for arm in arms.values()})
    if len(names) == 1:
        return arms
    every = sorted({f"{arm.model}@{arm.settings}" for arm in reader.arms().values()})
    what = "no such model" if not names else "more than one model or settings"
    raise SweepError(
        f"{reader.path}: {what}; name one as {reader.path}@MODEL or {reader.path}@MODEL@SETTINGS, of: "
        f"{', '.join(every)}"
    )


def compare(
    first: SweepReader, a: Mapping[int, Arm], second: SweepReader, b: Mapping[int, Arm]
) -> PairedDifference:
    """How much better the arms `b` are than `a`, on the tasks that both have a reward for.

    Raises `SweepError` when there is none.
    """
    left, left_single = _task_scores(first, a)
    right, right_single = _task_scores(second, b)
    found = compare_tasks(left, right, binary=left_single and right_single)
    if found is None:
        raise SweepError(
            f"{first.path} and {second.path} have no task in common that both have a reward for"
        )
    return found


def _task_scores(reader: SweepReader, arms: Mapping[int, Arm]) -> tuple[dict[str, float], bool]:
    """The mean reward of each task, and whether each has one reward of 0 or 1."""
    names = {info.task: f"{info.task_set}/{info.name}" for info in reader.tasks()}
    numbers = reader.columns().numbers
    chosen = np.isin(numbers["arm"], list(arms)) & ~np.isnan(numbers["reward"])
    task, reward = numbers["task"][chosen], numbers["reward"][chosen]
    different = np.unique(task)
    tried, _, totals = by_task(task, reward, reader)
    means = {
        names[int(number)]: float(mean)
        for number, mean in zip(different, totals / np.maximum(tried, 1), strict=True)
    }
    single = bool((tried == 1).all() and np.isin(reward, (0.0, 1.0)).all())
    return means, single


def ordered_k(summaries: Sequence[ArmSummary]) -> list[int]:
    """Every k that any of them has an estimate for."""
    return sorted({k for summary in summaries for k in summary.pass_at})
