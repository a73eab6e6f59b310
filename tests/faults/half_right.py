"""Shell tasks with a policy that is half right, run as a program, and what of a group must be the same everywhere."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from transformers import AutoTokenizer

from agentenv.run.directory import read_groups
from agentenv_environments.shell_tasks.demonstrations import demonstrate, replies
from agentenv_environments.shell_tasks.environment import TINY_POLICY
from agentenv_environments.shell_tasks.tasks import make_task
from tests.faults.programs import program

if TYPE_CHECKING:
    from pathlib import Path

    from agentenv.run.record import GroupRecord, TrajectoryRecord
    from agentenv.testing import FakeRequest

STEPS = 6
GROUP = 4


class HalfRight:
    """Solves each of the first shell tasks, or gets it wrong, as the seed has it."""

    def __init__(self) -> None:
        self._tokenizer = AutoTokenizer.from_pretrained(TINY_POLICY)
        self._tasks = [make_task("train", index) for index in range(STEPS)]
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
        del step["generation_s"], step["tools_s"], step["started_at"]
    return values


def written(group: GroupRecord) -> str:
    """All that a trainer and a reader of the transcripts could see of a group."""
    trajectories = [_told(record) for record in group.trajectories]
    return json.dumps([group.item_preview, dict(group.group), trajectories], sort_keys=True)


async def shell_tasks(
    directory: Path, policy_url: str, *flags: str, config: str = "configs/shell_tasks.yaml"
) -> dict[str, str]:
    """The groups of `agentenv process CONFIG`."""
    arguments = {
        "--env.total_steps": str(STEPS),
        "--env.group_size": str(GROUP),
        "--env.include_messages": "true",
        "--openai.server_type": "vllm",
        "--openai.base_url": policy_url,
        "--run-dir": str(directory),
    }
    words = [word for pair in arguments.items() for word in pair]
    command = ("-m", "agentenv", "process", config, "--no-report")
    output = directory.with_suffix(".txt")
    async with program(*command, *words, *flags, output=output) as running:
        assert await running.ended(within_s=120) == 0, output.read_text()
    return {group.group_id: written(group) for group in read_groups(directory)}
