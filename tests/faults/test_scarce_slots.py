"""More trajectories than slots: everybody gets a turn, and one slow call holds up nobody else."""

import asyncio

import pytest

from agentenv.group import GroupContext, current_group
from agentenv.types import ScoredDataGroup
from tests.faults.ledger_env import LedgerEnv, ledger_env
from tests.faults.sandboxes import local_pool, sandboxes

pytestmark = [pytest.mark.sandbox]
_DEADLINE_S = 180


async def test_sixty_four_trajectories_share_eight_slots_without_a_deadlock():
    async with sandboxes(8) as run, asyncio.timeout(_DEADLINE_S):

        async def trajectory(name: str) -> str:
            for number in range(3):
                result = await run.call(name, f"echo {number} >> file; wc -l < file")
                assert result.success, result
            await run.executor.release_trajectory(name)
            return result.output.strip()

        lines = await asyncio.gather(*(trajectory(f"t{number}") for number in range(64)))
        stats = run.pool.stats()
    assert lines == ["3"] * 64
    assert stats.acquired_total >= 64
    assert stats.acquired_slots == stats.waiting == 0


async def test_groups_of_trajectories_that_outnumber_the_slots_are_completed():
    pool, _ = local_pool(8)
    env = ledger_env(pool, group_size=8)
    await env.setup()
    try:
        async with asyncio.timeout(_DEADLINE_S):
            groups = await asyncio.gather(*(_group(env, index) for index in range(8)))
    finally:
        await env.shutdown()
    assert [len(group["scores"]) for group in groups] == [8] * 8
    assert pool.stats().acquired_slots == 0


async def _group(env: LedgerEnv, index: int) -> ScoredDataGroup:
    current_group.set(GroupContext(index))
    group, backlog = await env.collect_trajectories(index)
    assert backlog == []
    assert group is not None
    return group


async def test_calls_of_others_end_while_one_call_sleeps():
    async with sandboxes(64) as run, asyncio.timeout(_DEADLINE_S):
        slow = asyncio.create_task(run.call("slow", "sleep 3; echo slept"))
        # A slot each, and four calls more: all of it while the first call is still asleep.
        await asyncio.gather(*(run.call(f"t{number}", "true") for number in range(63)))
        ended_meanwhile = 0
        while not slow.done():
            results = await asyncio.gather(
                *(run.call(f"t{number}", "echo quick") for number in range(63))
            )
            assert {result.output for result in results} == {"quick\n"}
            ended_meanwhile += not slow.done()
        assert (await slow).output == "slept\n"
    assert ended_meanwhile >= 1
