"""What the scores of a sweep say, and how sure that is. Pure functions of numbers.

A task is a cluster: attempts at it are alike, so intervals are over tasks, never over attempts as if each were news of
its own. Samples that infrastructure or a verifier lost are not among the numbers; whoever calls leaves them out, and
shows how many there were.

The bootstrap draws from a fixed seed: equal data give equal intervals, whenever they are computed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike, NDArray

    Floats = NDArray[np.float64]

LEVEL = 0.95
"""Of every interval, unless told otherwise."""
RESAMPLES = 4_000
_MAX_DRAWS = 20_000_000
_MAX_STEPS = 10_000
_TINY = 1e-300


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over tasks and its interval. `low` and `high` are None where the data allow none."""

    value: float
    low: float | None
    high: float | None
    tasks: int
    """How many tasks it is made of."""
    method: str
    """How the interval was made: `exact`, `bootstrap`, `normal` or `none`."""


# ---------------------------------------------------------------------------------------- pass@k and pass^k


def pass_at_k(tried: ArrayLike, solved: ArrayLike, k: int) -> Floats:
    """The chance that at least one of `k` attempts solves a task, for each task; NaN where fewer than `k` were tried.

    `solved` of `tried` attempts did. Unbiased: 1 - C(n - c, k) / C(n, k) (Chen et al., 2021, Evaluating Large Language
    Models Trained on Code, equation 1), as a product that cannot overflow.
    """
    n, c = _counts(tried, solved, k)
    return np.where(n >= k, 1.0 - _share_of_draws(n - c, n, k), np.nan)


def pass_hat_k(tried: ArrayLike, solved: ArrayLike, k: int) -> Floats:
    """The chance that all of `k` attempts solve a task (pass^k), for each task; NaN where fewer than `k` were tried.

    Unbiased: C(c, k) / C(n, k) (Yao et al., 2024, tau-bench, section 3).
    """
    n, c = _counts(tried, solved, k)
    return np.where(n >= k, _share_of_draws(c, n, k), np.nan)


def _counts(tried: ArrayLike, solved: ArrayLike, k: int) -> tuple[Floats, Floats]:
    n, c = np.asarray(tried, dtype=float), np.asarray(solved, dtype=float)
    if k < 1:
        raise ValueError(f"k={k} must be at least 1")
    if n.shape != c.shape or np.any(c < 0) or np.any(c > n):
        raise ValueError("solved must be between 0 and tried, for each task")
    return n, c


def _share_of_draws(marked: Floats, total: Floats, k: int) -> Floats:
    """C(marked, k) / C(total, k): the share of draws of `k` that are all marked."""
    share = np.ones_like(total)
    for drawn in range(k):
        left = np.maximum(total - drawn, 1.0)
        share *= np.maximum(marked - drawn, 0.0) / left
    return share


# ---------------------------------------------------------------------------------------- means and intervals


def task_mean(
    tried: ArrayLike, totals: ArrayLike, *, binary: bool, level: float = LEVEL
) -> Estimate | None:
    """The mean score, each task weighing the same: the mean over tasks of `totals / tried`. None without any task.

    `binary` says that every single score is 0 or 1. Then, with one attempt at each task, or attempts at one task alone,
    the interval is exact (Clopper and Pearson); else it is a bootstrap over tasks.
    """
    n, sums = np.asarray(tried, dtype=float), np.asarray(totals, dtype=float)
    n, sums = n[n > 0], sums[n > 0]
    if binary and len(n) and (len(n) == 1 or bool(np.all(n == 1))):
        low, high = proportion_interval(round(sums.sum()), round(n.sum()), level=level)
        return Estimate(float(np.mean(sums / n)), low, high, len(n), "exact")
    return mean_of_tasks(sums / n, bounded=binary, level=level)


def mean_of_tasks(values: ArrayLike, *, bounded: bool, level: float = LEVEL) -> Estimate | None:
    """The mean of one value for each task, NaN ones left out, with an interval over tasks. None without any.

    Percentile bootstrap over tasks (Efron and Tibshirani, 1993, An Introduction to the Bootstrap, chapters 8 and 13);
    beyond its cost, the normal interval of the mean. `bounded` says that values lie between 0 and 1. Then values that
    are all 0 or all 1, of which resampling would claim to be certain, get the exact interval of as many single trials:
    no other distribution between 0 and 1 with the same mean spreads more.
    """
    found = np.asarray(values, dtype=float)
    found = found[~np.isnan(found)]
    if not len(found):
        return None
    mean, tasks = float(found.mean()), len(found)
    if bounded and (np.all(found == 0.0) or np.all(found == 1.0)):
        low, high = proportion_interval(round(found.sum()), tasks, level=level)
        return Estimate(mean, low, high, tasks, "exact")
    if bool(np.all(found == found[0])):  # one task, or tasks that say nothing of how they differ
        return Estimate(mean, None, None, tasks, "none")
    interval = bootstrap_interval(found, level=level)
    if interval is not None:
        return Estimate(mean, *interval, tasks, "bootstrap")
    half = normal_quantile((1 + level) / 2) * float(found.std(ddof=1)) / math.sqrt(tasks)
    return Estimate(mean, mean - half, mean + half, tasks, "normal")


def bootstrap_interval(values: ArrayLike, *, level: float = LEVEL) -> tuple[float, float] | None:
    """The percentile bootstrap interval of a mean; None where resampling would cost too much.

    Of values that repeat, how often each is drawn is multinomial: that is resampling, without drawing one by one.
    """
    found = np.asarray(values, dtype=float)
    dice = np.random.default_rng(0)
    different, times = np.unique(found, return_counts=True)
    if len(different) * RESAMPLES <= _MAX_DRAWS:
        drawn = dice.multinomial(len(found), times / len(found), size=RESAMPLES)
        means = drawn @ different / len(found)
    elif len(found) * RESAMPLES <= _MAX_DRAWS:
        means = found[dice.integers(len(found), size=(RESAMPLES, len(found)))].mean(axis=1)
    else:
        return None
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def clustered_standard_error(scores: Sequence[float], tasks: Sequence[Any]) -> float | None:
    """The standard error of the mean of all `scores`, where those of one task may depend on each other.

    Cluster-robust: the sum over tasks of squared sums of residuals, times G / (G - 1) for G tasks (Liang and Zeger,
    1986; Miller, 2024, Adding Error Bars to Evals, section 2.2). None with fewer than two tasks.
    """
    x = np.asarray(scores, dtype=float)
    _, member = np.unique(np.asarray(tasks), return_inverse=True)
    groups = int(member.max()) + 1 if len(x) else 0
    if groups < 2:
        return None
    sums = np.bincount(member, weights=x - x.mean(), minlength=groups)
    return float(math.sqrt(groups / (groups - 1) * float(sums @ sums)) / len(x))


def proportion_interval(
    successes: int, trials: int, *, level: float = LEVEL
) -> tuple[float, float]:
    """The exact interval of a probability after `successes` in `trials` (Clopper and Pearson, 1934).

    Its ends are quantiles of beta distributions: of Beta(s, n - s + 1) below, of Beta(s + 1, n - s) above.
    """
    if not 0 <= successes <= trials or trials < 1:
        raise ValueError(f"{successes} successes in {trials} trials")
    tail = (1 - level) / 2
    failures = trials - successes
    low = 0.0 if successes == 0 else _beta_quantile(tail, successes, failures + 1)
    high = 1.0 if failures == 0 else _beta_quantile(1 - tail, successes + 1, failures)
    return low, high


def normal_quantile(probability: float) -> float:
    """Where the standard normal distribution has reached `probability`."""
    from statistics import NormalDist  # noqa: PLC0415 - the standard library's, not this module

    return NormalDist().inv_cdf(probability)


# ---------------------------------------------------------------------------------------- the beta distribution


def _beta_quantile(probability: float, a: float, b: float) -> float:
    """By bisection, to the last bit that a float near the answer has."""
    low, high = 0.0, 1.0
    for _ in range(200):
        middle = (low + high) / 2
        if middle in (low, high):
            break
        if beta_distribution(middle, a, b) < probability:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def beta_distribution(x: float, a: float, b: float) -> float:
    """The regularised incomplete beta function I_x(a, b), by its continued fraction (DLMF 8.17.22)."""
    if x <= 0.0 or x >= 1.0:
        return float(x >= 1.0)
    if x > (a + 1) / (a + b + 2):  # where the fraction converges fast is the other side
        return 1.0 - beta_distribution(1.0 - x, b, a)
    log_front = (
        math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)
    )
    return math.exp(log_front) / (a * _beta_fraction(x, a, b))


def _beta_fraction(x: float, a: float, b: float) -> float:
    """1 + d1/(1 + d2/(1 + ...)), by Lentz's method as Thompson and Barnett (1986) changed it."""
    value, c, d = 1.0, 1.0, 0.0
    for step in range(1, _MAX_STEPS):
        m = step // 2
        if step % 2:
            term = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        else:
            term = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        d = 1.0 / ((1.0 + term * d) or _TINY)
        c = (1.0 + term / c) or _TINY
        value *= c * d
        if abs(c * d - 1.0) < 1e-15:
            return value
    raise ArithmeticError(f"I_x(a, b) did not converge for x={x}, a={a}, b={b}")
