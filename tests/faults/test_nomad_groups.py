"""A run on a Nomad cluster gives the groups that a run on local sandboxes gives, given the same seed and replies."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from agentenv.run.directory import read_groups
from agentenv.testing import running_engine
from tests.emulators.nomad.live import nomad_address
from tests.faults.half_right import STEPS, HalfRight, shell_tasks

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.sandbox, pytest.mark.slow]


async def test_shell_tasks_on_nomad_give_the_same_groups_as_on_local_sandboxes(
    tmp_path: Path, request: pytest.FixtureRequest
):
    backend = {"type": "nomad", "driver": "raw_exec", "slots": "4", "max_hosts": "3"}
    async with (
        nomad_address(request.config) as address,
        running_engine(**HalfRight().served) as policy,
        asyncio.TaskGroup() as tasks,
    ):
        backend["address"] = address
        on_nomad = [
            word for name, value in backend.items() for word in (f"--env.backend.{name}", value)
        ]
        runs = [
            tasks.create_task(shell_tasks(tmp_path / name, policy.base_url, *flags))
            for name, flags in (("local", ()), ("nomad", on_nomad))
        ]
    local, nomad = (run.result() for run in runs)
    assert len(local) == STEPS
    assert nomad == local
    assert "type: nomad" in (tmp_path / "nomad" / "config.in_force.yaml").read_text()
    groups = list(read_groups(tmp_path / "nomad"))
    assert {score for group in groups for score in group.group["scores"]} == {0.0, 1.0}
