"""Rows of a group as prompt and completion."""

from typing import Any

import pytest

from agentenv.errors import SinkError
from agentenv.group import build_group
from agentenv.sinks.rows import CompletionRow, completion_row, completion_rows, hole
from agentenv.types import ScoredDataGroup, SequenceData

TOKENS, MASKS, LOGPROBS = [5, 6, 7, 8, 9], [-100, -100, 7, -100, 9], [1.0, 1.0, -0.5, 1.0, -0.25]


def group(**more: Any) -> ScoredDataGroup:
    row = {"tokens": TOKENS, "masks": MASKS, "inference_logprobs": LOGPROBS, **more}
    items: list[Any] = [row | {"scores": score} for score in (1.0, 0.0)]
    return build_group(items)


def test_a_completion_runs_from_the_first_sampled_token_and_marks_what_tools_wrote():
    assert completion_row(TOKENS, MASKS, LOGPROBS, 0.5) == CompletionRow(
        prompt_ids=[5, 6],
        completion_ids=[7, 8, 9],
        sampled=[1, 0, 1],
        logprobs=[-0.5, 0.0, -0.25],
        reward=0.5,
    )


def test_a_sampled_token_that_equals_nothing_special_is_told_by_its_mask_alone():
    row = completion_row([0, 0], [-100, 0], [1.0, -1.0], 1.0)
    assert (row.prompt_ids, row.completion_ids, row.sampled) == ([0], [0], [1])


@pytest.mark.parametrize(
    ("masks", "reason"), [([-100, -100], "no sampled token"), ([5, 6], "no prompt")]
)
def test_a_sequence_without_prompt_or_completion_is_refused(masks: list[int], reason: str):
    with pytest.raises(SinkError, match=reason):
        completion_row([5, 6], masks, [-1.0, -1.0], 1.0)


def test_a_group_gives_a_row_for_each_trajectory():
    assert [row.reward for row in completion_rows(group(), 2)] == [1.0, 0.0]


def test_a_row_whose_advantage_is_zero_keeps_its_reward_and_trains_no_token():
    rows = completion_rows(group(overrides={"set_advantage_to_zero": True}), 2)
    assert [row.sampled for row in rows] == [[0, 0, 0]] * 2
    assert [row.reward for row in rows] == [1.0, 0.0]


def test_a_trajectory_of_several_sequences_is_refused():
    earlier = SequenceData(tokens=TOKENS, masks=MASKS, inference_logprobs=LOGPROBS)
    with pytest.raises(SinkError, match="history was rewritten"):
        completion_rows(group(earlier_sequences=[earlier]), 2)


@pytest.mark.parametrize("key", ["advantages", "distill_token_ids"])
def test_what_the_trainer_would_ignore_is_refused(key: str):
    given: Any = {**group(), key: [[0.0] * 5] * 2}
    with pytest.raises(SinkError, match=key):
        completion_rows(given, 2)


def test_a_group_without_log_probs_is_refused():
    with pytest.raises(SinkError, match="inference_logprobs"):
        completion_rows({**group(), "inference_logprobs": None}, 2)


def test_a_hole_trains_nothing():
    assert (hole(3).sampled, hole(3).reward) == ([0], None)
