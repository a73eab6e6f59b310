"""Whether directories are valid tasks, with everything that is wrong or odd about them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from agentenv.tasks.errors import TaskFormatError
from agentenv.tasks.loader import ProfileName, load_task


@dataclass(frozen=True, slots=True)
class TaskCheck:
    """What a look at one directory found. It is a valid task when there are no problems."""

    path: Path
    problems: tuple[str, ...]
    """Each with the place it is about in front."""
    warnings: tuple[str, ...]

    @property
    def valid(self) -> bool:
        """Whether `load_task` takes it."""
        return not self.problems


def check_task(path: str | Path, *, profile: ProfileName | None = None) -> TaskCheck:
    """Look at one directory. Raises nothing for what is wrong with it."""
    try:
        task = load_task(path, profile=profile)
    except TaskFormatError as error:
        return TaskCheck(Path(path), tuple(error.problems), ())
    return TaskCheck(Path(path), (), task.warnings)
