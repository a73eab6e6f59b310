import math

import pytest

torch = pytest.importorskip("torch")

from agentenv.training.loss import Clip, LossSums, grpo_loss  # noqa: E402

pytestmark = pytest.mark.torch
CLIP = Clip(low=0.2, high=0.3)


def loss_of(
    ratios: list[float],
    advantages: list[float],
    trained: list[bool] | None = None,
    total: int | None = None,
) -> tuple[float, list[float], LossSums]:
    """Loss, gradient and sums for tokens with these importance ratios, in one row."""
    new = torch.tensor([[math.log(ratio) - 1.0 for ratio in ratios]], requires_grad=True)
    old = torch.full_like(new, -1.0)
    mask = torch.tensor([trained or [True] * len(ratios)])
    loss, sums = grpo_loss(
        new,
        old,
        torch.tensor([advantages]),
        mask,
        clip=CLIP,
        total_tokens=total or int(mask.sum()),
    )
    loss.backward()
    return float(loss.detach()), new.grad[0].tolist(), sums


def test_at_ratio_one_the_gradient_is_that_of_the_advantage_weighted_log_likelihood():
    loss, gradient, sums = loss_of([1.0, 1.0], [2.0, -1.0])

    assert loss == pytest.approx(-(2.0 - 1.0) / 2)
    assert gradient == pytest.approx([-1.0, 0.5])
    assert (sums.tokens, sums.clipped, sums.max_abs_log_ratio) == (2, 0, 0.0)


@pytest.mark.parametrize(
    ("ratio", "advantage", "pulls"),
    [
        (1.4, 1.0, False),  # already likelier than the upper bound
        (1.4, -1.0, True),
        (0.7, 1.0, True),
        (0.7, -1.0, False),  # already less likely than the lower bound
        (1.25, 1.0, True),  # within the upper bound, which is the wider one
    ],
)
def test_a_token_stops_pulling_only_once_it_has_gone_past_the_clip(ratio, advantage, pulls):
    _, gradient, sums = loss_of([ratio], [advantage])

    assert gradient == pytest.approx([-ratio * advantage if pulls else 0.0])
    assert sums.clipped == (not pulls)


def test_what_is_not_trained_changes_nothing_whatever_stands_there():
    nan = float("nan")
    new = torch.tensor([[-1.0, nan, -2.0, 7.0]], requires_grad=True)
    old = torch.tensor([[-1.0, 1.0, nan, -2.0]])
    mask = torch.tensor([[True, False, False, False]])

    loss, sums = grpo_loss(
        new, old, torch.tensor([[1.0, nan, 1.0, 1e9]]), mask, clip=CLIP, total_tokens=1
    )
    loss.backward()

    assert float(loss.detach()) == -1.0
    assert new.grad[0].tolist() == [-1.0, 0.0, 0.0, 0.0]
    assert sums.tokens == 1


def test_the_losses_of_micro_batches_add_up_to_the_loss_of_the_batch():
    ratios, advantages = [1.0, 1.1, 0.9, 1.5], [1.0, 2.0, -1.0, 0.5]

    whole, _, sums = loss_of(ratios, advantages)
    parts = [loss_of(ratios[at : at + 2], advantages[at : at + 2], total=4) for at in (0, 2)]

    assert sum(loss for loss, _, _ in parts) == pytest.approx(whole)
    assert parts[0][2] + parts[1][2] == sums


def test_a_batch_without_trained_tokens_has_loss_zero():
    loss, gradient, sums = loss_of([1.0], [1.0], trained=[False])

    assert (loss, gradient, sums.tokens) == (0.0, [0.0], 0)
