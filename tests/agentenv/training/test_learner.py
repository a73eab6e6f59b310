from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

torch = pytest.importorskip("torch")

from agentenv.training.learner import Learner, LearnerSettings  # noqa: E402
from agentenv.training.loss import Clip  # noqa: E402
from agentenv.training.rows import group_rows  # noqa: E402
from tests.agentenv.training.groups import plain_logprobs, tiny_model, two_rows  # noqa: E402

if TYPE_CHECKING:
    from agentenv.training.rows import Row

pytestmark = pytest.mark.torch
torch.set_num_threads(1)


def sampled_rows(model: Any, advantages: tuple[float, float] = (1.0, -0.5)) -> list[Row]:
    """Two rows, of three and of two trained tokens, whose log-probs are those of the model as it is."""
    group = two_rows()
    logprobs = [plain_logprobs(model, tokens) for tokens in group["tokens"]]
    each = [[a] * len(row) for a, row in zip(advantages, group["tokens"], strict=True)]
    return group_rows({**group, "inference_logprobs": logprobs, "advantages": each})


@pytest.mark.parametrize("micro_batch_tokens", [1, 4_096])
def test_in_the_loss_of_a_batch_each_trained_token_counts_the_same(micro_batch_tokens):
    settings = LearnerSettings(micro_batch_tokens=micro_batch_tokens)
    learner = Learner(tiny_model(), settings)

    stats = learner.learn(sampled_rows(learner.model))

    assert stats.loss == pytest.approx(-(3 * 1.0 - 2 * 0.5) / 5, abs=1e-5)


def test_several_passes_over_a_batch_are_as_many_steps_over_the_same_rows():
    once, thrice = (Learner(tiny_model(), LearnerSettings(passes=n)) for n in (1, 3))
    rows = sampled_rows(once.model)

    for _ in range(3):
        once.learn(rows, rate=0.5)
    stats = thrice.learn(rows, rate=0.5)

    for name, value in once.weights().items():
        assert torch.equal(thrice.weights()[name], value)
    assert stats.max_abs_log_ratio < 1e-5  # of the first pass, under the weights that sampled


def test_over_many_passes_the_clip_holds_the_weights_near_those_that_sampled():
    def distance(clip: Clip) -> tuple[float, float]:
        settings = LearnerSettings(learning_rate=3e-3, passes=40, clip=clip)
        learner = Learner(tiny_model(), settings)
        rows = sampled_rows(learner.model, advantages=(1.0, 0.0))[:1]
        stats = learner.learn(rows)
        return learner.compare(rows).max_abs_log_ratio, stats.clipped_share

    near, far = distance(Clip()), distance(Clip(high=1e9))

    assert near[0] < far[0] / 2
    assert (near[1], far[1]) == (1.0, 0.0)


def test_a_batch_without_an_advantage_changes_nothing_however_many_passes():
    learner = Learner(tiny_model(), LearnerSettings(passes=2))
    before = learner.weights()

    stats = learner.learn(sampled_rows(learner.model, advantages=(0.0, 0.0)))

    assert (stats.rows, stats.trained_tokens, stats.loss) == (0, 0, 0.0)
    assert all(torch.equal(value, before[name]) for name, value in learner.weights().items())
