"""Several environments at one real trajectory server, in this process."""

import asyncio
from pathlib import Path

import pytest

from agentenv import ConfigError
from agentenv.api.client import EnvironmentClient, TrainerClient, TrainerRegistration
from agentenv.api.server import TrajectoryServer, serving_api
from agentenv.api.settings import ApiSettings, Scope
from agentenv.atif import errors, validate
from agentenv.atif.store import Trajectories
from agentenv.run.directory import read_groups
from agentenv_tools.serving import ServeSettings
from tests.agentenv.fake_env import policy_of
from tests.agentenv.serve.running import MixedEnv, Running, made, until


def registration(num_steps: int) -> TrainerRegistration:
    return TrainerRegistration(
        wandb_group="g",
        wandb_project="p",
        batch_size=8,
        max_token_len=4096,
        checkpoint_dir="",
        save_checkpoint_interval=0,
        starting_step=0,
        num_steps=num_steps,
    )


async def test_an_environment_made_by_hand_feeds_the_trainer_its_configuration_names(
    tmp_path: Path,
):
    server = TrajectoryServer(ServeSettings(port=0), ApiSettings(data=tmp_path / "db"))
    async with serving_api(server) as url, TrainerClient(url) as trainer:
        run = str(tmp_path / "run.jsonl")
        told = {"rollout_server_url": url, "data_path_to_save_groups": run}
        env = made(MixedEnv, total_steps=-1, record_trajectories=True, **told)
        await trainer.register(registration(num_steps=2))
        task = asyncio.create_task(env.env_manager())
        async with asyncio.timeout(60):
            while not task.done():
                await trainer.batch()
                await asyncio.sleep(0.01)
        await task
    assert len(list(read_groups(tmp_path / "run"))) >= 8
    assert (tmp_path / "run" / "summary.json").exists()
    stored = Trajectories(tmp_path / "run")
    for entry in stored.summaries():
        assert errors(validate(stored.read(entry.trajectory_id).to_json(), strict=True)) == []
    sent = [t.trajectory_id for g in read_groups(tmp_path / "run") for t in g.trajectories]
    assert set(sent) <= {entry.trajectory_id for entry in stored.summaries()}


async def test_a_server_that_wants_a_token_is_answered_in_the_words_of_the_setting(
    tmp_path: Path,
):
    api = ApiSettings(
        data=tmp_path / "db", tokens={Scope.TRAINER: "a" * 20, Scope.ENVIRONMENT: "b" * 20}
    )
    async with serving_api(TrajectoryServer(ServeSettings(port=0), api)) as url:
        async with EnvironmentClient(url) as link:
            env = made(MixedEnv)
            with pytest.raises(ConfigError, match=r"401.*env\.rollout_server_token"):
                await Running(env, link, tmp_path / "run").run()  # type: ignore[arg-type]
        assert not policy_of(env).started


async def test_environments_of_several_sizes_share_a_server_and_their_policy_by_weight(
    tmp_path: Path,
):
    class Small(MixedEnv):
        name = "small"

    class Large(MixedEnv):
        name = "large"

    envs = [
        made(Small, group_size=2, inference_weight=1.0, max_num_workers=4),
        made(Large, group_size=4, inference_weight=3.0, max_num_workers=4),
    ]
    server = TrajectoryServer(ServeSettings(port=0), ApiSettings(data=tmp_path / "db"))
    async with (
        serving_api(server) as url,
        TrainerClient(url, consumer="trainer") as trainer,
        EnvironmentClient(url) as first,
        EnvironmentClient(url) as second,
    ):
        await trainer.register(registration(num_steps=1000))
        assert await trainer.batch() is None
        runs = [
            Running(env, link, tmp_path / env.display_name)  # type: ignore[arg-type]
            for env, link in zip(envs, (first, second), strict=True)
        ]
        tasks = [run.task for run in runs]
        rows: dict[int | None, list[int]] = {}
        async with asyncio.timeout(60):
            while len(rows) < 2 or min(map(len, rows.values())) < 5:
                batch = await trainer.batch()
                if batch is None:
                    await asyncio.sleep(0.005)
                    continue
                assert batch.batch_id is not None
                await trainer.acknowledge(batch.batch_id)
                assert sum(group.rows for group in batch.groups) == 8
                for group in batch.groups:
                    rows.setdefault(group.env_id, []).append(group.rows)
        await until(lambda: {policy_of(env).weight for env in envs} == {0.25, 0.75})
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
    assert sorted(set(map(tuple, map(set, rows.values())))) == [(2,), (4,)]
