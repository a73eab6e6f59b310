"""A trajectory's workspace is frozen after its calls, and another trajectory starts from it."""

import asyncio

import pytest

from agentenv_backends.errors import HostLostError, InfrastructureError, SlotStateError
from agentenv_backends.testing import FakeProvider, Faults
from agentenv_tools.testing import fake_executor, in_virtual_time
from tests.agentenv_tools.calls import sh


@in_virtual_time
async def test_another_trajectory_starts_from_what_one_left():
    async with fake_executor() as run:
        await run.executor.execute("set-up", sh("echo prepared > f"))
        snapshot = await run.executor.snapshot("set-up")
        assert snapshot is not None
        await run.executor.release_trajectory("set-up")
        await run.executor.restore("member", snapshot)
        result = await run.executor.execute("member", sh("cat f"))
        assert result.output == "prepared\n"
        await run.pool.drop_snapshot(snapshot)


@in_virtual_time
async def test_a_trajectory_without_a_slot_has_nothing_to_freeze():
    async with fake_executor() as run:
        assert await run.executor.snapshot("nobody") is None


@in_virtual_time
async def test_freezing_waits_for_the_calls_before_it():
    async with fake_executor(provider=FakeProvider(faults=Faults(latency_s=(1.0, 1.0)))) as run:
        call = asyncio.create_task(run.executor.execute("t", sh("echo late > f")))
        await asyncio.sleep(0)
        while run.pool.stats().acquired_slots == 0:
            await asyncio.sleep(0.1)
        snapshot = await run.executor.snapshot("t")
        assert call.done()
        assert snapshot is not None
        await run.executor.restore("member", snapshot)
        assert (await run.executor.execute("member", sh("cat f"))).output == "late\n"
        await run.pool.drop_snapshot(snapshot)


@in_virtual_time
async def test_a_trajectory_that_has_called_something_cannot_start_anew():
    async with fake_executor() as run:
        await run.executor.execute("t", sh("true"))
        snapshot = await run.executor.snapshot("t")
        assert snapshot is not None
        with pytest.raises(SlotStateError, match="used already"):
            await run.executor.restore("t", snapshot)
        await run.pool.drop_snapshot(snapshot)


@in_virtual_time
async def test_a_trajectory_that_could_not_start_is_lost():
    async with fake_executor() as run:
        await run.executor.execute("t", sh("true"))
        snapshot = await run.executor.snapshot("t")
        assert snapshot is not None
        run.provider.live["h1"].lose()
        for _ in range(2):
            with pytest.raises(HostLostError):
                await run.executor.restore("member", snapshot)
        with pytest.raises(InfrastructureError):
            await run.executor.execute("member", sh("true"))
