"""`share_workspace_setup`: one set-up for a group, as if each member had its own."""

import asyncio
from typing import Any

import pytest

from agentenv import Outcome
from agentenv._shared_setup import SharedSetup
from agentenv.group import GroupContext, current_group
from agentenv.task import Task
from agentenv.types import AgentConfig
from agentenv_backends.base import Capabilities, Snapshot
from agentenv_backends.errors import AcquireTimeoutError, CapabilityError
from agentenv_backends.pool import SlotPool
from agentenv_backends.testing import FakeProvider, Faults, fake_pool
from agentenv_tools.testing import in_virtual_time
from tests.agentenv.fake_env import make_env
from tests.agentenv.file_env import FileEnv, reader
from tests.agentenv.rollout_fakes import FunctionVerifier, FunctionWorkbench


def make(
    provider: FakeProvider | None = None,
    *,
    env_cls: type[FileEnv] = FileEnv,
    shared: bool = True,
    slots: int = 4,
    **config: Any,
) -> FileEnv:
    pool = config.pop("pool", {})
    env = make_env(
        config.pop("script", reader),
        env_cls=env_cls,
        backend=fake_pool(provider or FakeProvider(), slots=slots, **pool),
        share_workspace_setup=shared,
        **{"group_size": 6, **config},
    )
    assert isinstance(env, FileEnv)
    return env


async def collect(env: FileEnv, item: Any = 0) -> tuple[Any, list[Any], GroupContext]:
    """One group; afterwards nothing of it may be left in the backend, which is then shut down."""
    await env.setup()
    context = GroupContext(0)
    token = current_group.set(context)
    try:
        async with asyncio.timeout(60):
            group, backlog = await env.collect_trajectories(item)
        check_nothing_is_left(env)
    finally:
        current_group.reset(token)
        await env.shutdown()
    return group, backlog, context


def check_nothing_is_left(env: FileEnv) -> None:
    pool = env.runtime.backend
    assert isinstance(pool, SlotPool)
    assert pool.stats().acquired_slots == 0
    provider = pool._keeper._provider
    assert isinstance(provider, FakeProvider)
    assert [host.snapshots.kept for host in provider.live.values() if host.snapshots.kept] == []
    assert not pool._shelf._kept


def records(context: GroupContext) -> list[Any]:
    return [record for member in context.members for record in member.records]


@in_virtual_time
async def test_it_gives_the_group_that_a_set_up_of_each_member_gives():
    for slots in (1, 3, 8):
        own, *_ = await collect(make(shared=False, slots=slots))
        shared, backlog, _ = await collect(make(shared=True, slots=slots))
        assert backlog == []
        assert shared == own
    assert len(set(own["scores"])) == 2, "both scores must occur for the comparison to say anything"


@in_virtual_time
async def test_the_set_up_runs_once_and_members_see_nobody_elses_changes():
    env = make()
    _, _, context = await collect(env, item=5)
    assert len(env.set_ups) == 1
    for record in records(context):
        looked = record.result.steps[0].tool_results[0].output
        assert looked == "prepared 5\n"
        assert record.score_metadata["file"].startswith("changed by ")
    assert len({record.score_metadata["file"] for record in records(context)}) == 6
    assert env.set_ups[0] not in {record.trajectory_id for record in records(context)}


@in_virtual_time
async def test_each_member_gets_its_own_copy_of_what_the_set_up_returned():
    _, _, context = await collect(make(), item=5)
    assert [record.score_metadata["meta"] for record in records(context)] == [[5, "mine"]] * 6


@in_virtual_time
async def test_without_it_each_member_sets_up_by_itself():
    env = make(shared=False)
    await collect(env)
    assert len(env.set_ups) == 6


@in_virtual_time
async def test_members_drawn_anew_start_from_the_same_snapshot():
    env = make(group_size=2)
    verdicts = iter([float("nan"), 1.0, 0.0])

    async def setup_agent_env() -> None:
        await FileEnv.setup_agent_env(env)
        env.verdict = lambda item: next(verdicts)

    env.setup_agent_env = setup_agent_env  # type: ignore[method-assign]
    group, _, context = await collect(env)
    assert sorted(group["scores"]) == [0.0, 1.0]
    assert len(records(context)) == 3
    assert len(env.set_ups) == 1


@in_virtual_time
async def test_faults_of_the_sandboxes_change_no_reward():
    clean, *_ = await collect(make(group_size=4))
    failures = 0
    for seed in range(20):
        provider = FakeProvider(
            faults=Faults(seed=seed, slot_lost=0.05, host_lost=0.02, snapshot_fails=0.05)
        )
        env = make(provider, group_size=4, policy_retry_limit=30, pool={"max_hosts": 3}, slots=2)
        faulty, backlog, context = await collect(env)
        assert backlog == []
        assert faulty == clean
        failures += sum(r.outcome is Outcome.INFRASTRUCTURE_FAILED for r in records(context))
    assert failures > 20


@in_virtual_time
async def test_a_snapshot_that_went_with_its_host_is_made_again():
    provider = FakeProvider()
    lost: list[str] = []

    def script(request: Any) -> str:
        if not lost:
            lost.append("h1")
            provider.live["h1"].lose()
        return reader(request)

    env = make(provider, script=script, slots=1, group_size=3)
    group, backlog, _ = await collect(env)
    assert backlog == []
    assert len(env.set_ups) == 2
    clean, *_ = await collect(make(shared=False, group_size=3))
    assert group == clean


@in_virtual_time
async def test_a_set_up_that_raises_leaves_no_reward_and_is_tried_as_often_as_a_members_own():
    def fail(number: int) -> None:
        raise ValueError("no such template")

    counts = []
    for shared in (True, False):
        env = make(shared=shared, group_size=1 if not shared else 2, policy_retry_limit=3)
        env.trouble = fail
        group, backlog, context = await collect(env)
        assert group is None
        assert backlog == [0]
        causes = {(record.outcome, record.cause) for record in records(context)}
        assert causes == {
            (
                Outcome.VERIFIER_FAILED,
                "VerifierError: workspace set-up raised ValueError: no such template",
            )
        }
        counts.append(len(env.set_ups))
    assert counts == [3, 3]


@in_virtual_time
async def test_a_set_up_that_raises_once_costs_each_member_one_draw():
    def fail_once(number: int) -> None:
        if number == 1:
            raise ValueError("a hiccup")

    env = make(group_size=3)
    env.trouble = fail_once
    group, backlog, context = await collect(env)
    assert backlog == []
    assert len(group["scores"]) == 3
    assert len(env.set_ups) == 2
    outcomes = [[record.outcome for record in member.records] for member in context.members]
    assert outcomes == [[Outcome.VERIFIER_FAILED, Outcome.SCORED]] * 3


@in_virtual_time
async def test_a_set_up_that_hangs_ends_by_its_deadline():
    env = make(group_size=2, policy_retry_limit=1)
    env.config.verify_timeout_s = 0.05
    env.trouble = lambda number: asyncio.Event().wait()
    group, _, context = await collect(env)
    assert group is None
    assert "verify_timeout_s" in records(context)[0].cause


@in_virtual_time
async def test_what_cannot_be_copied_is_refused_in_words():
    class Uncopyable(FileEnv):
        async def setup_trajectory_workspace(self, item: Any, **kwargs: Any) -> Any:
            return {"lock": asyncio.Lock(), "gen": (n for n in range(3))}

    env = make(env_cls=Uncopyable, group_size=2, policy_retry_limit=1)
    group, _, context = await collect(env)
    assert group is None
    assert "this cannot be copied" in records(context)[0].cause


@in_virtual_time
async def test_filing_something_under_the_trajectory_id_is_refused_in_words():
    class Filing(FileEnv):
        async def setup_trajectory_workspace(
            self, item: Any, *, trajectory_id: str, exec_tool: Any
        ) -> Any:
            seen = {}
            seen[trajectory_id] = item
            return {}

    env = make(env_cls=Filing, group_size=2, policy_retry_limit=1)
    group, _, context = await collect(env)
    assert group is None
    assert "Return what verification needs" in records(context)[0].cause


@in_virtual_time
async def test_a_set_up_that_needs_no_sandbox_runs_once_too():
    class Light(FileEnv):
        async def setup_trajectory_workspace(self, item: Any, **kwargs: Any) -> Any:
            self.set_ups.append("light")
            return {"seen": [item]}

    env = make(env_cls=Light, group_size=3)
    group, *_ = await collect(env)
    assert len(group["scores"]) == 3
    assert env.set_ups == ["light"]


@in_virtual_time
async def test_a_backend_without_snapshots_is_refused_at_the_start():
    provider = FakeProvider(capabilities=Capabilities("none", True, False, False, False))
    env = make(provider)
    with pytest.raises(CapabilityError, match="share_workspace_setup"):
        await env.setup()
    assert not provider.live


@in_virtual_time
async def test_a_trajectory_by_itself_shares_with_nobody():
    env = make()
    await env.setup()
    try:
        scored, _ = await env.collect_trajectory(3)
        assert scored is not None
        assert len(env.set_ups) == 1
        check_nothing_is_left(env)
    finally:
        await env.shutdown()


@in_virtual_time
async def test_a_member_with_an_item_of_its_own_sets_up_by_itself():
    class Varied(FileEnv):
        async def collect_trajectory(self, item: Any) -> Any:
            return await super().collect_trajectory(f"{item} varied")

    env = make(env_cls=Varied, group_size=2)
    group, *_ = await collect(env, item="x")
    assert len(group["scores"]) == 2
    assert len(env.set_ups) == 2


@in_virtual_time
async def test_a_group_cancelled_at_any_moment_leaves_nothing():
    cancelled = 0
    for moment in range(60):
        env = make(FakeProvider(faults=Faults(latency_s=(1.0, 1.0))), group_size=3, slots=2)
        await env.setup()
        task = asyncio.create_task(env.collect_trajectories(0))
        await asyncio.sleep(moment * 0.5)
        task.cancel()
        await asyncio.wait({task})
        cancelled += task.cancelled()
        check_nothing_is_left(env)
        await env.shutdown()
    assert 30 < cancelled < 60, "moments before and after the end"


@in_virtual_time
async def test_a_group_that_overruns_its_deadline_leaves_nothing():
    env = make(group_size=2)
    env.config.group_timeout_s = 0.05
    env.trouble = lambda number: asyncio.Event().wait()
    group, backlog, _ = await collect(env)
    assert group is None
    assert backlog == [0]


@in_virtual_time
async def test_groups_side_by_side_share_nothing_with_each_other():
    env = make(group_size=3, slots=4)
    await env.setup()
    try:
        contexts = [GroupContext(index) for index in range(5)]

        async def one(context: GroupContext) -> Any:
            current_group.set(context)
            return await env.collect_trajectories(context.index)

        await asyncio.gather(*(one(context) for context in contexts))
        assert len(env.set_ups) == 5
        for context in contexts:
            looked = {r.result.steps[0].tool_results[0].output for r in records(context)}
            assert looked == {f"prepared {context.index}\n"}
        check_nothing_is_left(env)
    finally:
        await env.shutdown()


# ---- one set-up by itself ----


class OneSetup:
    """A set-up of ten seconds for members that are only workbenches."""

    def __init__(self) -> None:
        self.bench = FunctionWorkbench()
        self.dropped: list[Snapshot] = []
        self.shared = SharedSetup(
            None,
            FunctionVerifier(prepare=self._prepare),
            workbench=lambda task, trajectory_id: self.bench,
            drop=self._drop,
            timeout_s=60,
        )

    async def _prepare(self, exec_tool: Any) -> dict[str, Any]:
        await asyncio.sleep(10)
        return {}

    async def _drop(self, snapshot: Snapshot) -> None:
        self.dropped.append(snapshot)

    def member(self, bench: FunctionWorkbench | None = None) -> asyncio.Task[dict[str, Any]]:
        task = Task("do it", None, AgentConfig())
        return asyncio.create_task(self.shared.enter(task, bench or FunctionWorkbench()))


@in_virtual_time
async def test_a_member_that_is_withdrawn_takes_the_set_up_from_nobody():
    one = OneSetup()
    first, second = one.member(), one.member()
    await asyncio.sleep(1)
    first.cancel()
    assert await second == {}
    await one.shared.close()


@in_virtual_time
async def test_a_member_that_got_no_slot_costs_no_new_set_up():
    class Crowded(FunctionWorkbench):
        async def restore(self, snapshot: Snapshot) -> None:
            raise AcquireTimeoutError("no slot came")

    one = OneSetup()
    with pytest.raises(AcquireTimeoutError):
        await one.member(Crowded())
    await one.member()
    await one.shared.close()
    assert one.bench.log.count("snapshot") == 1


@in_virtual_time
async def test_a_snapshot_taken_although_the_group_ended_meanwhile_is_dropped():
    class Stubborn(FunctionWorkbench):
        async def snapshot(self) -> Snapshot | None:
            try:
                await asyncio.sleep(5)
            except asyncio.CancelledError:
                await asyncio.sleep(1)
            return await super().snapshot()

    one = OneSetup()
    one.bench = Stubborn()
    one.member()
    await asyncio.sleep(12)
    await one.shared.close()
    assert one.dropped == [Snapshot("taken", "h1")]
