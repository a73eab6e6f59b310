"""Our `agentenv serve` against each server, with a trainer that knows nothing but the protocol."""

import json
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from agentenv.run.directory import read_groups
from agentenv.testing import running_engine
from tests.atropos import needs_atropos
from tests.faults.ledger_env import END_IDS, TOKENIZER, append_by_seed
from tests.faults.programs import Program, program
from tests.interop.api import GROUP_KEYS
from tests.interop.plain_trainer import Groups, registered, take, trainer_client
from tests.interop.servers import AtroposServer, ServerProcess

pytestmark = [pytest.mark.slow, pytest.mark.sandbox]
GROUP_SIZE, BATCHES = 4, 6
_ENDS_WITHIN_S = 60.0


@asynccontextmanager
async def serving(
    folder: Path, server_url: str
) -> AsyncIterator[tuple[Program, Callable[[], None]]]:
    """`agentenv serve` under way, and a check that it still is."""
    folder.mkdir(exist_ok=True)
    TOKENIZER.save_pretrained(folder / "tokenizer")
    async with running_engine(
        script=append_by_seed, tokenizer=TOKENIZER, end_ids=END_IDS
    ) as engine:
        config = {
            "environment": "tests.faults.ledger_env:LedgerEnv",
            "env": {
                "tokenizer_name": str(folder / "tokenizer"),
                "renderer": "qwen3",
                "group_size": GROUP_SIZE,
                "max_num_workers": 2,
                "max_token_length": 4000,
                "seed": 1,
                "rollout_server_url": server_url,
                "data_path_to_save_groups": str(folder / "run"),
                "backend": {"type": "local", "slots": 8},
            },
            "openai": [{"server_type": "vllm", "base_url": engine.base_url}],
        }
        (folder / "config.yaml").write_text(json.dumps(config))
        output = folder / "output.txt"
        files = (str(folder / "config.yaml"), "--run-dir", str(folder / "run"), "--plain")
        async with program("-m", "agentenv", "serve", *files, output=output) as running:

            def check() -> None:
                assert running.process.returncode is None, output.read_text()[-3000:]

            yield running, check


def check_group(group: dict[str, Any]) -> None:
    """As trainers in the wild need it: every key, equal lengths, a masked prompt, log-probs where the mask is."""
    assert set(group) >= GROUP_KEYS
    rows = zip(group["tokens"], group["masks"], group["inference_logprobs"], strict=True)
    for tokens, mask, logprobs in rows:
        assert len(tokens) == len(mask) == len(logprobs)
        assert mask[0] == -100
        assert all(kept in (-100, token) for token, kept in zip(tokens, mask, strict=True))
        assert [value == 1.0 for value in logprobs] == [kept == -100 for kept in mask]
        assert any(kept != -100 for kept in mask)
    assert len(set(group["scores"])) > 1


def scores(batches: list[Groups]) -> list[tuple[float, ...]]:
    """Of each group, with its first tokens: enough to tell groups apart."""
    return [
        (*group["scores"], *map(float, group["tokens"][0]))
        for groups in batches
        for group in groups
    ]


async def test_our_environment_feeds_a_trainer_and_leaves_nothing_behind(
    server: ServerProcess, tmp_path: Path
):
    async with trainer_client(server.url) as http, serving(tmp_path, server.url) as (env, check):
        await http.get("/reset_data")
        await registered(http, GROUP_SIZE)
        batches = await take(http, BATCHES, check)
        env.process.send_signal(signal.SIGINT)
        assert await env.ended(within_s=_ENDS_WITHIN_S) == 0
        await env.footprint.gone()
        while (rest := (await http.get("/batch")).json()["batch"]) is not None:
            batches.append(rest)
    for groups in batches:
        assert sum(len(group["tokens"]) for group in groups) == GROUP_SIZE
        for group in groups:
            check_group(group)
    taken = scores(batches)
    assert len(set(taken)) == len(taken)
    made = scores([[dict(record.group) for record in read_groups(tmp_path / "run")]])
    assert sorted(taken) == sorted(made)


@needs_atropos
async def test_our_environment_goes_on_when_atropos_server_comes_back_empty(tmp_path: Path):
    with AtroposServer(tmp_path / "server") as server:
        async with trainer_client(server.url) as http, serving(tmp_path, server.url) as (_, check):
            await registered(http, GROUP_SIZE)
            await take(http, 2, check)
            server.kill()
            server.start()
            await registered(http, GROUP_SIZE)
            for groups in await take(http, 2, check):
                assert groups[0]["env_id"] == 0
