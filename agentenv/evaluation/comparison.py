"""Two runs on the same tasks: how far apart they are, and whether chance alone would bring them so far.

Paired: what is compared is each task's mean in both, so that how hard a task is cancels out. Tasks that only one of the
two has a score for are left out and counted. P-values of several comparisons are adjusted by `holm_adjusted`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from agentenv.evaluation.statistics import LEVEL, bootstrap_interval, normal_quantile

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import ArrayLike, NDArray

    Floats = NDArray[np.float64]

_MAX_LOG_OUTCOMES = math.log(500_000)
"""Of the number of sums that are listed one by one."""
_DRAWS = 20_000
_MAX_DRAWN = 100_000_000


@dataclass(frozen=True, slots=True)
class PairedDifference:
    """`second - first`, over tasks that both have. Interval and p-value are None where the data allow none."""

    tasks: int
    first: float
    """Mean over the tasks in common."""
    second: float
    difference: float
    low: float | None
    high: float | None
    p_value: float | None
    """Two-sided, of the hypothesis that neither is better: each task's difference would as soon have the other sign."""
    method: str
    """Of the p-value: `McNemar, exact`, `sign flips, exact`, `sign flips, drawn`, `sign flips, normal`, or `none`."""
    better: int
    """Tasks with a higher mean in the second."""
    worse: int
    left_out: int = 0
    """Tasks that only one of them has a score for."""


def compare_tasks(
    first: Mapping[str, float], second: Mapping[str, float], *, binary: bool, level: float = LEVEL
) -> PairedDifference | None:
    """Compare mean scores by task. None without a task in common.

    `binary` says that every task has one score on each side, 0 or 1.
    """
    common = sorted(first.keys() & second.keys())
    if not common:
        return None
    a = np.array([first[task] for task in common], dtype=float)
    b = np.array([second[task] for task in common], dtype=float)
    left_out = len(first.keys() ^ second.keys())
    return paired_difference(a, b, binary=binary, level=level, left_out=left_out)


def paired_difference(
    first: ArrayLike,
    second: ArrayLike,
    *,
    binary: bool,
    level: float = LEVEL,
    left_out: int = 0,
) -> PairedDifference:
    """Compare one value a task; both have equal length, at least 1."""
    a, b = np.asarray(first, dtype=float), np.asarray(second, dtype=float)
    differences = b - a
    p_value, method = sign_flip_p_value(differences)
    if binary and method.endswith("exact"):
        method = "McNemar, exact"  # signs of differences that are all 1: the same test
    low, high = _difference_interval(differences, level)
    return PairedDifference(
        tasks=len(a),
        first=float(a.mean()),
        second=float(b.mean()),
        difference=float(differences.mean()),
        low=low,
        high=high,
        p_value=p_value,
        method=method,
        better=int(np.sum(differences > 0)),
        worse=int(np.sum(differences < 0)),
        left_out=left_out,
    )


def _difference_interval(differences: Floats, level: float) -> tuple[float | None, float | None]:
    """Bootstrap over tasks. None where all differ by the same: resampling would claim to be certain of it."""
    if len(differences) < 2 or bool(np.all(differences == differences[0])):
        return None, None
    interval = bootstrap_interval(differences, level=level)
    if interval is not None:
        return interval
    spread = float(differences.std(ddof=1)) / math.sqrt(len(differences))
    half = normal_quantile((1 + level) / 2) * spread
    mean = float(differences.mean())
    return mean - half, mean + half


def sign_flip_p_value(differences: ArrayLike) -> tuple[float | None, str]:
    """The two-sided p-value of paired differences, and how it was computed.

    If neither run is better, each difference is as likely to have the other sign (Fisher, 1935, The Design of
    Experiments, section 21). The p-value is the share of all choices of signs whose sum is at least as far from 0 as
    the one found. Exact where sums can be listed (equal differences are counted together, so for scores of 0 and 1
    always: that is McNemar's exact test); else from random choices, the one found counted among them (Phipson and
    Smyth, 2010); beyond the cost of that, from the normal distribution with the same variance.
    """
    found = np.asarray(differences, dtype=float)
    if not len(found):
        return None, "none"
    sizes, times = np.unique(np.round(np.abs(found[found != 0]), 12), return_counts=True)
    sizes, times = sizes[sizes > 0], times[sizes > 0]
    if not len(sizes):
        return 1.0, "sign flips, exact"
    threshold = abs(float(found.sum())) - 1e-9 * float(np.abs(found).sum())
    if float(np.log(times + 1.0).sum()) <= _MAX_LOG_OUTCOMES:
        return _exact(sizes, times, threshold), "sign flips, exact"
    if len(sizes) * _DRAWS <= _MAX_DRAWN:
        return _drawn(sizes, times, threshold), "sign flips, drawn"
    deviation = math.sqrt(float((sizes**2) @ times))
    return math.erfc(threshold / deviation / math.sqrt(2)), "sign flips, normal"


def holm_adjusted(p_values: Sequence[float | None]) -> list[float | None]:
    """P-values of several hypotheses, adjusted for their number (Holm, 1979), in the order given; None stays None.

    To call significant what is at most a level keeps the chance of one false claim among all of them at that level,
    however they depend on each other. Those that are None are no hypotheses, and are not counted.
    """
    known = sorted((p, place) for place, p in enumerate(p_values) if p is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    at_least = 0.0
    for rank, (p, place) in enumerate(known):
        at_least = max(at_least, min(1.0, (len(known) - rank) * p))
        adjusted[place] = at_least
    return adjusted


def _exact(sizes: Floats, times: NDArray[np.int64], threshold: float) -> float:
    sums, chances = np.zeros(1), np.ones(1)
    for size, count in zip(sizes.tolist(), times.tolist(), strict=True):
        positive = np.arange(count + 1)
        sums = np.add.outer(sums, size * (2 * positive - count)).ravel()
        chances = np.multiply.outer(chances, _coin_tosses(count)).ravel()
    return min(1.0, float(chances[np.abs(sums) >= threshold].sum()))


def _coin_tosses(count: int) -> Floats:
    """The chances of 0 to `count` heads."""
    log_factorials = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, count + 1)))])
    logs = log_factorials[-1] - log_factorials - log_factorials[::-1] - count * math.log(2)
    return np.asarray(np.exp(logs), dtype=float)


def _drawn(sizes: Floats, times: NDArray[np.int64], threshold: float) -> float:
    dice = np.random.default_rng(0)
    sums = np.zeros(_DRAWS)
    for size, count in zip(sizes.tolist(), times.tolist(), strict=True):
        sums += size * (2 * dice.binomial(count, 0.5, size=_DRAWS) - count)
    return float((1 + np.sum(np.abs(sums) >= threshold)) / (1 + _DRAWS))
