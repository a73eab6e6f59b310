"""Agents that cheat at task directories score 0: what they planted is gone before the tests arrive, or is found."""

from __future__ import annotations

import asyncio
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from agentenv.tasks import PlacePool, RunOptions, TaskAgent, run_task
from agentenv_environments.task_set.environment import BUNDLED
from agentenv_tools.toolsets import build_registry
from tests.docker_engine import IMAGE, backend_param
from tests.faults.task_cheats import AGENTS, Cheat

pytestmark = [pytest.mark.slow]
_AT_ONCE = 4
LOCAL = {"type": "local", "slots": _AT_ONCE, "disk_mb": 32, "tmp_mb": 16}
DOCKER = {
    "type": "docker",
    "max_hosts": _AT_ONCE,
    "image": IMAGE,
    "pull": "never",
    "disk_mb": 16,
}
_NOT_ROOT = 'user = "nobody"'


@pytest.fixture(
    params=[
        pytest.param(LOCAL, id="local", marks=pytest.mark.sandbox),
        pytest.param(DOCKER, id="docker", marks=pytest.mark.docker),
        pytest.param(DOCKER | {"run_as_root": True}, id="docker-root", marks=pytest.mark.docker),
    ]
)
def backend(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Settings of each backend."""
    return backend_param(request)


async def test_an_agent_that_cheats_at_a_task_directory_scores_nothing(
    tmp_path: Path, backend: dict[str, Any]
) -> None:
    tools = partial(build_registry, ["terminal", "terminal_stateful"])
    own = {key: value for key, value in backend.items() if key != "type"}
    options = RunOptions(backend={**own, "acquire_timeout_s": 600})
    task = shutil.copytree(Path(BUNDLED) / "sum-script", tmp_path / "sum-script")
    if backend.get("run_as_root"):
        toml = task / "task.toml"
        toml.write_text(toml.read_text().replace(_NOT_ROOT, 'user = "root"'))
    places, turn = PlacePool(tools), asyncio.Semaphore(_AT_ONCE)

    async def score(name: str) -> tuple[float, str | None]:
        agent = TaskAgent(name, Cheat(tuple(AGENTS[name])), tools=tools)
        async with turn:
            result = await run_task(
                task,
                agent=agent,
                provider=backend["type"],
                output_dir=tmp_path / name,
                options=options,
                places=places,
            )
        return result.reward, result.error

    try:
        found = dict(zip(AGENTS, await asyncio.gather(*map(score, AGENTS)), strict=True))
    finally:
        await places.close()
    assert {name: reward for name, (reward, _) in found.items()} == {
        name: float(name == "honest") for name in AGENTS
    }, found
