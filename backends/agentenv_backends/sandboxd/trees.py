"""Removing a folder that a command had its way with."""

from __future__ import annotations

import os
import shutil
import stat


def remove_tree(path: str) -> bool:
    """Remove a folder and all in it, whatever modes were set; True when nothing is left. Links are not followed,
    and a link itself is none of ours.
    """
    if os.path.islink(path):
        return False
    for _ in range(3):
        shutil.rmtree(path, ignore_errors=True)
        if not os.path.lexists(path):
            return True
        _make_folders_writable(path)
    return False


def _make_folders_writable(path: str) -> None:
    for folder, names, _ in os.walk(path):
        for name in (".", *names):
            below = os.path.join(folder, name)
            if not os.path.islink(below):
                try:
                    os.chmod(below, stat.S_IRWXU)
                except OSError:
                    continue
