"""Turns and groups wait while the policy is paused, and the wait costs nobody time."""

import asyncio
from typing import Any

import pytest

from agentenv.control import PausedTooLongError, PauseGate
from agentenv.errors import PolicyTimeoutError
from agentenv.harness import AgentClock, ToolLoop
from agentenv.outcomes import StopReason
from agentenv.task import Task
from agentenv.tokens.base import ParsedReply
from agentenv.types import AgentConfig
from tests.agentenv.fake_env import make_env, policy_of
from tests.agentenv.rollout_fakes import ScriptedSession, answer
from tests.waiting import WITHIN_S

TASK = Task(instruction="do it", item=None, agent=AgentConfig())


async def no_tool(call: Any) -> Any:
    raise AssertionError("no tool is called here")


async def settle() -> None:
    """Let every task run until it waits."""
    for _ in range(20):
        await asyncio.sleep(0)


async def test_an_open_gate_lets_everything_through():
    gate = PauseGate()
    assert not gate.paused
    assert await gate.wait() < 1
    gate.resume()
    assert gate.paused_s == 0


async def test_every_waiter_goes_on_when_it_opens():
    gate = PauseGate()
    gate.pause()
    gate.pause()
    waiters = [asyncio.create_task(gate.wait()) for _ in range(50)]
    await settle()
    assert not any(waiter.done() for waiter in waiters)
    gate.resume()
    gate.resume()
    waited = await asyncio.wait_for(asyncio.gather(*waiters), WITHIN_S)
    assert min(waited) > 0


async def test_a_waiter_never_passes_in_a_pause_that_began_before_it_could_run():
    gate = PauseGate()
    passed_while_paused = []

    async def wait() -> None:
        await gate.wait()
        passed_while_paused.append(gate.paused)

    gate.pause()
    waiters = [asyncio.create_task(wait()) for _ in range(20)]
    for _ in range(30):
        await asyncio.sleep(0)
        gate.resume()
        gate.pause()
    await settle()
    assert passed_while_paused == []
    gate.resume()
    await asyncio.wait_for(asyncio.gather(*waiters), WITHIN_S)
    assert passed_while_paused == [False] * 20


async def test_a_pause_without_end_is_given_up_as_infrastructure():
    gate = PauseGate(limit_s=0.01)
    gate.pause()
    with pytest.raises(PausedTooLongError, match="pause_timeout_s"):
        await gate.wait()
    assert issubclass(PausedTooLongError, PolicyTimeoutError)


async def test_a_cancelled_waiter_leaves_the_gate_as_it_was():
    gate = PauseGate()
    gate.pause()
    first, second = asyncio.create_task(gate.wait()), asyncio.create_task(gate.wait())
    await settle()
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    gate.resume()
    await asyncio.wait_for(second, WITHIN_S)


async def test_drained_waits_for_the_turns_under_way():
    gate = PauseGate()
    release = asyncio.Event()

    async def turn() -> None:
        async with gate.turn(60):
            await release.wait()

    turns = [asyncio.create_task(turn()) for _ in range(2)]
    await settle()
    gate.pause()
    drained = asyncio.create_task(gate.drained())
    await settle()
    assert not drained.done()
    release.set()
    await asyncio.wait_for(drained, WITHIN_S)
    await asyncio.gather(*turns)
    gate.resume()
    await asyncio.wait_for(gate.drained(), WITHIN_S)


async def test_a_turn_that_fails_or_is_cancelled_is_no_longer_under_way():
    gate = PauseGate()
    with pytest.raises(ValueError, match="broken"):
        async with gate.turn(60):
            raise ValueError("broken")
    with pytest.raises(TimeoutError):
        async with gate.turn(0.001):
            await asyncio.Event().wait()
    await asyncio.wait_for(gate.drained(), WITHIN_S)


async def test_a_pause_stops_the_clock_of_a_turn_under_way():
    gate = PauseGate(limit_s=100.0)
    async with gate.turn(5.0) as deadline:
        planned = deadline.when()
        assert planned is not None
        gate.pause()
        assert deadline.when() == pytest.approx(planned + 100.0)
        gate.resume()
        moved = deadline.when()
        assert moved is not None
        assert moved - planned == pytest.approx(gate.paused_s, abs=1e-6)


async def test_a_deadline_that_begins_in_a_pause_leaves_the_pause_out_too():
    gate = PauseGate(limit_s=100.0)
    gate.pause()
    await settle()
    now = asyncio.get_running_loop().time
    began = now()
    async with gate.timeout(5.0) as deadline:
        gate.resume()
        moved = deadline.when()
        assert moved is not None
        assert began + 5.0 <= moved <= now() + 5.0
    async with gate.timeout(None) as never:
        gate.pause()
        gate.resume()
        assert never.when() is None


async def test_a_turn_that_is_stuck_in_a_pause_without_end_still_ends():
    gate = PauseGate(limit_s=0.01)

    async def stuck() -> None:
        async with gate.turn(0.01):
            gate.pause()
            await asyncio.Event().wait()

    with pytest.raises(TimeoutError):
        await stuck()


async def test_an_agent_waits_for_the_gate_and_keeps_its_time():
    gate, clock = PauseGate(), AgentClock(50.0)
    gate.pause()
    session = ScriptedSession(answer("done"))
    run = asyncio.create_task(
        ToolLoop(turn_timeout_s=20.0, gate=gate).run(TASK, session, no_tool, clock)
    )
    await settle()
    assert session.sampled_with == []
    deadline = clock._deadline
    gate.resume()
    result = await asyncio.wait_for(run, WITHIN_S)
    assert result.stop_reason is StopReason.FINAL_ANSWER
    assert clock._deadline > deadline


async def test_a_pause_while_the_policy_writes_costs_the_agent_no_time():
    gate, clock = PauseGate(), AgentClock(50.0)

    async def slow() -> ParsedReply:
        gate.pause()
        await settle()
        gate.resume()
        return answer("done")

    deadline = clock._deadline
    await ToolLoop(turn_timeout_s=20.0, gate=gate).run(TASK, ScriptedSession(slow), no_tool, clock)
    assert clock._deadline - deadline == pytest.approx(gate.paused_s, rel=0.5)


async def test_an_environment_starts_no_group_and_no_turn_while_paused():
    env = make_env()
    await env.setup()
    try:
        env.runtime.gate.pause()
        group = asyncio.create_task(env.collect_trajectories(0))
        alone = asyncio.create_task(env.run_agent("x"))
        await settle()
        assert env.runtime.backend.stats().acquired_slots == 0
        assert policy_of(env).requests == []
        env.runtime.gate.resume()
        collected, backlog = await asyncio.wait_for(group, WITHIN_S)
        await asyncio.wait_for(alone, WITHIN_S)
    finally:
        await env.shutdown()
    assert collected is not None
    assert backlog == []


async def test_an_environment_that_stays_paused_gives_its_item_back_as_a_failure_of_the_policy():
    env = make_env(pause_timeout_s=0.01)
    await env.setup()
    try:
        env.runtime.gate.pause()
        with pytest.raises(PausedTooLongError):
            await env.collect_trajectories(0)
    finally:
        await env.shutdown()
