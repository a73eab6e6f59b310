import asyncio
import json
from typing import Any

import pytest

from agentenv.errors import (
    BudgetExceededError,
    ContextLengthError,
    ModelNotFoundError,
    NotStartedError,
    PolicyAccessError,
    PolicyError,
    PolicyRequestError,
    PolicyTimeoutError,
    RateLimitedError,
    TokensUnavailableError,
)
from agentenv.harness import ToolLoop
from agentenv.hooks import NullVerifier
from agentenv.models import chat_policy
from agentenv.outcomes import Outcome, StopReason
from agentenv.rollout import RolloutLimits, RolloutRecord, rollout
from agentenv.session import ChatSession
from agentenv.task import Task
from agentenv.testing import FakeProviders, Fault, FaultPlan, ModelReply, running_app
from agentenv.tokens.base import Message
from agentenv.types import AgentConfig, Usage
from agentenv_tools.schema import ToolCall, ToolResult
from tests.agentenv.atif.records import PIXEL
from tests.agentenv.models.served import ENVIRON, PARAMS, PROTOCOLS, TOOLS, served
from tests.agentenv.rollout_fakes import FunctionWorkbench

EVERYONE = pytest.mark.parametrize("protocol", list(PROTOCOLS))
HELLO = (Message("system", "Be brief."), Message("user", "Hello."))


@EVERYONE
async def test_a_reply_comes_with_its_usage_and_cached_tokens(protocol: str):
    reply = ModelReply("Hi.", prompt_tokens=100, completion_tokens=7, cached_tokens=40)
    async with served(protocol, FakeProviders([reply])) as policy:
        said = await policy.chat_with_tools(HELLO, TOOLS, PARAMS, trajectory_id="t")
    assert (said.text, said.finish_reason) == ("Hi.", "stop")
    assert (said.prompt_tokens, said.completion_tokens, said.cached_tokens) == (100, 7, 40)


@EVERYONE
async def test_a_model_with_a_known_price_tells_what_it_cost(protocol: str):
    async with served(protocol, FakeProviders(["Hi."])) as policy:
        said = await policy.chat_with_tools(HELLO, (), PARAMS, trajectory_id="t")
    if protocol == "compatible":
        assert said.cost_usd is None
    else:
        assert said.cost_usd is not None
        assert 0 < said.cost_usd < 0.01


async def test_what_a_server_says_it_cost_counts():
    async with served("compatible", FakeProviders([ModelReply("Hi.", cost_usd=0.5)])) as policy:
        said = await policy.chat_with_tools(HELLO, (), PARAMS, trajectory_id="t")
    assert said.cost_usd in (0.5, None)


@EVERYONE
async def test_calls_keep_the_ids_that_the_server_gave_them(protocol: str):
    reply = ModelReply("Looking.", calls=(("id-1", "look", {"thing": "it"}), ("id-2", "stop", {})))
    async with served(protocol, FakeProviders([reply])) as policy:
        said = await policy.chat_with_tools(HELLO, TOOLS, PARAMS, trajectory_id="t")
    assert [(c.uniq_id, c.name, c.arguments, c.error) for c in said.tool_calls] == [
        ("id-1", "look", {"thing": "it"}, None),
        ("id-2", "stop", {}, None),
    ]
    assert said.text == "Looking."


@EVERYONE
async def test_tools_and_the_whole_conversation_reach_the_server(protocol: str):
    providers = FakeProviders(["Hi."])
    call = ToolCall("look", {"thing": "it"}, uniq_id="id-1")
    conversation = (
        *HELLO,
        Message("assistant", "Looking.", tool_calls=(call,)),
        Message("tool", '{"output": "a needle"}', tool_call_id="id-1", name="look"),
    )
    async with served(protocol, providers) as policy:
        await policy.chat_with_tools(conversation, TOOLS, PARAMS, trajectory_id="t")
    (request,) = providers.requests
    sent = json.dumps(request.body)
    for part in ("Be brief.", "Hello.", "Looking.", "a needle", "Look at a thing.", "64"):
        assert part in sent
    assert request.model == PROTOCOLS[protocol].removeprefix("bedrock/")


@EVERYONE
async def test_reasoning_is_kept_apart_and_given_back_with_its_signature(protocol: str):
    providers = FakeProviders([ModelReply("Hi.", reasoning="hm hm"), "Bye."])
    async with served(protocol, providers) as policy:
        first = await policy.chat_with_tools(HELLO, (), PARAMS, trajectory_id="t")
        assert (first.text, first.reasoning) == ("Hi.", "hm hm")
        answered = Message("assistant", first.text, reasoning=first.reasoning, native=first.native)
        await policy.chat_with_tools(
            (*HELLO, answered, Message("user", "And?")), (), PARAMS, trajectory_id="t"
        )
    if protocol in ("anthropic", "bedrock"):
        assert "signed" in json.dumps(providers.requests[1].body)


@EVERYONE
async def test_a_refusal_is_a_reply_with_that_finish_reason(protocol: str):
    async with served(protocol, FakeProviders([ModelReply("No.", refused=True)])) as policy:
        said = await policy.chat_with_tools(HELLO, TOOLS, PARAMS, trajectory_id="t")
        assert policy.requests == 1
    assert said.finish_reason == "refused"


@EVERYONE
async def test_a_reply_that_was_cut_says_so(protocol: str):
    async with served(protocol, FakeProviders([ModelReply("Hi", cut=True)])) as policy:
        said = await policy.chat_with_tools(HELLO, (), PARAMS, trajectory_id="t")
    assert (said.text, said.finish_reason) == ("Hi", "length")


@EVERYONE
async def test_a_reply_that_tells_no_usage_has_none(protocol: str):
    async with served(protocol, FakeProviders([ModelReply("Hi.", usage=False)])) as policy:
        said = await policy.chat_with_tools(HELLO, (), PARAMS, trajectory_id="t")
    assert said.usage is None
    assert said.cost_usd is None or said.cost_usd == 0


@EVERYONE
@pytest.mark.parametrize(
    "fault",
    [
        Fault.RATE_LIMITED,
        Fault.SERVER_ERROR,
        Fault.UNAVAILABLE,
        Fault.RESET,
        Fault.BROKEN_JSON,
    ],
)
async def test_what_may_pass_is_asked_again(protocol: str, fault: Fault):
    providers = FakeProviders(["Hi."], faults=FaultPlan([fault, fault]))
    async with served(protocol, providers) as policy:
        said = await policy.chat_with_tools(HELLO, (), PARAMS, trajectory_id="t")
    assert said.text == "Hi."
    assert len(providers.requests) == 3, "no client of a provider may retry besides"


@EVERYONE
async def test_an_empty_reply_is_asked_for_once_more_and_then_taken(protocol: str):
    providers = FakeProviders(["Hi."], faults=FaultPlan([Fault.NO_TOKENS, Fault.NO_TOKENS]))
    async with served(protocol, providers) as policy:
        said = await policy.chat_with_tools(HELLO, (), PARAMS, trajectory_id="t")
    assert (said.text, said.finish_reason) == ("", "stop")
    assert len(providers.requests) == 2


@EVERYONE
@pytest.mark.parametrize(
    ("fault", "error"),
    [
        (Fault.UNAUTHORIZED, PolicyAccessError),
        (Fault.NO_SUCH_MODEL, ModelNotFoundError),
        (Fault.BAD_REQUEST, PolicyRequestError),
        (Fault.CONTEXT_LENGTH, ContextLengthError),
    ],
)
async def test_what_stays_is_not_asked_again(protocol: str, fault: Fault, error: type[Exception]):
    providers = FakeProviders(faults=FaultPlan(always=fault))
    async with served(protocol, providers) as policy:
        with pytest.raises(error) as raised:
            await policy.chat_with_tools(HELLO, (), PARAMS, trajectory_id="t")
    assert type(raised.value) is error
    assert len(providers.requests) == 1
    assert "canary" not in str(raised.value)


async def test_money_that_is_used_up_is_no_rate_limit():
    providers = FakeProviders(faults=FaultPlan(always=Fault.OUT_OF_BUDGET))
    async with served("openai", providers) as policy:
        with pytest.raises(BudgetExceededError):
            await policy.chat_with_tools(HELLO, (), PARAMS, trajectory_id="t")
    assert len(providers.requests) == 1


@EVERYONE
async def test_attempts_are_bounded_and_the_last_failure_is_told(protocol: str):
    providers = FakeProviders(faults=FaultPlan(always=Fault.SERVER_ERROR))
    async with served(protocol, providers, max_attempts=3) as policy:
        with pytest.raises(PolicyError, match=r"fake: server_error|failed") as raised:
            await policy.chat_with_tools(HELLO, (), PARAMS, trajectory_id="t")
    assert type(raised.value) is PolicyError
    assert len(providers.requests) == 3


async def test_what_a_provider_asks_to_wait_is_waited_for():
    providers = FakeProviders(["Hi."], faults=FaultPlan([Fault.RATE_LIMITED], retry_after="1"))
    async with served("openai", providers) as policy:
        started = asyncio.get_running_loop().time()
        await policy.chat_with_tools(HELLO, (), PARAMS, trajectory_id="t")
        assert asyncio.get_running_loop().time() - started >= 1


@pytest.mark.parametrize(
    "settings", [{"max_retry_after_s": 5}, {"timeout_s": 30, "attempt_timeout_s": 30}]
)
async def test_a_wait_that_is_too_long_is_not_begun(settings: dict[str, Any]):
    providers = FakeProviders(faults=FaultPlan(always=Fault.RATE_LIMITED, retry_after="60"))
    async with served("anthropic", providers, **settings) as policy:
        with pytest.raises(RateLimitedError):
            await policy.chat_with_tools(HELLO, (), PARAMS, trajectory_id="t")
    assert len(providers.requests) == 1


@EVERYONE
async def test_a_server_that_never_answers_is_given_up_by_the_deadline(protocol: str):
    providers = FakeProviders(faults=FaultPlan(always=Fault.NEVER_ANSWERS))
    async with served(protocol, providers, attempt_timeout_s=0.2, timeout_s=0.5) as policy:
        async with asyncio.timeout(60):
            with pytest.raises(PolicyTimeoutError, match=r"timeout_s=0\.5|in time"):
                await policy.chat_with_tools(HELLO, (), PARAMS, trajectory_id="t")


async def test_no_more_requests_are_under_way_than_allowed():
    providers = FakeProviders(lambda request: "Hi.", latency_s=0.02)
    async with served("openai", providers, max_concurrency=2) as policy:
        asks = (policy.chat_with_tools(HELLO, (), PARAMS, trajectory_id=str(n)) for n in range(8))
        await asyncio.gather(*asks)
    assert providers.most_at_once == 2


async def test_images_are_sent_unless_the_model_takes_none():
    seen = (
        *HELLO,
        Message("assistant", "", tool_calls=(ToolCall("look", uniq_id="i"),)),
        Message("tool", "{}", tool_call_id="i", name="look", images=(PIXEL,)),
    )
    for takes_images in (True, False):
        providers = FakeProviders(["Hi."])
        async with served("anthropic", providers, takes_images=takes_images) as policy:
            await policy.chat_with_tools(seen, TOOLS, PARAMS, trajectory_id="t")
        assert (PIXEL.data in json.dumps(providers.requests[0].body)) is takes_images


async def test_arguments_that_are_no_object_are_a_call_with_an_error():
    reply = ModelReply(calls=(("a", "look", "{oh"), ("b", "look", "[1]"), ("c", "look", "")))
    async with served("openai", FakeProviders([reply])) as policy:
        said = await policy.chat_with_tools(HELLO, TOOLS, PARAMS, trajectory_id="t")
    bad, worse, none = said.tool_calls
    assert "no JSON" in (bad.error or "")
    assert bad.raw_text == "{oh"
    assert "must be an object" in (worse.error or "")
    assert (none.arguments, none.error) == ({}, None)


async def test_it_has_no_tokens_and_says_so():
    policy = chat_policy("gpt-4o", environ=ENVIRON, env_file=None)
    assert not policy.returns_tokens
    with pytest.raises(TokensUnavailableError, match="gpt-4o"):
        await policy.generate([1], PARAMS, trajectory_id="t")
    with pytest.raises(NotStartedError):
        await policy.chat([{"role": "user", "content": "x"}], PARAMS, trajectory_id="t")
    await policy.close()


# ---- whole rollouts


async def roll_out(policy: Any, *, system_prompt: str | None = "Be brief.") -> RolloutRecord:
    async def respond(call: ToolCall) -> ToolResult:
        return ToolResult(call.error is None, "a needle", error=call.error, uniq_id=call.uniq_id)

    return await rollout(
        Task("Find it.", item=None, agent=AgentConfig(system_prompt=system_prompt)),
        harness=ToolLoop(turn_timeout_s=60),
        session=ChatSession(policy, TOOLS, trajectory_id="t", seed=7, token_budget=1000),
        workbench=FunctionWorkbench(respond),
        verifier=NullVerifier(),
        limits=RolloutLimits(120, 60),
        trajectory_id="t",
    )


@EVERYONE
async def test_an_agent_calls_tools_natively_and_answers(protocol: str):
    replies = [
        ModelReply("Looking.", calls=(("id-1", "look", {"thing": "hay"}),), reasoning="where?"),
        ModelReply("A needle.", cached_tokens=4),
    ]
    providers = FakeProviders(replies)
    async with served(protocol, providers) as policy:
        record = await roll_out(policy)
    assert (record.outcome, record.stop_reason) == (Outcome.SCORED, StopReason.FINAL_ANSWER)
    assert record.result is not None
    assert record.result.final_response == "A needle."
    first, _ = record.result.steps
    assert (first.content, first.reasoning) == ("Looking.", "where?")
    assert first.tool_results[0].uniq_id == "id-1"
    assert record.result.usage.prompt_tokens == 20
    assert record.result.usage.cached_tokens == 4
    assert "a needle" in json.dumps(providers.requests[1].body)
    assert "<tools>" not in json.dumps(providers.requests[0].body)


async def test_a_refused_task_is_scored_as_refused():
    async with served("anthropic", FakeProviders([ModelReply("No.", refused=True)])) as policy:
        record = await roll_out(policy)
    assert (record.outcome, record.stop_reason) == (Outcome.SCORED, StopReason.REFUSED)


async def test_a_model_that_calls_no_tools_natively_is_told_of_them_in_text():
    called = '<tool_call>{"name": "look", "arguments": {"thing": "hay"}}</tool_call>'
    providers = FakeProviders([called, "A needle."])
    async with running_app(providers) as running:
        policy = chat_policy(
            "my-model", base_url=f"{running.root_url}/v1", native_tools=False, env_file=None
        )
        await policy.start()
        record = await roll_out(policy)
        await policy.close()
    assert record.result is not None
    assert record.result.final_response == "A needle."
    first = json.dumps(providers.requests[0].body)
    assert "<tools>" in first
    assert "tools" not in providers.requests[0].body
    assert record.result.usage == Usage(20, 10)


async def test_a_provider_that_fails_is_infrastructure_and_no_score():
    providers = FakeProviders(faults=FaultPlan(always=Fault.UNAUTHORIZED))
    async with served("gemini", providers) as policy:
        record = await roll_out(policy)
    assert record.outcome is Outcome.INFRASTRUCTURE_FAILED
    assert (record.cause or "").startswith("PolicyAccessError")
