"""A run's trajectory, in the Agent Trajectory Interchange Format: agent/trajectory.json, images in agent/images."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Any

from agentenv.atif import Agent, from_rollout, rollout_images

if TYPE_CHECKING:
    from agentenv.rollout import RolloutRecord
    from agentenv.tasks.folder import RunFolder
    from agentenv.tasks.rolling import TaskRollout

TRAJECTORY = "agent/trajectory.json"


async def write_rollout(folder: RunFolder, rollout: TaskRollout, record: RolloutRecord) -> None:
    """Write what a rollout left, with the run's secrets masked. Raises `OSError`."""
    agent, step = rollout.agent, rollout.task.steps[0]
    described = Agent(
        name=agent.name,
        version=agent.version,
        model_name=agent.model,
        tool_definitions=_tool_definitions(rollout) or None,
        extra={"task": rollout.task.name, "provider": rollout.provider},
    )
    trajectory = from_rollout(record, agent=described, instruction=step.instruction)
    for path, image in rollout_images(record).items():
        await folder.write_bytes(f"agent/{path}", base64.b64decode(image.data))
    await folder.write_json(TRAJECTORY, trajectory.to_json())


def _tool_definitions(rollout: TaskRollout) -> tuple[dict[str, Any], ...]:
    if rollout.agent.session is None:
        return ()
    return tuple(schema.to_openai() for schema in rollout.schemas)
