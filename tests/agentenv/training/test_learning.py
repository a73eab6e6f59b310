"""The proof that the data are right: a small policy learns from correct groups, and not from groups that slipped.

The policy knows a form, as a half-trained model does: it opens its reply with one token, nearly always, and then writes
one of eight at random. It is rewarded for the form with the one right token, twice, around what a tool answered.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

torch = pytest.importorskip("torch")

from agentenv.group import build_group  # noqa: E402
from agentenv.policy.base import SamplingParams  # noqa: E402
from agentenv.policy.transformers_policy import TransformersPolicy  # noqa: E402
from agentenv.training.learner import Learner, LearnerSettings  # noqa: E402
from agentenv.training.rows import TrainingDataError, group_rows  # noqa: E402
from tests.agentenv.training.groups import item, plain_logprobs, tiny_model  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Callable

    from agentenv.types import ScoredDataGroup, ScoredDataItem

    Spoiler = Callable[[Any, Any], Any]

pytestmark = [pytest.mark.torch, pytest.mark.slow]
torch.set_num_threads(1)

QUESTIONS = (1, 2, 3, 4)
OPEN, TOOL = 5, 6
CHOICES = range(8, 16)
RIGHT = {1: 8, 2: 10, 3: 12, 4: 15}
GROUP_SIZE = 16
STEPS = 40


def half_trained() -> Any:
    """A model that has the form and guesses the rest."""
    model = tiny_model()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    chance = torch.Generator().manual_seed(0)
    for _ in range(150):
        picks = torch.randint(len(CHOICES), (32, 2), generator=chance) + CHOICES[0]
        rows = [
            [question, OPEN, int(first), TOOL, TOOL, OPEN, int(second)]
            for question, (first, second) in zip(QUESTIONS * 8, picks, strict=True)
        ]
        tokens = torch.tensor(rows)
        logits = model(tokens[:, :-1]).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model


async def trajectory(policy: TransformersPolicy, question: int, seed: int) -> ScoredDataItem:
    """Two replies of two tokens with a tool's answer in between; scored by how many are right."""
    tokens, right = [question], 0
    sampled: list[int] = []
    logprobs: list[float] = []
    for turn in range(2):
        params = SamplingParams(max_tokens=2, seed=2 * seed + turn)
        reply = await policy.generate(tokens, params, trajectory_id="t")
        sampled += range(len(tokens), len(tokens) + 2)
        logprobs += reply.logprobs
        tokens = [*tokens, *reply.token_ids]
        right += reply.token_ids == (OPEN, RIGHT[question])
        if turn == 0:
            tokens += [TOOL, TOOL]
    return item(tokens, sampled, logprobs, right / 2)


async def group_of(policy: TransformersPolicy, question: int, step: int) -> ScoredDataGroup:
    seeds = range(
        10_000 * question + GROUP_SIZE * step, 10_000 * question + GROUP_SIZE * (step + 1)
    )
    return build_group(await asyncio.gather(*(trajectory(policy, question, s) for s in seeds)))


def as_it_is(group: Any, model: Any) -> Any:
    del model
    return group


async def rewards(spoil: Spoiler = as_it_is, steps: int = STEPS) -> list[float]:
    """Mean reward of each step's groups, which are learned from after `spoil` had them."""
    learner = Learner(half_trained(), LearnerSettings(learning_rate=3e-3))
    policy = TransformersPolicy(tiny_model, policy_version="0")
    await policy.start()
    seen: list[float] = []
    try:
        for step in range(steps):
            await policy.update_weights(learner.weights(), str(step))
            groups = [await group_of(policy, question, step) for question in QUESTIONS]
            scores = [score for group in groups for score in group["scores"]]
            seen.append(sum(scores) / len(scores))
            spoilt = [spoil(group, learner.model) for group in groups]
            learner.learn([row for group in spoilt for row in group_rows(group)])
    finally:
        await policy.close()
    return seen


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def shifted(group: Any, model: Any) -> Any:
    """Each log-prob one sampled token late, so that no check can see it."""
    del model
    rows = []
    for masks, logprobs in zip(group["masks"], group["inference_logprobs"], strict=True):
        places = [at for at, mask in enumerate(masks) if mask != -100]
        values = [logprobs[at] for at in places]
        moved = dict(zip(places, [values[-1], *values[:-1]], strict=True))
        rows.append([moved.get(at, 1.0) for at in range(len(masks))])
    return {**group, "inference_logprobs": rows}


def inverted(group: Any, model: Any) -> Any:
    """What the policy wrote is masked, and what it read is trained, with the log-probs it would have had."""
    masks = [
        [token if mask == -100 and at else -100 for at, (token, mask) in enumerate(zip(tokens, row, strict=True))]
        for tokens, row in zip(group["tokens"], group["masks"], strict=True)
    ]  # fmt: skip
    logprobs = [
        [value if mask != -100 else 1.0 for value, mask in zip(plain_logprobs(model, tokens), row, strict=True)]
        for tokens, row in zip(group["tokens"], masks, strict=True)
    ]  # fmt: skip
    return {**group, "masks": masks, "inference_logprobs": logprobs}


async def test_a_policy_learns_from_correct_groups():
    seen = await rewards()

    assert mean(seen[:3]) < 0.3
    assert mean(seen[-5:]) > 0.8


async def test_it_does_not_learn_when_log_probs_are_shifted_by_one_sampled_token():
    seen = await rewards(shifted)

    assert mean(seen[-5:]) < mean(seen[:3]) + 0.2


async def test_it_does_not_learn_when_masks_are_inverted():
    seen = await rewards(inverted)

    assert mean(seen[-5:]) < mean(seen[:3]) + 0.2


async def test_log_probs_shifted_as_a_whole_are_refused_before_they_can_do_harm():
    def whole(group: Any, model: Any) -> Any:
        del model
        rows = [[1.0, *row[:-1]] for row in group["inference_logprobs"]]
        return {**group, "inference_logprobs": rows}

    with pytest.raises(TrainingDataError, match="are log-probs or masks shifted"):
        await rewards(whole, steps=1)
