"""The report of a sweep in a real browser: usable, quiet, and deaf to what models, tools and tasks wrote."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from agentenv.evaluation.report.page import write_sweep_report
from agentenv.evaluation.report.server import SweepServer
from agentenv.evaluation.schema import TaskEntry
from agentenv.evaluation.store import SweepStore
from agentenv.rollout import RolloutRecord
from agentenv_backends.results import Recording, TerminalEvent
from agentenv_tools.schema import ToolResult
from agentenv_tools.serving import ServeSettings, serving
from tests.agentenv.evaluation.sweeps import NumbersSource, config, record, sweep_into
from tests.agentenv.run.browser import CHROMIUM, Page, browser_page
from tests.agentenv.run.payloads import Listener, dot, listening

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium: apt-get install chromium"),
]
VISIBLE = "document.getElementById('main').innerText"


@pytest.fixture
def listener() -> Iterator[Listener]:
    with listening() as noted:
        yield noted


def rich_record(trajectory_id: str, reward: float, text: str) -> RolloutRecord:
    """With everything a report shows: a terminal, an image, a verifier's notes, text everywhere."""
    plain = record(trajectory_id, reward, text=text, cause=text)
    assert plain.result is not None
    step = plain.result.steps[0]
    seen = ToolResult(success=True, output=text, error=text, metadata={text: text}, images=(dot(),))
    call = replace(step.tool_calls[0], name=text, arguments={text: text})
    agent = replace(plain.result, steps=(replace(step, tool_calls=(call,), tool_results=(seen,)),))
    shown = Recording(
        "shell-1", 80, 24, (TerminalEvent(0.0, "o", text), TerminalEvent(1.0, "o", "end"))
    )
    notes = {"test-stdout.txt": f"line\n{text}", text: text}
    return replace(plain, result=agent, score_metadata=notes, recordings=(shown,))


async def nasty_sweep(path: Path, text: str) -> Path:
    """A sweep whose tasks, answers, tools, causes and terminals all say `text`."""

    class Nasty(NumbersSource):
        async def open(self, *, only_judge: bool = False) -> list[TaskEntry]:
            return [TaskEntry(f"{number} {text[:900]}", text) for number in range(3)]

    def run(
        source: NumbersSource, task: str, seed: int | None, trajectory_id: str
    ) -> RolloutRecord:
        return rich_record(trajectory_id, float(len(trajectory_id) % 2), text)

    made = config(name=text[:300], tasks={"numbers": {"environment": "none"}})
    store = await SweepStore.open(path, made)
    from agentenv.evaluation.runner import Sweep

    await Sweep(made, store, source=lambda c, arm: Nasty(c, arm, run_one=run)).run()
    await store.close()
    return path


async def look_everywhere(page: Page, text: str) -> None:
    """Open the overview and every view of a task; what was written must be there, as text."""
    await page.until(f"{VISIBLE}.includes('3 of 3 tasks')")
    assert text in await page.value(VISIBLE)
    for tab in ("Steps", "Messages", "Terminal", "Record"):
        await page.value(f"location.hash = '#1/0/{tab}'")
        await page.until(f"document.querySelector('.tab.on')?.innerText.startsWith('{tab}')")
        assert text in await page.value(VISIBLE), tab
    assert (
        await page.value("document.querySelectorAll('iframe, object, embed, form, base').length")
        == 0
    )


async def test_text_that_tries_to_run_or_call_out_is_only_shown(tmp_path, listener):
    directory = await nasty_sweep(tmp_path / "sweep", listener.payloads())
    report = write_sweep_report(directory)
    async with browser_page(report.as_uri(), tmp_path / "profile") as page:
        await page.listen_to_console()
        await look_everywhere(page, "<script>document.title='CANARY'")
        assert "CANARY" not in await page.value("document.title.slice(0, 3)")
        await page.value("location.hash = '#0/1/Steps'")
        await page.until("document.querySelector('img.picture')?.naturalWidth === 1")
        assert page.complaints == []
    assert listener.calls == []


async def test_a_served_report_shows_the_same_and_is_as_deaf(tmp_path, listener):
    directory = await nasty_sweep(tmp_path / "sweep", listener.payloads())
    profile = tmp_path / "profile"
    async with (
        serving(SweepServer(directory, ServeSettings())) as url,
        browser_page(url, profile) as page,
    ):
        await page.listen_to_console()
        await look_everywhere(page, "<script>document.title='CANARY'")
        assert page.complaints == []
    assert listener.calls == []


async def test_tasks_are_sorted_filtered_and_stepped_through(tmp_path):
    made = config(
        tasks={"numbers": {"environment": "none", "count": 450}}, attempts=1, concurrency=50
    )

    def by_number(source: NumbersSource, task: str, seed: Any, trajectory_id: str) -> RolloutRecord:
        return record(trajectory_id, float(int(task) % 10 == 7 and source.arm.model == "b"))

    await sweep_into(tmp_path / "sweep", made, run_one=by_number)
    report = write_sweep_report(tmp_path / "sweep")
    async with browser_page(report.as_uri(), tmp_path / "profile") as page:
        await page.listen_to_console()
        await page.until(f"{VISIBLE}.includes('450 of 450 tasks')")
        assert await page.value("document.querySelectorAll('tr.task').length") == 200
        heads = "[...document.querySelectorAll('table.grid th button')]"
        await page.value(f"{heads}.find((node) => node.innerText === 'b').click()")
        first = "document.querySelector('tr.task')?.innerText"
        await page.until(f"{first}?.startsWith('7')")
        await page.value(
            "document.querySelector('select[aria-label=Filter]').value = 'Models differ'"
        )
        await page.value(
            "document.querySelector('select[aria-label=Filter]').dispatchEvent(new Event('change'))"
        )
        await page.until(f"{VISIBLE}.includes('45 of 450 tasks')")
        await page.value("document.querySelector('tr.task').click()")
        await page.until("document.querySelector('h2')?.innerText === '7'")
        await page.value("document.dispatchEvent(new KeyboardEvent('keydown', {key: 'j'}))")
        await page.until("document.querySelector('h2')?.innerText === '17'")
        await page.value("document.dispatchEvent(new KeyboardEvent('keydown', {key: 'l'}))")
        await page.until("location.hash === '#17/1/Steps'")
        await page.value("document.dispatchEvent(new KeyboardEvent('keydown', {key: 'Escape'}))")
        await page.until(f"{VISIBLE}.includes('45 of 450 tasks')")
        assert await page.value("document.querySelectorAll('svg.chart').length") == 2
        assert page.complaints == []
        await page.value("console.error('which a test would see')")
        assert len(page.complaints) == 1
