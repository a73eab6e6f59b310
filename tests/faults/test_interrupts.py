"""Ctrl-C at `process`: once it ends cleanly, twice it ends at once; nothing is left and what was collected is kept."""

import json
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from agentenv.run.directory import read_groups
from agentenv.testing import FakeRequest, running_engine
from tests.faults.ledger_env import END_IDS, TOKENIZER, append_by_seed, call_text
from tests.faults.programs import Program, program
from tests.faults.waiting import eventually

pytestmark = [pytest.mark.sandbox, pytest.mark.slow]
_ENDS_WITHIN_S = 30


def append_then_hang(request: FakeRequest) -> str:
    """Half of the replies are a call that takes very long, once there are a few groups."""
    append_then_hang.requests += 1  # type: ignore[attr-defined]
    slow = append_then_hang.requests > 60 and (request.seed or 0) % 2  # type: ignore[attr-defined]
    return call_text("sleep 25") if slow else append_by_seed(request)


@asynccontextmanager
async def _process(tmp_path: Path, script) -> AsyncIterator[Program]:
    """`agentenv process` under way, with a few groups written."""
    TOKENIZER.save_pretrained(tmp_path / "tokenizer")
    async with running_engine(script=script, tokenizer=TOKENIZER, end_ids=END_IDS) as engine:
        config = {
            "environment": "tests.faults.ledger_env:LedgerEnv",
            "env": {
                "tokenizer_name": str(tmp_path / "tokenizer"),
                "renderer": "qwen3",
                "group_size": 4,
                "total_steps": -1,
                "max_num_workers": 4,
                "max_token_length": 8192,
                "seed": 1,
                "backend": {"type": "local", "slots": 16},
            },
            "openai": [{"server_type": "vllm", "base_url": engine.base_url}],
        }
        (tmp_path / "config.yaml").write_text(json.dumps(config))
        arguments = ("process", str(tmp_path / "config.yaml"), "--run-dir", str(tmp_path / "run"))
        async with program("-m", "agentenv", *arguments, output=tmp_path / "output.txt") as running:
            await eventually(
                lambda: running.process.returncode is not None or len(_lines(tmp_path)) >= 3,
                "three groups are written",
                within_s=60,
            )
            assert running.process.returncode is None, (tmp_path / "output.txt").read_text()
            running.footprint.look()
            yield running


def _lines(tmp_path: Path) -> list[bytes]:
    path = tmp_path / "run" / "groups.jsonl"
    return path.read_bytes().splitlines() if path.exists() else []


async def _check_nothing_is_lost(running: Program, tmp_path: Path, written_before: int) -> None:
    await running.footprint.gone()
    groups = list(read_groups(tmp_path / "run"))
    assert len(groups) >= written_before
    assert all(len(group.group["scores"]) == 4 for group in groups)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["groups"]["written"] == len(groups), summary


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_one_signal_ends_a_run_cleanly(tmp_path: Path, number: signal.Signals):
    async with _process(tmp_path, append_by_seed) as running:
        written = len(_lines(tmp_path))
        running.process.send_signal(number)
        status = await running.ended(within_s=_ENDS_WITHIN_S)
        assert status == 0, (tmp_path / "output.txt").read_text()
        await _check_nothing_is_lost(running, tmp_path, written)
        assert (tmp_path / "run" / "report.html").exists()


async def test_a_second_ctrl_c_ends_calls_that_are_under_way(tmp_path: Path):
    append_then_hang.requests = 0  # type: ignore[attr-defined]
    async with _process(tmp_path, append_then_hang) as running:
        await eventually(
            lambda: sum(1 for p in running.footprint.look() if p.name == "sleep") >= 8,
            "calls that take very long",
        )
        written = len(_lines(tmp_path))
        running.process.send_signal(signal.SIGINT)
        running.process.send_signal(signal.SIGINT)
        status = await running.ended(within_s=_ENDS_WITHIN_S)
        assert status == 0, (tmp_path / "output.txt").read_text()
        await _check_nothing_is_lost(running, tmp_path, written)
