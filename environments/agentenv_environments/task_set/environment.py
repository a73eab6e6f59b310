"""The environment: every task directory below a folder, each in the sandbox it asks for, judged by its own tests."""

from __future__ import annotations

import asyncio
import logging
import random
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from pydantic import Field, model_validator

from agentenv import AgentEnv, AgentEnvConfig, APIServerConfig, ConfigError
from agentenv.tasks import (
    RunOptions,
    TaskFormatError,
    TaskUnsupportedError,
    discover_tasks,
    load_task,
)
from agentenv.tasks.training import TaskRuntime

if TYPE_CHECKING:
    from agentenv.tasks import TaskDirectory

logger = logging.getLogger(__name__)

BUNDLED = str(files("agentenv_environments.task_set") / "tasks")
"""Folder of a few small tasks that need no image of their own."""


class TaskSetConfig(AgentEnvConfig):
    """Which tasks, beside what every environment has."""

    tasks_dir: Path = Path(BUNDLED)
    """Folder with task directories below it."""
    tasks_pattern: str = "**/task.toml"
    """Which files in it mark one."""
    shuffle_tasks: bool = False
    """Give tasks in an order drawn with `seed`, another one each time round."""
    skip_unsupported_tasks: bool = False
    """Leave tasks out that are invalid or that the backend cannot run, and say so in the log, rather than refuse."""
    accept_host_image: bool = False
    """Let the local backend run tasks that want an image in the programs of this machine instead."""
    task_backends_kept: int = Field(default=8, ge=1)
    """Backends kept started though no rollout uses them, for tasks that ask for different sandboxes."""

    @model_validator(mode="after")
    def _check_setup(self) -> Self:
        if self.share_workspace_setup:
            raise ValueError(
                "share_workspace_setup copies a workspace, and tasks set up whole sandboxes: set it to false"
            )
        return self


class TaskSet(AgentEnv[TaskSetConfig]):
    """Tasks in Harbor's or AgentRunner's format, over and over."""

    name = "task_set"
    env_config_cls = TaskSetConfig
    runtime: TaskRuntime

    @classmethod
    def config_init(cls) -> tuple[TaskSetConfig, list[APIServerConfig]]:
        """The bundled tasks, and a vLLM server of this machine."""
        config = TaskSetConfig(
            max_token_length=16_384, agent_max_steps=30, enabled_toolsets=["terminal"], seed=0
        )
        return config, [APIServerConfig(server_type="vllm", base_url="http://localhost:8000/v1")]

    def build_runtime(self) -> TaskRuntime:
        """One whose rollouts run in their tasks' own sandboxes."""
        return self.task_runtime(served_tools=self.build_server_tools())

    def task_runtime(self, **parts: Any) -> TaskRuntime:
        """The same with parts given, as of `EnvRuntime`."""
        return TaskRuntime(
            self.config,
            self.server_configs,
            self.tools,
            find=lambda item: self._tasks[item["id"]],
            options=RunOptions(accept_host_image=self.config.accept_host_image),
            places_kept=self.config.task_backends_kept,
            **parts,
        )

    async def setup_agent_env(self) -> None:
        """Load every task, and refuse those that cannot run."""
        self._tasks = await asyncio.to_thread(self._load)
        self._order: list[str] = []
        self.rounds = 0

    async def get_next_item(self) -> dict[str, str]:
        """The next task; after the last one the first again."""
        if not self._order:
            self._order = list(self._tasks)
            if self.config.shuffle_tasks:
                random.Random(f"{self.config.seed}:{self.rounds}").shuffle(self._order)  # noqa: S311
            self.rounds += 1
        name = self._order.pop(0)
        return {"id": name, "path": str(self._tasks[name].path)}

    def build_task(self, item: dict[str, str]) -> str:
        """Its instruction; the first one of a task with steps."""
        return self._tasks[item["id"]].steps[0].instruction

    async def score_trajectory(self, item: dict[str, str], final_response: str) -> float:
        """Never called: tasks bring their own tests."""
        raise AssertionError("tasks are judged by their own tests, in their own sandboxes")

    def _load(self) -> dict[str, TaskDirectory]:
        found: dict[str, TaskDirectory] = {}
        problems: list[str] = []
        for path in discover_tasks(self.config.tasks_dir, self.config.tasks_pattern):
            try:
                task = load_task(path)
                self.runtime.check(task)
            except (TaskFormatError, TaskUnsupportedError) as error:
                problems.append(f"{path}: {error}")
                continue
            found[task.name if task.name not in found else str(path)] = task
        self._tell(problems, bool(found))
        return found

    def _tell(self, problems: list[str], found: bool) -> None:
        for problem in problems:
            logger.warning("task left out: %s", problem)
        if problems and not self.config.skip_unsupported_tasks:
            raise ConfigError(
                "\n".join([*problems, "env.skip_unsupported_tasks=true leaves such tasks out"])
            )
        if not found:
            raise ConfigError(
                f"env.tasks_dir = {self.config.tasks_dir}: no task below it matches {self.config.tasks_pattern!r}"
            )
