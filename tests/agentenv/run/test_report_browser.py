"""The report in a real browser, against text that tries to run or to call out."""

import html
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from agentenv.run.directory import RunDirectory
from agentenv.run.record import GroupRecord, StepRecord, TrajectoryRecord
from agentenv.run.report import write_report
from tests.agentenv.run.payloads import Listener, listening
from tests.agentenv.run.records import group, scored_group

CHROMIUM = (
    shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium: apt-get install chromium"),
]
SWITCHES = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --virtual-time-budget=5000 --dump-dom"
)


@pytest.fixture
def listener() -> Iterator[Listener]:
    with listening() as noted:
        yield noted


def _dom(page: Path, profile: Path, link: str = "") -> str:
    """The page as the browser made it. A page that hangs fails here."""
    assert CHROMIUM is not None
    command = [CHROMIUM, *SWITCHES.split(), f"--user-data-dir={profile}", f"{page.as_uri()}{link}"]
    return subprocess.run(command, capture_output=True, check=True, timeout=120, text=True).stdout


async def _report(path: Path, *records: GroupRecord, texts: str = "") -> Path:
    directory = await RunDirectory.open(path)
    for record in records:
        await directory.append(record)
    await directory.write_config({"environment": "m:E", "env": {"note": texts}})
    await directory.write_summary({"failures": {texts: 3}})
    await directory.close()
    return write_report(path, token_texts=lambda ids: [texts or "x" for _ in ids])


def test_the_payloads_do_run_in_a_page_that_takes_them_for_markup(tmp_path, listener):
    """So the tests below can fail."""
    page = tmp_path / "naive.html"
    page.write_text("<meta charset=utf-8><title>naive</title>" + "\n".join(listener.staying()))
    assert "<title>CANARY</title>" in _dom(page, tmp_path / "profile")
    assert "/img" in listener.calls


def test_the_payload_that_leaves_does_leave_a_page_that_takes_it_for_markup(tmp_path, listener):
    """Apart from the others: what a browser dumps in mid-navigation is anything, also nothing."""
    page = tmp_path / "naive.html"
    page.write_text(f"<meta charset=utf-8><title>naive</title>{listener.leaving()}")
    _dom(page, tmp_path / "profile")
    assert "/refresh" in listener.calls


@pytest.mark.parametrize("link", ["", "#1/1/Steps", "#1/1/Messages", "#1/1/Tokens", "#1/1/Record"])
async def test_text_that_tries_to_run_or_call_out_is_only_shown(tmp_path, listener, link):
    payloads = listener.payloads()
    report = await _report(tmp_path / "run", group(0, text=payloads), texts=payloads)
    dom = _dom(report, tmp_path / "profile", link)
    assert "<title>E · run</title>" in dom
    assert listener.calls == []
    shown = dom.partition("<body>")[2].partition('<script type="application/json"')[0]
    assert html.escape("<script>document.title='CANARY'", quote=False) in shown
    assert "\\u202e" in shown
    assert "\\x1b" in shown
    assert "\u202e" not in shown
    assert "\x1b" not in shown


async def test_ten_thousand_turns_and_a_line_of_megabytes_stay_usable(tmp_path):
    steps = tuple(
        StepRecord(number, f"turn {number} " + "word " * 100) for number in range(1, 10_001)
    )
    long = TrajectoryRecord("t", "scored", "max_steps", 1.0, steps=steps)
    flood = TrajectoryRecord(
        "f", "scored", "final_answer", 0.0, steps=(StepRecord(1, "y" * 5_000_000),)
    )
    report = await _report(
        tmp_path / "run", GroupRecord("g", None, "many", scored_group([1.0, 0.0]), (long, flood))
    )
    dom = _dom(report, tmp_path / "profile", "#1/1/Steps")
    assert "turn 100 " in dom
    assert "Show more (9,900 left)" in dom
    dom = _dom(report, tmp_path / "profile", "#1/2/Steps")
    assert "Show more" in dom
