"""Walking a tree for files whose path matches, entering only folders below which one may be.

Folders are entered by descriptor, never through a link, in the order of the paths' characters: the same tree gives the
same answer, and when an answer is cut, its first part is the same too. Not so where one folder alone holds more than
`MAX_LISTED_ENTRIES` that may matter: of those, as many are looked at as the kernel names first.
"""

from __future__ import annotations

import os
import stat
import time

from .refusal import from_os_error
from .slot_files import FOLDER_FLAGS, MAX_DEPTH, MAX_LISTED_ENTRIES, show, to_text
from .slot_glob import Patterns, accepted, step

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Iterator, List, Optional, Sequence

    from .slot_files import Place, Workspace
    from .slot_glob import Active

_ENTRIES_A_CHECK = 1000
"""Entries of one folder that are read between two looks at the clock."""


class Found:
    """A file: the open folder that it is in, its name there, and its path from the workspace."""

    __slots__ = ("folder", "name", "path", "regular")

    def __init__(self, folder: int, name: str, path: str, *, regular: bool) -> None:
        self.folder = folder
        self.name = name
        self.path = path
        self.regular = regular


class Walk:
    """Visits what is wanted and not ignored, until `end` on the clock. `cut` says that something was left out."""

    def __init__(self, wanted: Sequence[str], ignored: Sequence[str], end: float) -> None:
        self._wanted = Patterns(wanted).start
        self._ignored = Patterns(ignored).start
        self._end = end
        self.cut = False

    def files(self, workspace: Workspace, path: str) -> Iterator[Found]:
        """What is at `path` or below it. What vanishes meanwhile is left out; so are folders that may not be read.

        Raises `RefusedError`.
        """
        with workspace.locate(path) as place:
            try:
                info = os.stat(place.name, dir_fd=place.folder, follow_symlinks=False)
                if stat.S_ISDIR(info.st_mode):
                    yield from self._below(place)
                else:
                    yield from self._itself(place, stat.S_ISREG(info.st_mode))
            except OSError as error:
                raise from_os_error(error, show(path)) from error

    def _itself(self, place: Place, regular: bool) -> Iterator[Found]:
        name = to_text(place.name)
        if accepted(step(self._wanted, name)) and not accepted(step(self._ignored, name)):
            yield Found(place.folder, name, to_text(b"/".join(place.trail)), regular=regular)

    def _below(self, place: Place) -> Iterator[Found]:
        prefix = "".join(to_text(name) + "/" for name in place.trail)
        top = os.open(place.name, FOLDER_FLAGS, dir_fd=place.folder)
        pending = [self._level(top, prefix, self._wanted, self._ignored)]
        try:
            while pending and not self._is_late():
                level = pending[-1]
                if not level.entries:
                    os.close(pending.pop().fd)
                    continue
                entry = level.entries.pop()
                if not entry.is_folder:
                    path = level.prefix + entry.name
                    yield Found(level.fd, entry.name, path, regular=entry.regular)
                elif len(pending) == MAX_DEPTH:
                    self.cut = True
                else:
                    pending += self._enter(level, entry)
        finally:
            for level in pending:
                os.close(level.fd)

    def _is_late(self) -> bool:
        late = time.monotonic() > self._end
        self.cut = self.cut or late
        return late

    def _enter(self, level: _Level, entry: _Entry) -> List[_Level]:
        """The folder, opened; empty where it cannot be."""
        try:
            fd = os.open(entry.name[:-1], FOLDER_FLAGS, dir_fd=level.fd)
        except (FileNotFoundError, NotADirectoryError, PermissionError):
            return []
        return [self._level(fd, level.prefix + entry.name, entry.wanted, entry.ignored)]

    def _level(self, fd: int, prefix: str, wanted: Active, ignored: Active) -> _Level:
        try:
            return _Level(fd, prefix, self._entries(fd, wanted, ignored))
        except OSError:
            os.close(fd)
            raise

    def _entries(self, fd: int, wanted: Active, ignored: Active) -> List[_Entry]:
        found: List[_Entry] = []
        os.lseek(fd, 0, os.SEEK_SET)  # btrfs shows an open folder as it was when it was opened
        with os.scandir(fd) as entries:
            for seen, entry in enumerate(entries):
                if len(found) == MAX_LISTED_ENTRIES or (
                    seen % _ENTRIES_A_CHECK == 0 and self._is_late()
                ):
                    self.cut = True
                    break
                candidate = _candidate(entry, wanted, ignored)
                if candidate is not None:
                    found.append(candidate)
        found.sort(key=_name, reverse=True)
        return found


class _Level:
    """An open folder on the way, with what is left to visit in it, last first."""

    __slots__ = ("entries", "fd", "prefix")

    def __init__(self, fd: int, prefix: str, entries: List[_Entry]) -> None:
        self.fd = fd
        self.prefix = prefix
        self.entries = entries


class _Entry:
    """A file that is wanted, or a folder below which one may be: its name ends with `/`, so that it sorts as its files.

    `wanted` and `ignored` are what still may match below it.
    """

    __slots__ = ("ignored", "is_folder", "name", "regular", "wanted")

    def __init__(
        self, name: str, wanted: Active, ignored: Active, *, is_folder: bool, regular: bool
    ) -> None:
        self.name = name
        self.wanted = wanted
        self.ignored = ignored
        self.is_folder = is_folder
        self.regular = regular


def _name(entry: _Entry) -> str:
    return entry.name


def _candidate(entry: os.DirEntry[str], wanted: Active, ignored: Active) -> Optional[_Entry]:
    name = entry.name
    wanted = step(wanted, name)
    if not wanted:
        return None
    if ignored:
        ignored = step(ignored, name)
        if accepted(ignored):
            return None
    if entry.is_dir(follow_symlinks=False):
        return _Entry(name + "/", wanted, ignored, is_folder=True, regular=False)
    if not accepted(wanted):
        return None
    regular = entry.is_file(follow_symlinks=False)
    return _Entry(name, wanted, ignored, is_folder=False, regular=regular)
