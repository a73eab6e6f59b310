"""Every engine's protocol against the fake engine, over loopback."""

from __future__ import annotations

import math
from typing import Any

import pytest

from agentenv.errors import (
    ContextLengthError,
    PolicyError,
    PolicyRequestError,
    PolicyTimeoutError,
    TokensUnavailableError,
)
from agentenv.policy import SamplingParams
from agentenv.testing import FakeReply, Fault, FaultPlan, position_logprob, running_engine

PROTOCOLS: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "vllm completions": ({"api": "completions"}, {}, "/v1/completions"),
    "older vllm completions": (
        {"api": "completions"},
        {"completions_form": "token_id_strings"},
        "/v1/completions",
    ),
    "vllm generate": ({"api": "generate"}, {}, "/inference/v1/generate"),
    "legacy generate": ({"api": "legacy_generate"}, {}, "/generate"),
    "sglang": ({"server_type": "sglang"}, {}, "/generate"),
}
every_protocol = pytest.mark.parametrize("protocol", PROTOCOLS)
PARAMS = SamplingParams(max_tokens=16, temperature=0.7, top_p=0.9, seed=11, stop_token_ids=(7, 8))
REPLY = (3, 1, 4, 1, 5, 7)


@every_protocol
async def test_the_reply_holds_exactly_the_sampled_ids_with_their_logprobs(protocol, policy_over):
    client, server, path = PROTOCOLS[protocol]
    async with (
        running_engine(script=[REPLY], **server) as engine,
        policy_over(engine, **client) as policy,
    ):
        completion = await policy.generate([1, 2, 3], PARAMS, trajectory_id="t/1 ü")
    assert completion.token_ids == REPLY
    assert completion.logprobs == tuple(map(position_logprob, range(len(REPLY))))
    assert completion.finish_reason == "stop"
    assert engine.engine.paths == {path: 1}


@every_protocol
async def test_the_engine_gets_every_sampling_parameter(protocol, policy_over):
    client, server, _ = PROTOCOLS[protocol]
    async with (
        running_engine(script=[REPLY], **server) as engine,
        policy_over(engine, **client) as policy,
    ):
        params = SamplingParams(16, 0.7, 0.9, 11, (7, 8), extra={"min_p": 0.05})
        await policy.generate([1, 2, 3], params, trajectory_id="t/1 ü")
    (asked,) = engine.engine.requests
    assert (asked.prompt_ids, asked.trajectory_id) == ((1, 2, 3), "t/1 ü")
    assert (asked.max_tokens, asked.temperature, asked.top_p) == (16, 0.7, 0.9)
    assert (asked.seed, asked.stop_token_ids) == (11, (7, 8))
    assert asked.extra["min_p"] == 0.05


@every_protocol
async def test_a_reply_cut_by_the_budget_says_length(protocol, policy_over):
    client, server, _ = PROTOCOLS[protocol]
    async with (
        running_engine(script=[REPLY], **server) as engine,
        policy_over(engine, **client) as policy,
    ):
        params = SamplingParams(max_tokens=2)
        completion = await policy.generate([1], params, trajectory_id="t")
    assert (completion.token_ids, completion.finish_reason) == (REPLY[:2], "length")


PASSING = [
    Fault.SERVER_ERROR,
    Fault.UNAVAILABLE,
    Fault.RATE_LIMITED,
    Fault.RESET,
    Fault.TRUNCATED,
    Fault.NEVER_ANSWERS,
    Fault.NEVER_ENDS,
    Fault.HTML,
    Fault.BROKEN_JSON,
    Fault.EMPTY_CHOICES,
    Fault.NULL_FINISH,
    Fault.ABORTED,
    Fault.NO_TOKENS,
    Fault.TOO_MANY_TOKENS,
    Fault.IDS_MISSING,
    Fault.IDS_OUT_OF_RANGE,
    Fault.IDS_NEGATIVE,
    Fault.IDS_DISAGREE,
    Fault.LOGPROBS_MISSING,
    Fault.LOGPROBS_SHORT,
    Fault.LOGPROBS_NONE,
    Fault.LOGPROBS_POSITIVE,
    Fault.LOGPROBS_INFINITE,
    Fault.LOGPROBS_NAN,
]


@every_protocol
@pytest.mark.parametrize("fault", PASSING)
async def test_a_passing_fault_is_retried_and_its_reply_never_used(fault, protocol, policy_over):
    client, server, _ = PROTOCOLS[protocol]
    if (protocol, fault) == ("older vllm completions", Fault.IDS_DISAGREE):
        pytest.skip("this reply says only once what was sampled")
    plan = FaultPlan([fault])
    async with (
        running_engine(script=[REPLY], faults=plan, **server) as engine,
        policy_over(engine, vocab_size=100, request_timeout=0.3, **client) as policy,
    ):
        completion = await policy.generate([1], PARAMS, trajectory_id="t")
        (stats,) = policy.stats()
    assert completion.token_ids == REPLY
    assert completion.logprobs == tuple(map(position_logprob, range(len(REPLY))))
    assert (sum(stats.faults.values()), stats.completions) == (1, 2)  # with the check at start


LASTING = {
    Fault.SERVER_ERROR: (PolicyError, "500.*as told"),
    Fault.RATE_LIMITED: (PolicyError, "429"),
    Fault.RESET: (PolicyError, "connection to .* broke"),
    Fault.HTML: (PolicyError, "no JSON.*502 Bad Gateway"),
    Fault.NEVER_ANSWERS: (PolicyTimeoutError, "no answer within 0.05 s"),
    Fault.LOGPROBS_MISSING: (TokensUnavailableError, "no log-probs.*choices"),
    Fault.LOGPROBS_NONE: (PolicyError, "log-prob of token 5 is 'None'"),
    Fault.IDS_OUT_OF_RANGE: (PolicyError, "token 5 is '2147483647'"),
}


@pytest.mark.parametrize("fault", LASTING)
async def test_a_lasting_fault_ends_after_the_attempts_and_says_what_came(fault, policy_over):
    error, says = LASTING[fault]
    options: dict[str, Any] = {"vocab_size": 100, "request_timeout": 0.05, "max_attempts": 3}
    async with (
        running_engine(script=[REPLY], faults=FaultPlan([fault] * 3)) as engine,
        policy_over(engine, **options) as policy,
    ):
        with pytest.raises(error, match=says) as raised:
            await policy.generate([1], PARAMS, trajectory_id="t")
    assert "3 attempts" in str(raised.value)
    assert len(str(raised.value)) < 1000
    assert len(engine.engine.requests) == 3


@every_protocol
@pytest.mark.parametrize(
    ("fault", "error", "says"),
    [
        (Fault.CONTEXT_LENGTH, ContextLengthError, "does not fit"),
        (Fault.BAD_REQUEST, PolicyRequestError, "400.*as told"),
        (Fault.UNAUTHORIZED, PolicyRequestError, "401.*check api_key"),
    ],
)
async def test_a_refusal_is_not_retried(fault, error, says, protocol, policy_over):
    client, server, _ = PROTOCOLS[protocol]
    async with (
        running_engine(faults=FaultPlan([fault]), **server) as engine,
        policy_over(engine, **client) as policy,
    ):
        with pytest.raises(error, match=says):
            await policy.generate([1], PARAMS, trajectory_id="t")
        assert policy.stats()[0].refused == 1
    assert len(engine.engine.requests) == 1


@every_protocol
@pytest.mark.parametrize("fault", [Fault.LOGPROBS_MISSING, Fault.IDS_MISSING])
async def test_start_refuses_a_server_without_ids_or_logprobs(fault, protocol, policy_over):
    client, server, _ = PROTOCOLS[protocol]
    async with running_engine(faults=FaultPlan(always=fault), **server) as engine:
        with pytest.raises(TokensUnavailableError, match=r"has no (token ids|log-probs)"):
            async with policy_over(engine, **client):
                pass


async def test_start_refuses_a_server_that_lacks_the_route(policy_over):
    async with running_engine() as engine:
        elsewhere = engine.base_url + "/elsewhere"
        with pytest.raises(PolicyRequestError, match=r"404.*check base_url, server_type and api"):
            async with policy_over(engine, base_url=elsewhere):
                pass


async def test_a_key_is_sent_and_a_wrong_one_refused_without_being_shown(policy_over):
    async with running_engine(script=[REPLY], api_key="right") as engine:
        async with policy_over(engine, api_key="right") as policy:
            await policy.generate([1], PARAMS, trajectory_id="t")
        with pytest.raises(PolicyRequestError, match="401") as raised:
            async with policy_over(engine, api_key="wrong-canary"):
                pass
    assert "wrong-canary" not in str(raised.value)


async def test_the_weights_version_is_read_from_the_body_and_may_change_between_turns(policy_over):
    script = [FakeReply((1,), policy_version="v1"), FakeReply((1,), policy_version="v2")]
    for client in ({}, {"api": "generate"}, {"server_type": "sglang"}):
        async with running_engine(script=script) as engine, policy_over(engine, **client) as policy:
            turns = [await policy.generate([1], PARAMS, trajectory_id="t") for _ in script]
        assert [turn.policy_version for turn in turns] == ["v1", "v2"]


async def test_the_weights_version_is_read_from_a_header_of_any_name(policy_over):
    header = "x-weights"
    async with (
        running_engine(policy_version="step-7", version_header=header) as engine,
        policy_over(engine, policy_version_header=header) as policy,
    ):
        completion = await policy.generate([1], PARAMS, trajectory_id="t")
    assert completion.policy_version == "step-7"


async def test_a_seed_can_be_kept_from_the_engine(policy_over):
    async with running_engine() as engine, policy_over(engine, send_seed=False) as policy:
        await policy.generate([1], PARAMS, trajectory_id="t")
    assert engine.engine.requests[0].seed is None


@pytest.mark.parametrize("server_type", ["openai", "vllm", "sglang"])
async def test_every_server_can_chat(server_type, policy_over):
    messages = [{"role": "user", "content": "hi"}]
    async with (
        running_engine(script=["good day"]) as engine,
        policy_over(engine, server_type=server_type) as policy,
    ):
        params = SamplingParams(max_tokens=4, stop_token_ids=(7,))
        reply = await policy.chat(messages, params, trajectory_id="t")
    assert (reply.text, reply.finish_reason, reply.completion_tokens) == ("good", "length", 4)
    (asked,) = engine.engine.requests
    assert asked.messages == ({"role": "user", "content": "hi"},)
    assert asked.stop_token_ids == (() if server_type == "openai" else (7,))


@pytest.mark.parametrize(
    "fault", [Fault.HTML, Fault.EMPTY_CHOICES, Fault.NULL_FINISH, Fault.SERVER_ERROR, Fault.RESET]
)
async def test_chat_retries_a_passing_fault(fault, policy_over):
    async with (
        running_engine(script=["good day"], faults=FaultPlan([fault])) as engine,
        policy_over(engine, server_type="openai") as policy,
    ):
        reply = await policy.chat([], SamplingParams(max_tokens=40), trajectory_id="t")
    assert reply.text == "good day"


async def test_an_openai_server_refuses_to_generate_and_says_why(policy_over):
    async with running_engine() as engine, policy_over(engine, server_type="openai") as policy:
        assert not policy.returns_tokens
        with pytest.raises(TokensUnavailableError, match="evaluation only"):
            await policy.generate([1], PARAMS, trajectory_id="t")
    assert not engine.engine.requests


async def test_a_logprob_just_above_zero_is_rounding_and_counts_as_zero(policy_over):
    script = [FakeReply((1, 2), logprobs=(1e-7, -0.5))]
    async with running_engine(script=script) as engine, policy_over(engine) as policy:
        completion = await policy.generate([1], PARAMS, trajectory_id="t")
    assert completion.logprobs == (0.0, -0.5)
    assert math.copysign(1, completion.logprobs[0]) == 1


async def test_what_vllm_writes_for_minus_infinity_is_refused(policy_over):
    script = [FakeReply((1,), logprobs=(-9999.0,))]
    async with (
        running_engine(script=script) as engine,
        policy_over(engine, max_attempts=1) as policy,
    ):
        with pytest.raises(PolicyError, match="log-prob of token 0"):
            await policy.generate([1], PARAMS, trajectory_id="t")
