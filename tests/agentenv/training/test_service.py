from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

torch = pytest.importorskip("torch")

from agentenv import ConfigError  # noqa: E402
from agentenv.api.client import TrainerClient, TrainerRegistration  # noqa: E402
from agentenv.api.settings import ApiSettings, Scope  # noqa: E402
from agentenv.errors import ApiRefusedError  # noqa: E402
from agentenv.training.service import train  # noqa: E402
from agentenv.training.settings import GrpoConfig, TrainerConfig  # noqa: E402
from agentenv.training.trainer import BatchLostError  # noqa: E402
from agentenv.training.wire_source import WireSource  # noqa: E402
from agentenv_environments.shell_tasks.environment import TINY_POLICY  # noqa: E402
from tests.agentenv.api.groups import REGISTRATION, make_group  # noqa: E402
from tests.agentenv.api.served import served  # noqa: E402

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.torch
GUARDED = ApiSettings(tokens={Scope.TRAINER: "right", Scope.ENVIRONMENT: "another"})


def trainer(url: str, folder: Path, token: str) -> TrainerConfig:
    return TrainerConfig.model_validate(
        {
            "model": str(TINY_POLICY),
            "folder": folder,
            "server_url": url,
            "server_token": token,
            "port": 0,
            "grpo": GrpoConfig(batch_size=8),
        }
    )


async def test_a_trainer_is_refused_whose_batches_the_server_does_not_make(tmp_path):
    async with served(GUARDED) as api, TrainerClient(api.url, token="right") as earlier:
        await earlier.register(TrainerRegistration(**REGISTRATION | {"batch_size": 4}))
        with pytest.raises(ConfigError, match="batches of 4 rows"):
            await train(trainer(api.url, tmp_path, "right"))


async def test_a_trainer_with_a_wrong_token_is_refused_and_the_token_is_not_told(tmp_path):
    async with served(GUARDED) as api:
        with pytest.raises(ApiRefusedError, match="trainer's token") as refused:
            await train(trainer(api.url, tmp_path, "wr0ng"))
    assert "wr0ng" not in str(refused.value)


async def test_a_batch_whose_lease_another_has_or_that_a_reset_took_is_lost():
    async with (
        served(ApiSettings(lease_s=1e-9)) as api,
        TrainerClient(api.url, consumer="one") as one,
        TrainerClient(api.url, consumer="two") as two,
    ):
        await api.start_training()
        await api.post("/scored_data_list", [make_group(seed=seed) for seed in range(4)])
        held = await WireSource(one).batch()
        assert held is not None
        assert held.batch_id is not None
        assert await WireSource(two).batch() is not None
        with pytest.raises(BatchLostError, match="went to two"):
            await WireSource(one).acknowledge(held.batch_id)
        await one.reset()
        with pytest.raises(BatchLostError, match="no batch"):
            await WireSource(two).acknowledge(held.batch_id)
