"""The doctor tries, and tells what it found."""
# mypy: disable-error-code="no-untyped-call, union-attr"

import os
import shutil
from pathlib import Path

import pytest

from agentenv_backends import doctor
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


def test_the_bait_is_gone_afterwards():
    with doctor._bait() as bait:
        assert os.environ["AGENTENV_DOCTOR_SECRET"] == bait["secret"]
        path = Path(bait["paths"][0])
        assert path.exists()
    assert "AGENTENV_DOCTOR_SECRET" not in os.environ
    assert not path.exists()
