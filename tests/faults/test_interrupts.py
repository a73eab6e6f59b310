"""Ctrl-C at `process`: once it ends cleanly, twice it ends at once; nothing is left and what was collected is kept."""

import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from agentenv.testing import FakeRequest, running_engine
from tests.faults.ledger_env import END_IDS, TOKENIZER, append_by_seed, call_text
from tests.faults.ledger_runs import GROUP_SIZE, LedgerRun, ledger_run
from tests.waiting import eventually

pytestmark = [pytest.mark.sandbox, pytest.mark.slow]


def append_then_hang(request: FakeRequest) -> str:
    """Half of the replies are a call that takes very long, once there are a few groups."""
    append_then_hang.requests += 1  # type: ignore[attr-defined]
    slow = append_then_hang.requests > 60 and (request.seed or 0) % 2  # type: ignore[attr-defined]
    return call_text("sleep 25") if slow else append_by_seed(request)


@asynccontextmanager
async def _process(tmp_path: Path, script, **options) -> AsyncIterator[LedgerRun]:
    """`agentenv process` under way, with a few groups written."""
    backend = {"type": "local", "slots": 16}
    async with (
        running_engine(script=script, tokenizer=TOKENIZER, end_ids=END_IDS) as engine,
        ledger_run(tmp_path, engine.base_url, backend, **options) as running,
    ):
        await running.under_way()
        yield running


async def _check_nothing_is_lost(running: LedgerRun, written_before: int) -> None:
    await running.footprint.gone()
    groups = running.groups()
    assert len(groups) >= written_before
    assert all(len(group.group["scores"]) == GROUP_SIZE for group in groups)
    summary = running.summary()
    assert summary["groups"]["written"] == len(groups), summary


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_one_signal_ends_a_run_cleanly(tmp_path: Path, number: signal.Signals):
    async with _process(tmp_path, append_by_seed) as running:
        written = running.written()
        running.process.send_signal(number)
        status = await running.ended()
        assert status == 0, running.output
        await _check_nothing_is_lost(running, written)
        assert (running.directory / "report.html").exists()


async def test_a_second_ctrl_c_ends_calls_that_are_under_way(tmp_path: Path):
    append_then_hang.requests = 0  # type: ignore[attr-defined]
    async with _process(tmp_path, append_then_hang) as running:
        await eventually(
            lambda: sum(1 for p in running.footprint.look() if p.name == "sleep") >= 8,
            "calls that take very long",
        )
        written = running.written()
        running.process.send_signal(signal.SIGINT)
        running.process.send_signal(signal.SIGINT)
        status = await running.ended()
        assert status == 0, running.output
        await _check_nothing_is_lost(running, written)


@pytest.mark.parametrize("kind", ["ThreadedEnv", "StubbornEnv"])
async def test_a_verifier_that_does_not_end_keeps_no_run_from_ending(tmp_path: Path, kind: str):
    environment = f"tests.faults.stuck_env:{kind}"
    async with _process(tmp_path, append_by_seed, environment=environment) as running:
        running.process.send_signal(signal.SIGINT)
        status = await running.ended()
        assert status == 0, running.output
        assert "it is left" in running.output
        await _check_nothing_is_lost(running, 3)
