"""The doctor tries, and tells what it found."""
# mypy: disable-error-code="no-untyped-call, union-attr"

import json
import os
import pwd
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from agentenv_backends import _probe
from agentenv_backends._bait import bait
from agentenv_backends.config import LocalConfig
from agentenv_backends.doctor import InForce, examine

MACHINE_MAY_LACK = {"memory is limited", "processes are limited"}  # without writable control groups


@pytest.mark.sandbox
async def test_under_bubblewrap_every_protection_that_was_asked_for_is_in_force():
    found = {protection.name: protection for protection in await examine(LocalConfig(cpus=None))}
    assert len(found) == 17
    weak = {name for name, protection in found.items() if protection.in_force is not InForce.YES}
    assert "processor time is limited" in weak
    assert weak - MACHINE_MAY_LACK == {"processor time is limited"}


@pytest.mark.sandbox
async def test_without_isolation_it_says_what_is_given_up():
    config = LocalConfig(isolation="none", allow_network=True)
    found = {protection.name: protection for protection in await examine(config)}
    for name in (
        "processes of this machine are hidden",
        "files of this machine are hidden",
        "no network",
    ):
        assert found[name].in_force is InForce.NO
        assert found[name].way_out
    assert found["slots do not see one another"].in_force is InForce.NO
    assert "filter" in found["dangerous system calls are refused"].means or (
        "possible" in found["dangerous system calls are refused"].means
    )


async def test_where_no_slot_can_be_opened_there_is_one_finding_with_the_way_out(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda _: None)
    (only,) = await examine()
    assert only.in_force is InForce.NO
    assert "apt-get install bubblewrap" in only.way_out


def test_a_limit_of_each_process_alone_is_told_from_one_of_their_sum():
    limit = 64 << 20
    asked = {"megabytes": 120, "process_megabytes": 64}
    code = f"import resource; resource.setrlimit(resource.RLIMIT_DATA, ({limit}, {limit}))"
    source = Path(_probe.__file__).read_text(encoding="utf-8")
    program = f"{source}\n{code}\nrun('memory', {asked!r})\n"
    shown = subprocess.run(
        [sys.executable, "-"], input=program.encode(), capture_output=True, check=True
    )
    assert json.loads(shown.stdout) == {"alone": False, "together": True}


def test_a_user_without_a_home_is_no_obstacle(monkeypatch):
    def unknown(_):
        raise KeyError("no such user")

    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    with bait() as asked:
        assert all(Path(path).is_absolute() for path in asked["paths"])


def test_the_bait_is_gone_afterwards():
    with bait() as asked:
        assert os.environ["AGENTENV_BAIT_SECRET"] == asked["secret"]
        path = Path(asked["paths"][0])
        assert path.exists()
    assert "AGENTENV_BAIT_SECRET" not in os.environ
    assert not path.exists()
