"""Real processes: the trajectory server, the environment and a trainer, with the first two killed on the way."""

import asyncio
import json
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from agentenv import AgentEnvError
from agentenv.api.client import TrainerClient, TrainerRegistration
from agentenv.run.directory import GROUPS_FILE, read_groups

pytestmark = pytest.mark.slow

Scores = tuple[float, ...]


async def until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.02)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@asynccontextmanager
async def process(*arguments: str) -> AsyncIterator[asyncio.subprocess.Process]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    running = await asyncio.create_subprocess_exec(
        sys.executable, "-m", *arguments, env=environment, cwd=Path(__file__).parents[3]
    )
    try:
        yield running
    finally:
        if running.returncode is None:
            running.kill()
        await running.wait()


class Trainer:
    """Takes batches of one group, and acknowledges each."""

    def __init__(self, url: str, checkpoint_dir: Path) -> None:
        self._client = TrainerClient(url, consumer="trainer", timeout_s=5)
        self._registration = TrainerRegistration(
            wandb_group="g",
            wandb_project="p",
            batch_size=2,
            max_token_len=4096,
            checkpoint_dir=str(checkpoint_dir),
            save_checkpoint_interval=3,
            starting_step=0,
            num_steps=10_000,
        )
        self.taken: list[Scores] = []
        self.versions: list[int | None] = []
        self._registered = False

    async def run(self) -> None:
        while True:
            with suppress(AgentEnvError):
                if not self._registered:
                    await self._client.register(self._registration)
                    self._registered = True
                await self._take()
            await asyncio.sleep(0.01)

    async def _take(self) -> None:
        batch = await self._client.batch()
        if batch is None:
            return
        assert batch.batch_id is not None
        await self._client.acknowledge(batch.batch_id)
        self.taken += [tuple(group.scores) for group in batch.groups]
        self.versions += [group.policy_version for group in batch.groups]

    async def close(self) -> None:
        await self._client.close()


@asynccontextmanager
async def training(url: str, checkpoint_dir: Path) -> AsyncIterator[Trainer]:
    trainer = Trainer(url, checkpoint_dir)
    task = asyncio.create_task(trainer.run())
    try:
        yield trainer
        assert not task.done()
    finally:
        task.cancel()
        await asyncio.wait({task})
        await trainer.close()


def written(run: Path) -> list[Scores]:
    """The groups the environment finished: on disk before anything else may happen to them."""
    if not (run / GROUPS_FILE).exists():
        return []
    return [tuple(group.group["scores"]) for group in read_groups(run)]


async def test_the_command_line_feeds_a_trainer_and_leaves_what_it_did(tmp_path: Path):
    port, run = free_port(), tmp_path / "run"
    url = f"http://127.0.0.1:{port}"
    (tmp_path / "serve.yaml").write_text(
        f"environment: tests.agentenv.cli.cli_env:CliEnv\n"
        f"env: {{total_steps: 6, rollout_server_url: '{url}', group_size: 2,"
        f" ensure_scores_are_not_same: false}}\n"
    )
    arguments = ("agentenv", "serve", str(tmp_path / "serve.yaml"), "--run-dir", str(run))
    async with (
        training(url, tmp_path / "trainer") as trainer,
        process("agentenv", "api", "--port", str(port), "--data", str(tmp_path / "db")),
        process(*arguments) as env,
    ):
        assert await asyncio.wait_for(env.wait(), 60) == 0
        assert len(trainer.taken) >= 6
    summary = json.loads((run / "summary.json").read_bytes())
    assert summary["serve"]["groups_sent"] == summary["groups"]["written"] >= 6
    assert summary["serve"]["step"] >= 6
    assert (run / "config.yaml").exists()
    assert (run / "metrics.jsonl").exists()
    assert not list(read_groups(run))


async def test_kills_of_server_and_environment_lose_no_group_and_send_none_twice(tmp_path: Path):
    port, run = free_port(), tmp_path / "run"
    url = f"http://127.0.0.1:{port}"
    server = ("agentenv", "api", "--port", str(port), "--data", str(tmp_path / "db"))
    environment = ("tests.agentenv.serve.serving_process", url, str(run))
    async with training(url, tmp_path / "trainer") as trainer:
        async with process(*environment) as env:
            async with process(*server):
                await until(lambda: len(trainer.taken) >= 20)
            away_at = len(written(run))
            await until(lambda: len(written(run)) >= away_at + 5)
            env.send_signal(signal.SIGKILL)
        killed_at = len(written(run))
        async with process(*server), process(*environment) as env:
            await until(lambda: len(trainer.taken) >= killed_at + 20)
            env.send_signal(signal.SIGKILL)
        async with process(*server), process(*environment) as env:
            taken = len(trainer.taken)
            await until(lambda: len(trainer.taken) >= taken + 5)
            env.send_signal(signal.SIGINT)
            await asyncio.wait_for(env.wait(), 60)
            assert env.returncode == 0
            finished = written(run)
            await until(lambda: len(trainer.taken) >= len(finished))
    assert len(set(trainer.taken)) == len(trainer.taken)
    assert set(finished) <= set(trainer.taken)
    assert (tmp_path / "trainer/env_checkpoints/echo_0").is_dir()
    assert not (tmp_path / "trainer/env_checkpoints/echo_1").exists()
