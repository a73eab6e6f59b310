"""One step of a task while it runs: what an agent's harness finds in `Task.item`."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from agentenv.tasks.templates import resolved

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from agentenv.tasks.directory import StepInput, TaskDirectory
    from agentenv.tasks.folder import RunFolder
    from agentenv.tasks.options import RunOptions
    from agentenv.tasks.sandbox import TaskSandbox


@dataclass(frozen=True, slots=True)
class TaskRun:
    """A step of a task, and where it is being run. `Task.item` of every rollout that `run_task` makes."""

    directory: TaskDirectory
    step: StepInput
    sandbox: TaskSandbox
    folder: RunFolder
    """The run's, or the step's where the task has several."""
    options: RunOptions
    warnings: list[str] = field(default_factory=list)
    """What went wrong without being anybody's failure."""
    tests_said: list[str] = field(default_factory=list)
    """What its tests printed, secrets masked."""

    @property
    def id(self) -> str:
        """The task's name, and the step's."""
        name = self.directory.name
        return name if self.step.name is None else f"{name}/{self.step.name}"

    @property
    def environ(self) -> Mapping[str, str]:
        """What templates in task.toml are looked up in."""
        return os.environ if self.options.environ is None else self.options.environ

    @property
    def verifier_dockerfile(self) -> Path | None:
        """What a separate verifier's own image is built from."""
        path = self.directory.path / "tests" / "Dockerfile"
        return path if self.step.verifier.environment is not None and path.is_file() else None

    @property
    def verifier_owns_tests(self) -> bool:
        """Whether a separate verifier's image brings its own /tests, so that none are uploaded."""
        environment = self.step.verifier.environment
        return environment is not None and (
            environment.docker_image is not None or self.verifier_dockerfile is not None
        )

    def solution_env(self) -> dict[str, str]:
        """Variables of the oracle's script. Raises `TaskUnsupportedError` for a template of a variable not set."""
        return resolved(self.directory.config.solution.env, self.environ, "solution.env")

    def verifier_env(self) -> dict[str, str]:
        """Variables of the test script. Raises as `solution_env` does."""
        return resolved(self.step.verifier.env, self.environ, "verifier.env")

    async def keep_agent_log(self, name: str, text: str) -> None:
        """Write a file of the agent's own."""
        await self.folder.write_text(f"agent/{name}", text)
