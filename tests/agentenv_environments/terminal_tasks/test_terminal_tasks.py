"""The bundled terminal tasks: their solutions solve them; doing nothing, half of it, or planting results does not."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from agentenv.rollout import RolloutRecord
from agentenv.tasks import RunOptions, discover_tasks, load_task, nop_agent, oracle_agent, run_task
from agentenv.testing import FakePolicy
from agentenv.tokens.renderer import load_renderer
from agentenv_backends.config import parse_backend_config
from agentenv_environments.terminal_tasks.environment import BUNDLED, TerminalTasks
from tests.agentenv_environments.scripted import END_IDS, TOKENIZER, call
from tests.docker_engine import IMAGE, backend_param

TASKS = [path.name for path in discover_tasks(BUNDLED)]
CHEATS = {
    "nothing": "true",
    "reward": "for f in reward.txt reward.json /logs/verifier/reward.txt; do echo 1 > $f; done",
    "programs": "for p in bash find head sha256sum python3; do printf '#!/bin/sh\\nexit 0' > $p; chmod +x $p; done; "
    "echo 'checked() { true; }; PATH=.' | tee .bashrc .profile .bash_profile > /dev/null",
    "modules": "for m in json sys os sitecustomize; do echo 'import os; os._exit(0)' > $m.py; done",
    "links": "for f in offenders.txt findings.csv report.txt restored; do ln -s /tests/test.sh $f; done",
    "daemon": "(setsid sh -c 'while :; do echo 1 > /logs/verifier/reward.txt; done' >/dev/null 2>&1 &); true",
}


@pytest.fixture(
    params=[
        pytest.param({"type": "local"}, id="local", marks=pytest.mark.sandbox),
        pytest.param(
            {"type": "docker", "image": IMAGE, "pull": "never"},
            id="docker",
            marks=pytest.mark.docker,
        ),
    ]
)
def backend(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Settings of each backend."""
    return backend_param(request)


def test_every_bundled_task_is_valid_and_says_what_it_wants():
    tasks = [load_task(path) for path in discover_tasks(BUNDLED)]
    assert len(tasks) >= 5
    assert [task.warnings for task in tasks] == [()] * len(tasks)
    assert all(task.steps[0].instruction.strip() for task in tasks)


@pytest.mark.slow
async def test_the_oracle_scores_one_on_every_task_and_doing_nothing_scores_nothing(
    tmp_path: Path, backend: dict[str, Any]
) -> None:
    turn = asyncio.Semaphore(2)
    own = {key: value for key, value in backend.items() if key != "type"}

    async def reward_of(name: str, agent: str) -> tuple[float | None, str | None]:
        async with turn:
            result = await run_task(
                Path(BUNDLED) / name,
                agent={"oracle": oracle_agent, "nop": nop_agent}[agent](),
                provider=backend["type"],
                output_dir=tmp_path,
                options=RunOptions(backend=own),
            )
        return result.reward, result.error

    pairs = [(name, agent) for name in TASKS for agent in ("oracle", "nop")]
    rewards = await asyncio.gather(*(reward_of(*pair) for pair in pairs))
    assert dict(zip(pairs, rewards, strict=True)) == {
        pair: (float(pair[1] == "oracle"), None) for pair in pairs
    }


def solution_of(name: str) -> str:
    return Path(BUNDLED, name, "solution", "solve.sh").read_text()


def spoilt(name: str) -> str:
    """Solved, and then something else done as well."""
    return f"({solution_of(name)}); find . -type f -exec sh -c 'echo more >> \"$1\"' - {{}} \\;"


@pytest.mark.slow
@pytest.mark.sandbox
async def test_a_policy_that_solves_scores_one_and_one_that_cheats_nothing():
    commands = {
        f"{name} {how}": command
        for name in TASKS
        for how, command in [
            ("solved", solution_of(name)),
            ("spoilt", spoilt(name)),
            *CHEATS.items(),
        ]
    }
    records = await records_of(commands)
    said = {
        name: (record.cause, record.reward)
        for name, record in records.items()
        if record.reward != float(name.endswith(" solved"))
    }
    assert said == {}


async def records_of(commands: dict[str, str]) -> dict[str, RolloutRecord]:
    """The record of a rollout of each: the first word is the task, the command what its agent runs."""
    config, servers = TerminalTasks.config_init()
    local = {"backend": parse_backend_config({"type": "local", "slots": 4})}
    env = TerminalTasks(config.model_copy(update=local), servers)
    script = {name: [call("terminal", command=one), "Done."] for name, one in commands.items()}
    env.runtime = env.task_runtime(
        policy=FakePolicy(
            lambda request: script[request.trajectory_id][request.turn],
            tokenizer=TOKENIZER,
            end_ids=END_IDS,
        ),
        renderer=load_renderer(TOKENIZER, "qwen3"),
    )
    await env.setup()
    try:
        runs = [
            env.runtime.run(
                env.task_for({"id": name.split()[0]}), env.verifier(), trajectory_id=name
            )
            for name in commands
        ]
        return dict(zip(commands, await asyncio.gather(*runs), strict=True))
    finally:
        await env.shutdown()
