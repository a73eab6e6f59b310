"""The live page in a real browser: shows what happens, is quiet, and deaf to what models and tools wrote."""

import asyncio
import base64
import json
from pathlib import Path

import pytest

from agentenv.observer import Judgement
from agentenv.task import Task, Verdict
from agentenv.types import AgentConfig
from agentenv.watch import ArmObserver, Slots, board, watching
from agentenv_tools.schema import ImagePart, ToolCall, ToolResult
from tests.agentenv.run.browser import CHROMIUM, browser_page
from tests.agentenv.run.payloads import dot, listening
from tests.agentenv.watch.rollouts import begin, end, say

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium: apt-get install chromium"),
]
TEXT = "document.body.innerText"
ENTRIES = "document.querySelectorAll('.event').length"


async def test_text_that_tries_to_run_or_call_out_is_only_shown(tmp_path: Path):
    with listening() as listener:
        payloads = listener.payloads()
        async with (
            watching(slots=lambda: Slots(3, 2), announce=lambda url: None) as watch,
            browser_page(f"{watch.url}/", tmp_path / "profile") as page,
        ):
            await page.listen_to_console()
            arm = ArmObserver(watch.board, payloads, lambda usage: usage)
            arm.started(payloads, Task(payloads, {"id": payloads}, AgentConfig()), lambda: None)
            say(watch.board, payloads, payloads)
            await page.until(f"{TEXT}.includes('2 of 3') && {TEXT}.includes('working')")
            await page.value("document.querySelector('.entry').click()")
            await page.until(f"{ENTRIES} === 5")
            arm.step_started(payloads, payloads, payloads)
            arm.judged(payloads, Judgement(payloads, {payloads: 1.0}, payloads, payloads))
            arm.verified(payloads, Verdict(1.0, {payloads: payloads}))
            end(watch.board, payloads, cause=payloads)
            await page.until(f"{ENTRIES} === 10")
            title = json.dumps("<script>document.title='CANARY'")
            shown = f"[...document.querySelectorAll('.event')].filter((e) => e.innerText.includes({title})).length"
            assert await page.value(shown) == 9
            foreign = "iframe, object, embed, form, base, img, svg, main a, main style, main script"
            assert await page.value(f"document.querySelectorAll('{foreign}').length") == 0
            assert await page.value("document.title") == "AgentEnv: live"
            assert page.complaints == []
        assert listener.calls == []


async def test_the_page_follows_a_run_controls_it_and_says_when_it_is_over(tmp_path: Path):
    asked: list[str] = []
    async with watching(cancel_all=lambda: asked.append("all"), announce=lambda url: None) as watch:
        for name in ("first", "second"):
            begin(watch.board, name, lambda name=name: asked.append(name))  # type: ignore[misc]
        async with browser_page(f"{watch.url}/", tmp_path / "profile") as page:
            await page.listen_to_console()
            await page.until("document.querySelectorAll('#running .entry').length === 2")
            await page.value("document.querySelector('#running .entry').click()")
            await page.until(f"{ENTRIES} === 1 && {TEXT}.includes('do first')")
            for number in range(150):
                say(watch.board, "first", f"line {number} " + "x" * 20_000)
            await page.until(f"{TEXT}.includes('line 149')")
            assert await page.value(ENTRIES) <= 300
            await page.value("document.querySelector('.pause').click()")
            await page.until("document.querySelector('.pause').innerText === 'Resume'")
            assert watch.gate.paused
            await page.value("document.querySelector('.pause').click()")
            await page.until("document.querySelector('.pause').innerText === 'Pause'")
            assert not watch.gate.paused
            await page.value("document.getElementById('cancel').click()")
            async with asyncio.timeout(60):
                while asked != ["first"]:
                    await asyncio.sleep(0.02)
            end(watch.board, "first")
            await page.until("document.querySelectorAll('#ended .entry').length === 1")
            assert await page.value("document.getElementById('cancel').disabled")
            await page.value("document.querySelector('.cancel-all').click()")
            assert asked == ["first"]
            await page.value("document.querySelector('.cancel-all').click()")
            async with asyncio.timeout(60):
                while asked != ["first", "all"]:
                    await asyncio.sleep(0.02)
            watch.board.close()
            await page.until(f"{TEXT}.includes('The run has ended.')")
            assert page.complaints == []


async def test_images_of_results_are_shown_and_what_is_none_says_so(tmp_path: Path):
    nasty = base64.b64encode(b"<svg onload=\"document.title='CANARY'\">").decode()
    async with watching(announce=lambda url: None) as watch:
        begin(watch.board, "a")
        images = (dot(), ImagePart("image/png", nasty, 1, 1))
        seen = ToolResult(True, "seen", images=images)
        watch.board.tool_finished("a", ToolCall("look", {}), seen)
        async with browser_page(f"{watch.url}/", tmp_path / "profile") as page:
            await page.listen_to_console()
            await page.until("document.querySelectorAll('#running .entry').length === 1")
            await page.value("document.querySelector('.entry').click()")
            await page.until("document.querySelector('img.picture')?.naturalWidth === 1")
            await page.until(f"{TEXT}.includes('An image that cannot be shown')")
            assert await page.value("document.querySelectorAll('main img, main svg').length") == 1
            assert await page.value("document.title") == "AgentEnv: live"
            assert page.complaints == []


async def test_a_page_that_slept_drops_what_the_run_no_longer_keeps(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(board, "KEPT_ENDED", 2)
    async with watching(announce=lambda url: None) as watch:
        for name in ("runs", "ends"):
            begin(watch.board, name)
        async with browser_page(f"{watch.url}/", tmp_path / "profile") as page:
            await page.listen_to_console()
            await page.until("document.querySelectorAll('#running .entry').length === 2")
            # All of this happens in one turn of the loop, so the page cannot ask meanwhile.
            end(watch.board, "ends")
            for number in range(5):
                begin(watch.board, f"missed-{number}")
                end(watch.board, f"missed-{number}")
            await page.until("document.querySelectorAll('#ended .entry').length === 2")
            assert await page.value("document.querySelectorAll('#running .entry').length") == 1
            assert page.complaints == []


async def test_thousands_of_trajectories_stay_usable(tmp_path: Path):
    async with watching(announce=lambda url: None) as watch:
        for number in range(5_000):
            begin(watch.board, f"task-{number}")
            say(watch.board, f"task-{number}", "text")
            if number >= 2_000:
                end(watch.board, f"task-{number}")
        async with browser_page(f"{watch.url}/", tmp_path / "profile") as page:
            await page.listen_to_console()
            await page.until("document.querySelectorAll('.entry').length === 3000")
            await page.value("document.querySelector('#ended .entry').click()")
            await page.until(f"{TEXT}.includes('do task-4999')")
            for number in range(100):
                end(watch.board, f"task-{number}")
            await page.until("document.querySelectorAll('#running .entry').length === 1900")
            await page.until("document.querySelectorAll('#ended .entry').length === 1000")
            assert page.complaints == []
