"""Calls that are sent twice run once, and what is remembered of them is bounded. In virtual time."""

import asyncio
import random

import pytest

from agentenv_tools.serving.answers import Answer, HttpError
from agentenv_tools.serving.call_table import CallTable, CallTableLimits
from agentenv_tools.testing import in_virtual_time


class Work:
    """Takes `seconds`, counts its runs."""

    def __init__(self, seconds: float = 1.0, size: int = 10) -> None:
        self.seconds = seconds
        self.size = size
        self.runs = 0
        self.cancelled = 0

    async def __call__(self) -> Answer:
        self.runs += 1
        try:
            await asyncio.sleep(self.seconds)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return Answer(200, b"x" * self.size)


@in_virtual_time
async def test_an_answer_is_remembered_for_a_while_and_no_longer():
    table, work = CallTable(CallTableLimits(keep_s=60)), Work()
    for pause, runs in ((0, 1), (50, 1), (20, 2)):
        await asyncio.sleep(pause)
        await table.run("k", 1, work)
        assert work.runs == runs


@in_virtual_time
async def test_memory_is_bounded_by_number_and_by_size():
    few = CallTable(CallTableLimits(max_kept=10))
    small = CallTable(CallTableLimits(max_kept_bytes=1_000))
    for number in range(1_000):
        await few.run(number, 1, Work(0))
        await small.run(number, 1, Work(0, size=100))
    assert len(few._entries) == len(few._finished) == 10
    assert len(small._entries) == 10
    assert small._kept_bytes == 1_000
    late, early = Work(0), Work(0)
    await few.run(999, 1, late)
    await few.run(0, 1, early)
    assert (late.runs, early.runs) == (0, 1)


@in_virtual_time
async def test_a_call_is_cancelled_when_its_last_caller_has_been_gone_for_a_while():
    table, work = CallTable(CallTableLimits(orphan_s=5)), Work(100)
    callers = [asyncio.create_task(table.run("k", 1, work)) for _ in range(2)]
    await asyncio.sleep(1)
    callers[0].cancel()
    await asyncio.sleep(10)
    assert (work.runs, work.cancelled) == (1, 0)
    callers[1].cancel()
    await asyncio.sleep(4)
    assert work.cancelled == 0
    await asyncio.sleep(2)
    assert (work.cancelled, table.under_way) == (1, 0)
    with pytest.raises(HttpError, match="cancelled before it ended"):
        await table.run("k", 1, work)  # never a second run
    assert work.runs == 1


@in_virtual_time
async def test_a_call_without_a_key_is_cancelled_at_once():
    table, work = CallTable(), Work(100)
    caller = asyncio.create_task(table.run(None, 1, work))
    await asyncio.sleep(1)
    caller.cancel()
    await asyncio.sleep(0.01)
    assert (work.cancelled, table.under_way) == (1, 0)


@in_virtual_time
async def test_a_call_that_was_refused_is_not_remembered():
    table = CallTable()

    async def refuse() -> Answer:
        raise HttpError(503, "busy", "later")

    with pytest.raises(HttpError, match="later"):
        await table.run("k", 1, refuse)
    assert (await table.run("k", 1, Work(0))).status == 200


@in_virtual_time
async def test_a_full_table_refuses_and_recovers():
    table = CallTable(CallTableLimits(max_under_way=2))
    held = [asyncio.create_task(table.run(key, 1, Work(10))) for key in "ab"]
    await asyncio.sleep(1)
    with pytest.raises(HttpError) as refused:
        await table.run("c", 1, Work())
    assert (refused.value.status, refused.value.kind) == (503, "busy")
    assert (await table.run("a", 1, Work())).status == 200  # joins the one under way
    await asyncio.gather(*held)
    assert (await table.run("c", 1, Work())).status == 200


@in_virtual_time
async def test_whatever_callers_do_nothing_runs_twice_and_nothing_is_left():
    for seed in range(30):
        rng = random.Random(seed)
        table = CallTable(CallTableLimits(max_kept=20, orphan_s=1))
        works = [Work(rng.random() * 3) for _ in range(20)]

        async def caller(rng: random.Random = rng, table=table, works=works) -> None:
            key = rng.randrange(20)
            try:
                async with asyncio.timeout(rng.random() * 3):
                    await table.run(key, 1, works[key])
            except (TimeoutError, HttpError):
                pass

        async with asyncio.TaskGroup() as group:
            for _ in range(200):
                group.create_task(caller())
                await asyncio.sleep(rng.random() * 0.05)
        await table.close(0)
        assert table.under_way == 0
        assert max(work.runs for work in works) == 1
        assert len(table._finished) <= 20
