"""What can be told of Modal before a run, without telling a secret."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from agentenv_backends.doctor import InForce, Protection, examine_modal

if TYPE_CHECKING:
    from pathlib import Path

    from tests.emulators.modal.running import EmulatedModal

pytestmark = [pytest.mark.sandbox, pytest.mark.slow]


def _in_force(found: list[Protection]) -> list[bool]:
    return [finding.in_force is InForce.YES for finding in found]


async def test_where_all_is_well_nothing_is_lacking(server: EmulatedModal):
    found = await examine_modal()
    assert _in_force(found) == [True, True, True]
    assert server.sandboxes() == []


async def test_a_token_that_is_not_taken_is_told_and_not_shown(
    server: EmulatedModal, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    caplog.set_level(logging.DEBUG, logger="agentenv_backends")
    monkeypatch.setenv("MODAL_TOKEN_SECRET", "as-hunter2")
    found = await examine_modal()
    assert _in_force(found) == [True, True, False]
    assert "MODAL_TOKEN_SECRET" in found[-1].means
    assert "hunter2" not in str(found) + caplog.text


async def test_without_a_token_nobody_is_asked(
    server: EmulatedModal, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delenv("MODAL_TOKEN_SECRET")
    found = await examine_modal()
    assert _in_force(found) == [True, False]
    assert "modal token new" in found[-1].way_out


async def test_where_nobody_answers_the_finding_says_where(
    server: EmulatedModal, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("MODAL_SERVER_URL", "http://127.0.0.1:9")
    found = await examine_modal()
    assert _in_force(found) == [True, True, False]
    assert "http://127.0.0.1:9 (MODAL_SERVER_URL)" in found[-1].means
    assert found[-1].way_out


async def test_without_the_client_the_extra_is_named(monkeypatch: pytest.MonkeyPatch):
    for name in [name for name in sys.modules if name.startswith("agentenv_backends.modal")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "modal", None)
    (only,) = await examine_modal()
    assert only.in_force is InForce.NO
    assert "pip install 'agentenv[modal]'" in only.means


async def test_a_file_of_the_client_that_makes_no_sense_is_a_finding(tmp_path: Path):
    (tmp_path / "modal.toml").write_text("broken = [")
    program = (
        "import asyncio; from agentenv_backends.doctor import examine_modal;"
        "print(asyncio.run(examine_modal()))"
    )
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(sys.path),
        "MODAL_CONFIG_PATH": str(tmp_path / "modal.toml"),
    }
    shown = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, check=True
    )
    assert b"cannot be loaded" in shown.stdout
    assert b"modal.toml" in shown.stdout
