"""Waiting with a bound, whatever the awaited does about it."""
# mypy: disable-error-code="no-untyped-call, union-attr"

import asyncio

import pytest

from agentenv_backends._aio import bounded, finish
from agentenv_backends._scheduling import Scheduler
from agentenv_backends.errors import HostStartError
from agentenv_backends.settings import Limits
from agentenv_backends.testing import run_in_virtual_time


def test_a_coroutine_that_swallows_its_cancellation_is_left_behind():
    late: list[str] = []

    async def stubborn():
        for _ in range(3):
            try:
                await asyncio.sleep(100)
            except asyncio.CancelledError:
                continue
        return "at last"

    async def main():
        with pytest.raises(TimeoutError, match="the thing took more than 1 s"):
            await bounded(stubborn(), 1, "the thing", too_late=late.append)
        assert asyncio.get_running_loop().time() == pytest.approx(3)
        assert late == []
        await asyncio.sleep(300)
        assert late == ["at last"]

    run_in_virtual_time(main())


def test_an_alarm_that_rings_a_moment_early_is_set_again():
    """Event loops call timers up to a clock tick before their time."""

    clock = [0.0]
    scheduler = Scheduler(Limits(slots_per_host=1), lambda: clock[0])
    scheduler.start()
    (launch,) = scheduler.take_actions()
    scheduler.host_failed(launch.host_id, HostStartError("no"))
    due = scheduler.wake_at
    clock[0] = due - 1e-9
    scheduler.tick()
    assert scheduler.wake_at == due


def test_a_cancelled_waiter_waits_on_and_is_cancelled_afterwards():
    async def main():
        cleanup = asyncio.create_task(asyncio.sleep(5))
        waiter = asyncio.create_task(finish(cleanup))
        for _ in range(3):
            await asyncio.sleep(1)
            waiter.cancel()
        await asyncio.wait({waiter})
        assert cleanup.done()
        assert not cleanup.cancelled()
        assert waiter.cancelled()

    run_in_virtual_time(main())


def test_virtual_time_jumps_and_knows_a_deadlock():
    async def main():
        await asyncio.sleep(3600)
        assert asyncio.get_running_loop().time() == pytest.approx(3600)

    run_in_virtual_time(main())
