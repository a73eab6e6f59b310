"""Which snapshots a host keeps, in what form, and how much of its memory they may take."""

from __future__ import annotations

import os
from typing import Callable, Dict

from .reflinks import nameless_file

MAX_SNAPSHOTS = 512
"""That a host keeps at once."""
MAX_ARCHIVE = 1 << 30
_SHARE_OF_MEMORY = 4
"""Snapshots lie in memory; all of a host's together take up to this fraction of the machine's."""
_BLOCK = 512
_MAGIC = slice(257, 262)


class RefusedSnapshotError(Exception):
    """It cannot be done; nothing has changed."""


class Snapshot:
    """One of them: a tree, an archive, or both. It is discarded when it is dropped and nobody uses it any more."""

    def __init__(self) -> None:
        self.tree = ""
        """Its name with the helper for mounts; empty: there is none."""
        self.tree_bytes = 0
        self.archive = -1
        """A nameless file; -1: there is none."""
        self.archive_bytes = 0
        self.is_whole = False
        """Whether it can be used: not while it is being taken or put."""
        self.users = 0
        self.is_dropped = False

    @property
    def size(self) -> int:
        """Bytes that it takes."""
        return self.tree_bytes + self.archive_bytes

    def keep_archive(self, descriptor: int) -> None:
        """Have an archive."""
        self.let_go_of_archive()
        self.archive, self.archive_bytes = descriptor, os.fstat(descriptor).st_size

    def let_go_of_archive(self) -> None:
        """Have none any more."""
        if self.archive >= 0:
            os.close(self.archive)
        self.archive, self.archive_bytes = -1, 0


class SnapshotStore:
    """Snapshots by the names that the driver gave them. `drop_tree` has the helper for mounts let go of a tree;
    archives lie in `folder`, or in memory where none is given.
    """

    def __init__(self, drop_tree: Callable[[str], None], folder: str = "") -> None:
        self._drop_tree = drop_tree
        self._folder = folder
        self._kept: Dict[str, Snapshot] = {}
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        self._max_bytes = memory // _SHARE_OF_MEMORY

    @property
    def room(self) -> int:
        """Bytes that further snapshots may take."""
        return max(0, self._max_bytes - sum(kept.size for kept in self._kept.values()))

    def new_file(self) -> int:
        """An empty file for an archive. Raises `OSError`."""
        if self._folder:
            return nameless_file(self._folder)
        return os.memfd_create("snapshot", os.MFD_CLOEXEC)

    def new(self, name: str) -> Snapshot:
        """A snapshot that is not whole yet. Raises `RefusedSnapshotError`."""
        if name in self._kept:
            raise RefusedSnapshotError("there is a snapshot %r already" % name)
        if len(self._kept) >= MAX_SNAPSHOTS:
            raise RefusedSnapshotError(
                "this host keeps %d snapshots already: drop some" % MAX_SNAPSHOTS
            )
        self._kept[name] = Snapshot()
        return self._kept[name]

    def find(self, name: str) -> Snapshot:
        """A whole snapshot. Raises `RefusedSnapshotError`."""
        snapshot = self._kept.get(name)
        if snapshot is None or not snapshot.is_whole:
            raise RefusedSnapshotError("there is no snapshot %r" % name)
        return snapshot

    def put(self, name: str, part: bytes, offset: int, *, last: bool) -> None:
        """The next part of a snapshot that comes as an archive. Raises `RefusedSnapshotError`; what came before is
        dropped then.
        """
        snapshot = self._kept.get(name) if offset else self.new(name)
        if snapshot is None or snapshot.is_whole or snapshot.archive_bytes != offset:
            raise RefusedSnapshotError("snapshot %r is not being put, or not from here on" % name)
        try:
            self._append(name, snapshot, part)
            if last:
                _check_archive(name, snapshot)
        except OSError as error:
            self.drop(name)
            raise RefusedSnapshotError("snapshot %r cannot be kept: %s" % (name, error)) from error
        except RefusedSnapshotError:
            self.drop(name)
            raise
        snapshot.is_whole = last

    def _append(self, name: str, snapshot: Snapshot, part: bytes) -> None:
        if snapshot.archive < 0:
            snapshot.keep_archive(self.new_file())
        if len(part) > self.room or snapshot.archive_bytes + len(part) > MAX_ARCHIVE:
            raise RefusedSnapshotError("snapshot %r is too large for this host" % name)
        os.pwrite(snapshot.archive, part, snapshot.archive_bytes)
        snapshot.archive_bytes += len(part)

    def drop(self, name: str) -> None:
        """Forget a snapshot; who uses it goes on. Unknown names are no error."""
        snapshot = self._kept.pop(name, None)
        if snapshot is not None:
            snapshot.is_dropped = True
            self._discard_if_unused(snapshot)

    def drop_all(self) -> None:
        """Forget them all."""
        for name in list(self._kept):
            self.drop(name)

    def release(self, snapshot: Snapshot) -> None:
        """A user of it is done. One that did not become whole is forgotten with its last user."""
        snapshot.users -= 1
        if not snapshot.is_whole and not snapshot.users:
            for name in [name for name, kept in self._kept.items() if kept is snapshot]:
                self.drop(name)
        self._discard_if_unused(snapshot)

    def drop_tree(self, snapshot: Snapshot) -> None:
        """Let go of its tree, if it has one."""
        if snapshot.tree:
            self._drop_tree(snapshot.tree)
        snapshot.tree, snapshot.tree_bytes = "", 0

    def lose_trees(self) -> None:
        """The helper for mounts is no more, nor what it held."""
        for snapshot in self._kept.values():
            snapshot.tree, snapshot.tree_bytes = "", 0

    def _discard_if_unused(self, snapshot: Snapshot) -> None:
        if snapshot.is_dropped and not snapshot.users:
            snapshot.let_go_of_archive()
            self.drop_tree(snapshot)


def _check_archive(name: str, snapshot: Snapshot) -> None:
    """A glance; the slot that unpacks it looks closer."""
    start = os.pread(snapshot.archive, _BLOCK, 0)
    if snapshot.archive_bytes % _BLOCK or start[_MAGIC] != b"ustar":
        raise RefusedSnapshotError("snapshot %r: this is no archive of a snapshot" % name)
