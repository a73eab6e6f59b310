"""Terminals in the report: in its data, and in a real browser, played and stepped through."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from agentenv.run.casts import CastFile, cast_path
from agentenv.run.directory import RunDirectory
from agentenv.run.record import GroupRecord
from agentenv.run.report import write_report
from agentenv_backends.results import Recording, TerminalEvent
from tests.agentenv.run.browser import CHROMIUM, browser_page
from tests.agentenv.run.records import group
from tests.agentenv.run.test_report import _Page

in_a_browser = pytest.mark.skipif(CHROMIUM is None, reason="no chromium: apt-get install chromium")
NASTY = "</script><script>document.title='CANARY'</script><img src=x onerror=\"document.title='CANARY'\">"


def recording(session: str, *outputs: str, gap_s: float = 0.5) -> Recording:
    events = tuple(TerminalEvent(at * gap_s, "o", text) for at, text in enumerate(outputs))
    return Recording(session, 160, 12, events)


async def run_dir(path: Path, *recordings: Recording) -> Path:
    """A run whose first trajectory has these recordings, and whose second has none."""
    made = group(0)
    casts = [CastFile(cast_path("g0", "t0", one.session), one) for one in recordings]
    first, second = made.trajectories
    first = replace(first, casts=tuple(cast.path for cast in casts))
    directory = await RunDirectory.open(path)
    await directory.append(replace(made, trajectories=(first, second)), casts)
    await directory.close()
    return path


async def test_a_trajectory_brings_its_terminals_as_screens(tmp_path):
    run = await run_dir(tmp_path, recording("shell-1", "$ ls\r\n", "a\r\n"), recording("tmux-2"))
    first, second = _Page(write_report(run)).blocks["group-0"]["trajectories"]
    assert [one["session"] for one in first["terminals"]] == ["shell-1", "tmux-2"]
    assert [frame["rows"] for frame in first["terminals"][0]["frames"]] == [
        {"0": "$ ls"},
        {"1": "a"},
    ]
    assert first["terminals"][1]["frames"] == []
    assert second["terminals"] == []


async def test_a_run_written_before_there_were_casts_still_gets_a_page(tmp_path):
    directory = await RunDirectory.open(tmp_path)
    old: Any = group(0).to_json()
    for trajectory in old["trajectories"]:
        del trajectory["casts"]
    await directory.append(GroupRecord.from_json(old))
    await directory.close()
    assert _Page(write_report(tmp_path)).blocks["group-0"]["trajectories"][0]["terminals"] == []


async def test_a_page_with_little_room_shows_its_trajectories_rather_than_their_terminals(tmp_path):
    full = [f"\x1b[H{chr(97 + number % 26) * 1_900}" for number in range(100)]
    report = write_report(await run_dir(tmp_path, recording("shell-1", *full)), max_bytes=60_000)
    page = _Page(report)
    assert page.blocks["run"]["groups"][0]["block"] == "group-0"
    shown = page.blocks["group-0"]["trajectories"][0]["terminals"][0]
    assert shown["notes"] == [
        "It ends here: its screens take more room than one terminal may have."
    ]
    assert report.stat().st_size < 120_000


async def test_nothing_in_a_terminal_becomes_markup(tmp_path):
    page = _Page(write_report(await run_dir(tmp_path, recording("shell-1", NASTY))))
    scripts = [attrs.get("id") for tag, attrs in page.tags if tag == "script"]
    assert scripts == ["group-0", "run", None]
    assert not [tag for tag, _ in page.tags if tag == "img"]


# ---- in a browser ----

SCREEN = "document.querySelector('pre.screen').textContent"
CLOCK = "document.querySelector('.clock').textContent"


def press(label: str) -> str:
    return f"[...document.querySelectorAll('button')].find((one) => one.textContent === '{label}').click()"


@pytest.mark.slow
@in_a_browser
async def test_a_terminal_is_stepped_through_moved_in_and_played(tmp_path):
    run = await run_dir(
        tmp_path / "run",
        recording("shell-1", "one", " two", " three", gap_s=0.2),
        recording("tmux-2", "x"),
    )
    address = f"{write_report(run).as_uri()}#1/1/Terminal"
    async with browser_page(address, tmp_path / "profile") as page:
        assert (await page.value(SCREEN)).startswith("one two three")
        assert await page.value(CLOCK) == "0.4 of 0.4 s · screen 3 of 3"
        await page.value("document.querySelector('[aria-label=\"One screen back\"]').click()")
        assert (await page.value(SCREEN)).split("\n")[0] == "one two "
        slider = "document.querySelector('.player input')"
        await page.value(f"{slider}.value = 0; {slider}.dispatchEvent(new Event('input'))")
        assert (await page.value(SCREEN)).split("\n")[0] == "one "
        await page.value(press("▶ Play"))
        await page.until(f"{SCREEN}.startsWith('one two three')")
        await page.until("document.querySelector('.play').textContent === '▶ Play'")
        await page.value(press("▶ Play"))
        assert await page.value("document.querySelector('.play').textContent") == "❚❚ Pause"
        await page.value(press("tmux-2"))
        assert (await page.value(SCREEN)).startswith("x")
        await page.value("document.dispatchEvent(new KeyboardEvent('keydown', {key: 'l'}))")
        assert await page.value("document.body.textContent.includes('used no persistent shell')")


@pytest.mark.slow
@in_a_browser
async def test_text_in_a_terminal_that_tries_to_run_is_only_shown(tmp_path):
    nasty = recording("shell-1", NASTY + "\u202e\x1b]0;t\x07")
    address = f"{write_report(await run_dir(tmp_path / 'run', nasty)).as_uri()}#1/1/Terminal"
    async with browser_page(address, tmp_path / "profile") as page:
        assert NASTY in await page.value(SCREEN)
        assert "CANARY" not in await page.value("document.title")
        assert await page.value("document.querySelectorAll('main img, main script').length") == 0
