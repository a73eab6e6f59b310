from __future__ import annotations

import asyncio
import random
import threading
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest

from agentenv.errors import (
    ConfigError,
    ContextLengthError,
    NotStartedError,
    PolicyError,
    PolicyRequestError,
)
from agentenv.policy import APIServerConfig, SamplingParams, build_policy

torch = pytest.importorskip("torch")
from transformers import LlamaConfig, LlamaForCausalLM  # noqa: E402

from agentenv.policy.transformers_batch import sample, uniforms  # noqa: E402
from agentenv.policy.transformers_policy import TransformersPolicy  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Sequence

pytestmark = pytest.mark.torch
torch.set_num_threads(1)  # two threads on two busy cores wait for each other
VOCABULARY = 96
CONTEXT = 256


def tiny_llama(seed: int = 0, **options):
    """Two layers, 64 wide, random weights wide enough that its choices differ."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT,
        initializer_range=0.2,
        bos_token_id=None,
        **({"eos_token_id": None} | options),
    )
    return LlamaForCausalLM(config).eval()


@asynccontextmanager
async def running(model=None, **options):
    model = model or tiny_llama()
    policy = TransformersPolicy(lambda: model, **options)
    await policy.start()
    try:
        yield policy
    finally:
        await policy.close()


def prompt_of(number: int) -> list[int]:
    chance = random.Random(number)
    return [chance.randrange(VOCABULARY) for _ in range(1 + number * 7 % 40)]


def params_of(number: int) -> SamplingParams:
    return SamplingParams(
        max_tokens=5 + number % 20,
        seed=number,
        temperature=(1.0, 0.7, 0.0, 1.3)[number % 4],
        top_p=(1.0, 0.8, 0.95)[number % 3],
    )


def plain_logprobs(model: Any, prompt: list[int], ids: Sequence[int]) -> list[float]:
    """The log-probs of `ids` after `prompt`, by one forward pass without cache, padding or batch."""
    with torch.inference_mode():
        logits = model(torch.tensor([[*prompt, *ids]])).logits[0, len(prompt) - 1 : -1]
    chosen = torch.log_softmax(logits.float(), -1)[range(len(ids)), list(ids)]
    return [float(value) for value in chosen]


async def test_what_is_sampled_for_a_seed_does_not_depend_on_what_shares_the_batch():
    async with running() as policy:
        alone = [
            await policy.generate(prompt_of(n), params_of(n), trajectory_id="a") for n in range(16)
        ]
        order = list(range(48))
        random.Random(5).shuffle(order)
        calls = {}
        for number in order:
            call = policy.generate(prompt_of(number), params_of(number), trajectory_id="b")
            calls[number] = asyncio.create_task(call)
            await asyncio.sleep(0.001)  # so that rows join while others are under way
        together = [await calls[number] for number in range(48)]
        assert policy.stats().steps < sum(len(reply.token_ids) for reply in (*alone, *together))
    for one, other in zip(alone, together, strict=False):
        assert one.token_ids == other.token_ids
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-4)


async def test_logprobs_equal_those_of_a_plain_forward_pass():
    model = tiny_llama()
    params = [SamplingParams(max_tokens=4 + n, seed=n) for n in range(24)]
    async with running(model) as policy:
        replies = await asyncio.gather(
            *(policy.generate(prompt_of(n), params[n], trajectory_id="t") for n in range(24))
        )
    for number, reply in enumerate(replies):
        expected = plain_logprobs(model, prompt_of(number), reply.token_ids)
        assert reply.logprobs == pytest.approx(expected, abs=1e-4)
        assert len(reply.token_ids) == 4 + number
        assert reply.finish_reason == "length"


async def test_a_prompt_that_a_group_shares_is_read_once_and_each_member_samples_as_if_alone():
    model = tiny_llama()
    forward, widths = model.forward, []

    def noted(*args, **kwargs):
        widths.append(tuple(kwargs["input_ids"].shape))
        return forward(*args, **kwargs)

    prompt = prompt_of(5)
    params = [SamplingParams(max_tokens=3 + n, seed=n) for n in range(8)]
    async with running(model) as policy:
        alone = [await policy.generate(prompt, each, trajectory_id="t") for each in params]
        model.forward = noted
        calls = (policy.generate(prompt, each, trajectory_id="t") for each in params)
        group = await asyncio.gather(*calls)
    model.forward = forward
    assert [reply.token_ids for reply in group] == [reply.token_ids for reply in alone]
    read = [rows for rows, length in widths if length > 1]
    assert set(read) == {1}
    for reply in group:
        expected = plain_logprobs(model, prompt, reply.token_ids)
        assert reply.logprobs == pytest.approx(expected, abs=1e-4)


async def test_another_seed_samples_something_else_and_no_seed_is_no_fixed_seed():
    async with running() as policy:
        replies = [
            await policy.generate([1], SamplingParams(max_tokens=30, seed=seed), trajectory_id="t")
            for seed in (1, 2, None, None)
        ]
    assert len({reply.token_ids for reply in replies}) == 4


async def test_a_stop_id_ends_the_completion_and_belongs_to_it():
    async with running() as policy:
        free = await policy.generate([1], SamplingParams(max_tokens=40, seed=3), trajectory_id="t")
        stop = free.token_ids[10]
        params = SamplingParams(max_tokens=40, seed=3, stop_token_ids=(stop,))
        reply = await policy.generate([1], params, trajectory_id="t")
    first = free.token_ids.index(stop)
    assert reply.token_ids == free.token_ids[: first + 1]
    assert (reply.finish_reason, reply.logprobs) == ("stop", free.logprobs[: first + 1])


async def test_the_models_own_end_of_sequence_ends_it_too():
    model = tiny_llama()
    async with running(model) as policy:
        free = await policy.generate([1], SamplingParams(max_tokens=9, seed=3), trajectory_id="t")
        model.generation_config.eos_token_id = [free.token_ids[4]]
        reply = await policy.generate([1], SamplingParams(max_tokens=9, seed=3), trajectory_id="t")
    assert reply.finish_reason == "stop"
    assert len(reply.token_ids) <= 5


async def test_a_cancelled_request_leaves_the_batch_and_harms_no_neighbour():
    async with running() as policy:
        params = SamplingParams(max_tokens=200, seed=1)
        wanted = await policy.generate([1, 2], params, trajectory_id="t")
        neighbour = asyncio.create_task(policy.generate([1, 2], params, trajectory_id="t"))
        doomed = [
            asyncio.create_task(policy.generate(prompt_of(n), params, trajectory_id="d"))
            for n in range(8)
        ]
        while policy.stats().in_use < 2 and not neighbour.done():
            await asyncio.sleep(0.001)
        for call in doomed:
            call.cancel()
        outcomes = await asyncio.gather(*doomed, return_exceptions=True)
        assert all(isinstance(outcome, asyncio.CancelledError) for outcome in outcomes)
        assert (await neighbour).token_ids == wanted.token_ids
        while policy.stats().in_use:
            await asyncio.sleep(0.001)


async def test_more_requests_than_rows_wait_their_turn():
    async with running(max_batch_size=3) as policy:
        replies = await asyncio.gather(
            *(policy.generate(prompt_of(n), params_of(n), trajectory_id="t") for n in range(20))
        )
        assert policy.stats().steps >= sum(len(reply.token_ids) - 1 for reply in replies) / 3
    assert len(replies) == 20


async def test_the_event_loop_is_never_blocked_by_the_model():
    async with running() as policy:
        call = asyncio.create_task(
            policy.generate([1], SamplingParams(max_tokens=200), trajectory_id="t")
        )
        turns = 0
        while not call.done():
            await asyncio.sleep(0)
            turns += 1
    assert turns > 200  # the loop turned more often than the model stepped


@pytest.mark.parametrize(
    ("prompt", "params", "error", "says"),
    [
        ([], SamplingParams(1), PolicyRequestError, "empty"),
        ([VOCABULARY], SamplingParams(1), PolicyRequestError, "vocabulary of 96"),
        ([-1], SamplingParams(1), PolicyRequestError, "vocabulary"),
        ([1], SamplingParams(0), PolicyRequestError, "at least 1"),
        ([1], SamplingParams(1, temperature=-1), PolicyRequestError, "out of range"),
        ([1], SamplingParams(1, temperature=float("nan")), PolicyRequestError, "out of range"),
        ([1], SamplingParams(1, top_p=0), PolicyRequestError, "out of range"),
        ([1], SamplingParams(1, extra={"min_p": 1}), PolicyRequestError, "min_p"),
        ([1] * CONTEXT, SamplingParams(1), ContextLengthError, "256"),
    ],
)
async def test_a_request_that_cannot_work_is_refused(prompt, params, error, says):
    async with running() as policy:
        with pytest.raises(error, match=says):
            await policy.generate(prompt, params, trajectory_id="t")
        await policy.generate([1], SamplingParams(1), trajectory_id="t")


async def test_a_completion_ends_where_the_context_does():
    async with running() as policy:
        prompt = [1] * (CONTEXT - 3)
        reply = await policy.generate(prompt, SamplingParams(max_tokens=50), trajectory_id="t")
    assert (len(reply.token_ids), reply.finish_reason) == (3, "length")


async def test_new_weights_come_between_completions_and_name_their_version():
    old, new = tiny_llama(0), tiny_llama(1)
    forward, begun, go_on = old.forward, threading.Event(), threading.Event()

    def gated(*args, **kwargs):
        begun.set()
        assert go_on.wait(10)
        return forward(*args, **kwargs)

    old.forward = gated
    params = SamplingParams(max_tokens=30, seed=1)
    async with running(old, policy_version="v0") as policy:
        early = asyncio.create_task(policy.generate([1], params, trajectory_id="t"))
        assert await asyncio.to_thread(begun.wait, 10)
        update = asyncio.create_task(policy.update_weights(new.state_dict(), "v1"))
        await asyncio.sleep(0)
        late = asyncio.create_task(policy.generate([1], params, trajectory_id="t"))
        await asyncio.sleep(0)
        go_on.set()
        await update
        versions = [(await call).policy_version for call in (early, late)]
    assert versions == ["v0", "v1"]
    for model, call in ((tiny_llama(0), early), (new, late)):
        reply = call.result()
        expected = plain_logprobs(model, [1], reply.token_ids)
        assert reply.logprobs == pytest.approx(expected, abs=1e-4)


async def test_new_weights_are_read_from_a_directory(tmp_path):
    new = tiny_llama(1, tie_word_embeddings=True)
    new.save_pretrained(tmp_path)
    async with running(tiny_llama(0, tie_word_embeddings=True)) as policy:
        await policy.update_weights(tmp_path, "v1")
        reply = await policy.generate([1], SamplingParams(5, seed=1), trajectory_id="t")
    assert reply.logprobs == pytest.approx(plain_logprobs(new, [1], reply.token_ids), abs=1e-4)


@pytest.mark.parametrize("spoil", ["drop", "add", "reshape"])
async def test_weights_that_do_not_fit_are_refused_and_the_old_ones_stay(spoil):
    weights = dict(tiny_llama(1).state_dict())
    name = "model.norm.weight"
    if spoil == "drop":
        del weights[name]
    elif spoil == "add":
        weights["unknown.weight"] = weights[name]
    else:
        weights[name] = torch.zeros(3)
    async with running(policy_version="v0") as policy:
        before = await policy.generate([1], SamplingParams(5, seed=1), trajectory_id="t")
        with pytest.raises(PolicyError, match=r"'v1' were not taken.*weight"):
            await policy.update_weights(weights, "v1")
        after = await policy.generate([1], SamplingParams(5, seed=1), trajectory_id="t")
    assert before == after


async def test_a_model_that_fails_fails_its_requests_and_the_next_one_works():
    model = tiny_llama()
    forward = model.forward
    failing = True

    def flaky(*args, **kwargs):
        if failing:
            raise RuntimeError("out of memory")
        return forward(*args, **kwargs)

    async with running(model) as policy:
        model.forward = flaky
        with pytest.raises(PolicyError, match="failed"):
            await policy.generate([1], SamplingParams(5), trajectory_id="t")
        failing = False
        await policy.generate([1], SamplingParams(5), trajectory_id="t")


async def test_logits_that_are_no_numbers_fail_the_request():
    model = tiny_llama()
    with torch.no_grad():
        model.lm_head.weight.fill_(float("nan"))
    async with running(model) as policy:
        with pytest.raises(PolicyError, match="not numbers"):
            await policy.generate([1], SamplingParams(5), trajectory_id="t")


async def test_close_fails_what_is_under_way_and_is_idempotent():
    async with running() as policy:
        call = asyncio.create_task(
            policy.generate([1], SamplingParams(max_tokens=200), trajectory_id="t")
        )
        await asyncio.sleep(0)
        await policy.close()
        await policy.close()
        with pytest.raises(PolicyError, match="closed"):
            await call
        with pytest.raises(NotStartedError):
            await policy.generate([1], SamplingParams(1), trajectory_id="t")


async def test_a_model_that_cannot_be_loaded_is_named(tmp_path):
    config = APIServerConfig(server_type="transformers", model_name=str(tmp_path / "none"))
    with pytest.raises(PolicyError, match="none"):
        await build_policy([config]).start()


def test_a_dtype_that_torch_has_not_is_refused():
    with pytest.raises(ConfigError, match="float33"):
        build_policy([APIServerConfig(server_type="transformers", dtype="float33")])


async def test_a_saved_model_is_served_by_its_config(tmp_path):
    tiny_llama().save_pretrained(tmp_path)
    config = APIServerConfig(server_type="transformers", model_name=str(tmp_path))
    policy = build_policy(config)
    await policy.start()
    try:
        reply = await policy.generate([1], SamplingParams(5, seed=1), trajectory_id="t")
    finally:
        await policy.close()
    assert reply.logprobs == pytest.approx(
        plain_logprobs(tiny_llama(), [1], reply.token_ids), abs=1e-4
    )


def test_the_numbers_of_a_seed_depend_on_seed_and_position_only():
    one, other = uniforms(7), uniforms(7)
    assert [next(one) for _ in range(200)] == [next(other) for _ in range(200)]
    assert next(uniforms(7)) != next(uniforms(8))
    assert all(0 <= next(one) < 1 for _ in range(1000))


def test_sampling_follows_the_distribution_it_reports():
    logits = torch.tensor([[2.0, 1.0, 0.0, -1.0]])
    draws = [(n + 0.5) / 1000 for n in range(1000)]
    ids, logprobs = sample(logits.expand(1000, 4), [2.0] * 1000, [1.0] * 1000, draws)
    expected = torch.softmax(logits[0] / 2, -1)
    for token in range(4):
        assert ids.count(token) / 1000 == pytest.approx(float(expected[token]), abs=2e-3)
        reported = logprobs[ids.index(token)]
        assert reported == pytest.approx(float(expected[token].log()), abs=1e-5)


def test_top_p_keeps_the_smallest_set_that_holds_it_and_renormalises():
    logits = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log()
    draws = [(n + 0.5) / 100 for n in range(100)]
    ids, logprobs = sample(logits.expand(100, 4), [1.0] * 100, [0.7] * 100, draws)
    assert set(ids) == {0, 1}
    assert logprobs[0] == pytest.approx(float(torch.tensor(0.5 / 0.8).log()), abs=1e-5)


def test_rows_with_and_without_top_p_share_a_batch():
    logits = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log().expand(3, 4)
    ids, _ = sample(logits, [1.0, 1.0, 0.0], [1.0, 0.45, 0.45], [0.999] * 3)
    assert ids == [3, 0, 0]
