"""Removing what a command had its way with: whatever modes it set, however deep it built, without following a link."""

from __future__ import annotations

import os
import stat

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import List

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_AT_ONCE = 4096


def remove_tree(path: str) -> bool:
    """Remove a folder and all in it; True when nothing is left. A link in its place is none of ours."""
    try:
        if not stat.S_ISDIR(os.lstat(path).st_mode):
            return False
        os.chmod(path, stat.S_IRWXU)
        empty_folder(path)
        os.rmdir(path)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True


def empty_folder(path: str) -> None:
    """Remove all that is in a folder. Raises `OSError`."""
    top = os.open(path, _FOLDER)
    try:
        empty(top)
    finally:
        os.close(top)


def empty(top: int) -> None:
    """Remove all that is in an open folder. Raises `OSError`.

    A folder within a folder within it is moved up before anything in it is looked at. So neither the stack nor the
    number of open files depends on depth. Done by root, it leads nowhere else even if somebody works there meanwhile.
    """
    while True:
        names = _some_names(top)
        if not names:
            return
        for name in names:
            remove(top, name)


def _some_names(folder: int) -> List[bytes]:
    names = []
    with os.scandir(folder) as entries:
        for entry in entries:
            names.append(os.fsencode(entry.name))
            if len(names) == _AT_ONCE:
                break
    return names


def remove(top: int, name: bytes) -> None:
    """Remove an entry of an open folder, with all below it. Raises `OSError`."""
    if _removed_at_once(top, name):
        return
    folder = _open_whatever_its_mode(top, name)
    try:
        while True:
            names = _some_names(folder)
            if not names:
                break
            for below in names:
                if not _removed_at_once(folder, below):
                    # Its own mode counts too: its `..` is changed.
                    os.close(_open_whatever_its_mode(folder, below))
                    os.rename(below, os.urandom(16).hex(), src_dir_fd=folder, dst_dir_fd=top)
    finally:
        os.close(folder)
    os.rmdir(name, dir_fd=top)


def _removed_at_once(folder: int, name: bytes) -> bool:
    """Remove what is no folder, or an empty one. False for a folder that is not, or cannot be looked into."""
    if stat.S_ISDIR(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode):
        try:
            os.rmdir(name, dir_fd=folder)
        except OSError:
            return False
    else:
        os.unlink(name, dir_fd=folder)
    return True


def _open_whatever_its_mode(folder: int, name: bytes) -> int:
    try:
        descriptor = os.open(name, _FOLDER, dir_fd=folder)
    except PermissionError:  # never root's
        os.chmod(name, stat.S_IRWXU, dir_fd=folder)
        descriptor = os.open(name, _FOLDER, dir_fd=folder)
    os.fchmod(descriptor, stat.S_IRWXU)
    return descriptor
