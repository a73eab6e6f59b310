"""An environment's hooks as a `Verifier`, and how its tasks are announced."""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING, Any

from agentenv.errors import VerifierError
from agentenv.task import Verdict

if TYPE_CHECKING:
    from agentenv.env import AgentEnv
    from agentenv.task import ExecTool, Task
    from agentenv.types import AgentResult

logger = logging.getLogger(__name__)
_PREVIEW_CHARS = 240


class HookVerifier:
    """Judges by `setup_trajectory_workspace` and `verify_and_score_trajectory` of an environment."""

    def __init__(self, env: AgentEnv[Any]) -> None:
        self._env = env

    async def prepare(
        self, task: Task, *, trajectory_id: str, exec_tool: ExecTool
    ) -> dict[str, Any]:
        """Run the workspace hook; anything but a dict counts as an empty one."""
        meta = await self._env.setup_trajectory_workspace(
            task.item, trajectory_id=trajectory_id, exec_tool=exec_tool
        )
        return meta if isinstance(meta, dict) else {}

    async def verify(
        self,
        task: Task,
        result: AgentResult,
        *,
        trajectory_id: str,
        exec_tool: ExecTool,
        workspace_meta: dict[str, Any],
    ) -> Verdict:
        """Run the scoring hook."""
        scored = await self._env.verify_and_score_trajectory(
            task.item,
            result.final_response,
            trajectory_id=trajectory_id,
            exec_tool=exec_tool,
            agent_result=result,
            workspace_meta=workspace_meta,
        )
        try:
            reward, metadata = scored
        except (TypeError, ValueError) as error:
            raise VerifierError(
                f"verify_and_score_trajectory must return (score, metadata), not {scored!r}"
            ) from error
        return Verdict(reward, metadata if isinstance(metadata, dict) else {})


class NullVerifier:
    """Prepares nothing and judges nothing: for running an agent without a dataset."""

    async def prepare(
        self, task: Task, *, trajectory_id: str, exec_tool: ExecTool
    ) -> dict[str, Any]:
        """Nothing to prepare."""
        return {}

    async def verify(
        self,
        task: Task,
        result: AgentResult,
        *,
        trajectory_id: str,
        exec_tool: ExecTool,
        workspace_meta: dict[str, Any],
    ) -> Verdict:
        """A reward that means nothing."""
        return Verdict(0.0)


def announce_task(name: str, instruction: str) -> None:
    """Log the task: one line, or all of it when ATROPOS_DEBUG_PRINT_TASK=1."""
    if os.environ.get("ATROPOS_DEBUG_PRINT_TASK") == "1":
        logger.warning("%s task:\n%s", name, instruction)
        return
    logger.debug("%s task: %s", name, " ".join(instruction.split())[:_PREVIEW_CHARS])
