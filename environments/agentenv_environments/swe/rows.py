"""Rows of SWE-bench and SWE-smith: reading them, and what they say that must not be believed."""

from __future__ import annotations

import json
import re
from pathlib import PurePosixPath
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator


def _list(value: Any) -> Any:
    """SWE-bench has lists as text."""
    return json.loads(value) if isinstance(value, str) else value


Nodes = Annotated[tuple[str, ...], BeforeValidator(_list)]


class SweRow(BaseModel):
    """One task. Names are those of SWE-bench; other columns are left out."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    instance_id: str = Field(min_length=1)
    repo: str = Field(min_length=1)
    """Folder or address of a Git repository."""
    base_commit: str
    """The commit that the agent starts from, in full."""
    problem_statement: str
    FAIL_TO_PASS: Nodes = Field(min_length=1)
    """Node ids of tests that the solution makes pass."""
    PASS_TO_PASS: Nodes = ()
    """Node ids of tests that must pass as before."""
    test_patch: str = ""
    """What is changed in the tests before they run."""
    test_files: dict[str, str] = Field(default_factory=dict)
    """Hidden files by path, laid over everything else."""

    @field_validator("base_commit")
    @classmethod
    def _full(cls, value: str) -> str:
        if re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", value) is None:
            raise ValueError("give the commit in full, 40 or 64 hexadecimal digits in lower case")
        return value

    @field_validator("repo")
    @classmethod
    def _no_option(cls, value: str) -> str:
        if value.startswith("-") or "::" in value:
            raise ValueError("no repository can be called so")
        return value

    @field_validator("FAIL_TO_PASS", "PASS_TO_PASS")
    @classmethod
    def _inside(cls, nodes: tuple[str, ...]) -> tuple[str, ...]:
        for node in nodes:
            _check_inside(node.split("::")[0])
        return nodes

    @field_validator("test_files")
    @classmethod
    def _files_inside(cls, files: dict[str, str]) -> dict[str, str]:
        for path in files:
            _check_inside(path)
        return files

    @property
    def id(self) -> str:
        """Its name in records."""
        return self.instance_id

    @property
    def nodes(self) -> tuple[str, ...]:
        """All tests that must pass, each once."""
        return tuple(dict.fromkeys(self.FAIL_TO_PASS + self.PASS_TO_PASS))


def _check_inside(path: str) -> None:
    parts = PurePosixPath(path).parts
    if not parts or path.startswith("/") or ".." in parts or ".git" in parts or "\0" in path:
        raise ValueError(f"{path!r} is no file of the repository")
