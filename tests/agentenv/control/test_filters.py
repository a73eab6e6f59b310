"""Finished groups that are not sent, and the reasons that are counted."""

from typing import Any

import pytest

from agentenv.control import (
    GroupFilterError,
    GroupFilters,
    TooLong,
    equal_scores,
    group_filters,
    load_filter,
)
from agentenv.errors import ConfigError
from agentenv.group import build_group
from agentenv.types import ScoredDataGroup, ScoredDataItem


def group(*scores: float, length: int = 3) -> ScoredDataGroup:
    return build_group(
        [ScoredDataItem(tokens=[1] * length, masks=[1] * length, scores=score) for score in scores]
    )


def no_negative_scores(found: ScoredDataGroup) -> str | None:
    return "a score is negative" if min(found["scores"]) < 0 else None


NOT_A_FILTER = 3


def test_equal_scores_carry_no_advantage():
    assert equal_scores(group(1.0, 1.0)) is not None
    assert equal_scores(group(1.0)) is not None
    assert equal_scores(group(1.0, 0.0)) is None


@pytest.mark.parametrize(("limit", "kept"), [(3, False), (4, True), (0, True), (-1, True)])
def test_a_sequence_of_just_the_limit_is_too_long_and_no_limit_keeps_all(limit: int, kept: bool):
    assert (TooLong(limit)(group(1.0, 0.0)) is None) is kept


def test_the_first_reason_decides_and_is_counted():
    here = f"{__name__}:no_negative_scores"
    filters = group_filters(drop_equal_scores=True, max_token_len=9, custom=[here])
    for found in (group(1, 1), group(1, 1, length=9), group(1, 0, length=9), group(1, -1)):
        assert filters.reason(found) is not None
    assert filters.reason(group(1, 0)) is None
    assert list(filters.dropped.values()) == [2, 1, 1]
    assert filters.dropped["a score is negative"] == 1


def test_by_default_only_equal_scores_and_length_are_looked_at():
    filters = group_filters(drop_equal_scores=False)
    assert filters.reason(group(1.0, 1.0, length=10**4)) is None


def test_reasons_without_end_are_counted_together():
    numbers = iter(range(1000))
    filters = GroupFilters([lambda found: f"reason {next(numbers)}"])
    for _ in range(1000):
        filters.reason(group(1, 0))
    assert len(filters.dropped) <= 51
    assert sum(filters.dropped.values()) == 1000


@pytest.mark.parametrize(
    "path",
    [
        "no_colon",
        f"{__name__}:",
        f"{__name__}:no_negative_score",
        f"{__name__}:NOT_A_FILTER",
        "no_such_module_here:x",
    ],
)
def test_a_path_to_no_filter_is_refused_at_start(path: str):
    with pytest.raises(ConfigError, match="group filter"):
        load_filter(path)


@pytest.mark.parametrize("answer", [True, False, 0, "", ValueError("broken")])
def test_a_broken_filter_decides_nothing(answer: Any):
    def broken(found: ScoredDataGroup) -> Any:
        if isinstance(answer, Exception):
            raise answer
        return answer

    with pytest.raises(GroupFilterError, match="broken"):
        GroupFilters([broken]).reason(group(1, 0))
