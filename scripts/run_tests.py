"""Run the whole suite; where a few tests fail, run those once more, alone, and say loudly which they were.

    python scripts/run_tests.py [arguments of pytest]

Exits with 0 when every test passed, at the latest in its second run, and otherwise as pytest did. Tests here kill real
processes and freeze a real engine on machines that have other things to do. That excuses no test: one that needs its
second run is a bug, and is named in the last lines with what it said the first time, whatever comes of the second.

Not for arguments that end a run early (`-x`, `--maxfail`): what was never run would count as passed.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

if TYPE_CHECKING:
    from collections.abc import Iterable

MOST = 5
"""More failures than this are no accident: they get no second run."""
_TESTS_FAILED = 1  # the only one of pytest's exit statuses that is about tests
_KEPT_LINES = 80


@dataclass(frozen=True, slots=True)
class Run:
    """What became of one run of pytest."""

    status: int
    """Pytest's exit status; below 0 when a signal ended it."""
    failed: tuple[str, ...] = ()
    """Node ids of tests that failed, or whose set-up or teardown did."""
    said: tuple[str, ...] = ()
    """What each of those failures said, its name first."""
    passed: int = 0
    """How many tests passed."""


def main(arguments: list[str]) -> int:
    """Run pytest, perhaps twice; the exit status."""
    signal.signal(signal.SIGINT, lambda *_: None)  # it is pytest's: it ends in order, and so do we
    with tempfile.TemporaryDirectory(prefix="agentenv-tests-") as folder:
        first = run(arguments, Path(folder))
        if not deserves_second_run(first):
            return first.status
        say(f"{len(first.failed)} FAILED; ONCE MORE, ALONE", first.failed)
        second = run([*arguments, *second_run(arguments)], Path(folder))
    status = verdict(first, second)
    outcome = "PASSED ONLY IN A SECOND RUN: THAT IS A BUG" if status == 0 else "FAILED"
    say(f"{len(first.failed)} {outcome}", first.failed)
    say("WHAT THEY SAID THE FIRST TIME", first.said)
    return status


def deserves_second_run(first: Run) -> bool:
    """Whether nothing but a few tests failed.

    Statuses from 2 on are an interrupt, an internal error, wrong arguments and no tests. A 1 without a failed test is
    about something else, as too little coverage.
    """
    return first.status == _TESTS_FAILED and 1 <= len(first.failed) <= MOST


def verdict(first: Run, second: Run) -> int:
    """The exit status: 0 only where every test that failed has passed, and was not skipped or left out."""
    if second.status == 0 and second.passed < len(first.failed):
        return _TESTS_FAILED
    return second.status


def second_run(arguments: Iterable[str]) -> list[str]:
    """What pytest is told beside `arguments`, to run only what failed and to add to the coverage that there is."""
    only_failed = ["--last-failed", "--last-failed-no-failures=none"]
    measured = any(each == "--cov" or each.startswith("--cov=") for each in arguments)
    return [*only_failed, "--cov-append"] if measured else only_failed


def run(arguments: list[str], folder: Path) -> Run:
    """Run pytest with its memory of failures in `folder`, where nothing of other days is in it."""
    report, cache = folder / "report.xml", folder / "cache"
    report.unlink(missing_ok=True)
    command = [sys.executable, "-m", "pytest", *arguments]
    options = ["-o", f"cache_dir={cache}", f"--junitxml={report}"]
    status = subprocess.call([*command, *options])  # noqa: S603 - our own tests
    if not report.exists():
        return Run(status)
    suite = ET.parse(report).getroot()  # noqa: S314 - pytest's own file
    cases = list(suite.iter("testcase"))
    said = [told for case in cases if (told := _said(case))]
    passed = sum(len(case) == 0 for case in cases)
    return Run(status, _last_failed(cache), tuple(said), passed)


def _last_failed(cache: Path) -> tuple[str, ...]:
    path = cache / "v/cache/lastfailed"
    return tuple(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else ()


def _said(case: ET.Element) -> str:
    """The end of what a failed test said; empty for one that did not fail."""
    problems = [each.text or "" for kind in ("failure", "error") for each in case.findall(kind)]
    if not problems:
        return ""
    lines = "\n".join(problems).splitlines()[-_KEPT_LINES:]
    return "\n".join((f"{case.get('classname')}::{case.get('name')}", *lines, ""))


def say(heading: str, lines: Iterable[str]) -> None:
    """Write a heading that is seen among thousands of lines, and lines below it."""
    bar = "!" * 80
    sys.stdout.write("\n".join((bar, f"!!! {heading}", bar, *lines, "")))
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
