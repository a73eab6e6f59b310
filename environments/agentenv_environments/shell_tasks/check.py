"""How a workspace is filled before a task and read back after it: two shell commands, and their meaning.

The reading cannot be faked from inside the workspace: entries are divided by NUL bytes, which no
name can hold; what is no regular file is named as such and never opened; contents are compared by
hash with what the driver expects.
"""

from __future__ import annotations

import hashlib
import shlex
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from agentenv_environments.shell_tasks.tasks import Workspace

READ_COMMAND = r"find . -mindepth 1 ! -type f -printf '%y %p\0' && find . -type f -exec sha256sum --zero -- {} +"
"""Prints `describe` of the workspace it runs in, in any order, each entry with a NUL byte after it."""
_SHOWN = 5


def fill_command(workspace: Workspace) -> str:
    """A shell command that makes an empty folder into `workspace`."""
    folders = [f"mkdir -p -- {shlex.quote(folder)}" for folder in sorted(workspace.folders)]
    files = [
        f"printf %s {shlex.quote(content)} > {shlex.quote(f'./{name}')}"
        for name, content in sorted(workspace.files.items())
    ]
    return " && ".join([*folders, *files]) or ":"


def differences(expected: Workspace, reading: str) -> list[str]:
    """How the workspace that gave `reading` differs from `expected`, a few lines at most; empty if it does not."""
    wanted = _describe(expected.files, expected.folders)
    found = dict(_entry(entry) for entry in reading.split("\0") if entry)
    names = sorted(wanted.keys() | found.keys())
    notes = [_note(name, wanted.get(name), found.get(name)) for name in names]
    return [note for note in notes if note][:_SHOWN]


def _describe(files: Mapping[str, str], folders: frozenset[str]) -> dict[str, str]:
    """Name to hash for files, name to `d` for folders."""
    above = {str(parent) for name in files for parent in PurePosixPath(name).parents} - {"."}
    hashes = {name: hashlib.sha256(content.encode()).hexdigest() for name, content in files.items()}
    return hashes | dict.fromkeys(folders | above, "d")


def _entry(entry: str) -> tuple[str, str]:
    kind, _, name = entry.partition("./")
    return name, kind.strip()


def _note(name: str, wanted: str | None, found: str | None) -> str | None:
    if wanted == found:
        return None
    if found is None:
        return f"{name!r} is missing"
    if wanted is None:
        return f"{name!r} should not be there"
    return f"{name!r} is not as it should be"
