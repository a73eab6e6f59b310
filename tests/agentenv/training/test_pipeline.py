"""From a sandbox to the trainer's tensors, over every wire in between, under weights that do not change."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from agentenv.api.client import (  # noqa: E402
    EnvironmentClient,
    EnvRegistration,
    TrainerClient,
    TrainerRegistration,
)
from agentenv.api.server import TrajectoryServer, serving_api  # noqa: E402
from agentenv.api.settings import ApiSettings  # noqa: E402
from agentenv.policy import APIServerConfig  # noqa: E402
from agentenv.policy.transformers_policy import TransformersPolicy, load_model  # noqa: E402
from agentenv.training.generation import GenerationServer  # noqa: E402
from agentenv.training.learner import Learner  # noqa: E402
from agentenv.training.rows import group_rows  # noqa: E402
from agentenv.training.trainer import usable_rows  # noqa: E402
from agentenv.training.wire_source import WireSource  # noqa: E402
from agentenv_environments.shell_tasks.environment import TINY_POLICY, ShellTasks  # noqa: E402
from agentenv_tools.serving import ServeSettings, serving  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

pytestmark = [pytest.mark.torch, pytest.mark.sandbox, pytest.mark.slow]
torch.set_num_threads(1)
GROUPS, GROUP_SIZE = 2, 4


def tiny_policy() -> Any:
    return load_model(TINY_POLICY, torch.float32, "cpu")


def environment(generation_url: str, temperature: float) -> ShellTasks:
    config, _ = ShellTasks.config_init()
    config = config.model_copy(
        update={"group_size": GROUP_SIZE, "agent_temperature": temperature, "seed": 3}
    )
    server = APIServerConfig(
        server_type="vllm", api="generate", base_url=generation_url, model_name="default"
    )
    return ShellTasks(config, [server])


async def collected(generation_url: str, temperature: float) -> list[Mapping[str, Any]]:
    """Groups of an environment whose policy is behind that URL."""
    env = environment(generation_url, temperature)
    await env.setup()
    try:
        items = [await env.get_next_item() for _ in range(GROUPS)]
        found = await asyncio.gather(*(env.collect_trajectories(item) for item in items))
    finally:
        await env.shutdown()
    return [group for group, _ in found if group is not None]


async def over_the_wire(
    sent: Sequence[Mapping[str, Any]], folder: Path, *, binary: bool
) -> list[dict[str, Any]]:
    """The groups as a trainer gets them from a trajectory server."""
    server = TrajectoryServer(ServeSettings(), ApiSettings(data=folder / "api"))
    registration = TrainerRegistration(
        wandb_group="g",
        wandb_project="p",
        batch_size=GROUPS * GROUP_SIZE,
        max_token_len=2_000,
        checkpoint_dir="",
        save_checkpoint_interval=1,
        starting_step=0,
        num_steps=1,
    )
    async with AsyncExitStack() as stack:
        url = await stack.enter_async_context(serving_api(server))
        trainer = await stack.enter_async_context(TrainerClient(url, consumer="t"))
        client = await stack.enter_async_context(EnvironmentClient(url))
        trainer._speaks_binary = client._speaks_binary = binary
        await trainer.register(registration)
        assert await trainer.batch() is None
        registered = await client.register(
            EnvRegistration(
                max_token_length=1_024, desired_name="e", weight=1.0, group_size=GROUP_SIZE
            )
        )
        assert registered is not None
        await client.send(sent)
        batch = await WireSource(trainer).batch()
        assert batch is not None
        return batch.groups


@pytest.mark.parametrize("binary", [True, False], ids=["binary", "json"])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
async def test_the_importance_ratio_is_one_for_every_trained_token(temperature, binary, tmp_path):
    policy = TransformersPolicy(tiny_policy, policy_version="0")
    await policy.start()
    try:
        async with serving(GenerationServer(policy, version=policy.version)) as url:
            sent = await collected(f"{url}/v1", temperature)
        sampled = policy.stats().tokens
    finally:
        await policy.close()
    groups = await over_the_wire(sent, tmp_path, binary=binary)
    # Equal scores would leave nothing to compare, and a learner need not know why advantages differ.
    weighted = [
        {**group, "advantages": [np.ones(len(row)) for row in group["tokens"]]} for group in groups
    ]
    rows, refused = usable_rows(weighted)

    seen = Learner(tiny_policy()).compare(rows)

    assert (len(rows), refused) == (GROUPS * GROUP_SIZE, 0)
    assert {row.temperature for row in rows} == {temperature}
    assert seen.tokens == sum(int(row.trained.sum()) for row in rows)
    assert seen.tokens <= sampled  # the check of the server's answers was sampled as well
    assert seen.max_abs_log_ratio < 1e-3
    assert seen.abs_log_ratio / seen.tokens < 1e-5
    assert any(_has_answer_of_a_tool(row.trained) for row in rows)


@pytest.mark.parametrize("binary", [True, False], ids=["binary", "json"])
async def test_a_wrong_temperature_shows_in_the_ratio(binary, tmp_path):
    policy = TransformersPolicy(tiny_policy, policy_version="0")
    await policy.start()
    try:
        async with serving(GenerationServer(policy)) as url:
            sent = await collected(f"{url}/v1", 0.7)
    finally:
        await policy.close()
    untold = [{**group, "generation_params": None} for group in sent]
    groups = await over_the_wire(untold, tmp_path, binary=binary)
    rows = [row for group in groups for row in group_rows({**group, "scores": [1.0, 0.0] * 2})]

    assert Learner(tiny_policy()).compare(rows).max_abs_log_ratio > 0.05


def _has_answer_of_a_tool(trained: Any) -> bool:
    places = np.flatnonzero(trained)
    return bool((np.diff(places) > 1).any())
