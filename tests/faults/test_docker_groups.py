"""A run on Docker gives the groups that a run on local sandboxes gives, given the same seed and the same replies."""

from __future__ import annotations

import asyncio
import json
import re
from typing import TYPE_CHECKING, Any

import pytest

from agentenv.run.directory import read_groups
from agentenv.testing import running_engine
from agentenv_backends.config import parse_backend_config
from tests.docker_engine import DOCKER, IMAGE, needs_engine
from tests.faults.half_right import GROUP, STEPS, HalfRight, shell_tasks, written
from tests.faults.ledger_env import call_text, ledger_env
from tests.faults.ledger_runs import collected

if TYPE_CHECKING:
    from pathlib import Path

    from agentenv.run.record import GroupRecord
    from agentenv.testing import FakeRequest

pytestmark = [pytest.mark.docker, pytest.mark.sandbox, pytest.mark.slow, needs_engine]
_LOCAL = {"type": "local", "slots": 8}


async def test_shell_tasks_on_docker_give_the_same_groups_as_on_local_sandboxes(tmp_path: Path):
    on_docker = ("--env.backend.type", "docker", "--env.backend.image", IMAGE)
    async with running_engine(**HalfRight().served) as policy, asyncio.TaskGroup() as tasks:
        runs = [
            tasks.create_task(shell_tasks(tmp_path / name, policy.base_url, *flags))
            for name, flags in (("local", ()), ("docker", on_docker))
        ]
    local, docker = (run.result() for run in runs)
    assert len(local) == STEPS
    assert docker == local
    in_force = (tmp_path / "docker" / "config.in_force.yaml").read_text()
    assert "type: docker" in in_force
    groups = list(read_groups(tmp_path / "docker"))
    assert {score for group in groups for score in group.group["scores"]} == {0.0, 1.0}
    assert all(group.group["messages"] for group in groups)


# --- Where the workspace is -----------------------------------------------------------------------


def _asks_where_it_is(request: FakeRequest) -> str:
    """Commands whose output names folders, as a compiler's or a test runner's does."""
    where = "pwd; echo $HOME $TMPDIR; dirname $(mktemp); realpath .; cat nothing"
    return [call_text(where), call_text(f"echo {(request.seed or 0) % 1000} >> ledger"), "Done."][
        request.turn
    ]


async def _asked(path: Path, backend: dict[str, Any]) -> list[GroupRecord]:
    pool = parse_backend_config(backend).build()
    env = ledger_env(pool, script=_asks_where_it_is, group_size=GROUP, total_steps=2)
    return await collected(env, path)


def _messages(groups: list[GroupRecord]) -> str:
    return json.dumps([record.messages for group in groups for record in group.trajectories])


async def test_alone_in_a_container_an_agent_reads_what_it_reads_in_a_local_sandbox(tmp_path: Path):
    local = await _asked(tmp_path / "local", _LOCAL)
    alone = await _asked(tmp_path / "alone", DOCKER | {"slots": 1, "max_hosts": 4})
    assert list(map(written, alone)) == list(map(written, local))
    assert "/workspace" in _messages(local)


async def test_slots_that_share_a_container_differ_by_their_folders_and_by_nothing_else(
    tmp_path: Path,
):
    local = await _asked(tmp_path / "local", _LOCAL)
    shared = await _asked(tmp_path / "shared", DOCKER | {"slots": 4, "max_hosts": 2})
    assert [group.group["scores"] for group in shared] == [group.group["scores"] for group in local]
    assert _messages(shared) != _messages(local)
    assert re.sub(r"/slots/\d+/", "/", _messages(shared)) == _messages(local)
