"""An environment of Atropos, unchanged machinery and all, serves until a trainer has had its batches."""

import asyncio
import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from agentenv.testing import running_engine
from tests.atropos import ATROPOS_PYTHON, needs_atropos
from tests.faults.ledger_env import END_IDS, TOKENIZER
from tests.interop.api import GROUP_KEYS
from tests.interop.plain_trainer import registered, take, trainer_client
from tests.interop.servers import ServerProcess

pytestmark = [pytest.mark.slow, needs_atropos]
PROGRAM = Path(__file__).with_name("atropos_env.py")
GROUP_SIZE, BATCH_SIZE, BATCHES = 4, 8, 6


@asynccontextmanager
async def atropos_env(
    folder: Path, server_url: str, engine_url: str, ways: str
) -> AsyncIterator[asyncio.subprocess.Process]:
    """The environment under way, until the block is left."""
    _save_tokenizer(folder / "tokenizer")
    settings = {
        "env.ways": ways,
        "env.wandb_name": "counting",
        "env.rollout_server_url": server_url,
        "env.tokenizer_name": str(folder / "tokenizer"),
        "env.group_size": GROUP_SIZE,
        "env.total_steps": 1000,
        "env.steps_per_eval": 100,
        "openai.base_url": engine_url,
        "openai.model_name": "default",
        "openai.server_type": "vllm" if ways == "managed" else "openai",
        "openai.tokenizer_name": str(folder / "tokenizer"),
        "openai.health_check": "false",
    }
    flags = [text for name, value in settings.items() for text in (f"--{name}", str(value))]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "WANDB_MODE": "disabled"}
    environment.pop("PYTHONPATH", None)
    with (folder / "env.log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            *(str(ATROPOS_PYTHON), str(PROGRAM), "serve", *flags),
            cwd=folder,
            env=environment,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


def _save_tokenizer(folder: Path) -> None:
    """As a version of transformers reads it that is older than ours."""
    TOKENIZER.save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text()) | {"tokenizer_class": "PreTrainedTokenizerFast"}
    path.write_text(json.dumps(config))


@pytest.mark.parametrize("ways", ["chat", "managed"])
async def test_an_environment_of_atropos_feeds_a_trainer(
    server: ServerProcess, tmp_path: Path, ways: str
):
    async with (
        running_engine(tokenizer=TOKENIZER, end_ids=END_IDS) as engine,
        trainer_client(server.url) as http,
        atropos_env(tmp_path, server.url, engine.base_url, ways) as env,
    ):

        def check() -> None:
            assert env.returncode is None, (tmp_path / "env.log").read_text()[-3000:]

        await http.get("/reset_data")
        await registered(http, BATCH_SIZE)
        batches = await take(http, BATCHES, check)
        assert (await http.get("/status")).json()["current_step"] >= BATCHES
    for batch in batches:
        assert sum(len(each["tokens"]) for each in batch) == BATCH_SIZE
        for each in batch:
            assert set(each) >= GROUP_KEYS
            assert each["env_id"] == 0
            assert each["scores"] == [0.0, 1.0, 2.0, 3.0]
            check_rows(each, with_logprobs=ways == "managed")


def check_rows(group: dict[str, Any], *, with_logprobs: bool) -> None:
    """Sequences are what the environment sampled: masked prompts, and ids below the end of the dictionary."""
    for tokens, mask in zip(group["tokens"], group["masks"], strict=True):
        assert len(mask) == len(tokens)
        trained = [token for token in mask if token != -100]
        assert 0 < len(trained) < len(tokens)
        assert trained == tokens[-len(trained) :]
        assert "This is turn" in TOKENIZER.decode(trained)
    assert (group["inference_logprobs"] is not None) == with_logprobs
    for logprobs, mask in zip(group["inference_logprobs"] or (), group["masks"], strict=False):
        assert [value == 1.0 for value in logprobs] == [token == -100 for token in mask]
