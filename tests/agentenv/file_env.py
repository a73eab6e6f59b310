"""An environment whose set-up leaves a file, which agents look at and change."""

import asyncio
from collections.abc import Callable
from typing import Any

from agentenv import ToolCall
from tests.agentenv.fake_env import EchoEnv, call_text


class FileEnv(EchoEnv):
    """The set-up writes a file, the agent may change it, and what it holds at the end is kept as metadata."""

    name = "file"
    set_ups: list[str]
    trouble: Callable[[int], Any] | None = None
    """Called in each set-up with its number, from 1."""

    async def setup_agent_env(self) -> None:
        await super().setup_agent_env()
        self.set_ups = []

    async def setup_trajectory_workspace(
        self, item: Any, *, trajectory_id: str, exec_tool: Any
    ) -> Any:
        self.set_ups.append(f"{trajectory_id}")
        await exec_tool(ToolCall("terminal", {"command": f"echo prepared {item} > file"}))
        if self.trouble is not None:
            result = self.trouble(len(self.set_ups))
            if asyncio.iscoroutine(result):
                await result
        return {"seen": [item]}

    async def verify_and_score_trajectory(
        self,
        item: Any,
        final_response: str,
        *,
        trajectory_id: str,
        exec_tool: Any,
        agent_result: Any = None,
        workspace_meta: Any = None,
    ) -> tuple[float, dict[str, Any]]:
        found = await exec_tool(ToolCall("terminal", {"command": "cat file"}))
        workspace_meta["seen"].append("mine")
        score = await self.score_trajectory(item, final_response)
        return score, {"file": found.output, "meta": workspace_meta["seen"]}


def reader(request: Any) -> str:
    """Looks at the file, changes it, and answers by its seed."""
    if request.turn == 0:
        return call_text("cat file")
    if request.turn == 1:
        return call_text(f"echo changed by {request.seed} > file")
    return "right" if (request.seed or 0) % 2 else "wrong"
