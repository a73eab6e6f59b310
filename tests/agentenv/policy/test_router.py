"""Several servers, retries, limits and outages, over loopback."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from agentenv.errors import NotStartedError, PolicyError, PolicyRequestError, PolicyTimeoutError
from agentenv.policy import APIServerConfig, SamplingParams, build_policy, for_evaluation
from agentenv.policy.router import PolicyRouter
from agentenv.policy.server import EngineServer
from agentenv.testing import Fault, FaultPlan, running_engine
from tests.waiting import WITHIN_S

if TYPE_CHECKING:
    from collections.abc import Callable

PARAMS = SamplingParams(max_tokens=8)
LONG = 60.0
"""Seconds nobody waits for in a test that passes."""


async def until(condition: Callable[[], bool]) -> None:
    """Wait for something that other tasks bring about."""
    async with asyncio.timeout(WITHIN_S):
        while not condition():
            await asyncio.sleep(0.002)


async def test_a_trajectory_stays_with_its_server(policy_over):
    async with running_engine() as one, running_engine() as two, policy_over(one, two) as policy:
        for _ in range(5):
            await asyncio.gather(
                *(policy.generate([1], PARAMS, trajectory_id=f"t{n}") for n in range(20))
            )
    homes = [{asked.trajectory_id for asked in engine.engine.requests} for engine in (one, two)]
    assert all(homes)
    assert not homes[0] & homes[1]


async def test_a_new_trajectory_goes_to_the_server_with_the_least_load(policy_over):
    async with (
        running_engine(latency_s=LONG) as busy,
        running_engine() as idle,
        policy_over(busy, idle) as policy,
    ):
        stuck: list[asyncio.Task[object]] = []
        while not busy.engine.in_use:
            call = policy.generate([1], PARAMS, trajectory_id=f"s{len(stuck)}")
            stuck.append(asyncio.create_task(call))  # one of the first lands on the busy one
            await asyncio.sleep(0.01)
        before = len(idle.engine.requests)
        for number in range(10):
            await policy.generate([1], PARAMS, trajectory_id=f"n{number}")
        assert len(idle.engine.requests) == before + 10
        for task in stuck:
            task.cancel()
        await asyncio.gather(*stuck, return_exceptions=True)


async def test_a_retry_after_a_fault_goes_to_the_other_server_and_the_next_turn_goes_home(
    policy_over,
):
    async with running_engine() as one, running_engine() as two, policy_over(one, two) as policy:
        await policy.generate([1], PARAMS, trajectory_id="t")
        home, other = (one, two) if one.engine.requests else (two, one)
        home.engine.faults.schedule.append(Fault.SERVER_ERROR)
        await policy.generate([1], PARAMS, trajectory_id="t")
        assert (len(home.engine.requests), len(other.engine.requests)) == (2, 1)
        await policy.generate([1], PARAMS, trajectory_id="t")
        assert (len(home.engine.requests), len(other.engine.requests)) == (3, 1)


async def test_a_server_that_dies_is_taken_out_and_comes_back_when_it_answers(policy_over):
    async with running_engine() as one, running_engine() as two, policy_over(one, two) as policy:
        await policy.generate([1], PARAMS, trajectory_id="t")
        home, other = (one, two) if one.engine.requests else (two, one)
        await home.kill()
        for _ in range(5):
            await policy.generate([1], PARAMS, trajectory_id="t")
        assert len(other.engine.requests) == 5
        by_url = {server.url: server for server in policy.stats()}
        assert not by_url[home.base_url.removesuffix("/v1")].healthy
        await home.revive()
        await until(lambda: all(server.healthy for server in policy.stats()))


async def test_calls_queued_at_a_server_that_is_taken_out_go_elsewhere_at_once(policy_over):
    options = {"num_max_requests_at_once": 2, "health_interval": LONG}
    async with (
        running_engine(latency_s=LONG) as dying,
        running_engine() as good,
        policy_over(dying, good, **options) as policy,
    ):
        calls = [
            asyncio.create_task(policy.generate([1], PARAMS, trajectory_id=f"t{n}"))
            for n in range(12)
        ]
        await until(lambda: dying.engine.in_use == 2)
        await dying.kill()
        # Cut connections are no proof of death; that nobody listens any more is.
        completions = await asyncio.wait_for(asyncio.gather(*calls), WITHIN_S)
    assert len(completions) == 12


async def test_a_server_whose_health_fails_is_avoided_though_it_answers(policy_over):
    async with running_engine() as one, running_engine() as two, policy_over(one, two) as policy:
        one.engine.healthy = False
        await until(lambda: not all(server.healthy for server in policy.stats()))
        for number in range(8):
            await policy.generate([1], PARAMS, trajectory_id=f"t{number}")
        assert not one.engine.requests
        one.engine.healthy = True
        await until(lambda: all(server.healthy for server in policy.stats()))


async def test_a_server_without_health_check_gets_another_chance_after_a_while(policy_over):
    async with running_engine() as one, policy_over(one, health_check=False) as policy:
        await one.kill()
        call = asyncio.create_task(policy.generate([1], PARAMS, trajectory_id="t"))
        await until(lambda: not policy.stats()[0].healthy)
        await one.revive()
        await asyncio.wait_for(call, WITHIN_S)


async def test_a_call_outlives_an_outage_of_every_server(policy_over):
    async with running_engine() as one, policy_over(one) as policy:
        await one.kill()
        call = asyncio.create_task(policy.generate([1], PARAMS, trajectory_id="t"))
        await until(lambda: not policy.stats()[0].healthy)
        assert policy.stats()[0].in_use == {"train": 0, "eval": 0}
        await one.revive()
        await asyncio.wait_for(call, WITHIN_S)


async def test_an_outage_that_lasts_ends_in_an_error_that_names_the_server(policy_over):
    async with running_engine() as one, policy_over(one, max_outage=0.1) as policy:
        await one.kill()
        with pytest.raises(PolicyError, match=f"127.0.0.1:{one.port}"):
            await policy.generate([1], PARAMS, trajectory_id="t")


async def test_no_permit_is_held_during_a_backoff(policy_over):
    options = {
        "num_max_requests_at_once": 1,
        "max_retry_after": LONG,
        "retry_base_delay": LONG,
        "retry_max_delay": LONG,
    }
    plan = FaultPlan([Fault.RATE_LIMITED, None], retry_after="3600")
    async with running_engine(faults=plan) as one, policy_over(one, **options) as policy:
        refused = asyncio.create_task(policy.generate([1], PARAMS, trajectory_id="refused"))
        await until(lambda: policy.stats()[0].faults == {"http_429": 1})
        await asyncio.wait_for(policy.generate([1], PARAMS, trajectory_id="other"), WITHIN_S)
        refused.cancel()
        with pytest.raises(asyncio.CancelledError):
            await refused


@pytest.mark.parametrize(
    "retry_after",
    ["0", "1", "3600", "Wed, 21 Oct 2099 07:28:00 GMT", "soon", "-1", "nan", "1e400", ""],
)
async def test_any_retry_after_is_survived_within_the_cap(retry_after, policy_over):
    plan = FaultPlan([Fault.RATE_LIMITED], retry_after=retry_after)
    async with running_engine(faults=plan) as one, policy_over(one, max_retry_after=0.05) as policy:
        await asyncio.wait_for(policy.generate([1], PARAMS, trajectory_id="t"), WITHIN_S)
        assert policy.stats()[0].faults == {"http_429": 1}


async def test_a_call_ends_by_its_deadline_whatever_the_server_does(policy_over):
    plan = FaultPlan([Fault.NEVER_ANSWERS] * 10)
    async with running_engine(faults=plan) as one, policy_over(one, timeout=0.2) as policy:
        with pytest.raises(PolicyTimeoutError, match=r"0\.2 s"):
            await policy.generate([1], PARAMS, trajectory_id="t")


async def test_a_call_waiting_for_a_permit_ends_by_its_deadline_too(policy_over):
    options = {"timeout": 0.5, "num_max_requests_at_once": 1}
    async with running_engine(latency_s=LONG) as one, policy_over(one, **options) as policy:
        calls = [
            asyncio.create_task(policy.generate([1], PARAMS, trajectory_id=f"t{n}"))
            for n in range(5)
        ]
        await until(lambda: policy.stats()[0].waiting["train"] == 4)
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
    assert all(isinstance(outcome, PolicyTimeoutError) for outcome in outcomes)


async def test_training_and_evaluation_have_limits_of_their_own(policy_over):
    options = {"num_max_requests_at_once": 2, "num_requests_for_eval": 3}
    async with running_engine(latency_s=LONG) as one, policy_over(one, **options) as policy:
        evaluation = for_evaluation(policy)
        calls = [
            asyncio.create_task(client.generate([1], PARAMS, trajectory_id=f"{place}-{n}"))
            for place, client in enumerate((policy, evaluation))
            for n in range(6)
        ]
        await until(lambda: one.engine.in_use == 5)
        (stats,) = policy.stats()
        assert stats.in_use == {"train": 2, "eval": 3}
        assert stats.waiting == {"train": 4, "eval": 3}
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)


async def test_closing_the_evaluation_view_leaves_the_policy_open(policy_over):
    async with running_engine() as one, policy_over(one) as policy:
        await for_evaluation(policy).close()
        await policy.generate([1], PARAMS, trajectory_id="t")


async def test_concurrency_is_raised_to_the_group_size_and_never_lowered(policy_over):
    options = {"num_max_requests_at_once": 2, "num_requests_for_eval": 2}
    async with running_engine(latency_s=LONG) as one, policy_over(one, **options) as policy:
        calls = [
            asyncio.create_task(policy.generate([1], PARAMS, trajectory_id=f"t{n}"))
            for n in range(8)
        ]
        await until(lambda: one.engine.in_use == 2)
        policy.raise_concurrency(8)
        await until(lambda: one.engine.in_use == 8)
        policy.raise_concurrency(1)
        assert policy.stats()[0].capacity == {"train": 8, "eval": 8}
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)


async def test_cancelled_calls_give_their_permits_back_wherever_they_were(policy_over):
    options = {"num_max_requests_at_once": 4, "request_timeout": 5.0}
    rates = {Fault.SERVER_ERROR: 0.3, Fault.RESET: 0.1}
    plan = FaultPlan(rates=rates, seed=3)
    async with (
        running_engine(latency_s=0.002, faults=plan) as one,
        policy_over(one, max_attempts=50, **options) as policy,
    ):
        for wave in range(20):
            calls = [
                asyncio.create_task(policy.generate([1], PARAMS, trajectory_id=f"{wave}-{n}"))
                for n in range(16)
            ]
            await asyncio.sleep(wave / 2000)
            for call in calls[::2]:
                call.cancel()
            await asyncio.gather(*calls, return_exceptions=True)
            assert all(call.cancelled() or call.result() for call in calls)
        stats = policy.stats()[0]
        assert stats.in_use == stats.waiting == {"train": 0, "eval": 0}


async def test_start_refuses_when_no_server_answers():
    config = APIServerConfig(
        server_type="vllm", base_url="http://127.0.0.1:9/v1", startup_timeout=0.05
    )
    policy = build_policy([config])
    with pytest.raises(PolicyError, match=r"127\.0\.0\.1:9 did not answer within 0\.05 s"):
        await policy.start()


async def test_start_goes_on_without_a_server_that_does_not_answer_yet(policy_over):
    async with running_engine() as one, running_engine() as late:
        await late.kill()
        async with policy_over(one, late, startup_timeout=0.1) as policy:
            assert [server.healthy for server in policy.stats()] == [True, False]
            await policy.generate([1], PARAMS, trajectory_id="t")
            await late.revive()
            await until(lambda: all(server.healthy for server in policy.stats()))


async def test_a_policy_is_refused_before_start_and_closed_twice_without_complaint():
    async with running_engine() as one:
        policy = build_policy([APIServerConfig(server_type="vllm", base_url=one.base_url)])
        with pytest.raises(NotStartedError):
            await policy.generate([1], PARAMS, trajectory_id="t")
        await policy.start()
        await policy.start()
        await policy.close()
        await policy.close()
        with pytest.raises(NotStartedError):
            await policy.generate([1], PARAMS, trajectory_id="t")


@pytest.mark.parametrize("alive", [True, False])
async def test_closing_ends_the_calls_under_way_and_opens_no_new_connection(alive):
    async with running_engine(latency_s=LONG) as one:
        config = APIServerConfig(
            server_type="vllm", base_url=one.base_url, retry_base_delay=0.01, health_interval=0.02
        )
        policy = PolicyRouter([EngineServer(config)])
        await policy.start()
        call = asyncio.create_task(policy.generate([1], PARAMS, trajectory_id="t"))
        await until(lambda: one.engine.in_use == 1)
        if not alive:
            await one.kill()
            await until(lambda: not policy.stats()[0].healthy)
        await policy.close()
        with pytest.raises(PolicyError, match="closed"):
            await asyncio.wait_for(call, WITHIN_S)


async def test_a_script_that_runs_out_is_a_refusal_and_names_the_trajectory(policy_over):
    async with running_engine(script=["one"]) as one, policy_over(one) as policy:
        await policy.generate([1], PARAMS, trajectory_id="t")
        with pytest.raises(PolicyRequestError, match="'t' asks for one more"):
            await policy.generate([1], PARAMS, trajectory_id="t")


@pytest.mark.slow
async def test_no_rollout_fails_through_engine_faults_and_a_dead_server(policy_over):
    """10 % 500, 5 % 429, 2 % resets, and one of two servers dead for a good part of the run."""
    rates = {Fault.SERVER_ERROR: 0.1, Fault.RATE_LIMITED: 0.05, Fault.RESET: 0.02}
    plans = [FaultPlan(rates=rates, seed=seed, retry_after="1") for seed in (1, 2)]
    finished = 0

    def script(asked):
        return (*asked.prompt_ids, 99)

    async def rollout(policy, number: int) -> None:
        nonlocal finished
        for turn in range(4):
            prompt = [number % 90, turn]
            completion = await policy.generate(prompt, PARAMS, trajectory_id=f"t{number}")
            assert completion.token_ids == (*prompt, 99)
        finished += 1

    async def outage(engine) -> None:
        await until(lambda: finished > 50)
        await engine.kill()
        await until(lambda: finished > 200)
        await engine.revive()

    options = {"num_max_requests_at_once": 32, "max_retry_after": 0.02}
    async with (
        running_engine(script=script, faults=plans[0], latency_s=0.003) as one,
        running_engine(script=script, faults=plans[1], latency_s=0.003) as two,
        policy_over(one, two, **options) as policy,
    ):
        async with asyncio.timeout(60), asyncio.TaskGroup() as tasks:
            tasks.create_task(outage(one))
            for number in range(300):
                tasks.create_task(rollout(policy, number))
        stats = policy.stats()
    assert finished == 300
    assert sum(server.completions for server in stats) == 300 * 4 + 2
    assert stats[0].times_out >= 1
    assert max(one.engine.most_at_once, two.engine.most_at_once) <= 32
