"""A run on Modal gives the groups that a run on local sandboxes gives, given the same seed and the same replies."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
import yaml

from agentenv.run.directory import read_groups
from agentenv.testing import running_engine
from tests.faults.half_right import STEPS, HalfRight, shell_tasks
from tests.faults.programs import ROOT
from tests.modal_service import needs_modal

_LOCAL, _MODAL = Path("configs/shell_tasks.yaml"), Path("configs/shell_tasks_modal.yaml")
pytestmark = [pytest.mark.sandbox, pytest.mark.slow, needs_modal]


def test_the_two_configs_differ_in_one_block():
    local, modal = (yaml.safe_load((ROOT / path).read_text()) for path in (_LOCAL, _MODAL))
    assert (local["env"].pop("backend")["type"], modal["env"].pop("backend")["type"]) == (
        "local",
        "modal",
    )
    assert local == modal


async def test_shell_tasks_on_modal_give_the_same_groups_as_on_local_sandboxes(tmp_path: Path):
    async with running_engine(**HalfRight().served) as policy, asyncio.TaskGroup() as tasks:
        runs = [
            tasks.create_task(shell_tasks(tmp_path / name, policy.base_url, config=str(config)))
            for name, config in (("local", _LOCAL), ("modal", _MODAL))
        ]
    local, modal = (run.result() for run in runs)
    assert len(local) == STEPS
    assert modal == local
    assert "type: modal" in (tmp_path / "modal" / "config.in_force.yaml").read_text()
    groups = list(read_groups(tmp_path / "modal"))
    assert {score for group in groups for score in group.group["scores"]} == {0.0, 1.0}
