"""`workspace_key`: one set-up for all groups, and all runs, whose items have an equal key."""

import asyncio
import os
from typing import Any

import pytest

from agentenv.errors import AgentEnvError
from agentenv.group import GroupContext, current_group
from agentenv_backends.errors import EngineError
from agentenv_backends.host import KeptSnapshot
from agentenv_backends.testing import FakeProvider, fake_pool
from agentenv_tools.testing import in_virtual_time
from tests.agentenv.fake_env import make_env
from tests.agentenv.file_env import FileEnv, reader


class KeyedEnv(FileEnv):
    """The workspace depends on whether the item is even."""

    key: Any = "both"

    def workspace_key(self, item: Any) -> Any:
        return self.key if self.key != "parity" else f"parity {item % 2}"


class Cache:
    """A `SnapshotCache` in memory."""

    def __init__(self) -> None:
        self.kept: dict[str, KeptSnapshot] = {}
        self.error: Exception | None = None

    async def load(self, key: str) -> KeptSnapshot | None:
        if self.error is not None:
            raise self.error
        return self.kept.get(key)

    async def store(self, key: str, kept: KeptSnapshot) -> None:
        if self.error is not None:
            raise self.error
        self.kept[key] = kept


class CachingProvider(FakeProvider):
    def __init__(self, cache: Cache) -> None:
        super().__init__()
        self.snapshot_cache = cache


def make(
    provider: FakeProvider | None = None,
    *,
    env_cls: type[KeyedEnv] = KeyedEnv,
    shared: bool = True,
    slots: int = 4,
    **config: Any,
) -> KeyedEnv:
    env = make_env(
        reader,
        env_cls=env_cls,
        backend=fake_pool(provider or FakeProvider(), slots=slots),
        share_workspace_setup=shared,
        **{"group_size": 4, "policy_retry_limit": 5, **config},
    )
    assert isinstance(env, KeyedEnv)
    return env


async def group_of(env: KeyedEnv, item: Any, index: int = 0) -> tuple[Any, list[Any]]:
    """A group, and what its members saw first."""
    context = GroupContext(index)
    current_group.set(context)
    group, backlog = await env.collect_trajectories(item)
    assert backlog == []
    results = [member.records[-1].result for member in context.members]
    return group, [result.steps[0].tool_results[0].output for result in results if result]


async def run(env: KeyedEnv, *items: Any) -> list[Any]:
    """Groups of these items, one after the other, in a run of their own."""
    await env.setup()
    try:
        return [await group_of(env, item, index) for index, item in enumerate(items)]
    finally:
        await env.shutdown()


@in_virtual_time
async def test_groups_with_an_equal_key_share_one_set_up_and_see_nobody_elses_changes():
    env = make()
    groups = await run(env, 5, 5)
    assert len(env.set_ups) == 1
    assert groups == await run(make(shared=False), 5, 5)
    assert [seen for _, seen in groups] == [["prepared 5\n"] * 4] * 2


@in_virtual_time
async def test_other_keys_have_other_workspaces():
    env = make()
    env.key = "parity"
    groups = await run(env, 4, 5, 4, 5)
    assert len(env.set_ups) == 2
    assert [seen[0] for _, seen in groups] == ["prepared 4\n", "prepared 5\n"] * 2


@in_virtual_time
async def test_without_a_key_each_group_sets_up_by_itself():
    env = make()
    env.key = None
    await run(env, 5, 5)
    assert len(env.set_ups) == 2


@in_virtual_time
async def test_groups_that_run_at_the_same_time_wait_for_the_first_ones_set_up():
    env = make(slots=16)
    env.trouble = lambda number: asyncio.sleep(1)
    await env.setup()
    try:
        tasks = [asyncio.create_task(group_of(env, 5, index)) for index in range(3)]
        await asyncio.gather(*tasks)
    finally:
        await env.shutdown()
    assert len(env.set_ups) == 1


@in_virtual_time
async def test_a_group_of_one_uses_a_kept_workspace_too():
    env = make(group_size=1)
    await run(env, 5, 5, 5)
    assert len(env.set_ups) == 1


@in_virtual_time
async def test_a_later_run_finds_the_workspace_where_the_backend_keeps_it():
    cache = Cache()
    first = make(CachingProvider(cache))
    groups = await run(first, 5)
    assert len(cache.kept) == 1
    later = make(CachingProvider(cache))
    assert await run(later, 5) == groups
    assert later.set_ups == []


@in_virtual_time
async def test_an_environment_of_another_class_finds_nothing_under_the_same_key():
    class Other(KeyedEnv):
        pass

    cache = Cache()
    await run(make(CachingProvider(cache)), 5)
    other = make(CachingProvider(cache), env_cls=Other)
    await run(other, 5)
    assert len(other.set_ups) == 1


@in_virtual_time
async def test_a_backend_that_cannot_look_or_keep_costs_nothing_but_the_set_up():
    cache = Cache()
    cache.error = EngineError("the disk is full")
    env = make(CachingProvider(cache))
    groups = await run(env, 5, 5)
    assert len(env.set_ups) == 1
    assert groups == await run(make(shared=False), 5, 5)


@in_virtual_time
async def test_what_is_kept_and_cannot_be_restored_is_made_anew():
    cache = Cache()
    await run(make(CachingProvider(cache)), 5)
    (key,) = cache.kept
    cache.kept[key] = KeptSnapshot(os.urandom(64), cache.kept[key].note)
    env = make(CachingProvider(cache))
    (group,) = await run(env, 5)
    assert [group] == await run(make(shared=False), 5)
    assert len(env.set_ups) == 1


@in_virtual_time
async def test_a_snapshot_that_went_with_its_host_is_made_anew():
    provider = FakeProvider()
    env = make(provider)
    await env.setup()
    try:
        before = await group_of(env, 5)
        for host in list(provider.live.values()):
            host.lose()
        assert await group_of(env, 5) == before
    finally:
        await env.shutdown()
    assert len(env.set_ups) == 2


@pytest.mark.parametrize(
    "returned", [{"seen": (1, 2)}, {1: 2}, {"seen": [], "api_key": "sk-1"}], ids=str
)
@in_virtual_time
async def test_a_set_up_whose_result_cannot_be_kept_runs_for_each_group(returned: dict[Any, Any]):
    class Odd(KeyedEnv):
        async def setup_trajectory_workspace(self, *args: Any, **kwargs: Any) -> Any:
            await super().setup_trajectory_workspace(*args, **kwargs)
            return {"seen": [], **returned} if "seen" not in returned else returned

        async def verify_and_score_trajectory(  # type: ignore[override]
            self, item: Any, final: str, **_: Any
        ) -> Any:
            return await self.score_trajectory(item, final), {}

    cache = Cache()
    env = make(CachingProvider(cache), env_cls=Odd)
    await run(env, 5, 5)
    assert len(env.set_ups) == 2
    assert not cache.kept


@in_virtual_time
async def test_what_is_no_key_is_refused():
    env = make()
    env.key = 5
    with pytest.raises(AgentEnvError, match=r"workspace_key must return a text.*not 5"):
        await run(env, 5)
