"""A picture of the reward over the steps."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from agentenv.evaluation.statistics import Estimate

_WINDOW = 7
"""Steps whose mean is drawn as the line."""


def draw_curve(
    steps: Sequence[dict[str, Any]],
    path: Path,
    *,
    before: Estimate | None = None,
    after: Estimate | None = None,
) -> None:
    """Draw the mean reward of each step's batch, a running mean, and the measurements on held-out tasks.

    `steps` are lines of a `steps.jsonl`; the format follows from the name of `path`: .png or .svg.
    """
    numbers = [step["step"] for step in steps]
    rewards = [step["mean_score"] for step in steps]
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    axes.plot(numbers, rewards, ".", color="0.65", label="batch")
    axes.plot(numbers, running_mean(rewards, _WINDOW), color="C0", label=f"mean of {_WINDOW} steps")
    last = numbers[-1] if numbers else 1
    for place, estimate, label in (
        (0, before, "held out, before"),
        (last, after, "held out, after"),
    ):
        if estimate is not None:
            margins = _margins(estimate)
            axes.errorbar([place], [estimate.value], yerr=margins, fmt="o", capsize=4, label=label)
    axes.set(xlabel="step", ylabel="mean reward", ylim=(0, 1.02))
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    figure.savefig(path, dpi=130)


def _margins(estimate: Estimate) -> list[list[float]] | None:
    if estimate.low is None or estimate.high is None:
        return None
    return [[estimate.value - estimate.low], [estimate.high - estimate.value]]


def running_mean(values: Sequence[float], window: int) -> list[float]:
    """At each place the mean of the values there and before it, `window` of them at most."""
    return [float(np.mean(values[max(0, at + 1 - window) : at + 1])) for at in range(len(values))]
