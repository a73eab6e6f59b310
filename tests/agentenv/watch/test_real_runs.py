"""Commands with `--watch`, sandboxes and an engine, seen and controlled in a real browser."""

import asyncio
import os
import re
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from agentenv.evaluation.reader import SweepReader
from agentenv.testing import FakeRequest, running_engine
from agentenv.testing.serving import RunningEngine
from tests.agentenv.fake_env import END, TOKENIZER, call_text
from tests.agentenv.run.browser import CHROMIUM, Page, browser_page
from tests.waiting import eventually

pytestmark = [
    pytest.mark.slow,
    pytest.mark.sandbox,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium: apt-get install chromium"),
]
ENVIRONMENT = "tests.agentenv.watch.watched_env:WatchedEnv"
ROOT = Path(__file__).parents[3]
STATE = "document.getElementById('state').innerText"
LATENCY_S = 0.2


class Talk:
    """A model that goes on calling a tool until it may end."""

    def __init__(self) -> None:
        self.may_end = False

    def __call__(self, request: FakeRequest) -> str:
        if self.may_end and request.turn > 0:
            return "right"
        return call_text(f"echo turn-$(({request.turn} + 1000))")


def settings(engine: RunningEngine, **env: Any) -> dict[str, Any]:
    """Of the environment: two sandboxes of this machine, and the engine."""
    backend = {"type": "local", "slots": 2}
    common = {"renderer": "qwen3", "agent_max_steps": 100_000, "max_token_length": 1_000_000}
    servers = {"base_url": engine.base_url, "server_type": "vllm", "model_name": "default"}
    return {"env": {**common, "backend": backend, **env}, "openai": servers}


@asynccontextmanager
async def watched(path: Path, *words: str) -> AsyncIterator[tuple[asyncio.subprocess.Process, str]]:
    """A command that runs with a page, and the page's address. Ended with the block, if it has not."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    said = path / "said.txt"
    with said.open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "agentenv", *words, "--watch"),
            cwd=path,
            env=environment,
            stdout=output,
            stderr=output,
        )
    try:
        await eventually(lambda: "watch it at" in said.read_text() or process.returncode, "a page")
        found = re.search(r"watch it at (\S+)\n", said.read_text())
        assert found is not None, said.read_text()
        yield process, found.group(1)
        async with asyncio.timeout(120):
            await process.wait()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


def check_quiet(page: Page, address: str) -> None:
    """The page asked nobody but the run, and its console said nothing but that the run is gone."""
    assert page.requests
    assert [url for url in page.requests if not url.startswith((address, "data:"))] == []
    gone = "ERR_CONNECTION_REFUSED"
    assert [complaint for complaint in page.complaints if gone not in complaint] == []


async def click(page: Page, selector: str) -> None:
    await page.value(f"document.querySelector({selector!r}).click()")


async def test_a_collecting_run_is_paused_resumed_and_cancelled_from_the_page(tmp_path: Path):
    talk = Talk()
    async with running_engine(
        script=talk, tokenizer=TOKENIZER, end_ids=END, latency_s=LATENCY_S
    ) as engine:
        values = settings(engine, group_size=2, total_steps=50, max_num_workers=1)
        (tmp_path / "run.yaml").write_text(yaml.safe_dump({"environment": ENVIRONMENT, **values}))
        words = ("process", "run.yaml", "--run-dir", "out", "--plain")
        async with (
            watched(tmp_path, *words) as (process, address),
            browser_page(address, tmp_path / "profile") as page,
        ):
            await page.listen_to_console()
            await page.until("document.querySelectorAll('#running .entry').length === 2")
            await click(page, "#running .entry")
            await page.until(
                "[...document.querySelectorAll('.is-result')].some((e) => e.innerText.includes('turn-1002'))"
            )
            asked = engine.engine.requests

            await click(page, ".pause")
            await page.until(f"{STATE} === 'Paused'")
            before = len(asked)
            # Two answers that tell nothing new take four seconds, in which some forty requests would be made.
            answered = "performance.getEntriesByType('resource').length"
            enough = await page.value(answered) + 4
            await page.until(f"{answered} >= {enough}")
            assert len(asked) <= before + 2  # those on their way
            await click(page, ".pause")
            await page.until(f"{STATE} === 'Live'")
            await eventually(lambda: len(asked) > before + 4, "requests after the pause")

            await click(page, "#cancel")
            await page.until("document.querySelector('#ended')?.innerText.includes('cancelled')")
            await page.until("document.getElementById('cancel').disabled")
            for _ in range(2):
                await click(page, ".cancel-all")
            await page.until(f"{STATE}.startsWith('The run has ended')")
            check_quiet(page, address)
        assert process.returncode == 130
        assert (tmp_path / "out" / "summary.json").exists()


async def test_a_sweep_is_followed_to_its_end_with_what_it_costs(tmp_path: Path):
    talk = Talk()
    async with running_engine(
        script=talk, tokenizer=TOKENIZER, end_ids=END, latency_s=LATENCY_S
    ) as engine:
        given = settings(engine)
        model = {"openai": given["openai"], "price": {"input": 1.0, "output": 10.0}}
        sweep = {
            "tasks": {"echo": {"environment": ENVIRONMENT, "env": given["env"], "count": 2}},
            "models": {"small": model, "large": model},
            "concurrency": 2,
        }
        (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(sweep, sort_keys=False))
        words = ("evaluate", "sweep.yaml", "--run-dir", "out", "--plain")
        async with (
            watched(tmp_path, *words) as (process, address),
            browser_page(address, tmp_path / "profile") as page,
        ):
            await page.listen_to_console()
            await page.until("document.querySelectorAll('#running .entry').length === 2")
            await click(page, "#running .entry")
            await page.until("document.querySelectorAll('.is-result').length > 0")
            assert "small" in await page.value("document.querySelector('.facts').innerText")
            assert "$" in await page.value("document.getElementById('totals').innerText")
            talk.may_end = True
            await page.until(f"{STATE}.startsWith('The run has ended')")
            check_quiet(page, address)
        assert process.returncode == 0
        with SweepReader(tmp_path / "out") as reader:
            rows = [stored.row for stored in reader.samples()]
    assert [row.outcome for row in rows] == ["scored"] * 4
