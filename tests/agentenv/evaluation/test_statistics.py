"""Estimates and intervals, against scipy, against counting by hand, and against tables worked out by hand."""

import itertools
import math
from typing import Any

import numpy as np
import pytest
import scipy.special
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from agentenv.evaluation import statistics
from agentenv.evaluation.statistics import (
    beta_distribution,
    bootstrap_interval,
    clustered_standard_error,
    pass_at_k,
    pass_hat_k,
    proportion_interval,
)

# as tests see them: never None, or the test fails
task_mean: Any = statistics.task_mean
mean_of_tasks: Any = statistics.mean_of_tasks
ATTEMPTS = st.lists(st.booleans(), min_size=1, max_size=9)


@given(ATTEMPTS, st.integers(1, 9))
def test_pass_at_k_is_the_share_of_draws_with_a_success_among_them(attempts, k):
    found = pass_at_k([len(attempts)], [sum(attempts)], k)[0]
    draws = list(itertools.combinations(attempts, k))
    if not draws:
        assert math.isnan(found)
    else:
        assert found == pytest.approx(np.mean([any(draw) for draw in draws]))


@given(ATTEMPTS, st.integers(1, 9))
def test_pass_hat_k_is_the_share_of_draws_that_are_all_successes(attempts, k):
    found = pass_hat_k([len(attempts)], [sum(attempts)], k)[0]
    draws = list(itertools.combinations(attempts, k))
    if not draws:
        assert math.isnan(found)
    else:
        assert found == pytest.approx(np.mean([all(draw) for draw in draws]))


def test_pass_at_k_by_hand():
    # n = 4, c = 1: 1/4; 1 - C(3,2)/C(4,2) = 1/2; 1 - C(3,3)/C(4,3) = 3/4; 1
    assert [pass_at_k([4], [1], k)[0] for k in (1, 2, 3, 4)] == pytest.approx([0.25, 0.5, 0.75, 1])
    assert [pass_hat_k([4], [3], k)[0] for k in (1, 2, 3, 4)] == pytest.approx([0.75, 0.5, 0.25, 0])


def test_pass_at_k_of_thousands_of_attempts_does_not_overflow():
    assert pass_at_k([20_000], [10], 1_000)[0] == pytest.approx(
        1 - scipy.stats.hypergeom(20_000, 10, 1_000).pmf(0)
    )


@pytest.mark.parametrize(("tried", "solved", "k"), [([1], [2], 1), ([1], [1], 0), ([1, 2], [1], 1)])
def test_impossible_counts_are_refused(tried, solved, k):
    with pytest.raises(ValueError, match="must be"):
        pass_at_k(tried, solved, k)


@given(
    st.integers(1, 3_000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))),
    st.sampled_from([0.8, 0.95, 0.99]),
)
def test_the_exact_interval_is_scipys(counts, level):
    successes, trials = counts
    theirs = scipy.stats.binomtest(successes, trials).proportion_ci(level, method="exact")
    assert proportion_interval(successes, trials, level=level) == pytest.approx(
        (theirs.low, theirs.high), abs=1e-9
    )


@given(st.floats(0, 1), st.floats(0.5, 5_000), st.floats(0.5, 5_000))
def test_the_beta_distribution_is_scipys(x, a, b):
    assert beta_distribution(x, a, b) == pytest.approx(scipy.special.betainc(a, b, x), abs=1e-9)


def test_one_attempt_at_each_task_gets_the_exact_interval():
    found = task_mean([1] * 10, [1] * 7 + [0] * 3, binary=True)
    assert (found.value, found.tasks, found.method) == (0.7, 10, "exact")
    assert (found.low, found.high) == pytest.approx((0.3475, 0.9333), abs=1e-4)  # published tables


def test_each_task_weighs_the_same_however_often_it_was_tried():
    assert task_mean([1, 4], [1, 0], binary=True).value == 0.5


def test_tasks_without_a_sample_are_no_tasks():
    assert task_mean([0, 2, 0], [0, 2, 0], binary=True).tasks == 1
    assert task_mean([0, 0], [0, 0], binary=True) is None


def test_the_bootstrap_interval_is_that_of_resampling_tasks():
    dice = np.random.default_rng(1)
    values = dice.binomial(4, 0.3, size=60) / 4
    theirs = scipy.stats.bootstrap(
        (values,), np.mean, method="percentile", n_resamples=20_000, rng=dice
    ).confidence_interval
    assert bootstrap_interval(values) == pytest.approx((theirs.low, theirs.high), abs=0.02)
    continuous = dice.normal(size=80)
    theirs = scipy.stats.bootstrap(
        (continuous,), np.mean, method="percentile", n_resamples=20_000, rng=dice
    ).confidence_interval
    assert bootstrap_interval(continuous) == pytest.approx((theirs.low, theirs.high), abs=0.03)


def test_intervals_over_tasks_are_wider_than_attempts_would_claim():
    """Ten attempts at each of eight tasks that are solved always or never are eight pieces of news, not eighty."""
    solved = [10, 10, 10, 10, 10, 0, 0, 0]
    over_tasks = task_mean([10] * 8, solved, binary=True)
    as_if_independent = proportion_interval(50, 80)
    assert over_tasks.method == "bootstrap"
    assert over_tasks.high - over_tasks.low > 2 * (as_if_independent[1] - as_if_independent[0])


def test_unanimous_tasks_are_not_called_certain():
    found = task_mean([3] * 12, [3] * 12, binary=True)
    assert (found.value, found.high, found.method) == (1.0, 1.0, "exact")
    assert found.low == pytest.approx(scipy.stats.binomtest(12, 12).proportion_ci().low)
    assert mean_of_tasks([0.4, 0.4], bounded=False).low is None
    assert mean_of_tasks([7.0], bounded=False).method == "none"


def test_a_hundred_thousand_different_rewards_get_an_interval_too():
    values = np.random.default_rng(0).normal(size=100_000)
    found = mean_of_tasks(values, bounded=False)
    theirs = scipy.stats.norm.interval(0.95, values.mean(), scipy.stats.sem(values))
    assert found.method == "normal"
    assert (found.low, found.high) == pytest.approx(theirs)


def test_equal_data_give_equal_intervals():
    assert bootstrap_interval([0.0, 0.5, 1.0] * 9) == bootstrap_interval([0.0, 0.5, 1.0] * 9)


@given(
    st.lists(st.tuples(st.integers(0, 5), st.floats(-10, 10)), min_size=2, max_size=40).filter(
        lambda rows: len({task for task, _ in rows}) > 1
    )
)
@settings(max_examples=50)
def test_the_clustered_standard_error_is_that_of_the_sandwich(rows):
    """An intercept-only regression, clustered: (X'X)^-1 (sum of X_g' e_g e_g' X_g) (X'X)^-1, with G / (G - 1)."""
    tasks, scores = [task for task, _ in rows], np.array([score for _, score in rows])
    design = np.ones((len(scores), 1))
    bread = np.linalg.inv(design.T @ design)
    residuals = scores - scores.mean()
    meat = np.zeros((1, 1))
    for task in set(tasks):
        rows_of_task = [place for place, each in enumerate(tasks) if each == task]
        part = design[rows_of_task].T @ residuals[rows_of_task]
        meat += np.outer(part, part)
    groups = len(set(tasks))
    expected = math.sqrt((groups / (groups - 1) * bread @ meat @ bread)[0, 0])
    assert clustered_standard_error(scores.tolist(), tasks) == pytest.approx(expected, abs=1e-12)


def test_with_one_sample_a_task_the_clustered_error_is_the_usual_one():
    scores = [0.0, 1.0, 1.0, 0.5, 0.25]
    assert clustered_standard_error(scores, range(5)) == pytest.approx(scipy.stats.sem(scores))
    assert clustered_standard_error(scores, [0] * 5) is None
