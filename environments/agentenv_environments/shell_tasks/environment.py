"""The environment: small tasks for an agent with a shell, judged by the state it leaves its sandbox in."""

from __future__ import annotations

from importlib.resources import files
from typing import TYPE_CHECKING, Any

from pydantic import Field

from agentenv import AgentEnv, AgentEnvConfig, APIServerConfig
from agentenv_environments.shell_tasks.check import READ_COMMAND, differences, fill_command
from agentenv_environments.shell_tasks.tasks import Split, Task, make_task
from agentenv_tools.schema import ToolCall

if TYPE_CHECKING:
    from agentenv import AgentResult
    from agentenv.task import ExecTool

TINY_POLICY = str(files("agentenv_environments") / "tiny_policy")
"""Folder of a model of a million weights that solves about half of these tasks."""


class ShellTasksConfig(AgentEnvConfig):
    """Which tasks, beside what every environment has."""

    split: Split = "train"
    """`train`, or `held_out`: tasks that share no file name with those of training."""
    first_task: int = Field(default=0, ge=0)
    """Index of the first task; the others follow. There is no last one."""


class ShellTasks(AgentEnv[ShellTasksConfig]):
    """Create, copy, search, count and the like; each task is generated, and checked by what is in the workspace."""

    name = "shell_tasks"
    env_config_cls = ShellTasksConfig

    @classmethod
    def config_init(cls) -> tuple[ShellTasksConfig, list[APIServerConfig]]:
        """The tiny policy, in this process, on local sandboxes."""
        config = ShellTasksConfig(
            tokenizer_name=TINY_POLICY,
            renderer="qwen3",
            enabled_toolsets=["terminal"],
            group_size=8,
            total_steps=32,
            max_token_length=1024,
            agent_temperature=1.0,
            agent_max_tokens=96,
            agent_max_steps=6,
            seed=0,
        )
        return config, [APIServerConfig(server_type="transformers", model_name=TINY_POLICY)]

    async def setup_agent_env(self) -> None:
        """Start at the first task."""
        self._next_index = self.config.first_task

    async def get_next_item(self) -> Task:
        """The next task."""
        self._next_index += 1
        return make_task(self.config.split, self._next_index - 1)

    def build_task(self, item: Task) -> str:
        """Its instruction."""
        return item.instruction

    async def setup_trajectory_workspace(
        self, item: Task, *, trajectory_id: str, exec_tool: ExecTool
    ) -> dict[str, Any]:
        """Write the task's files."""
        filled = await exec_tool(ToolCall("terminal", {"command": fill_command(item.before)}))
        if not filled.success:
            raise RuntimeError(
                f"the files of {item.id} could not be written: {filled.error} {filled.output}"
            )
        return {}

    async def verify_and_score_trajectory(
        self,
        item: Task,
        final_response: str,
        *,
        trajectory_id: str,
        exec_tool: ExecTool,
        agent_result: AgentResult | None = None,
        workspace_meta: dict[str, Any] | None = None,
    ) -> tuple[float, dict[str, Any]]:
        """1.0 if the agent ran a command, answered what was asked, and left exactly what was expected.

        Else 0.0, and the metadata says what is wrong.
        """
        notes = (
            [] if agent_result is None or agent_result.total_tool_calls else ["no command was run"]
        )
        if not await self.score_trajectory(item, final_response):
            notes.append(f"the answer is {final_response[:80]!r}, not {item.answer!r}")
        reading = await exec_tool(ToolCall("terminal", {"command": READ_COMMAND}))
        notes += (
            differences(item.after, reading.output)
            if reading.success
            else ["the workspace cannot be read"]
        )
        return float(not notes), {"family": item.family, "wrong": notes}

    async def score_trajectory(self, item: Task, final_response: str) -> float:
        """1.0 if the answer is right or none was asked for. The workspace is judged apart."""
        return float(item.answer is None or final_response.strip() == item.answer)
