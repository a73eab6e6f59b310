"""Agents that cheat score 0: before verification their processes are dead, and hidden tests arrive only then."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from agentenv_backends.config import parse_backend_config
from tests.docker_engine import DOCKER, backend_param
from tests.faults.cheats import AGENTS, SumEnv, by_name
from tests.faults.ledger_env import env_over
from tests.faults.ledger_runs import collected

pytestmark = [pytest.mark.slow]
LIMITS = {"disk_mb": 32, "max_processes": 64}
LOCAL = {"type": "local", "slots": 8, **LIMITS}
SHARED = DOCKER | {"slots": 4, "max_hosts": 2, **LIMITS}
ALONE = DOCKER | {"slots": 1, "max_hosts": 4, **LIMITS}


@pytest.fixture(
    params=[
        pytest.param(LOCAL, id="local", marks=pytest.mark.sandbox),
        pytest.param(SHARED, id="docker", marks=pytest.mark.docker),
        pytest.param(ALONE, id="docker-alone", marks=pytest.mark.docker),
    ]
)
def backend(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Settings of each backend."""
    return backend_param(request)


async def _scores(path: Path, backend: dict[str, Any]) -> dict[str, float | None]:
    env = env_over(
        SumEnv,
        parse_backend_config(backend).build(),
        script=by_name,
        group_size=1,
        total_steps=-1,
        max_num_workers=4,
        enabled_toolsets=["terminal", "terminal_stateful"],
        ensure_scores_are_not_same=False,
    )
    groups = await collected(env, path)
    trajectories = [record for group in groups for record in group.trajectories]
    return {str(record.score_metadata.get("agent")): record.score for record in trajectories}


async def test_an_agent_that_cheats_scores_nothing_and_an_honest_one_everything(tmp_path, backend):
    scores = await _scores(tmp_path / "run", backend)
    assert scores == {name: float(name == "honest") for name in AGENTS}
