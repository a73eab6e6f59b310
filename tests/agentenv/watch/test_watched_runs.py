"""Runs of tasks that are watched: told to the page, cancelled from it."""

import asyncio
import json
import re
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from agentenv import AgentRunner, ParallelRunner
from agentenv.testing import FakePolicy
from tests.agentenv.runner.solving import SOLVE, TASK
from tests.agentenv.tasks.task_dirs import write_task

pytestmark = pytest.mark.sandbox
TOKEN = re.compile(r'"token":"([^"]+)"')


class Page:
    """What a browser would ask, of the page that `announce` is told."""

    def __init__(self) -> None:
        self.address: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    def announce(self, url: str) -> None:
        self.address.set_result(url)

    async def until(self, http: aiohttp.ClientSession, condition: Any) -> dict[str, Any]:
        """Ask what is new until `condition` holds of it."""
        async with asyncio.timeout(60):
            return await self._until(http, condition)

    async def _until(self, http: aiohttp.ClientSession, condition: Any) -> dict[str, Any]:
        async with http.get(await self.address) as page:
            found = TOKEN.search(await page.text())
        assert found is not None
        http.headers["x-watch-token"] = found.group(1)
        while True:
            async with http.get(f"{self.address.result()}changes?show=1") as answer:
                told: dict[str, Any] = json.loads(await answer.text())
            if condition(told):
                return told
            assert not told["closed"]
            await asyncio.sleep(0.05)

    async def control(self, http: aiohttp.ClientSession, **body: Any) -> None:
        async with http.post(f"{self.address.result()}control", json=body) as answer:
            assert answer.status == 200


async def test_a_run_that_is_paused_goes_on_and_one_that_is_cancelled_does_not_count(tmp_path):
    page, asked, released = Page(), asyncio.Event(), asyncio.Event()
    task = write_task(tmp_path / "fortytwo", TASK)

    class Waiting(FakePolicy):
        async def chat(self, *args: Any, **kwargs: Any) -> Any:
            asked.set()
            await released.wait()
            return await super().chat(*args, **kwargs)

    async def run(policy: FakePolicy) -> Any:
        return await AgentRunner(
            task,
            provider="local",
            output_dir=tmp_path / "out",
            watch=True,
            policy=policy,
            announce=page.announce,
        ).run()

    async with aiohttp.ClientSession() as http:
        running = asyncio.ensure_future(run(Waiting([SOLVE, "Done."], returns_tokens=False)))
        told = await page.until(http, lambda told: told["totals"]["running"] == 1)
        assert told["trajectories"][0]["task"] == "fortytwo"
        await asked.wait()
        await page.control(http, action="pause")
        released.set()
        told = await page.until(http, lambda told: told["totals"].get("tool_calls"))
        assert told["paused"]
        await page.control(http, action="resume")
        assert (await running).success

    page = Page()
    released.clear()
    async with aiohttp.ClientSession() as http:
        running = asyncio.ensure_future(run(Waiting([SOLVE], returns_tokens=False)))
        await page.until(http, lambda told: told["totals"]["running"] == 1)
        await page.control(http, action="cancel", number=1)
        result = await running
    assert (result.success, result.counts) == (False, False)
    assert result.error == "CancelledError: the rollout was withdrawn"


async def test_a_batch_has_one_page_and_cancelling_all_of_it_ends_it(tmp_path: Path):
    page = Page()
    tasks = [write_task(tmp_path / name, TASK) for name in ("a", "b")]
    batch = ParallelRunner(
        tasks,
        n_concurrent=2,
        provider="local",
        output_dir=tmp_path / "out",
        policy=FakePolicy([SOLVE], returns_tokens=False, latency_s=3600),
        watch=True,
        announce=page.announce,
    )
    running = asyncio.ensure_future(batch.run())
    async with aiohttp.ClientSession() as http:
        told = await page.until(http, lambda told: told["totals"]["running"] == 2)
        assert told["slots"] == [2, 2, 0]
        await page.control(http, action="cancel_all")
        with pytest.raises(asyncio.CancelledError):
            await running
