from __future__ import annotations

import asyncio
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentenv.policy.limiter import Limiter
from tests.waiting import WITHIN_S


async def take_all(limiter: Limiter) -> None:
    """Hold every permit at once; hangs, and so fails by the deadline, if one is lost."""
    everyone_in = asyncio.Barrier(limiter.capacity)

    async def hold() -> None:
        async with limiter.permit():
            await everyone_in.wait()

    async with asyncio.timeout(WITHIN_S), asyncio.TaskGroup() as tasks:
        for _ in range(limiter.capacity):
            tasks.create_task(hold())


async def run_random_schedule(seed: int, capacity: int, tasks: int) -> Limiter:
    chance = random.Random(seed)
    limiter = Limiter(capacity)
    most = 0

    async def work() -> None:
        nonlocal most
        async with limiter.permit():
            most = max(most, limiter.in_use)
            for _ in range(chance.randrange(4)):
                await asyncio.sleep(0)

    running = [asyncio.create_task(work()) for _ in range(tasks)]
    while not all(task.done() for task in running):
        for _ in range(chance.randrange(3)):
            await asyncio.sleep(0)
        move = chance.random()
        if move < 0.7:
            chance.choice(running).cancel()
        elif move < 0.75:
            limiter.raise_to(limiter.capacity + 1)
        elif move < 0.8:
            limiter.refuse_waiters(LookupError("refused"))
    await asyncio.gather(*running, return_exceptions=True)
    assert most <= limiter.capacity
    return limiter


@given(seed=st.integers(0, 2**32), capacity=st.integers(1, 5), tasks=st.integers(1, 25))
def test_every_permit_is_back_after_any_schedule_of_cancellations(seed, capacity, tasks):
    async def scenario() -> None:
        limiter = await run_random_schedule(seed, capacity, tasks)
        assert (limiter.in_use, limiter.waiting) == (0, 0)
        await take_all(limiter)

    asyncio.run(scenario())


async def test_a_permit_handed_to_a_task_that_is_cancelled_in_the_same_moment_goes_to_the_next():
    limiter = Limiter(1)
    order: list[str] = []

    async def hold(name: str) -> None:
        async with limiter.permit():
            order.append(name)

    async with limiter.permit():
        first = asyncio.create_task(hold("first"))
        second = asyncio.create_task(hold("second"))
        await asyncio.sleep(0)
        assert limiter.waiting == 2
    first.cancel()  # the permit was handed to it when the block above ended; it has not run since
    await asyncio.wait_for(second, WITHIN_S)
    assert order == ["second"]
    assert limiter.in_use == 0


async def test_waiters_are_served_in_the_order_they_came():
    limiter = Limiter(1)
    order: list[int] = []

    async def hold(number: int) -> None:
        async with limiter.permit():
            order.append(number)
            await asyncio.sleep(0)

    await asyncio.gather(*(hold(number) for number in range(10)))
    assert order == list(range(10))


async def test_raising_the_capacity_wakes_waiters_and_never_lowers():
    limiter = Limiter(1)
    async with limiter.permit():
        waiter = asyncio.create_task(take_all(limiter))
        await asyncio.sleep(0)
        limiter.raise_to(2)
        await asyncio.wait_for(waiter, WITHIN_S)
    limiter.raise_to(1)
    assert limiter.capacity == 2


async def test_waiters_can_be_refused_while_a_permit_is_held():
    limiter = Limiter(1)

    async def hold() -> None:
        async with limiter.permit():
            pass

    async with limiter.permit():
        waiter = asyncio.create_task(hold())
        await asyncio.sleep(0)
        limiter.refuse_waiters(LookupError("refused"))
        with pytest.raises(LookupError, match="refused"):
            await waiter
    assert (limiter.in_use, limiter.waiting) == (0, 0)


def test_a_limiter_of_nothing_is_refused():
    with pytest.raises(ValueError, match="at least 1"):
        Limiter(0)


async def test_a_weight_takes_effect_at_once_in_both_directions():
    limiter = Limiter(8)
    release = asyncio.Event()
    entered = 0

    async def hold() -> None:
        nonlocal entered
        async with limiter.permit():
            entered += 1
            await release.wait()

    limiter.weigh(0.25)
    holders = [asyncio.create_task(hold()) for _ in range(8)]
    while entered < 2:
        await asyncio.sleep(0)
    assert (limiter.capacity, limiter.in_use, limiter.waiting) == (2, 2, 6)
    limiter.weigh(0.5)
    while limiter.in_use < 4:
        await asyncio.sleep(0)
    assert limiter.waiting == 4
    limiter.weigh(0.01)
    assert (limiter.capacity, limiter.in_use) == (1, 4)
    release.set()
    await asyncio.gather(*holders)
    assert (limiter.in_use, entered) == (0, 8)
    limiter.weigh(1.0)
    await take_all(limiter)


@pytest.mark.parametrize(
    ("weight", "permits"), [(1, 512), (0.5, 256), (0.1, 52), (0.01, 6), (0, 1), (3, 512)]
)
def test_a_weight_gives_its_share_rounded_up_and_at_least_one(weight: float, permits: int):
    limiter = Limiter(512)
    limiter.weigh(weight)
    assert limiter.capacity == permits
