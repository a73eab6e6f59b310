"""The second run that a few failed tests get."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.run_tests import MOST, Run, deserves_second_run, second_run, verdict

ROOT = Path(__file__).parents[2]


def failed(count: int, status: int = 1) -> Run:
    return Run(status, tuple(f"test_{number}" for number in range(count)))


@pytest.mark.parametrize("count", [1, MOST])
def test_a_few_failed_tests_deserve_a_second_run(count):
    assert deserves_second_run(failed(count))


@pytest.mark.parametrize(
    "first",
    [
        pytest.param(Run(0, passed=3), id="all passed"),
        pytest.param(failed(MOST + 1), id="too many failed"),
        pytest.param(failed(0), id="what failed is no test"),
        *(pytest.param(failed(1, status), id=f"status {status}") for status in (2, 3, 4, 5, -9)),
    ],
)
def test_nothing_else_deserves_a_second_run(first):
    assert not deserves_second_run(first)


@pytest.mark.parametrize(
    ("second", "status"),
    [
        (Run(0, passed=2), 0),
        (Run(0, passed=1), 1),  # the other was skipped
        (Run(1, passed=1), 1),
        (Run(5), 5),
        (Run(-9), -9),
    ],
)
def test_it_passes_only_where_every_failed_test_passed_in_the_second_run(second, status):
    assert verdict(failed(2), second) == status


def test_coverage_is_added_to_where_it_is_measured():
    assert "--cov-append" in second_run(["--cov", "-q"])
    assert "--cov-append" in second_run(["--cov=agentenv"])
    assert "--cov-append" not in second_run(["-q", "--cov-report=term"])


TESTS = """
from pathlib import Path
import pytest

@pytest.fixture
def shaky():
    yield
    tries = Path("tries")
    tries.write_text(str(int(tries.read_text()) + 1 if tries.exists() else 1))
    assert int(tries.read_text()) > 1, "it was the teardown"

def test_sound(): pass

@pytest.mark.parametrize("name", ["a::b [c]"])
def test_with_an_odd_id(name, shaky): pass
"""
ALWAYS = "def test_wrong(): assert 'a' == 'b', 'it is wrong'\n"


def run_suite(folder: Path, tests: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    (folder / "test_it.py").write_text(tests)
    (folder / "pytest.ini").write_text("[pytest]\n")
    return subprocess.run(
        [sys.executable, str(ROOT / "scripts/run_tests.py"), "-q", *arguments],
        cwd=folder,
        env={**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_test_that_passes_only_the_second_time_is_named_with_what_it_said(tmp_path):
    done = run_suite(tmp_path, TESTS)
    assert done.returncode == 0, done.stdout
    assert "1 FAILED; ONCE MORE, ALONE" in done.stdout
    end = done.stdout.split("PASSED ONLY IN A SECOND RUN")[1]
    assert "test_it.py::test_with_an_odd_id[a::b [c]]" in end
    assert "it was the teardown" in end


def test_a_test_that_fails_twice_fails(tmp_path):
    done = run_suite(tmp_path, TESTS + ALWAYS)
    assert done.returncode == 1
    assert "!!! 2 FAILED\n" in done.stdout
    assert "it is wrong" in done.stdout.split("WHAT THEY SAID")[1]


def test_wrong_arguments_fail_at_once(tmp_path):
    done = run_suite(tmp_path, TESTS, "--no-such-option")
    assert done.returncode == 4
    assert "!!!" not in done.stdout
