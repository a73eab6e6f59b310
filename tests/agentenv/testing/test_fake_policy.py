from __future__ import annotations

import asyncio
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

import agentenv.testing
from agentenv.errors import PolicyTimeoutError, TokensUnavailableError
from agentenv.policy import PolicyClient, SamplingParams
from agentenv.testing import (
    FakePolicy,
    FakeReply,
    Fault,
    FaultPlan,
    ScriptExhaustedError,
    position_logprob,
)

PARAMS = SamplingParams(max_tokens=50)


async def ask(policy: PolicyClient, trajectory_id: str = "t", **params):
    params = {"max_tokens": 50} | params
    return await policy.generate([1], SamplingParams(**params), trajectory_id=trajectory_id)


async def test_each_trajectory_goes_through_the_replies_in_turn():
    policy = FakePolicy([(1, 2), (3,)])
    turns = [await ask(policy, name) for name in ("a", "b", "a", "b")]
    assert [turn.token_ids for turn in turns] == [(1, 2), (1, 2), (3,), (3,)]
    with pytest.raises(ScriptExhaustedError, match="2 replies, and trajectory 'a'"):
        await ask(policy, "a")


async def test_a_function_sees_the_request():
    policy = FakePolicy(lambda asked: (*asked.prompt_ids, asked.turn, asked.seed or 0))
    assert (await ask(policy, seed=9)).token_ids == (1, 0, 9)
    assert (await ask(policy, seed=9)).token_ids == (1, 1, 9)


@given(ids=st.lists(st.integers(0, 999), min_size=1, max_size=40), limit=st.integers(1, 50))
def test_logprobs_encode_their_position_and_the_budget_cuts(ids, limit):
    reply = asyncio.run(ask(FakePolicy([ids]), max_tokens=limit))
    assert list(reply.token_ids) == ids[:limit]
    assert list(reply.logprobs) == [position_logprob(place) for place in range(len(ids[:limit]))]
    assert reply.finish_reason == ("length" if len(ids) > limit else "stop")


async def test_text_is_encoded_by_the_tokenizer_and_ended():
    class Letters:
        def encode(self, text, *, add_special_tokens=True):
            assert not add_special_tokens
            return [ord(letter) - 96 for letter in text]

        def decode(self, token_ids):
            return "".join(chr(token + 96) for token in token_ids)

    policy = FakePolicy(["abc"], tokenizer=Letters(), end_ids=(0,))
    reply = await ask(policy)
    assert reply.token_ids == (1, 2, 3, 0)
    assert reply.text == "abc"


async def test_text_without_a_tokenizer_is_its_bytes():
    assert (await ask(FakePolicy(["é"]))).token_ids == tuple("é".encode())


async def test_a_full_reply_is_given_as_it_is():
    full = FakeReply((5, 6), (-0.5, -0.25), "length", "v3")
    reply = await ask(FakePolicy([full]))
    assert (reply.logprobs, reply.finish_reason) == ((-0.5, -0.25), "length")
    assert reply.policy_version == "v3"


async def test_an_exception_in_the_script_is_raised_and_uses_up_no_turn():
    failures = [PolicyTimeoutError("slow")]
    policy = FakePolicy(lambda asked: failures.pop() if failures else (asked.turn,))
    with pytest.raises(PolicyTimeoutError, match="slow"):
        await ask(policy)
    assert (await ask(policy)).token_ids == (0,)


async def test_it_can_be_a_policy_without_tokens():
    policy = FakePolicy(["hello"], returns_tokens=False)
    with pytest.raises(TokensUnavailableError):
        await ask(policy)
    reply = await policy.chat([{"role": "user", "content": "hi"}], PARAMS, trajectory_id="t")
    assert (reply.text, reply.finish_reason) == ("hello", "stop")


async def test_it_notes_what_was_done_to_it():
    policy = FakePolicy(latency_s=0.01)
    await policy.start()
    policy.raise_concurrency(8)
    policy.raise_concurrency(2)
    await asyncio.gather(*(ask(policy, str(n)) for n in range(3)))
    await policy.close()
    assert (policy.started, policy.closed, policy.concurrency) == (True, True, 8)
    assert (policy.in_use, policy.most_at_once, len(policy.requests)) == (0, 3, 3)


def test_a_fault_plan_uses_its_schedule_and_then_its_rates():
    plan = FaultPlan([Fault.HTML, None], rates={Fault.RESET: 0.25, Fault.HTML: 0.25}, seed=1)
    assert [plan.draw(), plan.draw()] == [Fault.HTML, None]
    drawn = [plan.draw() for _ in range(2000)]
    assert 400 < drawn.count(Fault.RESET) < 600
    assert 900 < drawn.count(None) < 1100
    assert plan.injected == {
        Fault.HTML: drawn.count(Fault.HTML) + 1,
        Fault.RESET: drawn.count(Fault.RESET),
    }


def test_the_same_seed_draws_the_same_faults():
    plans = [FaultPlan(rates={Fault.RESET: 0.3}, seed=5) for _ in range(2)]
    assert [plans[0].draw() for _ in range(50)] == [plans[1].draw() for _ in range(50)]


def test_the_check_at_start_is_spared_unless_the_fault_is_for_always():
    plan = FaultPlan([Fault.HTML])
    assert (plan.draw(is_check=True), plan.draw()) == (None, Fault.HTML)
    assert FaultPlan(always=Fault.HTML).draw(is_check=True) is Fault.HTML


def test_rates_that_add_up_to_more_than_one_are_refused():
    with pytest.raises(ValueError, match="more than 1"):
        FaultPlan(rates={Fault.HTML: 0.7, Fault.RESET: 0.7})


def test_every_exported_name_exists_and_nothing_heavy_is_imported_before_use():
    for name in agentenv.testing.__all__:
        assert getattr(agentenv.testing, name) is not None
    with pytest.raises(AttributeError, match="no_such"):
        _ = agentenv.testing.no_such
    code = (
        "import sys, types, importlib.util as u;"
        "spec = u.spec_from_file_location('t', sys.argv[1]);"
        "m = u.module_from_spec(spec); spec.loader.exec_module(m);"
        "print([n for n in ('torch', 'transformers', 'uvicorn', 'aiohttp') if n in sys.modules])"
    )
    command = [sys.executable, "-c", code, agentenv.testing.__file__]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"
