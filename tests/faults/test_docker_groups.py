"""A run on Docker gives the groups that a run on local sandboxes gives, given the same seed and the same replies."""

from __future__ import annotations

import asyncio
import json
import re
from typing import TYPE_CHECKING, Any

import pytest
from transformers import AutoTokenizer

from agentenv.process import process
from agentenv.run.directory import RunDirectory, read_groups
from agentenv.testing import running_engine
from agentenv_backends.config import parse_backend_config
from agentenv_environments.shell_tasks.demonstrations import demonstrate, replies
from agentenv_environments.shell_tasks.environment import TINY_POLICY
from agentenv_environments.shell_tasks.tasks import make_task
from tests.docker_engine import DOCKER, IMAGE, needs_engine
from tests.faults.ledger_env import call_text, ledger_env
from tests.faults.programs import program

if TYPE_CHECKING:
    from pathlib import Path

    from agentenv.run.record import GroupRecord, TrajectoryRecord
    from agentenv.testing import FakeRequest

pytestmark = [pytest.mark.docker, pytest.mark.sandbox, pytest.mark.slow, needs_engine]
_STEPS = 6
_GROUP = 4
_LOCAL = {"type": "local", "slots": 8}


class HalfRight:
    """Solves each of the first shell tasks, or gets it wrong, as the seed has it."""

    def __init__(self) -> None:
        self._tokenizer = AutoTokenizer.from_pretrained(TINY_POLICY)
        self._tasks = [make_task("train", index) for index in range(_STEPS)]
        self._says: dict[str, list[str]] = {}

    @property
    def served(self) -> dict[str, Any]:
        """Options of a fake engine."""
        end_ids = (self._tokenizer.convert_tokens_to_ids("<|im_end|>"),)
        return {"script": self._reply, "tokenizer": self._tokenizer, "end_ids": end_ids}

    def _reply(self, request: FakeRequest) -> str:
        if request.trajectory_id not in self._says:
            self._says[request.trajectory_id] = self._begin(request)
        return self._says[request.trajectory_id][request.turn]

    def _begin(self, request: FakeRequest) -> list[str]:
        prompt = self._tokenizer.decode(list(request.prompt_ids))
        (task,) = (task for task in self._tasks if task.instruction in prompt)
        assert request.seed is not None
        shown = demonstrate(task, task.slips[0] if request.seed % 2 else task.solution)
        return replies(shown.commands, shown.answer)


def _told(record: TrajectoryRecord) -> dict[str, Any]:
    """A trajectory without its name and without times."""
    values = record.to_json()
    for name in ("trajectory_id", "duration_s", "timings"):
        del values[name]
    for step in values["steps"]:
        del step["generation_s"], step["tools_s"]
    return values


def _written(group: GroupRecord) -> str:
    """All that a trainer and a reader of the transcripts could see of a group."""
    trajectories = [_told(record) for record in group.trajectories]
    return json.dumps([group.item_preview, dict(group.group), trajectories], sort_keys=True)


async def _shell_tasks(directory: Path, policy_url: str, *flags: str) -> dict[str, str]:
    """The groups of `agentenv process configs/shell_tasks.yaml`."""
    arguments = {
        "--env.total_steps": str(_STEPS),
        "--env.group_size": str(_GROUP),
        "--env.include_messages": "true",
        "--openai.server_type": "vllm",
        "--openai.base_url": policy_url,
        "--run-dir": str(directory),
    }
    words = [word for pair in arguments.items() for word in pair]
    command = ("-m", "agentenv", "process", "configs/shell_tasks.yaml", "--no-report")
    output = directory.with_suffix(".txt")
    async with program(*command, *words, *flags, output=output) as running:
        assert await running.ended(within_s=120) == 0, output.read_text()
    return {group.group_id: _written(group) for group in read_groups(directory)}


async def test_shell_tasks_on_docker_give_the_same_groups_as_on_local_sandboxes(tmp_path: Path):
    on_docker = ("--env.backend.type", "docker", "--env.backend.image", IMAGE)
    async with running_engine(**HalfRight().served) as policy, asyncio.TaskGroup() as tasks:
        runs = [
            tasks.create_task(_shell_tasks(tmp_path / name, policy.base_url, *flags))
            for name, flags in (("local", ()), ("docker", on_docker))
        ]
    local, docker = (run.result() for run in runs)
    assert len(local) == _STEPS
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
    env = ledger_env(pool, script=_asks_where_it_is, group_size=_GROUP, total_steps=2)
    directory = await RunDirectory.open(path)
    try:
        await process(env, directory=directory, handle_signals=False)
    finally:
        await directory.close()
    return sorted(read_groups(path), key=lambda group: group.group_id)


def _messages(groups: list[GroupRecord]) -> str:
    return json.dumps([record.messages for group in groups for record in group.trajectories])


async def test_alone_in_a_container_an_agent_reads_what_it_reads_in_a_local_sandbox(tmp_path: Path):
    local = await _asked(tmp_path / "local", _LOCAL)
    alone = await _asked(tmp_path / "alone", DOCKER | {"slots": 1, "max_hosts": 4})
    assert list(map(_written, alone)) == list(map(_written, local))
    assert "/workspace" in _messages(local)


async def test_slots_that_share_a_container_differ_by_their_folders_and_by_nothing_else(
    tmp_path: Path,
):
    local = await _asked(tmp_path / "local", _LOCAL)
    shared = await _asked(tmp_path / "shared", DOCKER | {"slots": 4, "max_hosts": 2})
    assert [group.group["scores"] for group in shared] == [group.group["scores"] for group in local]
    assert _messages(shared) != _messages(local)
    assert re.sub(r"/slots/\d+/", "/", _messages(shared)) == _messages(local)
