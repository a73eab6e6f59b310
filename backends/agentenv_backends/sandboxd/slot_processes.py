"""Ending every process of a slot but its init: one way for each kind of slot, as the others would end the machine."""

from __future__ import annotations

import os
import time

from .lean import SIGKILL, SIGSTOP, c_function

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Container, Dict, List, Optional, Tuple

    from .slot_user import SlotUser


_THREADS = 17
_MANY, _LONGEST_NUMBER = 4096, 32
"""Bytes of a list of children read at once. The kernel gives no part of a number."""
_P_ALL = 0
_waitid = c_function("waitid")
_DEATH_S = 0.001
"""Between two looks at whether the killed are dead."""


def reap(*, block: bool) -> Tuple[List[Tuple[int, int]], bool]:
    """Collect dead children as (pid, wait status). Also says whether no child, dead or alive, is left.

    Every process of a slot is a child of its init or becomes one when its parent dies, so no child means no process.
    """
    ended: List[Tuple[int, int]] = []
    while not is_childless():
        pid, status = os.waitpid(-1, 0 if block else os.WNOHANG)
        if pid == 0:
            return ended, False
        ended.append((pid, status))
    return ended, True


def is_childless() -> bool:
    """Whether this process has no child, dead or alive. An exception that says so costs more than the question."""
    return _waitid(_P_ALL, 0, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT) < 0


class Processes:
    """The processes of a slot but its init, which is a subreaper or pid 1: all of them descend from it."""

    def __init__(self) -> None:
        self.sessions: Dict[int, Optional[int]] = {}
        """Children of the init that outlive the commands beside them, and the wait status of those that have ended.
        They are subreapers, so that whatever they start stays below them while they live."""
        self._children: Optional[Children] = None

    def reap(self, *, block: bool = False) -> Tuple[List[Tuple[int, int]], bool]:
        """See `reap`; also notes which sessions have ended."""
        ended, none_left = reap(block=block)
        for pid, status in ended:
            if pid in self.sessions:
                self.sessions[pid] = status
        return ended, none_left

    def kill_all(self) -> List[Tuple[int, int]]:
        """Kill everything, sessions too; returns when all of it is dead and reaped."""
        raise NotImplementedError

    def kill_leftovers(self) -> List[Tuple[int, int]]:
        """Kill everything but living sessions and what is below them; returns when it is dead and reaped."""
        spared = [pid for pid, status in self.sessions.items() if status is None]
        if not spared:
            return self.kill_all()
        if self._children is None:
            self._children = Children(os.getpid())
        ended = self.reap()[0]
        while any(pid not in spared for pid in self._children.read()):
            kill_descendants(os.getpid(), spared)
            time.sleep(_DEATH_S)
            ended += self.reap()[0]
        return ended


class PidNamespace(Processes):
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
            ended += self.reap(block=True)[0]


class OneUser(Processes):
    """For an init whose commands are a user of their own: one call signals all of them, with no race, and nobody else.

    The init must be a child subreaper: the user's processes are then its descendants, and no child means no process.
    """

    def __init__(self, user: SlotUser) -> None:
        super().__init__()
        self._user = user

    def kill_all(self) -> List[Tuple[int, int]]:
        """Kill everything; returns when all of it is dead and reaped."""
        if not self._user.is_init():
            raise RuntimeError(
                "kill(-1) is for a slot's keeper; this is user %r" % (os.getresuid(),)
            )
        ended, none_left = self.reap()
        while not none_left:
            os.kill(-1, SIGKILL)
            more, none_left = self.reap(block=True)
            ended += more
        return ended


class Descendants(Processes):
    """For an init without a pid namespace, which must be a child subreaper: kills what descends from it, and only that.

    A tree that forks all the time is stopped first, parents before children, until a look finds no running member.
    Not guaranteed: a process whose parent handed it out of the tree (through a daemon of the host) is not found.
    """

    def kill_all(self) -> List[Tuple[int, int]]:
        """Kill every descendant; returns when all are dead and reaped."""
        ended, none_left = self.reap()
        while not none_left:
            kill_descendants(os.getpid())
            # Not waited for without end: one that was forked in between is for the next round.
            time.sleep(_DEATH_S)
            more, none_left = self.reap()
            ended += more
        return ended


class Children:
    """The children of the first thread of a process, dead ones too; looked up with one call where the kernel can.

    Exact while it reaps none of them meanwhile.
    """

    def __init__(self, pid: int, file: int = -1) -> None:
        self._pid = pid
        self.file = file
        """The kernel's list of them, opened already or here; -1 where it has none."""
        if file < 0:
            try:
                self.file = os.open("/proc/%d/task/%d/children" % (pid, pid), os.O_RDONLY)
            except OSError:  # such as of a kernel without CONFIG_PROC_CHILDREN
                self.file = -1

    def read(self) -> List[int]:
        """Their process ids; none when the process is gone."""
        if self.file < 0:
            return [int(name) for name in os.listdir("/proc") if self._is_parent_of(name)]
        found = b""
        try:
            while True:
                data = os.pread(self.file, _MANY, len(found))
                found += data
                if len(data) < _MANY - _LONGEST_NUMBER:
                    return [int(child) for child in found.split()]
        except ProcessLookupError:
            return []

    def close(self) -> None:
        """Look no more."""
        if self.file >= 0:
            os.close(self.file)

    def _is_parent_of(self, name: str) -> bool:
        return name.isdigit() and parent_of(name) == self._pid


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
    fields = stat_of(pid)
    return 0 if not fields or is_dead(fields) else int(fields[1])


def stat_of(pid: str) -> List[bytes]:
    """What follows the name in /proc/PID/stat; nothing when the process is gone."""
    try:
        descriptor = os.open("/proc/" + pid + "/stat", os.O_RDONLY)
    except OSError:
        return []
    try:
        # The name of a program may hold spaces and brackets: what follows the last bracket is safe to split.
        fields = os.read(descriptor, 4096).rpartition(b")")[2].split()
    except OSError:
        return []
    finally:
        os.close(descriptor)
    return fields if len(fields) > _THREADS else []  # it went while we looked


def is_dead(fields: List[bytes]) -> bool:
    """Whether what follows the name in /proc/PID/stat is that of a zombie. The first thread of a process may be one
    while others go on.
    """
    return fields[0] in (b"Z", b"X") and int(fields[_THREADS]) <= 1
