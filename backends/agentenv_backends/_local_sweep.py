"""What hosts of this machine that were killed left on it, found by the owners in the names of things."""

from __future__ import annotations

import signal
import tempfile
import time
from pathlib import Path

from agentenv_backends.host import Leftover
from agentenv_backends.sandboxd import cgroups, leftovers
from agentenv_backends.sandboxd.slot_processes import signal_quietly
from agentenv_backends.sandboxd.trees import remove_tree

_ROUNDS = 20
_PAUSE_S = 0.01


def sweep(*, remove: bool) -> tuple[Leftover, ...]:
    """Find what dead hosts left, and remove it if asked to. Blocks; safe beside live hosts and other sweeps.

    Processes come first: what they hold cannot go before them. Only `isolation: none` can leave any.
    """
    folders = leftovers.abandoned(tempfile.gettempdir())
    processes = _processes(folders, remove=remove)
    groups = [
        _thing("cgroup", path, removed=remove and cgroups.remove_with_members(path))
        for path in cgroups.abandoned()
    ]
    left = [_thing("folder", path, removed=remove and remove_tree(path)) for path in folders]
    return (*processes, *groups, *left)


def _processes(folders: list[str], *, remove: bool) -> list[Leftover]:
    """Some may be starting others while they are being killed: more than one look is needed."""
    found: dict[int, str] = {}
    left: dict[int, str] = {}
    for _ in range(_ROUNDS if remove else 1):
        left = leftovers.orphans(folders)
        found |= left
        if not left:
            break
        if remove:
            for pid in left:
                signal_quietly(pid, signal.SIGKILL)
            time.sleep(_PAUSE_S)
    return [
        Leftover("process", str(pid), leftovers.described(Path(folder).name), pid not in left)
        for pid, folder in found.items()
    ]


def _thing(kind: str, path: str, *, removed: bool) -> Leftover:
    return Leftover(kind, path, leftovers.described(Path(path).name), removed)
