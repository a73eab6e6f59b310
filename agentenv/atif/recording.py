"""Keeping the trajectories of an environment's rollouts while it runs."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from agentenv.atif.models import Agent
from agentenv.atif.store import TRAJECTORIES_FILE, TrajectoryLog
from agentenv.rollout import finish

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from agentenv.env import AgentEnv


@asynccontextmanager
async def recorded(
    env: AgentEnv[Any], run_dir: Path, *, default: bool
) -> AsyncIterator[TrajectoryLog | None]:
    """Inside, every rollout of `env` leaves its trajectory in `run_dir`, if `record_trajectories` or `default` says so.

    The file is made with the first trajectory; all are written when the block has been left.
    """
    wanted = env.config.record_trajectories
    if not (default if wanted is None else wanted):
        yield None
        return
    log = TrajectoryLog(run_dir / TRAJECTORIES_FILE, agent_of(env))
    env.runtime.trajectories = log
    try:
        yield log
    finally:
        env.runtime.trajectories = None
        await finish(log.close())


def agent_of(env: AgentEnv[Any]) -> Agent:
    """An environment's agent as its trajectories describe it."""
    from agentenv import __version__  # noqa: PLC0415 - an import at the top would be a circle

    server = env.server_configs[0] if env.server_configs else None
    return Agent(
        name=env.display_name,
        version=__version__,
        model_name=server.model_name if server else None,
        tool_definitions=tuple(schema.to_openai() for schema in env.tools.schemas()),
    )
