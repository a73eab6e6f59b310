"""`.harborignore`: which files of tests/ and solution/ stay out of the sandbox, in the syntax of .gitignore."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from pathspec import GitIgnoreSpec

from agentenv.tasks.errors import TaskFormatError
from agentenv.tasks.files import read_text

if TYPE_CHECKING:
    from pathlib import Path

IGNORE_FILE = ".harborignore"


@dataclass(frozen=True, slots=True)
class _Rules:
    below: PurePosixPath
    """The folder of the ignore file, relative to the task directory."""
    spec: GitIgnoreSpec


class IgnoreRules:
    """The ignore files that hold for one folder of a task: of every folder from the task's own down to a file's.

    The one nearest to a file has the last word. What lies in an ignored folder cannot be taken back, as with git.
    """

    def __init__(self, root: Path, folder: str) -> None:
        self._root = root
        self._folder = PurePosixPath(folder)
        self._known: dict[PurePosixPath, _Rules | None] = {}
        self.problems: list[str] = []

    def keeps(self, name: str) -> bool:
        """Whether a file or folder (with a slash at the end), relative to the folder, goes into the sandbox."""
        path = self._folder / name
        if path.name == IGNORE_FILE:
            return False
        ignored = False
        for parent in reversed(path.parents):
            rules = self._rules_of(parent)
            if rules is None:
                continue
            below = str(path.relative_to(rules.below)) + ("/" if name.endswith("/") else "")
            verdict = rules.spec.check_file(below).include
            ignored = ignored if verdict is None else verdict
        return not ignored

    def _rules_of(self, folder: PurePosixPath) -> _Rules | None:
        if folder not in self._known:
            self._known[folder] = self._read(folder)
        return self._known[folder]

    def _read(self, folder: PurePosixPath) -> _Rules | None:
        name = str(folder / IGNORE_FILE)
        try:
            text = read_text(self._root, name)
            return (
                None
                if text is None
                else _Rules(folder, GitIgnoreSpec.from_lines(text.splitlines()))
            )
        except TaskFormatError as error:
            self.problems += error.problems
        except ValueError as error:
            self.problems.append(f"{name}: {error}")
        return None
