from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from agentenv import ConfigError  # noqa: E402
from agentenv.training.service import train  # noqa: E402
from agentenv.training.settings import GrpoConfig, TrainerConfig  # noqa: E402
from agentenv_environments.shell_tasks.environment import TINY_POLICY  # noqa: E402
from tests.agentenv.api.served import served  # noqa: E402

pytestmark = pytest.mark.torch


async def test_a_trainer_is_refused_whose_batches_the_server_does_not_make(tmp_path):
    async with served() as api:
        await api.start_training(batch_size=4)
        config = TrainerConfig(
            model=str(TINY_POLICY),
            folder=tmp_path,
            server_url=api.url,
            port=0,
            grpo=GrpoConfig(batch_size=8),
        )
        with pytest.raises(ConfigError, match="batches of 4 rows"):
            await train(config)
