"""Groups as a stream: bounded, held up by whoever takes them, steered while it runs, and gone without a trace."""

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any, TypeVar

import pytest

from agentenv import AgentEnvError, Item, NotStartedError, PolicyError, ScoredDataGroup
from agentenv.collected import CollectorSettings
from agentenv.collector import Collector, NothingCollectedError
from agentenv.control.filters import GroupFilters
from agentenv.group import build_group, current_group
from agentenv.run.progress import QuietProgress
from tests.agentenv.fake_env import EchoEnv, make_env, policy_of, solver
from tests.waiting import WITHIN_S


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(WITHIN_S):
        while not condition():
            await asyncio.sleep(0.002)


class GatedEnv(EchoEnv):
    """Its groups end when the test says so. `started` holds the items in the order their groups began."""

    async def setup_agent_env(self) -> None:
        await super().setup_agent_env()
        self.started: list[Item] = []
        self.ended: list[Item] = []
        self.gates: dict[Item, asyncio.Event] = {}
        self.open = False

    async def collect_trajectories(self, item: Item) -> tuple[ScoredDataGroup | None, list[Item]]:
        self.started.append(item)
        gate = self.gates.setdefault(item, asyncio.Event())
        try:
            if not self.open:
                await gate.wait()
        finally:
            self.ended.append(item)
        return group_of([0.0, 1.0]), []

    @property
    def running(self) -> int:
        return len(self.started) - len(self.ended)


def group_of(scores: list[float]) -> ScoredDataGroup:
    return build_group([{"tokens": [1, 2], "masks": [-100, 2], "scores": s} for s in scores])


EnvT = TypeVar("EnvT", bound=GatedEnv)


async def set_up(env_cls: type[EnvT], script: Any = solver, **config: Any) -> EnvT:
    env = make_env(script, env_cls=env_cls, **config)
    await env.setup()
    assert isinstance(env, env_cls)
    return env


async def gated() -> GatedEnv:
    return await set_up(GatedEnv)


async def take(collector: Collector, groups: int) -> list[Any]:
    taken: list[Any] = []
    async with asyncio.timeout(WITHIN_S):
        async for collected in collector:
            taken.append(collected)
            if len(taken) == groups:
                break
    return taken


async def test_it_gives_exactly_the_groups_asked_for():
    env = make_env(group_size=3, ensure_scores_are_not_same=False)
    await env.setup()
    async with env.groups(total=7, workers=3) as groups:
        taken = [collected async for collected in groups]
    assert sorted(collected.index for collected in taken) == list(range(7))
    assert {collected.item for collected in taken} == set(range(7))
    assert len({collected.group_id for collected in taken}) == 7
    assert all(len(collected.group["tokens"]) == 3 for collected in taken)
    await env.shutdown()


async def test_groups_need_an_environment_that_is_set_up():
    with pytest.raises(NotStartedError):
        make_env().groups()


async def test_groups_nobody_takes_hold_collection_up():
    env = await gated()
    env.open = True
    async with Collector(env, CollectorSettings(workers=3)) as collector:
        await until(lambda: len(env.ended) == 3)
        for _ in range(20):
            await asyncio.sleep(0)
        assert len(env.started) == 3
        assert len(await take(collector, 2)) == 2
    await env.shutdown()


@pytest.mark.parametrize("error", [None, KeyError("the trainer's own bug")])
async def test_leaving_the_block_ends_what_is_under_way(error: Exception | None):
    env = make_env(
        latency_s=0.01, group_size=2, max_num_workers=4, ensure_scores_are_not_same=False
    )
    await env.setup()
    tasks = len(asyncio.all_tasks())
    with pytest.raises(KeyError) if error else contextlib.nullcontext():
        async with env.groups() as groups:
            async for _ in groups:
                if error:
                    raise error
                break
    assert env.runtime.backend.stats().acquired_slots == 0
    assert policy_of(env).in_use == 0
    await until(lambda: len(asyncio.all_tasks()) <= tasks)
    await env.shutdown()


async def test_a_group_that_takes_too_long_is_cancelled_and_its_item_tried_again():
    env = await gated()
    progress = QuietProgress()
    settings = CollectorSettings(workers=1, total=1, worker_timeout_s=0.05)
    async with Collector(env, settings, progress=progress) as collector:
        await until(lambda: len(env.started) == 2)
        env.gates[0].set()
        (collected,) = [collected async for collected in collector]
    assert (collected.index, collected.item) == (0, 0)
    assert progress.counters.groups_retried == 1
    assert list(progress.counters.retries) == ["not done within worker_timeout=… s"]
    await env.shutdown()


async def test_an_item_that_always_takes_too_long_is_dropped_with_its_cause():
    env = await gated()
    progress = QuietProgress()
    settings = CollectorSettings(workers=1, worker_timeout_s=0.02, item_attempts=2)
    async with Collector(env, settings, progress=progress):
        await until(lambda: 1 in env.started)
        assert env.started[:3] == [0, 0, 1]
        assert progress.counters.drops == {"not done within worker_timeout=… s": 1}
    await env.shutdown()


async def test_a_pause_starts_nothing_and_ends_nothing():
    env = await gated()
    async with Collector(env, CollectorSettings(workers=2)) as collector:
        await until(lambda: len(env.started) == 2)
        collector.pause()
        env.gates[0].set()
        assert [collected.item for collected in await take_some(collector, 1)] == [0]
        await asyncio.sleep(0)
        assert env.started == [0, 1]
        collector.resume()
        await until(lambda: env.started == [0, 1, 2])
        assert env.running == 2
    await env.shutdown()


async def take_some(collector: Collector, count: int) -> list[Any]:
    """Take groups without ending the collection, as leaving an `async for` would."""
    async with asyncio.timeout(WITHIN_S):
        return [await collector.take() for _ in range(count)]


async def test_a_pause_of_the_policy_does_not_count_against_a_groups_time():
    paused, clock = await gated(), await gated()
    settings = CollectorSettings(workers=1, worker_timeout_s=0.1)
    async with Collector(paused, settings), Collector(clock, settings):
        await until(lambda: len(paused.started) == 1)
        paused.runtime.gate.pause()
        await until(lambda: len(clock.started) == 3)
        assert (paused.started, paused.ended) == ([0], [])
        paused.runtime.gate.resume()
        await until(lambda: len(paused.started) == 2)
    await paused.shutdown()
    await clock.shutdown()


async def test_a_withdrawn_group_is_collected_anew_before_anything_else():
    env = await gated()
    progress = QuietProgress()
    settings = CollectorSettings(workers=2, item_attempts=1)
    async with Collector(env, settings, progress=progress) as collector:
        await until(lambda: len(env.started) == 2)
        collector.policy_version = 5
        assert collector.withdraw(lambda group: group.policy_version is None, "too old") == 2
        assert collector.withdraw(lambda group: True, "again") == 0
        await until(lambda: len(env.started) == 4)
        assert sorted(env.started[2:]) == [0, 1]
        assert {group.policy_version for group in collector.under_way} == {5}
        assert progress.counters.retries == {"too old": 2}
        assert progress.counters.groups_dropped == 0
    await env.shutdown()


async def test_the_limit_may_change_while_it_runs():
    env = await gated()
    async with Collector(env, CollectorSettings(workers=1)) as collector:
        await until(lambda: len(env.started) == 1)
        collector.limit = 3
        await until(lambda: len(env.started) == 3)
        collector.limit = 0
        env.gates[0].set()
        await take_some(collector, 1)
        for _ in range(20):
            await asyncio.sleep(0)
        assert (len(env.started), env.running) == (3, 2)
        collector.limit = 4
        await until(lambda: env.running == 4)
    await env.shutdown()


async def test_every_start_is_asked_for():
    env = await gated()
    env.open = True
    collector = Collector(env, CollectorSettings(workers=4))
    collector.admits = lambda: len(env.started) < 2
    async with collector:
        assert [c.item for c in await take_some(collector, 2)] == [0, 1]
        assert env.started == [0, 1]
    await env.shutdown()


async def test_stopping_delivers_what_still_ends_in_time():
    env = await gated()
    async with Collector(env, CollectorSettings(workers=3)) as collector:
        await until(lambda: len(env.started) == 3)
        collector.stop(grace_s=0.2)
        env.gates[1].set()
        assert [collected.item async for collected in collector] == [1]
    assert env.running == 0
    assert len(env.started) == 3
    await env.shutdown()


async def test_what_was_ended_is_still_known_and_another_collection_can_take_it_up():
    env = await gated()
    async with Collector(env, CollectorSettings(workers=3)) as collector:
        await until(lambda: len(env.started) == 3)
        env.gates[1].set()
        await take_some(collector, 1)
        await until(lambda: len(env.started) == 4)
    assert sorted(collector.unfinished) == [0, 2, 3]
    env.open = True
    other = Collector(env, CollectorSettings(workers=1, total=4))
    other.take_up([0, 2, 3])
    async with other:
        assert [collected.item async for collected in other] == [0, 2, 3, 4]
    assert other.unfinished == []
    await env.shutdown()


async def test_a_dataset_without_items_now_is_asked_again():
    class Trickle(GatedEnv):
        async def get_next_item(self) -> Item | None:
            self.asked = getattr(self, "asked", 0) + 1
            return None if self.asked == 1 else await super().get_next_item()

    env = await set_up(Trickle)
    async with Collector(env, CollectorSettings(workers=1, ends_with_dataset=False)) as collector:
        await until(lambda: env.started == [0])
        assert collector.waiting == 0
    await env.shutdown()


async def test_waiting_for_an_item_holds_no_finished_group_back():
    class Stuck(GatedEnv):
        async def get_next_item(self) -> Item | None:
            if self.next_item == 1:
                await asyncio.Event().wait()
            return await super().get_next_item()

    env = await set_up(Stuck)
    async with Collector(env, CollectorSettings(workers=2)) as collector:
        await until(lambda: env.started == [0])
        env.gates[0].set()
        assert [c.item for c in await take_some(collector, 1)] == [0]
    await env.shutdown()


async def test_a_dataset_that_fails_ends_the_iteration_with_its_error():
    class Broken(GatedEnv):
        async def get_next_item(self) -> Item | None:
            if self.next_item == 1:
                raise ZeroDivisionError
            return await super().get_next_item()

    env = await set_up(Broken)
    env.open = True
    with pytest.raises(ZeroDivisionError):
        async with Collector(env, CollectorSettings(workers=2)) as collector:
            _ = [collected async for collected in collector]
    assert env.running == 0
    await env.shutdown()


async def test_a_dataset_that_awaited_what_was_cancelled_ends_the_iteration_with_an_error():
    class Cancelled(GatedEnv):
        async def get_next_item(self) -> Item | None:
            raise asyncio.CancelledError

    env = await set_up(Cancelled)
    with pytest.raises(AgentEnvError, match="get_next_item"):
        async with Collector(env, CollectorSettings(workers=2)) as collector:
            _ = [collected async for collected in collector]
    await env.shutdown()


async def test_it_goes_on_through_failures_unless_told_otherwise(monkeypatch):
    monkeypatch.setattr("agentenv.collector._LONGEST_PAUSE_S", 0.1)
    left = [5]

    def script(request: Any) -> Any:
        left[0] -= 1
        return PolicyError("engine is down") if left[0] >= 0 else "right"

    env = make_env(script, policy_retry_limit=1, group_size=1)
    await env.setup()
    progress = QuietProgress()
    settings = CollectorSettings(workers=1, total=1)
    async with Collector(env, settings, progress=progress) as collector:
        assert len([collected async for collected in collector]) == 1
    assert progress.counters.groups_retried + progress.counters.groups_dropped == 5
    left[0] = 100
    settings = CollectorSettings(workers=2, failures_in_a_row=3)
    with pytest.raises(NothingCollectedError, match="engine is down"):
        async with Collector(env, settings) as collector:
            _ = [collected async for collected in collector]
    await env.shutdown()


async def test_a_filter_drops_groups_with_its_reason_and_they_do_not_count():
    class Mixed(GatedEnv):
        async def collect_trajectories(self, item: Item) -> Any:
            return group_of([0.0, 1.0] if item % 2 else [1.0, 1.0]), []

    env = await set_up(Mixed)
    progress = QuietProgress()
    settings = CollectorSettings(workers=2, total=3)
    equal = lambda group: "equal" if len(set(group["scores"])) < 2 else None  # noqa: E731
    async with Collector(
        env, settings, progress=progress, filters=GroupFilters([equal])
    ) as collector:
        assert sorted([c.item async for c in collector]) == [1, 3, 5]
    assert progress.counters.drops == {"equal": 3}
    await env.shutdown()


async def test_the_curriculum_orders_items_and_learns_from_every_complete_group():
    env = await set_up(GatedEnv, curriculum={"type": "by_success", "lookahead": 4}, seed=3)
    env.open = True
    async with Collector(env, CollectorSettings(workers=1, total=4)) as collector:
        taken = [c.item async for c in collector]
    assert len(set(taken)) == 4
    assert taken != [0, 1, 2, 3]
    assert env.next_item > 4
    await env.shutdown()


async def test_a_group_carries_the_version_of_its_oldest_token():
    class Versioned(GatedEnv):
        versions: Any = ("12", "9")

        async def collect_trajectories(self, item: Item) -> Any:
            group = current_group.get()
            assert group is not None
            scored, _ = await self.collect_trajectory(item)
            result = group.members[-1].records[-1].result
            assert result is not None
            for sequence in result.sequences:
                object.__setattr__(sequence, "policy_versions", self.versions)
            return build_group([scored] if scored else []), []

    async def version(told: tuple[str, ...], step: int | None) -> int | None:
        env = await set_up(Versioned, lambda request: "right", group_size=1)
        env.versions = told
        collector = Collector(env, CollectorSettings(workers=1, total=1))
        collector.policy_version = step
        async with collector:
            (collected,) = [collected async for collected in collector]
        await env.shutdown()
        result: int | None = collected.policy_version
        return result

    assert await version(("12", "9"), 7) == 9
    assert await version(("12", "v9"), 7) == 7
    assert await version((), 7) == 7
    assert await version((), None) is None
