"""The lifecycle of an environment, and how its trajectories become groups."""

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from agentenv import (
    AgentEnvError,
    NotStartedError,
    Outcome,
    PolicyError,
    StopReason,
    TokensUnavailableError,
)
from agentenv.group import GroupContext, current_group
from agentenv_backends.errors import BackendUnavailableError
from agentenv_backends.requests import ExecRequest
from agentenv_backends.results import ExecResult
from agentenv_backends.testing import FakeProvider, FakeSlot, Faults, exec_result, fake_pool
from tests.agentenv.fake_env import EchoEnv, call_text, make_env, policy_of
from tests.waiting import WITHIN_S


async def collect(env: EchoEnv, item: Any = 0) -> tuple[Any, list[Any], GroupContext]:
    await env.setup()
    context = GroupContext(0)
    token = current_group.set(context)
    try:
        group, backlog = await env.collect_trajectories(item)
    finally:
        current_group.reset(token)
        await env.shutdown()
    return group, backlog, context


async def test_nothing_can_be_collected_before_setup():
    env = make_env()
    for work in (env.collect_trajectories(0), env.collect_trajectory(0), env.run_agent("x")):
        with pytest.raises(NotStartedError, match="setup"):
            await work
    await env.shutdown()


async def test_a_group_is_complete_and_its_rows_are_aligned():
    group, backlog, context = await collect(make_env(group_size=4))
    assert backlog == []
    assert len(group["scores"]) == 4
    assert set(group["scores"]) <= {0.0, 1.0}
    for tokens, masks, logprobs in zip(
        group["tokens"], group["masks"], group["inference_logprobs"], strict=True
    ):
        assert len(tokens) == len(masks) == len(logprobs)
    assert [len(member.records) for member in context.members] == [1, 1, 1, 1]


async def test_the_same_seed_gives_the_same_group_whatever_the_concurrency():
    first, *_ = await collect(make_env(group_size=6, slots=6))
    second, *_ = await collect(make_env(group_size=6, slots=1, latency_s=0.002))
    other, *_ = await collect(make_env(group_size=6, seed=8))
    assert first == second
    assert first["scores"] != other["scores"]


async def test_infrastructure_faults_change_no_reward():
    clean, *_ = await collect(make_env(group_size=6))
    failures = 0
    for seed in range(6):
        faulty, backlog, context = await collect(
            make_env(group_size=6, faults=Faults(seed=seed, slot_lost=0.08), policy_retry_limit=20)
        )
        assert backlog == []
        assert faulty == clean
        records = [record for member in context.members for record in member.records]
        failures += sum(r.outcome is Outcome.INFRASTRUCTURE_FAILED for r in records)
    assert failures > 0


async def test_a_member_that_cannot_be_had_gives_the_item_back():
    def broken(request: Any) -> Any:
        return PolicyError("engine is down")

    group, backlog, _ = await collect(make_env(broken, policy_retry_limit=2), item=5)
    assert group is None
    assert backlog == [5]


async def test_a_failed_verification_is_backfilled():
    env = make_env(group_size=2)
    verdicts = iter([float("nan"), 1.0, 0.0])

    class Judged(EchoEnv):
        async def score_trajectory(self, item: Any, final_response: str) -> float:
            return next(verdicts)

    env = make_env(group_size=2, env_cls=Judged)
    group, backlog, context = await collect(env)
    assert backlog == []
    assert sorted(group["scores"]) == [0.0, 1.0]
    assert sorted(len(member.records) for member in context.members) == [1, 2]


async def test_messages_are_in_the_group_when_asked_for():
    group, *_ = await collect(make_env(include_messages=True))
    roles = [message["role"] for message in group["messages"][0]]
    assert roles == ["user", "assistant", "user", "assistant"]
    without, *_ = await collect(make_env())
    assert without["messages"] is None


async def test_an_overridden_collect_trajectory_makes_the_group():
    class Own(EchoEnv):
        async def collect_trajectory(self, item: Any) -> Any:
            scored, backlog = await super().collect_trajectory(item)
            assert scored is not None
            return {**scored, "scores": 0.25}, backlog

    group, *_ = await collect(make_env(env_cls=Own))
    assert group["scores"] == [0.25, 0.25]


async def test_more_trajectories_than_slots_all_finish():
    group, backlog, _ = await collect(make_env(group_size=32, slots=4))
    assert backlog == []
    assert len(group["scores"]) == 32


async def test_a_group_that_overruns_its_deadline_gives_the_item_back_and_its_slots():
    def slow(request: Any) -> str:
        return call_text("sleep 100")

    env = make_env(
        slow,
        tool_timeout_s=1, max_tool_timeout_s=1, turn_timeout_s=2, rollout_timeout_s=50, group_timeout_s=51,
    )  # fmt: skip
    env.config.group_timeout_s = 0.2
    group, backlog, _ = await collect(env)
    assert group is None
    assert backlog == [0]
    assert env.runtime.backend.stats().acquired_slots == 0


async def test_a_cancelled_group_gives_back_every_slot():
    env = make_env(lambda request: call_text("sleep 100"), group_size=4)
    await env.setup()
    task = asyncio.create_task(env.collect_trajectories(0))
    async with asyncio.timeout(WITHIN_S):
        while env.runtime.backend.stats().acquired_slots < 4:
            await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert env.runtime.backend.stats().acquired_slots == 0
    await env.shutdown()


async def test_setup_raises_the_servers_concurrency_and_leaves_nothing_started_when_it_fails():
    class Broken(EchoEnv):
        async def setup_agent_env(self) -> None:
            raise ValueError("no data")

    env = make_env(env_cls=Broken, group_size=7)
    with pytest.raises(ValueError, match="no data"):
        await env.setup()
    assert policy_of(env).concurrency == 7
    assert policy_of(env).closed
    assert env.runtime.backend.stats().hosts == 0


async def test_a_backend_that_cannot_start_is_refused_with_its_reason():
    class NoProvider(FakeProvider):
        async def prepare(self) -> Any:
            raise BackendUnavailableError("no bubblewrap; apt-get install bubblewrap")

    env = make_env(backend=fake_pool(NoProvider(), slots=1))
    with pytest.raises(BackendUnavailableError, match="apt-get"):
        await env.setup()


async def test_shutdown_is_idempotent():
    env = make_env()
    await env.setup()
    await asyncio.gather(env.shutdown(), env.shutdown())
    await env.shutdown()


async def test_run_agent_answers_without_scoring():
    env = make_env(lambda request: "hello")
    await env.setup()
    try:
        response, summary = await env.run_agent("say hello")
    finally:
        await env.shutdown()
    assert response == "hello"
    assert summary == {"success": True, "error": None, "tool_calls": 0}


async def test_an_endless_caller_of_tools_is_judged_at_its_last_step():
    env = make_env(lambda request: call_text("echo again"), group_size=1, agent_max_steps=3)
    group, _, context = await collect(env)
    record = context.members[0].records[0]
    assert (record.outcome, record.stop_reason) == (Outcome.SCORED, StopReason.MAX_STEPS)
    assert group["scores"] == [0.0]


async def test_a_trajectory_never_outgrows_its_token_budget():
    env = make_env(
        lambda request: call_text("echo " + "x" * 50), group_size=1, max_token_length=1500
    )
    group, _, context = await collect(env)
    assert context.members[0].records[0].stop_reason is StopReason.MAX_TOKENS
    assert max(len(tokens) for tokens in group["tokens"]) <= 1500


async def test_each_reply_of_a_run_has_a_seed_of_its_own():
    env = make_env(group_size=3)
    await collect(env)
    seeds = [request.seed for request in policy_of(env).requests]
    assert len(set(seeds)) == len(seeds) == 6


async def test_a_policy_without_tokens_is_refused_for_training_and_runs_agents():
    env = make_env()
    policy_of(env).returns_tokens = False
    await env.setup()
    try:
        with pytest.raises(TokensUnavailableError, match="server_type"):
            await env.collect_trajectories(0)
        assert await env.run_agent("x") == (
            "wrong",
            {"success": True, "error": None, "tool_calls": 1},
        )
    finally:
        await env.shutdown()
    first, second = policy_of(env).requests
    assert [message["role"] for message in first.messages] == ["system", "user"]
    assert "<tools>" in first.messages[0]["content"]
    assert "<tool_response>" in second.messages[-1]["content"]


async def test_commands_of_the_agent_start_where_its_config_says():
    class Placed(EchoEnv):
        def build_agent_config(self, item: Any) -> Any:
            return replace(super().build_agent_config(item), working_dir="repo")

    asked: list[tuple[object, str]] = []

    def shell(slot: FakeSlot, request: ExecRequest) -> ExecResult:
        asked.append((request.command, request.cwd))
        return exec_result()

    backend = fake_pool(FakeProvider(on_exec=shell), slots=1)
    env = make_env(env_cls=Placed, backend=backend, group_size=1)
    await env.setup()
    try:
        await env.run_agent("x")
    finally:
        await env.shutdown()
    assert asked == [("echo look", "repo")]


async def test_a_cleanup_that_hangs_is_left_behind_and_the_backend_stopped(
    monkeypatch: pytest.MonkeyPatch,
):
    class Stuck(EchoEnv):
        async def cleanup(self) -> None:
            await asyncio.Event().wait()

    monkeypatch.setattr("agentenv.env.CLEANUP_TIMEOUT_S", 0.01)
    env = make_env(env_cls=Stuck)
    await env.setup()
    async with asyncio.timeout(WITHIN_S):
        with pytest.raises(AgentEnvError, match="cleanup"):
            await env.shutdown()
    assert env.runtime.backend.stats().hosts == 0


async def test_each_try_of_one_member_draws_another_seed():
    class BestOfTwo(EchoEnv):
        async def collect_trajectory(self, item: Any) -> Any:
            first, _ = await super().collect_trajectory(item)
            second, _ = await super().collect_trajectory(item)
            return max((first, second), key=lambda found: found["scores"] if found else -1), []

    env = make_env(env_cls=BestOfTwo, group_size=1)
    await collect(env)
    seeds = [request.seed for request in policy_of(env).requests]
    assert len(set(seeds)) == len(seeds) == 4
