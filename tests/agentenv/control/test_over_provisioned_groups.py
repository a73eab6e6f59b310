"""Groups that start more members than they need, through the whole environment."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from agentenv import Outcome, PolicyError, RolloutRecord
from agentenv.group import GroupContext, current_group, rollout_seed
from agentenv.session import completion_seed
from agentenv.testing import FakeRequest
from tests.agentenv.fake_env import EchoEnv, call_text, make_env, policy_of, solver
from tests.waiting import WITHIN_S


async def collect(env: EchoEnv) -> tuple[Any, list[Any], list[RolloutRecord], GroupContext]:
    records: list[RolloutRecord] = []
    env.runtime.on_rollout = records.append
    await env.setup()
    context = GroupContext(0)
    token = current_group.set(context)
    try:
        group, backlog = await env.collect_trajectories(0)
        assert env.runtime.backend.stats().acquired_slots == 0
    finally:
        current_group.reset(token)
        await env.shutdown()
    return group, backlog, records, context


def member_seeds(count: int) -> list[int]:
    """The seeds of the first replies of the members of group 0, in the members' order."""
    seeds = [completion_seed(rollout_seed(7, 0, member, 0), 1) for member in range(count)]
    return [seed for seed in seeds if seed is not None]


def stuck(member: int) -> Callable[[FakeRequest], str]:
    """A script in which this member runs a command that does not end, and the others do as `solver`."""
    seed = member_seeds(member + 1)[member]
    return lambda request: call_text("sleep 1000") if request.seed == seed else solver(request)


async def test_spares_change_nothing_when_no_member_is_lost():
    plain, *_ = await collect(make_env(group_size=4))
    spared, backlog, _, context = await collect(
        make_env(group_size=4, slots=8, over_provision={"extra": 3, "keep": "by_index"})
    )
    assert spared == plain
    assert backlog == []
    assert len(context.members) == 7


@pytest.mark.parametrize("keep", ["by_deadline", "first_finished"])
async def test_a_straggler_is_cancelled_and_counted_as_cancelled(keep: str):
    env = make_env(
        stuck(1),
        group_size=3,
        slots=8,
        over_provision={"extra": 1, "keep": keep, "factor": 1.0},
    )
    async with asyncio.timeout(WITHIN_S):
        group, backlog, records, _ = await collect(env)
    assert backlog == []
    assert len(group["scores"]) == 3
    outcomes = [record.outcome for record in records]
    assert outcomes.count(Outcome.SCORED) == 3
    assert outcomes.count(Outcome.CANCELLED) == 1
    assert all(record.cause is None for record in records)


async def test_a_spare_takes_the_place_of_a_lost_member():
    dead = member_seeds(2)[1]

    def script(request: FakeRequest) -> Any:
        return PolicyError("engine is down") if request.seed == dead else solver(request)

    env = make_env(script, group_size=3, slots=8, policy_retry_limit=1, over_provision={"extra": 1})
    group, backlog, _, context = await collect(env)
    assert backlog == []
    assert len(group["scores"]) == 3
    rows = [member.records[0].result for member in context.members if member.member != 1]
    assert group["tokens"] == [row.sequences[-1].tokens for row in rows if row is not None]


async def test_the_same_seed_keeps_the_same_members_past_a_loss():
    dead = member_seeds(1)[0]

    def script(request: FakeRequest) -> Any:
        return PolicyError("engine is down") if request.seed == dead else solver(request)

    groups = [
        (await collect(
            make_env(
                script, group_size=4, slots=slots, policy_retry_limit=1,
                over_provision={"extra": 2, "keep": "by_index"},
            )
        ))[0]
        for slots in (8, 1)
    ]  # fmt: skip
    assert groups[0] == groups[1]


async def test_a_group_without_enough_members_gives_its_item_back():
    def broken(request: FakeRequest) -> Any:
        return PolicyError("engine is down")

    env = make_env(broken, group_size=2, policy_retry_limit=1, over_provision={"extra": 2})
    group, backlog, _, _ = await collect(env)
    assert group is None
    assert backlog == [0]


async def test_the_policy_is_told_of_the_spares():
    env = make_env(group_size=4, over_provision={"extra": 3})
    await collect(env)
    assert policy_of(env).concurrency == 7


async def test_a_members_timeout_error_is_not_taken_for_the_groups_deadline():
    class Late(EchoEnv):
        async def collect_trajectory(self, item: Any) -> Any:
            raise TimeoutError("the dataset's own server")

    with pytest.raises(TimeoutError, match="own server"):
        await collect(make_env(env_cls=Late))
