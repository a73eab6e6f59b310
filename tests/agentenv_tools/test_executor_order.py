"""Who waits for whom, and for how long; how calls and trajectories end."""

import asyncio

import pytest

from agentenv_backends.errors import (
    AcquireTimeoutError,
)
from agentenv_backends.requests import (
    ExecRequest,
    KillRequest,
)
from agentenv_backends.testing import (
    FakeProvider,
    Faults,
    exec_result,
)
from agentenv_tools import (
    ExecutorClosedError,
    ToolCall,
    ToolContext,
    ToolExecutorConfig,
    TrajectoryReleasedError,
    tool,
)
from agentenv_tools.testing import FakeRun, fake_executor, in_virtual_time
from tests.agentenv_tools.calls import now, sh

# ---- order, waiting, deadlines ----


@in_virtual_time
async def test_calls_of_a_trajectory_run_one_at_a_time_in_their_order():
    provider = FakeProvider(faults=Faults(latency_s=(0.0, 1.0)))
    async with fake_executor(provider=provider) as run:
        commands = [f"echo {number}" for number in range(20)]
        results = await asyncio.gather(*(run.executor.execute("t", sh(text)) for text in commands))
        assert [result.output for result in results] == [f"{n}\n" for n in range(20)]
        assert run.requests() == [[ExecRequest(command) for command in commands]]


@in_virtual_time
async def test_a_slow_call_delays_nobody_else():
    async with fake_executor(slots=64) as run:
        slow = asyncio.create_task(run.executor.execute("slow", sh("sleep 10")))
        await asyncio.sleep(0)
        for _ in range(20):
            calls = (run.executor.execute(f"t{n}", sh("true")) for n in range(63))
            assert all(result.success for result in await asyncio.gather(*calls))
        assert now() == 0.0
        assert not slow.done()
        assert (await slow).success
        assert now() == 10.0


@in_virtual_time
async def test_eight_trajectories_to_a_slot_finish_without_deadlock():
    async def trajectory(run: FakeRun, name: str) -> None:
        for number in range(5):
            assert (await run.executor.execute(name, sh(f"echo {number} > f"))).success
            await asyncio.sleep(1)  # thinking holds the slot
            assert (await run.executor.execute(name, sh("cat f"))).output == f"{number}\n"
        await run.executor.release_trajectory(name)

    async with fake_executor(slots=8, acquire_timeout_s=1000.0) as run:
        await asyncio.gather(*(trajectory(run, f"t{n}") for n in range(64)))
        assert run.pool.stats().acquired_total == 64
        assert run.executor.stats().total_requests == 640
        assert run.executor.stats().total_wait_s > 0


@in_virtual_time
async def test_who_waits_for_a_slot_holds_up_nobody_who_has_one_and_is_served_in_order():
    async with fake_executor(slots=1, acquire_timeout_s=1000.0) as run:
        await run.executor.execute("holder", sh("true"))
        order = []

        async def waiter(name: str) -> None:
            await run.executor.execute(name, sh("true"))
            order.append(name)
            await run.executor.release_trajectory(name)

        waiting = [asyncio.create_task(waiter(f"w{n}")) for n in range(5)]
        await asyncio.sleep(1)
        assert run.executor.stats().queue_size == 5
        assert run.executor.stats().in_flight == 0
        assert (await run.executor.execute("holder", sh("true"))).success
        await run.executor.release_trajectory("holder")
        await asyncio.gather(*waiting)
        assert order == [f"w{n}" for n in range(5)]


@in_virtual_time
async def test_waiting_for_a_slot_has_a_hard_deadline_and_may_be_tried_again():
    config = ToolExecutorConfig(acquire_timeout_s=3.0)
    async with fake_executor(slots=1, config=config) as run:
        await run.executor.execute("a", sh("true"))
        with pytest.raises(AcquireTimeoutError):
            await run.executor.execute("b", sh("true"))
        assert now() == 3.0
        await run.executor.release_trajectory("a")
        assert (await run.executor.execute("b", sh("true"))).success
        assert run.executor.stats().total_failures == 1


@in_virtual_time
async def test_a_tool_that_needs_no_slot_takes_none():
    @tool
    async def think(thought: str) -> str:
        return thought

    async with fake_executor(think, slots=1) as run:
        await run.executor.execute("a", sh("true"))
        assert (await run.executor.execute("b", ToolCall("think", {"thought": "x"}))).output == "x"
        assert not (await run.executor.execute("b", sh(""))).success
        assert run.pool.stats().acquired_total == 1


@in_virtual_time
async def test_the_deadline_starts_when_the_call_does_and_not_in_the_queue():
    async with fake_executor(slots=1, acquire_timeout_s=1000.0) as run:
        hold = asyncio.create_task(run.executor.execute("a", sh("sleep 50", timeout=60)))
        await asyncio.sleep(0)
        second = asyncio.create_task(run.executor.execute("a", sh("sleep 4", timeout=5)))
        third = asyncio.create_task(run.executor.execute("b", sh("sleep 4", timeout=5)))
        assert (await hold).success
        assert (await second).success
        await run.executor.release_trajectory("a")
        assert (await third).success


# ---- ends ----


@in_virtual_time
async def test_release_ends_what_waits_and_runs_and_is_idempotent():
    async with fake_executor(slots=1) as run:
        calls = [asyncio.create_task(run.executor.execute("t", sh("sleep 9"))) for _ in range(3)]
        await asyncio.sleep(1)
        other = asyncio.create_task(run.executor.execute("other", sh("true")))
        await asyncio.gather(*(run.executor.release_trajectory("t") for _ in range(3)))
        for call in calls:
            with pytest.raises(TrajectoryReleasedError):
                await call
        assert (await other).success
        await run.executor.release_trajectory("t")
        await run.executor.release_trajectory("never seen")
        assert now() == 1.0
        assert run.pool.stats().acquired_total == 2


@in_virtual_time
async def test_a_slot_that_comes_after_its_trajectory_was_released_is_given_back():
    async with fake_executor(slots=1) as run:
        await run.executor.execute("first", sh("true"))
        preparing = asyncio.create_task(run.executor.prepare("late", sh("true")))
        await asyncio.sleep(1)
        await run.executor.release_trajectory("late")
        await run.executor.release_trajectory("first")
        with pytest.raises(TrajectoryReleasedError):
            await preparing
        assert run.pool.stats().acquired_slots == 0


@in_virtual_time
async def test_a_release_that_is_cancelled_goes_on_and_close_waits_for_it():
    provider = FakeProvider(faults=Faults(latency_s=(1.0, 1.0)))
    async with fake_executor(provider=provider) as run:
        await run.executor.execute("t", sh("true"))
        release = asyncio.create_task(run.executor.release_trajectory("t"))
        await asyncio.sleep(0)
        release.cancel()
        with pytest.raises(asyncio.CancelledError):
            await release
        await run.executor.close()
        assert run.pool.stats().acquired_slots == 0


@in_virtual_time
async def test_a_tool_that_ignores_its_end_does_not_stop_the_release():
    @tool
    async def stubborn(ctx: ToolContext) -> str:
        for _ in range(3):
            try:
                await asyncio.sleep(100)
            except asyncio.CancelledError:
                continue
        with pytest.raises(TrajectoryReleasedError):
            await ctx.execute(ExecRequest("true"))
        return "done"

    config = ToolExecutorConfig(release_timeout_s=5.0, default_timeout_s=600.0)
    async with fake_executor(stubborn, config=config) as run:
        call = asyncio.create_task(run.executor.execute("t", ToolCall("stubborn")))
        await asyncio.sleep(1)
        await run.executor.release_trajectory("t")
        assert now() == 6.0
        with pytest.raises(TrajectoryReleasedError):
            await call
        assert run.pool.stats().acquired_slots == 0


@in_virtual_time
async def test_close_ends_everything_and_takes_no_more_calls():
    async with fake_executor(slots=2) as run:
        calls = [
            asyncio.create_task(run.executor.execute(f"t{n}", sh("sleep 9"))) for n in range(8)
        ]
        await asyncio.sleep(1)
        await asyncio.gather(run.executor.close(), run.executor.close())
        for call in calls:
            with pytest.raises(TrajectoryReleasedError):
                await call
        assert (run.pool.stats().acquired_slots, run.pool.stats().waiting) == (0, 0)
        for late in (
            run.executor.execute("t", sh("true")),
            run.executor.execute_request("t", KillRequest()),
        ):
            with pytest.raises(ExecutorClosedError):
                await late
        assert now() == 1.0


@in_virtual_time
async def test_cancelling_a_call_withdraws_its_command_and_lets_the_next_one_in():
    ended = []

    async def script(_slot, request):
        try:
            await asyncio.sleep(float(request.command))
        finally:
            ended.append((request.command, now()))
        return exec_result("ok")

    async with fake_executor(provider=FakeProvider(on_exec=script)) as run:
        calls = [asyncio.create_task(run.executor.execute("t", sh(s))) for s in ("20", "21", "2")]
        await asyncio.sleep(1)
        calls[1].cancel()
        await asyncio.sleep(1)
        calls[0].cancel()
        assert (await calls[2]).output == "ok"
        assert ended == [("20", 2.0), ("2", 4.0)]
        assert run.executor.stats().cancelled == 2
