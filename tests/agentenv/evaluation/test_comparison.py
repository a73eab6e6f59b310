"""Paired comparisons, against scipy and against tables worked out by hand."""

from itertools import combinations

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from agentenv.evaluation.comparison import (
    compare_tasks,
    holm_adjusted,
    paired_difference,
    sign_flip_p_value,
)


@given(st.lists(st.sampled_from([-1, 0, 1]), min_size=1, max_size=60))
def test_scores_of_zero_and_one_get_mcnemars_exact_test(differences):
    p_value, method = sign_flip_p_value(differences)
    worse, better = differences.count(-1), differences.count(1)
    expected = scipy.stats.binomtest(better, better + worse).pvalue if better + worse else 1.0
    assert p_value == pytest.approx(expected)
    assert method == "sign flips, exact"


def test_mcnemar_by_hand():
    # 1 task got worse, 6 got better: 2 * (C(7,0) + C(7,1)) / 2^7 = 16 / 128
    first = [1] + [0] * 6 + [1] * 5
    second = [0] + [1] * 6 + [1] * 5
    found = paired_difference(first, second, binary=True)
    assert found.p_value == pytest.approx(0.125)
    assert found.method == "McNemar, exact"
    assert (found.better, found.worse, found.tasks) == (6, 1, 12)
    assert found.difference == pytest.approx(5 / 12)


@given(st.lists(st.integers(-5000, 5000), min_size=2, max_size=9))
@settings(max_examples=60, deadline=None)
def test_small_samples_get_the_exact_permutation_test(thousandths):
    p_value, _ = sign_flip_p_value([number / 1000 for number in thousandths])
    if any(thousandths):
        theirs = scipy.stats.permutation_test(
            (np.array(thousandths, dtype=float),),  # whole, for equal sums to be equal in SciPy too
            np.sum,
            permutation_type="samples",
            n_resamples=np.inf,
            alternative="two-sided",
        )
        assert p_value == pytest.approx(theirs.pvalue, abs=1e-9)
    else:
        assert p_value == 1.0


def test_larger_samples_are_drawn_and_the_largest_are_normal():
    dice = np.random.default_rng(3)
    some = dice.normal(0.1, 1, size=200)
    p_value, method = sign_flip_p_value(some)
    theirs = scipy.stats.permutation_test(
        (some,), np.sum, permutation_type="samples", n_resamples=20_000, rng=dice
    ).pvalue
    assert method == "sign flips, drawn"
    assert p_value == pytest.approx(theirs, abs=0.02)
    many = dice.normal(0.005, 1, size=50_000)
    p_value, method = sign_flip_p_value(many)
    assert method == "sign flips, normal"
    assert p_value == pytest.approx(scipy.stats.ttest_1samp(many, 0).pvalue, abs=0.005)


def test_the_interval_is_the_bootstrap_over_tasks():
    dice = np.random.default_rng(5)
    first, second = dice.random(50), dice.random(50)
    theirs = scipy.stats.bootstrap(
        (second - first,), np.mean, method="percentile", n_resamples=20_000, rng=dice
    ).confidence_interval
    found = paired_difference(first, second, binary=False)
    assert (found.low, found.high) == pytest.approx((theirs.low, theirs.high), abs=0.02)


def test_equal_differences_everywhere_are_not_called_certain():
    found = paired_difference([0.0, 0.0, 0.0], [1.0, 1.0, 1.0], binary=True)
    assert (found.low, found.high) == (None, None)
    assert found.p_value == pytest.approx(0.25)  # 2 * (1/2)^3


def test_only_tasks_in_common_count_and_the_others_are_counted():
    found = compare_tasks(
        {"a": 1.0, "b": 0.0, "c": 0.5}, {"b": 1.0, "c": 0.5, "d": 0.0}, binary=False
    )
    assert found is not None
    assert (found.tasks, found.left_out) == (2, 2)
    assert found.difference == pytest.approx(0.5)
    assert compare_tasks({"a": 1.0}, {"b": 1.0}, binary=True) is None


@settings(deadline=None)
@given(st.lists(st.none() | st.floats(0, 1), max_size=7))
def test_p_values_are_adjusted_as_the_closed_test_of_bonferronis_would(found):
    """Independent of the steps of Holm: a hypothesis falls when every set of them that holds it does."""
    known = [place for place, p in enumerate(found) if p is not None]
    for place, adjusted in enumerate(holm_adjusted(found)):
        if found[place] is None:
            assert adjusted is None
            continue
        sets = [s for size in range(1, len(known) + 1) for s in combinations(known, size)]
        each = [min(1.0, len(s) * min(found[p] for p in s)) for s in sets if place in s]
        assert adjusted == pytest.approx(max(each))


def test_adjusted_p_values_by_hand():
    assert holm_adjusted([0.01, 0.04, 0.03, None]) == pytest.approx([0.03, 0.06, 0.06, None])
    assert holm_adjusted([0.5]) == [0.5]
    assert holm_adjusted([]) == []
