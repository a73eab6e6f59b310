"""What was loaded of a task directory. Data; reading it is `loader`'s."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path  # noqa: TC003 - a field's type
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from agentenv.tasks.compose import Compose
    from agentenv.tasks.files import InputFile
    from agentenv.tasks.models import AgentTable, Artifact, Healthcheck, TaskConfig, VerifierTable


class Profile(StrEnum):
    """Whose defaults hold where task.toml is silent."""

    HARBOR = "harbor"
    """Agents have no limit of time, tests have 600 s and must be there."""
    AGENT_RUNNER = "agent_runner"
    """Agents and tests have 120 s, the image is ubuntu:22.04, tests may be left out."""


@dataclass(frozen=True, slots=True)
class StepInput:
    """One step of a task, with what is in force for it. A task without `[[steps]]` has one, without a name."""

    name: str | None
    instruction: str
    agent: AgentTable
    verifier: VerifierTable
    min_reward: float | dict[str, float] | None
    healthcheck: Healthcheck | None
    artifacts: tuple[Artifact, ...]
    tests: tuple[InputFile, ...]
    """As they will lie in /tests: the task's own, with the step's laid over them."""
    test_script: str | None
    """Its name below /tests; None: the task has no tests, or the verifier's image brings them."""
    solution: tuple[InputFile, ...]
    solution_script: str | None
    workdir: tuple[InputFile, ...]
    """Files that are put into the working directory before the step."""
    setup_script: str | None


@dataclass(frozen=True, slots=True)
class TaskDirectory:
    """A valid task, read from its directory."""

    path: Path
    """The directory, as a real path."""
    profile: Profile
    config: TaskConfig
    name: str
    """`[task].name`, else the directory's."""
    steps: tuple[StepInput, ...]
    """At least one."""
    environment_files: tuple[InputFile, ...]
    """Of environment/: an image's build context, or files for the working directory."""
    dockerfile: Path | None
    compose: Compose | None
    """Of environment/docker-compose.yaml: services beside the sandbox."""
    prior_trajectory: Path | None
    """trajectory.json: what the agent is to go on from."""
    checksum: str
    """SHA-256 of everything that the task is made of."""
    warnings: tuple[str, ...]
    """What task.toml says and nothing reads, among others."""

    @property
    def short_name(self) -> str:
        """The name without its organisation."""
        return self.name.rpartition("/")[2]

    @property
    def is_multi_step(self) -> bool:
        """Whether it has `[[steps]]`."""
        return self.steps[0].name is not None

    @property
    def uploads_environment(self) -> bool:
        """Whether environment/ is put into the working directory rather than built."""
        return (
            self.config.environment.docker_image is not None
            and self.dockerfile is None
            and self.compose is None
        )
