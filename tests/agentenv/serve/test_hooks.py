"""What an environment's own hooks do to `serve`: evaluation, metrics, and hooks that fail or hang."""

import asyncio
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from agentenv import Item
from agentenv.testing import FakeLink
from tests.agentenv.fake_env import policy_of
from tests.agentenv.serve.running import MixedEnv, fill, made, seen, serving, until
from tests.waiting import WITHIN_S


class Evaluated(MixedEnv):
    """Its evaluation lasts until the test says so."""

    async def setup_agent_env(self) -> None:
        await super().setup_agent_env()
        self.begun: list[int] = []
        self.go_on = asyncio.Event()
        self.wrong: Exception | None = None

    async def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        self.begun.append(self.curr_step)
        await self.go_on.wait()
        if self.wrong is not None:
            raise self.wrong
        return {"eval/solved": 0.5}


async def test_evaluation_stops_new_groups_and_restarts_none(tmp_path: Path):
    env, link = made(Evaluated, steps_per_eval=1), FakeLink(batch_size=4)
    async with serving(env, link, tmp_path) as running:
        await fill(link)
        await until(lambda: env.begun)
        await until(lambda: running.progress.counters.groups_running == 0)
        requests = len(policy_of(env).requests)
        await seen(link)
        assert len(policy_of(env).requests) == requests
        assert running.progress.counters.groups_retried == 0
        while link.train():
            pass
        env.go_on.set()
        await until(lambda: len(policy_of(env).requests) > requests)
        file = tmp_path / "metrics.jsonl"
        await until(lambda: file.exists() and "eval/solved" in file.read_text())
    line = next(line for line in file.read_text().splitlines() if "solved" in line)
    assert json.loads(line) == {"step": env.begun[0], "echo_0_eval/solved": 0.5}


async def test_a_limited_evaluation_leaves_a_share_of_the_workers(tmp_path: Path):
    class Slow(Evaluated):
        release = asyncio.Event()

        async def collect_trajectories(self, item: Item) -> Any:
            if self.begun:
                await self.release.wait()
            return await super().collect_trajectories(item)

    env = made(
        Slow, steps_per_eval=1, eval_handling="LIMIT_TRAIN", eval_limit_ratio=0.5, max_num_workers=4
    )
    link = FakeLink(batch_size=4)
    async with serving(env, link, tmp_path) as running:
        await fill(link)
        await until(lambda: env.begun)
        while link.train():
            pass
        await until(lambda: running.progress.counters.groups_running == 2)
        await seen(link)
        assert running.progress.counters.groups_running == 2
        env.go_on.set()
        await until(lambda: link.train() or running.progress.counters.groups_running == 4)
        await until(lambda: running.progress.counters.groups_running == 4)
        env.release.set()


async def test_an_evaluation_that_fails_is_logged_and_counted_and_ends_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    env, link = made(Evaluated, steps_per_eval=1), FakeLink(batch_size=4, num_steps=3)
    env.config.total_steps = 3
    async with serving(env, link, tmp_path) as running:
        await until(lambda: hasattr(env, "wrong"))
        env.wrong = ZeroDivisionError("in the environment's own code")
        env.go_on.set()
        while not running.task.done():
            link.train()
            await asyncio.sleep(0.002)
    assert running.totals["evaluations"]["failed"] >= 1
    assert "ZeroDivisionError" in caplog.text


async def reports(link: FakeLink, file: Path, enough: int) -> list[dict[str, Any]]:
    """The first reports, with a trainer that goes on until they are there: one comes at a step with enough groups."""
    async with asyncio.timeout(60):
        while not file.exists() or file.read_text().count("\n") < enough:
            await fill(link)
            await seen(link)
    return [json.loads(line) for line in file.read_text().splitlines()[:enough]]


async def test_metrics_bear_the_documented_names(tmp_path: Path):
    class Logging(MixedEnv):
        async def wandb_log(self, wandb_metrics: dict[str, Any] | None = None) -> None:
            await super().wandb_log({**(wandb_metrics or {}), "train/mine": 1.5})

    env, link = made(Logging), FakeLink(batch_size=4)
    async with serving(env, link, tmp_path):
        (report,) = await reports(link, tmp_path / "metrics.jsonl", 1)
    for name in (
        "train/completion_lengths", "train/completion_lengths_std", "train/completion_lengths_max",
        "train/completion_lengths_min", "train/completion_lengths_p95", "train/items_sent_to_api",
        "train/items_rejected", "train_perf/task_duration_mean", "train_perf/task_duration_std",
        "train_perf/succeeded_task_duration_max", "train_perf/mainloop_timings_min",
        "train_perf/workers_added_per_attempt_mean", "train/mine",
    ):  # fmt: skip
        assert f"echo_0_{name}" in report
    assert report["echo_0_train/items_sent_to_api"] >= 2


async def test_a_report_that_hangs_holds_neither_steering_nor_the_end_up(tmp_path: Path):
    class Hanging(MixedEnv):
        reporting = False

        async def wandb_log(self, wandb_metrics: dict[str, Any] | None = None) -> None:
            self.reporting = True
            await asyncio.Event().wait()

    env, link = made(Hanging), FakeLink(batch_size=4)
    async with serving(env, link, tmp_path, handle_signals=True) as running:
        while not env.reporting:
            await fill(link)
            await seen(link)
        link.paused = True
        await until(lambda: env.runtime.gate.paused)
        link.paused = False
        os.kill(os.getpid(), signal.SIGINT)
        await asyncio.wait_for(running.task, WITHIN_S)
    assert link.left == [0]


async def test_groups_that_were_dropped_are_counted_in_the_metrics(tmp_path: Path):
    class Even(MixedEnv):
        """Every second group has equal scores."""

        async def score_trajectory(self, item: Item, final_response: str) -> float:
            self.scored = getattr(self, "scored", 0) + 1
            return float(self.scored % 4 == 1)

    link = FakeLink(batch_size=4)
    async with serving(made(Even, max_num_workers=1), link, tmp_path):
        _, report = await reports(link, tmp_path / "metrics.jsonl", 2)
    assert report["echo_0_train/items_rejected"] >= 2
