"""The fake engine by itself, through an in-process client."""

from __future__ import annotations

import httpx
import pytest

from agentenv.testing import FakeEngine, Fault, FaultPlan, running_engine

BODY = {"model": "m", "prompt": [1, 2], "max_tokens": 5, "logprobs": 1, "return_token_ids": True}


def client_of(engine: FakeEngine) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(engine), base_url="http://engine")


async def test_completions_are_in_the_shape_of_vllm():
    async with client_of(FakeEngine([(7, 8)], policy_version="v1")) as client:
        reply = (await client.post("/v1/completions", json=BODY)).json()
    (choice,) = reply["choices"]
    assert (choice["token_ids"], choice["finish_reason"]) == ([7, 8], "stop")
    assert choice["logprobs"]["token_logprobs"] == [-0.001, -0.002]
    assert choice["logprobs"]["tokens"] == ["token_id:7", "token_id:8"]
    assert reply["usage"] == {"prompt_tokens": 2, "completion_tokens": 2}
    assert reply["policy_version"] == "v1"


async def test_generate_is_told_apart_by_the_shape_of_the_request():
    sglang = {"input_ids": [1], "sampling_params": {"max_new_tokens": 5}, "return_logprob": True}
    legacy = {"prompt": {"prompt_token_ids": [1]}, "max_tokens": 5, "logprobs": 0}
    async with client_of(FakeEngine(lambda _: (7, 8))) as client:
        one = (await client.post("/generate", json=sglang)).json()
        other = (await client.post("/generate", json=legacy)).json()
    assert one["meta_info"]["output_token_logprobs"] == [[-0.001, 7, None], [-0.002, 8, None]]
    assert one["meta_info"]["finish_reason"]["type"] == "stop"
    assert other["logprobs"] == [[[{"7": -0.001}], [{"8": -0.002}]]]
    assert other["finish_reasons"] == ["stop"]


async def test_health_and_models_answer():
    engine = FakeEngine(model_name="tiny")
    async with client_of(engine) as client:
        assert (await client.get("/health")).status_code == 200
        engine.healthy = False
        assert (await client.get("/health")).status_code == 503
        models = (await client.get("/v1/models")).json()
    assert models["data"][0]["id"] == "tiny"


@pytest.mark.parametrize(
    "wrong",
    [{"prompt": "text"}, {"prompt": [1.5]}, {"return_token_ids": False}, {"max_tokens": "x"}],
)
async def test_a_request_a_real_engine_would_answer_without_ids_is_refused(wrong):
    engine = FakeEngine()
    async with client_of(engine) as client:
        reply = await client.post("/v1/completions", json=BODY | wrong)
    assert reply.status_code == 400
    assert not engine.requests


async def test_a_prompt_beyond_the_context_is_refused_in_the_words_of_the_engine():
    async with client_of(FakeEngine(context_length=2)) as client:
        reply = await client.post("/v1/completions", json=BODY)
    assert reply.status_code == 400
    assert "maximum context length is 2" in reply.json()["error"]["message"]


async def test_a_rate_limit_carries_its_retry_after():
    plan = FaultPlan([Fault.RATE_LIMITED], retry_after="7")
    async with client_of(FakeEngine(faults=plan)) as client:
        reply = await client.post("/v1/completions", json=BODY)
    assert (reply.status_code, reply.headers["retry-after"]) == (429, "7")


async def test_a_faulty_reply_uses_up_no_turn():
    engine = FakeEngine([(1,), (2,)], faults=FaultPlan([Fault.LOGPROBS_NONE]))
    async with client_of(engine) as client:
        replies = [(await client.post("/v1/completions", json=BODY)).json() for _ in range(3)]
    assert [reply["choices"][0]["token_ids"] for reply in replies] == [[1], [1], [2]]
    assert (engine.delivered, len(engine.requests)) == (2, 3)


async def test_it_is_served_on_loopback_and_dies_and_comes_back_on_its_port():
    async with running_engine() as engine, httpx.AsyncClient() as client:
        url = f"http://127.0.0.1:{engine.port}/health"
        assert (await client.get(url)).status_code == 200
        await engine.kill()
        await engine.kill()
        with pytest.raises(httpx.ConnectError):
            await client.get(url)
        await engine.revive()
        assert (await client.get(url)).status_code == 200


async def test_an_engine_and_options_of_one_together_are_refused():
    with pytest.raises(ValueError, match="either"):
        async with running_engine(FakeEngine(), latency_s=1):
            pass
