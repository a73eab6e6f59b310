"""The environment: tasks at a terminal, judged by the state that the agent leaves."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from agentenv import APIServerConfig
from agentenv_environments.task_set.environment import TaskSet, TaskSetConfig

BUNDLED = str(files("agentenv_environments.terminal_tasks") / "tasks")
"""Folder of tasks that need no image of their own."""


class TerminalTasksConfig(TaskSetConfig):
    """Which tasks, beside what every environment has."""

    tasks_dir: Path = Path(BUNDLED)
    """Folder with task directories below it."""


class TerminalTasks(TaskSet):
    """Directories in `AgentRunner`'s form: an instruction, a set-up, and a test of what is there in the end."""

    name = "terminal_tasks"
    env_config_cls = TerminalTasksConfig

    @classmethod
    def config_init(cls) -> tuple[TerminalTasksConfig, list[APIServerConfig]]:
        """The bundled tasks, with a terminal that lasts, and a vLLM server of this machine."""
        config = TerminalTasksConfig(
            max_token_length=16_384,
            agent_max_steps=30,
            enabled_toolsets=["terminal", "terminal_stateful"],
            shuffle_tasks=True,
            seed=0,
        )
        return config, [APIServerConfig(server_type="vllm", base_url="http://localhost:8000/v1")]
