from typing import Any

import pytest

torch = pytest.importorskip("torch")

from agentenv.training.rows import group_rows  # noqa: E402
from agentenv.training.tensors import MicroBatch, micro_batch, micro_batches, token_logprobs  # noqa: E402
from tests.agentenv.training.groups import plain_logprobs, tiny_model, two_rows  # noqa: E402

pytestmark = pytest.mark.torch
torch.set_num_threads(1)


def test_each_trained_token_stands_with_its_log_prob_at_the_position_that_predicts_it():
    batch = micro_batch(group_rows(two_rows()))

    assert batch.prefix.tolist() == [1]  # the second common token predicts the first trained one
    assert batch.inputs.tolist() == [[2, 3, 4, 5, 6], [2, 8, 9, 0, 0]]
    assert batch.targets.tolist() == [[3, 4, 5, 6, 7], [8, 9, 10, 0, 0]]
    assert batch.trained.tolist() == [[True, True, False, False, True], [True, False, True, False, False]]  # fmt: skip
    assert batch.inference_logprobs[0].tolist() == pytest.approx([-0.1, -0.2, 0, 0, -0.3])
    assert batch.inference_logprobs[1].tolist() == pytest.approx([-0.4, 0, -0.5, 0, 0])
    assert batch.advantages[0].tolist() == [1, 1, 0, 0, 1]
    assert batch.trained_tokens == 5


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_log_probs_are_those_of_a_plain_pass_over_each_row_alone(temperature):
    model = tiny_model()
    group = two_rows(generation_params={"temperature": temperature})
    batch = micro_batch(group_rows(group))

    found = token_logprobs(model, batch)

    for row, tokens in enumerate(group["tokens"]):
        expected = plain_logprobs(model, tokens, temperature)[2:]
        for at, value in enumerate(expected):
            if batch.trained[row, at]:
                assert float(found[row, at].detach()) == pytest.approx(value, abs=1e-5)
            else:
                assert float(found[row, at].detach()) == 0.0


def test_the_gradient_flows_through_the_shared_prefix_as_through_a_row_alone():
    model = tiny_model()
    rows = group_rows(two_rows())

    def gradient(batches: list[MicroBatch]) -> Any:
        model.zero_grad()
        for batch in batches:
            token_logprobs(model, batch).sum().backward()
        return torch.cat([parameter.grad.flatten() for parameter in model.parameters()])

    together = gradient([micro_batch(rows)])
    apart = gradient([micro_batch([row]) for row in rows])

    assert float(together.norm()) > 0
    assert torch.allclose(together, apart, atol=1e-4)


def test_micro_batches_hold_every_row_once_within_the_limit():
    rows = group_rows(two_rows()) * 5

    batches = list(micro_batches(rows, max_tokens=14))

    assert sum(len(batch.inputs) for batch in batches) == 10
    assert all(len(batch.inputs) <= 2 for batch in batches)
    assert sum(batch.trained_tokens for batch in batches) == 25
    assert [len(batch.inputs) for batch in micro_batches(rows, max_tokens=1)] == [1] * 10
