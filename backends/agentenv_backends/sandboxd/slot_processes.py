"""Ending every process of a slot but its init. Two ways, because one of them would end the whole machine."""

from __future__ import annotations

import os

from .lean import SIGKILL, SIGSTOP

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Container, List, Tuple


def reap(*, block: bool) -> Tuple[List[Tuple[int, int]], bool]:
    """Collect dead children as (pid, wait status). Also says whether no child, dead or alive, is left.

    Every process of a slot is a child of its init or becomes one when its parent dies, so no child means no process.
    """
    ended: List[Tuple[int, int]] = []
    while True:
        try:
            pid, status = os.waitpid(-1, 0 if block else os.WNOHANG)
        except ChildProcessError:
            return ended, True
        if pid == 0:
            return ended, False
        ended.append((pid, status))


class PidNamespace:
    """For an init that is pid 1 of a pid namespace: one call signals everything else in it, with no race."""

    def kill_all(self) -> List[Tuple[int, int]]:
        """Kill everything; returns when all of it is dead and reaped."""
        if os.getpid() != 1:
            raise RuntimeError(
                "kill(-1) is for pid 1 of a pid namespace; this is pid %d" % os.getpid()
            )
        ended: List[Tuple[int, int]] = []
        while True:
            try:
                os.kill(-1, SIGKILL)
            except ProcessLookupError:
                return ended
            ended += reap(block=True)[0]


class Descendants:
    """For an init without a pid namespace, which must be a child subreaper: kills what descends from it, and only that.

    A tree that forks all the time is stopped first, parents before children, until a look finds no running member.
    Not guaranteed: a process whose parent handed it out of the tree (through a daemon of the host) is not found.
    """

    def kill_all(self) -> List[Tuple[int, int]]:
        """Kill every descendant; returns when all are dead and reaped."""
        ended, none_left = reap(block=False)
        while not none_left:
            kill_descendants(os.getpid())
            more, none_left = reap(block=True)
            ended += more
        return ended


def kill_descendants(root: int, spare: Container[int] = ()) -> None:
    """Kill what descends from a process, but for `spare` and what descends from those.

    All are stopped before any is killed: the dead leave their children to others, the stopped do not.
    """
    stopped: set[int] = set()
    while True:
        found = descendants_of(root, spare)
        fresh = [pid for pid in found if pid not in stopped]
        for pid in fresh:
            signal_quietly(pid, SIGSTOP)
        stopped.update(fresh)
        if not fresh:
            break
    for pid in found:
        signal_quietly(pid, SIGKILL)


def signal_quietly(pid: int, number: int) -> None:
    """Send a signal to a process that may be gone already or may have become another user's."""
    try:
        os.kill(pid, number)
    except (ProcessLookupError, PermissionError):
        return


def descendants_of(root: int, spare: Container[int] = ()) -> List[int]:
    """Living descendants of a process, parents before their children, without those below a spared one."""
    children: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            parent = parent_of(name)
            if parent:
                children.setdefault(parent, []).append(int(name))
    found, queue = [], [root]
    while queue:
        below = [pid for pid in children.get(queue.pop(0), []) if pid not in spare]
        found += below
        queue += below
    return found


def parent_of(pid: str) -> int:
    """The parent of a living process, 0 for a zombie or one that is gone."""
    try:
        descriptor = os.open("/proc/" + pid + "/stat", os.O_RDONLY)
    except OSError:
        return 0
    try:
        # The name of a program may hold spaces and brackets: what follows the last bracket is safe to split.
        state, parent = os.read(descriptor, 4096).rpartition(b")")[2].split()[:2]
    except (OSError, ValueError):
        return 0
    finally:
        os.close(descriptor)
    return 0 if state == b"Z" else int(parent)
