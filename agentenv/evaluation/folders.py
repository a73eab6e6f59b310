"""The folders of a sweep's samples: what each left beside its trajectory.

    outputs/3f/3f0c5d...-9a41c2/      one sample; by the first characters of its id, so that no folder gets very large

A folder counts when the row of a sample names it, and is named when all of it is there. Whatever else lies here is
being written, or was when a process was killed: the next one that opens the sweep removes it. Everything here blocks.
"""

from __future__ import annotations

import secrets
import shutil
from typing import TYPE_CHECKING

from agentenv.errors import SweepError
from agentenv.tasks.workspaces import WORKSPACE

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path

OUTPUTS = "outputs"


class SampleFolders:
    """The folders below one sweep's directory."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._begun: set[Path] = set()

    def begin(self, sample_id: str) -> Path:
        """A folder for one try at a sample, not made yet."""
        name = f"{sample_id}-{secrets.token_hex(3)}"
        folder = self._directory / OUTPUTS / sample_id[:2] / name
        self._begun.add(folder)
        return folder

    def keep(self, folder: Path, *, outputs: bool) -> str | None:
        """What a sample's row says of its folder: its path from the sweep's directory, None where it holds nothing.

        Without `outputs` the workspace alone stays. Raises `SweepError` when the rest cannot be removed.
        """
        self._begun.discard(folder)
        if not folder.is_dir():
            return None
        try:
            if not outputs:
                for entry in list(folder.iterdir()):
                    if entry.name != WORKSPACE:
                        _remove(entry)
            if any(folder.iterdir()):
                return folder.relative_to(self._directory).as_posix()
            folder.rmdir()
        except OSError as error:
            raise SweepError(f"{folder} cannot be tidied: {error}") from error
        return None

    def drop(self, folder: Path) -> None:
        """Remove a folder that no sample will name. What cannot be removed is left for the next process."""
        self._begun.discard(folder)
        shutil.rmtree(folder, ignore_errors=True)

    def drop_begun(self) -> None:
        """The same for all that were begun, and neither kept nor dropped."""
        for folder in list(self._begun):
            self.drop(folder)


def remove_outputs(directory: Path, names: Collection[str]) -> None:
    """Remove folders by what rows said of them. What cannot be removed is left for the next process."""
    for name in names:
        shutil.rmtree(directory / name, ignore_errors=True)


def remove_unnamed(directory: Path, named: Collection[str]) -> None:
    """Remove every sample's folder that no row names. Raises `OSError` when the folders cannot be listed."""
    root = directory / OUTPUTS
    if not root.is_dir():
        return
    for part in root.iterdir():
        for folder in part.iterdir() if part.is_dir() and not part.is_symlink() else ():
            if folder.relative_to(directory).as_posix() not in named:
                _remove(folder)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
