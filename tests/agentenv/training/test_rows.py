from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

from agentenv.training.rows import TrainingDataError, group_rows, score_advantages
from tests.agentenv.training.groups import item, two_rows

pytestmark = pytest.mark.torch  # the groups of these tests come with a model


def test_advantages_have_mean_zero_and_the_populations_deviation_one():
    advantages = score_advantages([1.0, 0.0, 0.0, 1.0, 1.0, 1.0, 0.5, 0.25])

    assert advantages.mean() == pytest.approx(0.0)
    assert advantages.std() == pytest.approx(1.0)
    assert score_advantages([3.0, 1.0]).tolist() == [1.0, -1.0]


def test_equal_scores_give_no_advantage_and_their_rows_do_not_teach():
    assert score_advantages([0.1] * 3).tolist() == pytest.approx([0.0] * 3, abs=1e-6)
    assert [row.teaches for row in group_rows(two_rows(scores=[1.0, 1.0]))] == [False, False]


def test_a_row_knows_its_trained_tokens_also_between_answers_of_tools():
    first, second = group_rows(two_rows())

    assert first.trained.tolist() == [False, False, True, True, False, False, True]
    assert first.inference_logprobs[first.trained].tolist() == [-0.1, -0.2, -0.3]
    assert set(first.advantages) == {1.0}
    assert second.first_trained == 2
    assert set(second.advantages) == {-1.0}


def test_advantages_of_the_group_come_before_those_of_its_scores():
    given = [[0.0, 0.0, 1.0, 2.0, 0.0, 0.0, 3.0], [0.0] * 5]

    rows = group_rows(two_rows(advantages=given))

    assert [row.advantages.tolist() for row in rows] == given
    assert [row.teaches for row in rows] == [True, False]


def test_an_override_sets_the_advantages_of_its_row_to_zero_and_leaves_the_others():
    rows = group_rows(two_rows(overrides=[{"set_advantage_to_zero": True}, {}]))

    assert [set(row.advantages) for row in rows] == [{0.0}, {-1.0}]


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, [1.0, 1.0]),
        ({"group_overrides": {"temperature": 0.5}}, [0.5, 0.5]),
        ({"group_overrides": {"temperature": 0.5}, "generation_params": {"temperature": 0.7}}, [0.7] * 2),
        ({"generation_params": {"temperature": 0.7}, "overrides": [{"temperature": 2}, {}]}, [2.0, 0.7]),
        ({"generation_params": {"temperature": 0.0}}, [1.0, 1.0]),
        ({"generation_params": None, "overrides": None, "group_overrides": None}, [1.0, 1.0]),
    ],
)  # fmt: skip
def test_temperature_is_the_rows_own_then_the_groups(fields, expected):
    assert [row.temperature for row in group_rows(two_rows(**fields))] == expected


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"inference_logprobs": None}, "no inference_logprobs"),
        ({"masks": [[-100] * 7]}, "2 rows of tokens and 1 of masks"),
        ({"masks": [[-100] * 6, [-100] * 5]}, "row 0 has 7 tokens, 6 masks"),
        ({"masks": [[-100, -100, 3, 4, -100, -100, 8], [-100] * 5]}, "mask at 6 is 8"),
        ({"masks": [[1, 2, -100, -100, 5, 6, -100], [-100] * 5]}, "the first token is trained"),
        ({"scores": [1.0, float("nan")]}, "finite"),
        ({"advantages": [[1.0], [1.0] * 5]}, "7 tokens and 1 advantages"),
        ({"generation_params": {"temperature": -1}}, "temperature -1"),
    ],
)
def test_a_group_that_cannot_be_trained_on_is_refused_with_the_reason(fields, said):
    with pytest.raises(TrainingDataError, match=said):
        group_rows(two_rows(**fields))


def test_log_probs_that_slipped_by_one_are_refused_because_a_trained_token_has_none():
    group = two_rows()
    shifted = [[1.0, *row[:-1]] for row in group["inference_logprobs"] or []]

    with pytest.raises(TrainingDataError, match=r"row 0: the trained token at 2 has log-prob 1\.0"):
        group_rows({**group, "inference_logprobs": shifted})


def test_inverted_masks_are_refused_for_the_same_reason():
    group = two_rows()
    inverted = [
        [-100 if mask != -100 or at == 0 else token for at, (token, mask) in enumerate(zip(*pair, strict=True))]
        for pair in zip(group["tokens"], group["masks"], strict=True)
    ]  # fmt: skip

    with pytest.raises(TrainingDataError, match="are log-probs or masks shifted"):
        group_rows({**group, "masks": inverted})


def test_arrays_serve_as_well_as_lists():
    group: dict[str, Any] = dict(two_rows())
    arrays = {
        name: [np.asarray(row) for row in group[name]]
        for name in ("tokens", "masks", "inference_logprobs")
    }

    made = group_rows({**group, **arrays, "scores": np.asarray(group["scores"])})

    for row, expected in zip(made, group_rows(group), strict=True):
        assert row.tokens.tolist() == expected.tokens.tolist()
        assert row.advantages.tolist() == expected.advantages.tolist()


def test_a_row_without_a_trained_token_is_left_out():
    unsampled = item([1, 2, 3], [], [], 5.0)
    group: dict[str, Any] = dict(two_rows())
    for name in ("tokens", "masks", "scores", "inference_logprobs"):
        group[name] = [*group[name], unsampled[name]]

    assert len(group_rows({**group, "overrides": None})) == 2
