import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest

torch = pytest.importorskip("torch")

from agentenv.errors import ContextLengthError, PolicyRequestError  # noqa: E402
from agentenv.policy import APIServerConfig, SamplingParams, build_policy  # noqa: E402
from agentenv.policy.base import PolicyClient  # noqa: E402
from agentenv.policy.transformers_policy import TransformersPolicy  # noqa: E402
from agentenv.training.generation import GenerationServer  # noqa: E402
from agentenv_tools.serving import ServeSettings, serving  # noqa: E402
from tests.agentenv.training.groups import VOCABULARY, plain_logprobs, tiny_model  # noqa: E402

pytestmark = pytest.mark.torch
torch.set_num_threads(1)

CLIENTS = [
    {"server_type": "vllm", "api": "completions"},
    {"server_type": "vllm", "api": "generate"},
    {"server_type": "vllm", "api": "legacy_generate"},
    {"server_type": "sglang"},
]
NAMES = [client.get("api", "sglang") for client in CLIENTS]
INFINITY = float("inf")


@asynccontextmanager
async def served(token: str | None = None) -> AsyncIterator[tuple[TransformersPolicy, str]]:
    """A policy, and the URL of the server that serves it."""
    policy = TransformersPolicy(tiny_model, policy_version="0")
    await policy.start()
    try:
        server = GenerationServer(policy, ServeSettings(token=token), version=policy.version)
        async with serving(server) as url:
            yield policy, url
    finally:
        await policy.close()


@asynccontextmanager
async def connected(url: str, **client: Any) -> AsyncIterator[PolicyClient]:
    config = APIServerConfig(base_url=f"{url}/v1", max_attempts=1, startup_timeout=5, **client)
    policy = build_policy([config])
    await policy.start()
    try:
        yield policy
    finally:
        await policy.close()


@pytest.mark.parametrize("client", CLIENTS, ids=NAMES)
async def test_every_client_of_ours_gets_the_tokens_and_log_probs_that_were_sampled(client):
    params = SamplingParams(max_tokens=12, seed=3, temperature=0.8)
    async with served() as (inside, url), connected(url, **client) as outside:
        reply = await outside.generate([1, 2, 3], params, trajectory_id="t")
        expected = await inside.generate([1, 2, 3], params, trajectory_id="t")

    assert reply.token_ids == expected.token_ids
    assert reply.logprobs == pytest.approx(expected.logprobs, abs=1e-5)
    assert (reply.finish_reason, reply.policy_version) == ("length", "0")
    exact = plain_logprobs(tiny_model(), [1, 2, 3, *reply.token_ids], temperature=0.8)[3:]
    assert reply.logprobs == pytest.approx(exact, abs=1e-4)


@pytest.mark.parametrize("client", CLIENTS, ids=NAMES)
async def test_a_stop_token_ends_the_completion_and_belongs_to_it(client):
    async with served() as (_, url), connected(url, **client) as policy:
        free = await policy.generate([5], SamplingParams(max_tokens=8, seed=1), trajectory_id="t")
        stop = free.token_ids[2]
        params = SamplingParams(max_tokens=8, seed=1, stop_token_ids=(stop,))
        reply = await policy.generate([5], params, trajectory_id="t")

    assert reply.token_ids == free.token_ids[: free.token_ids.index(stop) + 1]
    assert reply.finish_reason == "stop"


async def test_replies_name_the_weights_that_sampled_them_and_so_does_health():
    new = tiny_model(seed=1).state_dict()
    params = SamplingParams(max_tokens=4, seed=1)
    async with served() as (inside, url), connected(url, server_type="sglang") as policy:
        before = [policy.generate([n], params, trajectory_id=str(n)) for n in range(1, 9)]
        early, _ = await asyncio.gather(asyncio.gather(*before), inside.update_weights(new, "7"))
        late = await policy.generate([1], params, trajectory_id="late")
        async with aiohttp.ClientSession() as session, session.get(f"{url}/health") as said:
            health = await said.json()

    assert late.policy_version == "7"
    assert health == {"status": "ok", "policy_version": "7"}
    for prompt, reply in enumerate(early, start=1):  # none of them mixes weights
        model = tiny_model(seed=0 if reply.policy_version == "0" else 1)
        exact = plain_logprobs(model, [prompt, *reply.token_ids])[1:]
        assert reply.logprobs == pytest.approx(exact, abs=1e-4)


@pytest.mark.parametrize("client", CLIENTS, ids=NAMES)
async def test_a_prompt_that_does_not_fit_is_told_apart_from_a_bad_request(client):
    async with served() as (_, url), connected(url, **client) as policy:
        with pytest.raises(ContextLengthError):
            await policy.generate([1] * 200, SamplingParams(max_tokens=1), trajectory_id="t")
        with pytest.raises(PolicyRequestError, match="vocabulary"):
            await policy.generate([VOCABULARY], SamplingParams(max_tokens=1), trajectory_id="t")
        params = SamplingParams(max_tokens=1, extra={"top_k": 5})
        with pytest.raises(PolicyRequestError, match="top_k"):
            await policy.generate([1], params, trajectory_id="t")


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/generate", {}),
        ("/generate", {"prompt": "text", "max_tokens": 1}),
        ("/generate", {"prompt": {"prompt_token_ids": ["1"]}, "max_tokens": 1}),
        ("/generate", {"prompt": {"prompt_token_ids": [1]}, "max_tokens": 1, "n": 2}),
        ("/generate", {"prompt": {"prompt_token_ids": [1]}, "max_tokens": None}),
        ("/generate", {"prompt": {"prompt_token_ids": [1]}, "max_tokens": 1, "stop": ["x"]}),
        ("/generate", {"input_ids": [1], "return_logprob": True, "sampling_params": []}),
        ("/inference/v1/generate", {"token_ids": [1], "sampling_params": {"max_tokens": -1}}),
        ("/inference/v1/generate", {"token_ids": [1], "sampling_params": {"max_tokens": "a"}}),
        ("/inference/v1/generate", {"token_ids": [1], "sampling_params": {"max_tokens": INFINITY}}),
        ("/inference/v1/generate", {"token_ids": [], "sampling_params": {"max_tokens": 1}}),
        ("/v1/completions", {"prompt": [1], "max_tokens": 1, "stream": True}),
    ],
)
async def test_what_cannot_be_honoured_is_refused_with_the_reason(path, body):
    async with served() as (_, url), aiohttp.ClientSession() as session:
        async with session.post(url + path, json=body) as reply:
            answer = await reply.json()
            assert reply.status == 400
        assert answer["error"]["message"]


async def test_a_list_or_broken_json_is_refused_and_the_server_goes_on():
    async with served() as (_, url), aiohttp.ClientSession() as session:
        headers = {"content-type": "application/json"}
        for content in (b"[1]", b"{", b"\xff"):
            async with session.post(f"{url}/generate", data=content, headers=headers) as reply:
                assert reply.status == 400
        async with session.get(f"{url}/v1/models") as reply:
            assert [model["id"] for model in (await reply.json())["data"]] == ["default"]


async def test_with_a_token_only_health_is_open():
    async with served(token="s3cret") as (_, url), aiohttp.ClientSession() as session:
        async with session.get(f"{url}/health") as reply:
            assert reply.status == 200
        async with session.post(f"{url}/generate", json={}) as reply:
            assert reply.status == 401
