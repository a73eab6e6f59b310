"""`serve` against a server in memory: everything it does beside collecting."""

import asyncio
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from agentenv import AgentEnvError, ConfigError, Item
from agentenv.api.registry import EnvRegistration
from agentenv.run.directory import read_groups
from agentenv.testing import FakeLink
from tests.agentenv.fake_env import policy_of
from tests.agentenv.serve.running import MixedEnv, Running, fill, made, mixed, seen, serving, until
from tests.waiting import WITHIN_S


async def test_groups_reach_the_server_with_what_a_trainer_needs_until_it_has_enough(
    tmp_path: Path,
):
    env, link = mixed(total_steps=3), FakeLink(batch_size=4)
    async with serving(env, link, tmp_path) as running:
        await until(lambda: link.train() or running.task.done())
        while not running.task.done():
            link.train()
            await asyncio.sleep(0.002)
        await running.task
    assert link.left == [0]
    assert running.totals["groups_sent"] == len(link.groups) >= 8
    assert running.totals["groups_kept_on_disk"] == 0
    assert len({group.group_id for group in link.groups}) == len(link.groups)
    for group in link.groups:
        assert (group.rows, group.env_id) == (2, 0)
        assert len(set(group.scores)) == 2
        assert group.inference_logprobs is not None
        assert group.policy_version is not None
    assert [g.policy_version for g in link.groups] == sorted(
        g.policy_version or 0 for g in link.groups
    )
    registration: EnvRegistration = link.registrations[0]
    assert (registration.desired_name, registration.group_size) == ("echo", 2)


async def test_it_waits_for_a_trainer_before_it_starts_anything(tmp_path: Path):
    env, link = mixed(), FakeLink(started=False)
    async with serving(env, link, tmp_path) as running:
        await until(lambda: link.knocks >= 3)
        assert not policy_of(env).started
        link.away = True
        await asyncio.sleep(0.02)
        link.away, link.started = False, True
        await until(lambda: link.groups)
        assert not running.task.done()


async def test_no_more_groups_wait_than_the_trainer_allows_and_taking_some_lets_it_go_on(
    tmp_path: Path,
):
    env, link = mixed(max_batches_offpolicy=2, max_num_workers=8), FakeLink(batch_size=4)
    async with serving(env, link, tmp_path):
        await until(lambda: len(link.groups) >= 4)
        await seen(link)
        assert len(link.groups) == 4
        assert link.train()
        await until(lambda: len(link.groups) == 6)


async def test_a_refused_group_is_dropped_with_its_reason_and_the_next_goes_through(
    tmp_path: Path,
):
    env, link = mixed(max_num_workers=4), FakeLink(batch_size=16)
    refused: list[str | None] = []

    def refuse_first(group: Any) -> str | None:
        if not refused or group.group_id == refused[0]:
            refused[:] = [group.group_id]
            return "a mask is odd"
        return None

    link.refuses = refuse_first
    async with serving(env, link, tmp_path) as running:
        await until(lambda: len(link.groups) >= 6)
        running.task.cancel()
    assert refused[0] not in {group.group_id for group in link.groups}


async def test_a_policy_pause_holds_rollouts_and_loses_none(tmp_path: Path):
    env, link = mixed(max_num_workers=3), FakeLink(batch_size=6)
    async with serving(env, link, tmp_path) as running:
        await until(lambda: len(link.groups) >= 2)
        link.paused = True
        await until(lambda: env.runtime.gate.paused)
        await until(lambda: policy_of(env).in_use == 0)
        requests = len(policy_of(env).requests)
        await seen(link)
        assert len(policy_of(env).requests) == requests
        link.paused = False
        await until(lambda: len(link.groups) >= 6)
        assert running.progress.counters.groups_retried == 0


async def test_the_environments_weight_reaches_the_policy_in_both_directions(tmp_path: Path):
    env, link = mixed(), FakeLink(weight=0.25)
    async with serving(env, link, tmp_path):
        await until(lambda: policy_of(env).weight == 0.25)
        link.weight = 0.75
        await until(lambda: policy_of(env).weight == 0.75)
        link.weight = 0.01
        await until(lambda: policy_of(env).weight == 0.01)


class Positioned(MixedEnv):
    """Keeps how far it got."""

    def checkpoint_state(self) -> dict[str, Any] | None:
        return {"next_item": self.next_item}


@pytest.mark.parametrize("hook", ["wandb_log", "evaluate", "checkpoint_state"])
async def test_a_hook_that_awaited_what_was_cancelled_has_failed_and_ends_nothing(
    tmp_path: Path, hook: str, caplog: pytest.LogCaptureFixture
):
    class Cancelled(MixedEnv):
        async def wandb_log(self, wandb_metrics: dict[str, Any] | None = None) -> None:
            self.raise_in("wandb_log")

        async def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
            self.raise_in("evaluate")
            return {}

        def checkpoint_state(self) -> dict[str, Any] | None:
            self.raise_in("checkpoint_state")
            return None

        def raise_in(self, name: str) -> None:
            if name == hook:
                raise asyncio.CancelledError

    env, link = made(Cancelled, steps_per_eval=1), FakeLink(batch_size=4, checkpoint_interval=1)
    async with serving(env, link, tmp_path) as running:
        for _ in range(3):
            await fill(link)
            await seen(link)
        await until(lambda: "awaited something that was cancelled" in caplog.text)
        assert not running.task.done()


async def test_set_up_that_awaited_what_was_cancelled_is_no_success(tmp_path: Path):
    class Cancelled(MixedEnv):
        async def setup(self) -> None:
            raise asyncio.CancelledError

    with pytest.raises(AgentEnvError, match="cancelled"):
        await Running(made(Cancelled), FakeLink(), tmp_path).run()


async def test_a_restart_goes_on_where_the_checkpoint_says(tmp_path: Path):
    run, trainer = tmp_path / "run", tmp_path / "trainer"
    link = FakeLink(batch_size=4, checkpoint_dir=str(trainer), checkpoint_interval=1)
    first = made(Positioned)
    async with serving(first, link, run):
        await fill(link)
        await fill(link)
        folder = trainer / "env_checkpoints" / "echo_0"
        await until((folder / "step-2.json").exists)
    kept = json.loads((folder / "step-2.json").read_bytes())["next_item"]
    assert kept > 1
    second = made(Positioned)
    async with serving(second, link, run):
        await until(lambda: getattr(second, "next_item", 0) >= kept)
    assert json.loads((folder / "step-2.json").read_bytes())["next_item"] == kept


async def test_items_under_way_at_a_checkpoint_are_worked_on_after_it(tmp_path: Path):
    class Stuck(Positioned):
        async def collect_trajectories(self, item: Item) -> Any:
            if item == 0 and self.blocks:
                await asyncio.Event().wait()
            self.worked = [*getattr(self, "worked", []), item]
            return await super().collect_trajectories(item)

        blocks = True

    link = FakeLink(batch_size=4, checkpoint_interval=1)
    async with serving(made(Stuck), link, tmp_path):
        await fill(link)
        file = tmp_path / "env_checkpoints/echo_0/step-1.json"
        await until(file.exists)
    assert 0 in json.loads(file.read_bytes())["agentenv"]["items"]
    again = made(Stuck)
    again.blocks = False
    async with serving(again, link, tmp_path):
        await until(lambda: 0 in getattr(again, "worked", []))


async def test_the_curriculum_remembers_over_a_restart_and_the_environment_sees_none_of_it(
    tmp_path: Path,
):
    curriculum = {"type": "by_success", "lookahead": 2, "key": f"{__name__}:only_key"}
    link = FakeLink(batch_size=4, checkpoint_interval=1)
    async with serving(mixed(curriculum=curriculum), link, tmp_path):
        await fill(link)
        file = tmp_path / "env_checkpoints/echo_0/step-1.json"
        await until(file.exists)
    kept = json.loads(file.read_bytes())
    assert list(kept) == ["agentenv"]
    (key, _, trajectories) = kept["agentenv"]["curriculum"]["counts"][0]
    assert (key, trajectories > 0) == ("the only one", True)
    again = mixed(curriculum=curriculum)
    before = len(link.groups)
    async with serving(again, link, tmp_path):
        await until(lambda: len(link.groups) > before or link.train())
    assert not hasattr(again, "agentenv")


def only_key(item: Item) -> str:
    return "the only one"


async def test_groups_are_also_written_where_a_path_for_them_is_set(tmp_path: Path):
    env = mixed(data_path_to_save_groups=str(tmp_path))
    link = FakeLink(batch_size=4)
    async with serving(env, link, tmp_path) as running:
        await until(lambda: running.progress.counters.groups_done >= 3)
    written = list(read_groups(tmp_path))
    assert len(written) >= running.progress.counters.groups_done >= 3


@pytest.mark.parametrize(
    ("config", "link", "message"),
    [
        ({"group_size": 8}, FakeLink(batch_size=4), "group_size=8 is over"),
        ({"total_steps": -1}, FakeLink(num_steps=-1), "total_steps=-1"),
    ],
)
async def test_an_environment_that_cannot_feed_its_trainer_is_refused_before_set_up(
    tmp_path: Path, config: dict[str, Any], link: FakeLink, message: str
):
    env = mixed(**config)
    with pytest.raises(ConfigError, match=message):
        await Running(env, link, tmp_path).run()
    assert not policy_of(env).started
    assert link.left == [0]


async def test_groups_too_old_for_the_trainer_are_collected_anew(tmp_path: Path):
    class Held(MixedEnv):
        release = asyncio.Event()

        async def collect_trajectories(self, item: Item) -> Any:
            if item == 0 and not self.release.is_set():
                await asyncio.Event().wait()
            return await super().collect_trajectories(item)

    env = made(Held, staleness={"max_steps": 1, "admission": False})
    link = FakeLink(batch_size=4)
    async with serving(env, link, tmp_path) as running:
        await fill(link)
        await fill(link)
        await until(lambda: running.progress.counters.retries)
        env.release.set()
        await until(lambda: running.progress.counters.groups_done > 4)
    assert list(running.progress.counters.retries) == [
        "too old for the trainer while under way (staleness)"
    ]


async def test_admission_keeps_every_group_fresh_enough(tmp_path: Path):
    env = mixed(staleness={"max_steps": 1}, max_num_workers=8)
    link = FakeLink(batch_size=4)
    async with serving(env, link, tmp_path) as running:
        for _ in range(6):
            taken = link.queued
            await fill(link)
            assert taken <= 8
        first = link.groups[: 6 * 2]
        for index, group in enumerate(first):
            handed_out = index // 2
            assert group.policy_version is not None
            assert handed_out - group.policy_version <= 1
        assert not running.progress.counters.retries


async def test_on_policy_training_goes_on_batch_by_batch(tmp_path: Path):
    env = mixed(staleness={"max_steps": 0}, max_num_workers=2)
    link = FakeLink(batch_size=4)
    async with serving(env, link, tmp_path) as running:
        for step in range(5):
            await until(lambda: link.queued == 2)
            await seen(link)
            assert len(link.groups) == 2 * (step + 1)
            assert {group.policy_version for group in link.groups[-2:]} == {step}
            assert link.train()
        assert not running.progress.counters.retries


async def test_the_first_signal_sends_what_is_finished_keeps_a_checkpoint_and_says_goodbye(
    tmp_path: Path,
):
    env, link = made(Positioned), FakeLink(batch_size=40)
    async with serving(env, link, tmp_path, handle_signals=True) as running:
        await until(lambda: len(link.groups) >= 3)
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.wait_for(running.task, WITHIN_S)
    assert (
        len(link.groups) == running.totals["groups_sent"] == (running.progress.counters.groups_done)
    )
    assert link.left == [0]
    assert (tmp_path / "env_checkpoints/echo_0/step-0.json").exists()


async def test_the_second_signal_ends_groups_that_hang(tmp_path: Path):
    class Hanging(MixedEnv):
        async def collect_trajectories(self, item: Item) -> Any:
            self.hanging = True
            await asyncio.Event().wait()

    env, link = made(Hanging), FakeLink()
    async with serving(env, link, tmp_path, handle_signals=True) as running:
        await until(lambda: getattr(env, "hanging", False))
        os.kill(os.getpid(), signal.SIGINT)
        await asyncio.sleep(0)
        os.kill(os.getpid(), signal.SIGINT)
        await asyncio.wait_for(running.task, WITHIN_S)
    assert link.left == [0]


async def test_one_signal_ends_the_wait_for_a_trainer(tmp_path: Path):
    env, link = mixed(), FakeLink(started=False)
    async with serving(env, link, tmp_path, handle_signals=True) as running:
        await until(lambda: link.knocks)
        os.kill(os.getpid(), signal.SIGINT)
        await asyncio.wait_for(running.task, WITHIN_S)
    assert not policy_of(env).started


async def test_a_stop_while_the_server_is_away_keeps_everything_for_the_next_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("agentenv.serve.service.SEND_GRACE_S", 0.3)
    env, link = mixed(max_batches_offpolicy=100), FakeLink(batch_size=40)
    async with serving(env, link, tmp_path, handle_signals=True) as running:
        await until(lambda: link.groups)
        link.away = True
        await until(lambda: running.progress.counters.groups_done >= len(link.groups) + 3)
        os.kill(os.getpid(), signal.SIGINT)
        await asyncio.wait_for(running.task, WITHIN_S)
    assert running.totals["groups_kept_on_disk"] >= 3
    done = running.progress.counters.groups_done
    assert running.totals["groups_sent"] + running.totals["groups_kept_on_disk"] == done


async def test_a_state_that_would_replace_machinery_is_refused():
    env = mixed()
    env.restore_state({"next_item": 4, "mine": [1]})
    assert (env.next_item, env.mine) == (4, [1])  # type: ignore[attr-defined]
    with pytest.raises(AgentEnvError, match="setup"):
        env.restore_state({"setup": 1})


async def test_a_run_that_cannot_report_where_it_should_is_refused_at_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ConfigError, match="wandb"):
        await Running(mixed(use_wandb=True), FakeLink(), tmp_path).run()
