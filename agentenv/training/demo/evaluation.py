"""How good a policy is, with an interval; and how much better one is than another on the same tasks."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import numpy as np

from agentenv.errors import AgentEnvError
from agentenv.evaluation.statistics import Estimate, mean_of_tasks
from agentenv.group import GroupContext, current_group
from agentenv.rollout import finish

if TYPE_CHECKING:
    from collections.abc import Sequence

    from agentenv.env import AgentEnv


class EvaluationError(AgentEnvError):
    """A policy could not be measured."""


async def task_scores(env: AgentEnv[Any], *, tasks: int, workers: int) -> list[list[float]]:
    """The scores of each task's trajectories, `group_size` of them, for the first `tasks` items.

    Starts the environment and shuts it down. With `seed` in its configuration, the same policy gives the same scores,
    and two policies are given the same random numbers. Raises `EvaluationError` when an item cannot be had or tried.
    """
    try:
        await env.setup()
        items = [await env.get_next_item() for _ in range(tasks)]
        places = asyncio.Semaphore(workers)

        async def scores(index: int, item: Any) -> list[float]:
            async with places:
                current_group.set(GroupContext(index))  # seeds come from the task's place
                group, _ = await env.collect_trajectories(item)
                if item is None or group is None:
                    raise EvaluationError(f"task {index} of {tasks} could not be tried")
                return [float(score) for score in group["scores"]]

        async with asyncio.TaskGroup() as running:
            tries = [running.create_task(scores(*each)) for each in enumerate(items)]
        return [each.result() for each in tries]
    except* EvaluationError as failed:
        raise failed.exceptions[0] from None
    finally:
        await finish(env.shutdown())


def mean_score(scores: Sequence[Sequence[float]]) -> Estimate:
    """The mean over all trajectories, with an interval over tasks: trajectories of one task are alike.

    Scores are between 0 and 1, and every task has the same number of them.
    """
    return _mean([float(np.mean(each)) for each in scores], bounded=True)


def mean_gain(before: Sequence[Sequence[float]], after: Sequence[Sequence[float]]) -> Estimate:
    """How much higher the mean of `after` is, task by task, with the same kind of interval."""
    if len(before) != len(after):
        raise ValueError(
            f"{len(before)} tasks before and {len(after)} after are not the same tasks"
        )
    pairs = zip(before, after, strict=True)
    gains = [float(np.mean(late) - np.mean(early)) for early, late in pairs]
    return _mean(gains, bounded=False)


def _mean(values: Sequence[float], *, bounded: bool) -> Estimate:
    found = mean_of_tasks(values, bounded=bounded)
    if found is None:
        raise ValueError("no task was measured")
    return found
