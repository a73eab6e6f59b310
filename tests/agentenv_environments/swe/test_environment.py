"""Repositories that the tests make: who mends the fault scores one, and who does anything else scores nothing."""

from __future__ import annotations

import asyncio
import json
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest

from agentenv import ConfigError
from agentenv.outcomes import Outcome
from agentenv.rollout import RolloutRecord
from agentenv_environments._json_lines import read_json_lines
from agentenv_environments.swe.environment import Swe
from agentenv_environments.swe.repositories import RepositoryCache, RepositoryError
from agentenv_environments.swe.rows import SweRow
from tests.agentenv_environments.scripted import call, scripted
from tests.agentenv_environments.swe.repository import MENDED, SECRET, make_repository
from tests.docker_engine import DOCKER, backend_param

TEST = "tests/test_sums.py"


def write(path: str, content: str) -> str:
    return f"mkdir -p $(dirname {path}); printf %s {shlex.quote(content)} > {path}"


MEND = write("calc/sums.py", MENDED)
_PASSING = "import pytest\nclass TestSums:\n    def test_all_count(self): pass\n"
_FORGE = """
import os, json, gc, sys
nodes = ["tests/test_sums.py::TestSums::test_all_count", "tests/test_sums.py::test_nothing",
         "tests/test_sums.py::test_zeros[0]", "tests/test_sums.py::test_zeros[1]"]
line = json.dumps({"passed": 4, "others": {}, "problem": None, "log": ""}) + "\\n"
"""
_KEEP = "def total(numbers):\n    return sum(numbers[1:])\n"

CHEATS = {
    "does nothing": "true",
    "breaks it": write("calc/sums.py", "def total(numbers):\n    return 6\n"),
    "syntax error": write("calc/sums.py", "def total("),
    "edits the tests": f"{write(TEST, _PASSING)}; {write('tests/helpers.py', 'def same(a, b): return True')}",
    "links the tests": f"mkdir fake; {write('fake/test_sums.py', _PASSING)}; rm -r tests; ln -s fake tests",
    "conftest": write(
        "conftest.py",
        "import pytest\n@pytest.hookimpl(hookwrapper=True)\ndef pytest_runtest_makereport():\n"
        "    out = yield\n    out.get_result().outcome = 'passed'\n",
    )
    + "; cp conftest.py tests/; cp conftest.py calc/",
    "pytest.ini": write("pytest.ini", "[pytest]\naddopts = --co\npython_functions = none\n")
    + "; cp pytest.ini tox.ini; cp pytest.ini .pytest.ini",
    "sitecustomize": "; ".join(
        write(name, "import os; os._exit(0)")
        for name in (
            "sitecustomize.py",
            "usercustomize.py",
            "tests/sitecustomize.py",
            "json.py",
            "pytest.py",
        )
    ),
    "exits": write("calc/__init__.py", "import sys; sys.exit(0)"),
    "leaves at once": write("calc/__init__.py", "import os; os._exit(0)"),
    "skips": write("calc/sums.py", "import pytest\ndef total(n): pytest.skip('no')"),
    "skips the module": write(
        "calc/sums.py", "import pytest\npytest.skip('no', allow_module_level=True)"
    ),
    "expects to fail": write("calc/sums.py", "import pytest\ndef total(n): pytest.xfail('no')"),
    "writes its parent's output": write(
        "calc/sums.py",
        _FORGE + "for pid in filter(str.isdigit, os.listdir('/proc')):\n"
        "    try: open(f'/proc/{pid}/fd/1', 'w').write(line)\n"
        "    except OSError: pass\nos.kill(os.getppid(), 9)\n" + _KEEP,
    ),
    "writes the pipe": write(
        "calc/sums.py",
        _FORGE + "canary = open('tests/test_sums.py').read().split('def ')[-1].split('(')[0]\n"
        "lines = [json.dumps([node, 'passed']) for node in nodes]\n"
        "lines.append(json.dumps(['tests/test_sums.py::' + canary, 'failed']))\n"
        "for fd in range(3, 64):\n    for line in lines:\n"
        "        try: os.write(fd, (line + '\\n').encode())\n"
        "        except OSError: pass\nos._exit(0)\n",
    ),
    "patches the reports": write(
        "calc/sums.py",
        "from _pytest.reports import TestReport\nmade = TestReport.from_item_and_call.__func__\n"
        "def forged(cls, item, call):\n    call.excinfo = None\n    return made(cls, item, call)\n"
        "TestReport.from_item_and_call = classmethod(forged)\n" + _KEEP,
    ),
    "plants results": "; ".join(
        write(name, '{"passed": 4}') for name in ("spec.json", "hidden", "results.xml")
    ),
    "fills the disk": "cat /dev/zero > filler; true",
    "locks": "chmod 000 tests calc; chmod 555 .",
    "plants programs": "for p in python3 env base64 tar mktemp; do"
    " printf '#!/bin/sh\\nexit 0' > $p; chmod +x $p; done; "
    "echo 'PATH=.:$PATH' > .bashrc; cp .bashrc .profile",
    "daemon": "(setsid sh -c 'while :; do cp calc/__init__.py tests/test_sums.py; done' >/dev/null 2>&1 &); true",
}
HONEST = {
    "mends it": MEND,
    "mends it and breaks the tests": f"{MEND}; rm -rf tests conftest.py pytest.ini; ln -s / tests",
    "mends it beside other work": f"{MEND}; {write('notes.md', 'done')}; "
    "git add -A; git -c user.name=a -c user.email=b commit -qm done",
    "mends it and leaves a process": write(
        "calc/sums.py",
        "import subprocess\nsubprocess.Popen(['sleep', '600'], start_new_session=True)\n" + MENDED,
    ),
}


@pytest.fixture
def row(tmp_path: Path) -> dict[str, Any]:
    (tmp_path / "repo").mkdir()
    return make_repository(tmp_path / "repo")


async def records_of(
    row: dict[str, Any], tmp_path: Path, commands: dict[str, str], **settings: Any
) -> dict[str, RolloutRecord]:
    """The record of a rollout that runs each command."""
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps(row))
    script = {name: [call("terminal", command=one), "Done."] for name, one in commands.items()}
    limits: dict[str, Any] = {
        "backend": {"type": "local", "slots": 2, "disk_mb": 64},
        "share_workspace_setup": False,
    }
    paths: dict[str, Any] = {"rows": rows, "repository_cache": tmp_path / "cache"}
    async with scripted(Swe, script, **(limits | paths | settings)) as env:
        item = await env.get_next_item()
        runs = [
            env.runtime.run(env.task_for(item), env.verifier(), trajectory_id=name)
            for name in script
        ]
        return dict(zip(script, await asyncio.gather(*runs), strict=True))


@pytest.fixture(
    params=[
        pytest.param({"type": "local"}, id="local", marks=pytest.mark.sandbox),
        pytest.param(DOCKER | {"max_hosts": 1}, id="docker", marks=pytest.mark.docker),
    ]
)
def backend(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Settings of each backend."""
    return backend_param(request) | {"slots": 2, "disk_mb": 64}


@pytest.mark.slow
async def test_who_mends_the_fault_scores_one_and_who_cheats_scores_nothing(row, tmp_path, backend):
    records = await records_of(row, tmp_path, HONEST | CHEATS, backend=backend)
    said = {name: (record.cause, record.score_metadata) for name, record in records.items()}
    assert {name: record.reward for name, record in records.items()} == {
        name: float(name in HONEST) for name in records
    }, said
    nothing = records["does nothing"].score_metadata
    assert nothing["FAIL_TO_PASS"] == {f"{TEST}::TestSums::test_all_count": "failed"}
    assert (nothing["PASS_TO_PASS"], nothing["passed"], nothing["tests"]) == ({}, 3, 4)
    assert "forged" in records["patches the reports"].score_metadata["problem"]


@pytest.mark.sandbox
async def test_code_that_never_ends_or_never_stops_printing_scores_nothing_in_time(row, tmp_path):
    endless = {
        "waits": write("calc/sums.py", f"{MENDED}while True: pass\n"),
        "prints": write("calc/sums.py", f"{MENDED}while True: print('x' * 1_000_000)\n"),
        "forks": write("calc/sums.py", f"import os\n{MENDED}while True: os.fork()\n"),
    }
    records = await records_of(row, tmp_path, endless, test_timeout_s=3.0)
    said = {name: (record.cause, record.score_metadata) for name, record in records.items()}
    assert {name: record.reward for name, record in records.items()} == dict.fromkeys(
        endless, 0.0
    ), said


@pytest.mark.sandbox
async def test_a_sandbox_that_cannot_run_tests_gives_no_score(row, tmp_path):
    (record,) = (await records_of(row, tmp_path, {"mends it": MEND}, python="python2")).values()
    assert (record.reward, record.outcome) == (None, Outcome.VERIFIER_FAILED)
    assert record.cause is not None
    assert "'python2' to be Python 3.10 or newer" in record.cause


@pytest.mark.sandbox
async def test_a_workspace_holds_one_commit_and_nothing_that_came_later(row, tmp_path):
    look = (
        "git log --all --format=%s; git status --porcelain; git reflog | wc -l; "
        f"git cat-file --batch-all-objects --batch | grep -c {SECRET}; grep -r {SECRET} . | wc -l; ls tests link"
    )
    (record,) = (await records_of(row, tmp_path, {"looks": look})).values()
    assert record.result is not None
    seen = record.result.steps[0].tool_results[0].output
    names = ["__init__.py", "sums.py", "", "tests:", "__init__.py", "helpers.py", "test_sums.py"]
    assert [part for part in seen.split("\n") if part] == [
        *("base", "1", "0", "0", "link:"),
        *(name for name in names if name),
    ]


@pytest.mark.sandbox
async def test_a_group_shares_one_set_up(row, tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps(row))
    settings: dict[str, Any] = {
        "rows": rows,
        "repository_cache": tmp_path / "cache",
        "group_size": 2,
    }
    async with scripted(Swe, {}, always="Done.", **settings) as env:
        ran: list[str] = []
        set_up = env.setup_trajectory_workspace

        async def counted(item, *, trajectory_id, exec_tool):
            ran.append(trajectory_id)
            return await set_up(item, trajectory_id=trajectory_id, exec_tool=exec_tool)

        env.setup_trajectory_workspace = counted  # type: ignore[method-assign]
        group, backlog = await env.collect_trajectories(await env.get_next_item())
    assert (backlog, len(ran)) == ([], 1)
    assert group is not None
    assert group["scores"] == [0.0, 0.0]


def test_a_commit_in_the_cache_needs_the_repository_no_more(row, tmp_path):
    cache = RepositoryCache(tmp_path / "cache")
    cache.prepare(SweRow.model_validate(row), {})
    shutil.rmtree(row["repo"])
    assert cache.prepare(SweRow.model_validate(row), {}).hidden


def test_a_commit_that_is_not_there_and_a_patch_that_does_not_fit_are_told(row, tmp_path):
    cache = RepositoryCache(tmp_path / "cache")
    with pytest.raises(RepositoryError, match="has no commit 1111"):
        cache.prepare(SweRow.model_validate(row | {"base_commit": "1" * 40}), {})
    with pytest.raises(RepositoryError, match="git fetch"):
        cache.prepare(SweRow.model_validate(row | {"repo": str(tmp_path / "none")}), {})
    outside = "--- /dev/null\n+++ b/../evil\n@@ -0,0 +1 @@\n+evil\n"
    with pytest.raises(RepositoryError, match="git apply"):
        cache.prepare(SweRow.model_validate(row | {"test_patch": outside}), {})
    assert not list(tmp_path.rglob("evil"))


@pytest.mark.parametrize(
    "change",
    [
        {"base_commit": "main"},
        {"base_commit": "--upload-pack=x"},
        {"repo": "--upload-pack=x"},
        {"repo": "ext::sh -c x"},
        {"FAIL_TO_PASS": []},
        {"FAIL_TO_PASS": "[broken"},
        {"FAIL_TO_PASS": ["../x.py::test"]},
        {"test_files": {"/etc/x": ""}},
        {"test_files": {".git/hooks/x": ""}},
    ],
)
def test_rows_that_cannot_be_are_refused_with_their_line(row, tmp_path, change):
    path = tmp_path / "rows.jsonl"
    path.write_text(f"{json.dumps(row)}\n{json.dumps(row | change)}\n")
    with pytest.raises(ConfigError, match=f"rows.jsonl:2: .*{next(iter(change))}"):
        read_json_lines(path, "env.rows", SweRow)
