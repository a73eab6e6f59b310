"""`process` collects what was asked for, loses nothing silently, and stops when told."""

import asyncio
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from agentenv import PolicyError, TokensUnavailableError
from agentenv.group import build_group
from agentenv.process import NothingCollectedError, process
from agentenv.run.directory import RunDirectory, read_groups
from agentenv.run.progress import QuietProgress
from agentenv_backends.testing import FakeProvider, Faults, fake_pool
from tests.agentenv.fake_env import EchoEnv, call_text, make_env, policy_of, solver
from tests.waiting import WITHIN_S


async def run(env: EchoEnv, path: Path) -> tuple[int, QuietProgress]:
    directory = await RunDirectory.open(path)
    progress = QuietProgress()
    try:
        return await process(env, directory=directory, progress=progress), progress
    finally:
        await directory.close()


async def test_it_writes_the_groups_asked_for_with_their_trajectories(tmp_path: Path):
    written, progress = await run(make_env(total_steps=5, group_size=3), tmp_path)
    groups = list(read_groups(tmp_path))
    assert written == len(groups) == progress.counters.groups_done == 5
    assert sorted(group.group_id for group in groups) == [f"{n:06d}" for n in range(5)]
    for group in groups:
        assert len(group.trajectories) == 3
        assert [t.score for t in group.trajectories] == group.group["scores"]
        assert [t.sequences[0].row for t in group.trajectories] == [0, 1, 2]
        assert group.trajectories[0].steps[0].tool_calls[0].output == "look\n"
    assert progress.counters.outcomes == {"scored": 15}


async def test_it_ends_with_the_dataset(tmp_path: Path):
    class Short(EchoEnv):
        async def setup_agent_env(self) -> None:
            await super().setup_agent_env()
            self.items = 4

    written, _ = await run(make_env(env_cls=Short, total_steps=-1), tmp_path)
    assert written == 4


async def test_the_same_seed_writes_the_same_groups_whatever_the_concurrency_and_the_faults(
    tmp_path: Path,
):
    async def groups(name: str, **config: Any) -> dict[str, Any]:
        await run(make_env(total_steps=8, group_size=3, **config), tmp_path / name)
        return {g.group_id: dict(g.group) for g in read_groups(tmp_path / name)}

    alone = await groups("alone", max_num_workers=1)
    assert alone == await groups("together", max_num_workers=8, slots=2, latency_s=0.001)
    assert alone == await groups(
        "faulty", faults=Faults(seed=3, slot_lost=0.05, host_lost=0.005), policy_retry_limit=20
    )


async def test_an_item_whose_group_failed_is_tried_again(tmp_path: Path):
    failures = iter([True])

    def script(request: Any) -> Any:
        if next(failures, False):
            return PolicyError("engine is down")
        return solver(request)

    env = make_env(script, policy_retry_limit=1, total_steps=2)
    written, progress = await run(env, tmp_path)
    assert written == 2
    assert progress.counters.groups_retried == 1
    assert progress.counters.groups_dropped == 0
    assert {g.item_preview for g in read_groups(tmp_path)} == {"task 0", "task 1"}


async def test_it_gives_up_when_nothing_can_be_collected(tmp_path: Path):
    env = make_env(
        lambda request: PolicyError("engine is down"), policy_retry_limit=1, max_num_workers=2
    )
    with pytest.raises(NothingCollectedError, match="engine is down"):
        await run(env, tmp_path)
    assert env.runtime.backend.stats().hosts == 0


async def test_equal_scores_are_kept_unless_told_otherwise(tmp_path: Path):
    kept, _ = await run(make_env(lambda request: "wrong", total_steps=2), tmp_path / "kept")
    assert kept == 2
    env = make_env(solver, total_steps=2, group_size=3, ensure_scores_are_not_same=True)
    _, progress = await run(env, tmp_path / "mixed")
    assert all(len(set(g.group["scores"])) > 1 for g in read_groups(tmp_path / "mixed"))
    assert progress.counters.groups_done == 2


async def test_an_exception_in_the_environments_own_code_costs_its_group_and_is_counted(
    tmp_path: Path,
):
    class Fragile(EchoEnv):
        async def postprocess_histories(self, group: Any) -> Any:
            self.calls = getattr(self, "calls", 0) + 1
            if self.calls == 1:
                raise KeyError("a bug")
            return group

    written, progress = await run(make_env(env_cls=Fragile, total_steps=2), tmp_path)
    assert written == 2
    assert progress.counters.groups_retried == 1


async def signalled(env: EchoEnv, path: Path, *signals: float) -> int:
    """Run `process` and send SIGINT after each delay; returns groups written."""
    directory = await RunDirectory.open(path)
    task = asyncio.create_task(process(env, directory=directory, progress=QuietProgress()))
    for delay in signals:
        await asyncio.sleep(delay)
        os.kill(os.getpid(), signal.SIGINT)
    try:
        async with asyncio.timeout(WITHIN_S):
            return await task
    finally:
        await directory.close()


async def test_the_first_ctrl_c_finishes_what_is_under_way_and_keeps_it(tmp_path: Path):
    env = make_env(latency_s=0.1, total_steps=1000, max_num_workers=2)
    written = await signalled(env, tmp_path, 0.5)
    assert 0 < written < 1000
    assert len(list(read_groups(tmp_path))) == written
    assert env.runtime.backend.stats().hosts == 0


async def test_the_second_ctrl_c_ends_it_at_once(tmp_path: Path):
    env = make_env(lambda request: call_text("sleep 100"), total_steps=1000, group_timeout_s=100000)
    assert await signalled(env, tmp_path, 0.3, 0.1) == 0
    assert env.runtime.backend.stats().hosts == 0


async def test_slots_that_are_not_given_back_end_with_their_hosts_after_a_ctrl_c(tmp_path: Path):
    env = make_env(
        lambda request: call_text("sleep 100"),
        backend=fake_pool(
            FakeProvider(faults=Faults(close_hangs=1.0)), slots=4, close_timeout_s=600
        ),
        total_steps=1000,
        group_timeout_s=100000,
    )
    assert await signalled(env, tmp_path, 0.3, 0.1) == 0
    assert env.runtime.backend.stats().hosts == 0


async def test_rows_that_the_environment_moved_or_left_out_are_still_found(tmp_path: Path):
    class Sorted(EchoEnv):
        async def postprocess_histories(self, group: Any) -> Any:
            for key in ("tokens", "masks", "scores", "inference_logprobs", "overrides"):
                group[key] = group[key][::-1][:2]
            return group

    await run(make_env(env_cls=Sorted, total_steps=1, group_size=4), tmp_path)
    (group,) = read_groups(tmp_path)
    assert [t.sequences[0].row for t in group.trajectories] == [None, None, 1, 0]
    assert [len(t.sequences[0].tokens) > 0 for t in group.trajectories] == [
        True,
        True,
        False,
        False,
    ]


@pytest.mark.parametrize("metadata", [{(1, 2): 3}, {1: "a", "1": "b"}, {"x": {1, 2}}])
async def test_metadata_of_any_kind_leaves_readable_groups(tmp_path: Path, metadata: Any):
    class Odd(EchoEnv):
        async def verify_and_score_trajectory(self, *args: Any, **kwargs: Any) -> Any:
            return 1.0, metadata

    written, _ = await run(make_env(env_cls=Odd, total_steps=1), tmp_path)
    assert written == len(list(read_groups(tmp_path))) == 1


@pytest.mark.parametrize("made", [[{}], {"tokens": []}, asyncio.CancelledError()])
async def test_what_is_no_group_costs_its_item_and_not_the_run(tmp_path: Path, made: Any):
    class Careless(EchoEnv):
        async def collect_trajectories(self, item: Any) -> Any:
            if item == 0 and isinstance(made, BaseException):
                raise made
            return (made, []) if item == 0 else await super().collect_trajectories(item)

    written, progress = await run(make_env(env_cls=Careless, total_steps=2), tmp_path)
    assert written == 2
    assert progress.counters.groups_dropped == 1
    assert progress.counters.groups_running == 0


async def test_members_collected_by_the_environment_itself_are_recorded_and_repeatable(
    tmp_path: Path,
):
    class Own(EchoEnv):
        async def collect_trajectories(self, item: Any) -> Any:
            found = await asyncio.gather(*(self.collect_trajectory(item) for _ in range(3)))
            return build_group([scored for scored, _ in found if scored]), []

    async def groups(name: str, **config: Any) -> dict[str, Any]:
        await run(make_env(env_cls=Own, total_steps=4, **config), tmp_path / name)
        return {g.group_id: g for g in read_groups(tmp_path / name)}

    alone = await groups("alone", max_num_workers=1)
    together = await groups("together", max_num_workers=4, latency_s=0.001)
    assert {n: g.group for n, g in alone.items()} == {n: g.group for n, g in together.items()}
    assert [len(group.trajectories) for group in alone.values()] == [3, 3, 3, 3]


async def test_rollouts_and_groups_that_were_ended_are_counted(tmp_path: Path):
    env = make_env(
        lambda request: call_text("sleep 100"), max_num_workers=1, group_timeout_s=100000
    )
    progress = QuietProgress()
    task = asyncio.create_task(process(env, progress=progress, handle_signals=False))
    while len(policy_of(env).requests) < 2:
        await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert progress.counters.outcomes == {"cancelled": 2}
    assert (progress.counters.groups_running, progress.counters.groups_dropped) == (0, 1)


async def test_the_process_manager_writes_what_it_collects(tmp_path: Path):
    env = make_env(total_steps=2, data_path_to_save_groups=str(tmp_path / "groups.jsonl"))
    await env.process_manager()
    assert len(list(read_groups(tmp_path / "groups"))) == 2
    assert (tmp_path / "groups" / "config.yaml").exists()
    assert (tmp_path / "groups" / "summary.json").exists()


@pytest.mark.parametrize("hook", ["setup_agent_env", "get_next_item"])
async def test_one_ctrl_c_ends_a_run_that_waits_for_its_data(tmp_path: Path, hook: str):
    class Slow(EchoEnv):
        pass

    entered = asyncio.Event()

    async def wait(self: Any) -> None:
        entered.set()
        await asyncio.Event().wait()

    setattr(Slow, hook, wait)
    env = make_env(env_cls=Slow)
    task = asyncio.create_task(process(env))
    async with asyncio.timeout(WITHIN_S):
        await entered.wait()
        os.kill(os.getpid(), signal.SIGINT)
        assert await task == 0
    assert env.runtime.backend.stats().hosts == 0


async def test_a_policy_without_tokens_is_refused_before_anything_starts():
    env = make_env()
    policy_of(env).returns_tokens = False
    with pytest.raises(TokensUnavailableError):
        await process(env)
    assert not policy_of(env).started
