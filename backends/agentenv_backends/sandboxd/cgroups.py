"""Limits by cgroup, version 1 or 2, where this process may make groups below its own.

A group per slot, removed with it. Groups whose owner died are found by their names (`leftovers.py`).
"""

from __future__ import annotations

import os
import signal
import time
from typing import Dict, List, Optional, Tuple

from . import leftovers
from .lean import join_groups

CONTROLLERS = ("pids", "memory", "cpu")
_PERIOD_US = 100_000
CHARGED_AHEAD = 2 << 20
"""The kernel charges memory in batches, so a group at its limit may count a little less."""
_PROBE_SUFFIX = "probe"


class Limits:
    """What a group allows. None: no limit."""

    __slots__ = ("cpus", "memory_bytes", "processes")

    def __init__(self, *, processes: int, memory_bytes: int, cpus: Optional[float]) -> None:
        self.processes = processes
        self.memory_bytes = memory_bytes
        self.cpus = cpus


class Group:
    """One slot's group: a folder per hierarchy (version 1) or one folder (version 2)."""

    is_shared = False
    """Its memory is the slot's own."""

    def __init__(self, folders: Dict[str, str], *, version: int, memory_bytes: int) -> None:
        self._folders = folders
        self._version = version
        self._memory_bytes = memory_bytes
        self._events = -1
        self._peak = -1
        memory = folders.get("memory")
        if memory:
            if version == 1:
                peak = os.path.join(memory, "memory.max_usage_in_bytes")
                self._peak = os.open(peak, os.O_RDONLY | os.O_CLOEXEC)
            name = "memory.oom_control" if version == 1 else "memory.events"
            self._events = os.open(os.path.join(memory, name), os.O_RDONLY | os.O_CLOEXEC)
        self._oom_kills = self._read_oom_kills()
        self.join_files = [
            os.path.join(path, "cgroup.procs") for path in sorted(set(folders.values()))
        ]

    def join(self) -> None:
        """Move the calling process into the group. Raises `OSError`."""
        join_groups(self.join_files)

    def note_oom_kills(self) -> bool:
        """Whether the kernel killed for lack of memory here since this was last asked."""
        before, self._oom_kills = self._oom_kills, self._read_oom_kills()
        return self._oom_kills > before

    def allow_more_memory(self, size: int) -> None:
        """Raise the memory limit by so many bytes, where there is one. Raises `OSError`."""
        folder = self._folders.get("memory")
        if folder:
            self._memory_bytes += size
            # The limit that includes swap is never below the other.
            for file, value in reversed(_memory_settings(self._version, self._memory_bytes)):
                _write(os.path.join(folder, file), value)

    def reached_memory_limit(self) -> bool:
        """Whether this group reached its own limit; a machine that runs out of memory as a whole is another thing."""
        if self._events < 0:
            return False
        if self._peak >= 0:  # newer kernels count no failures for the limit that includes swap
            return int(os.pread(self._peak, 64, 0)) >= self._memory_bytes - CHARGED_AHEAD
        _, found, rest = os.pread(self._events, 4096, 0).partition(b"oom ")
        return bool(found) and int(rest.split()[0]) > 0

    def _read_oom_kills(self) -> int:
        if self._events < 0:
            return 0
        _, found, rest = os.pread(self._events, 4096, 0).partition(b"oom_kill ")
        return int(rest.split()[0]) if found else 0

    def remove(self) -> bool:
        """Remove the group, with whatever still runs in it; True when it is gone.

        Bubblewrap that is killed just after it has made its child leaves one that waits for it for ever.
        """
        for descriptor in (self._events, self._peak):
            if descriptor >= 0:
                os.close(descriptor)
        self._events = self._peak = -1
        gone = [remove_with_members(path) for path in set(self._folders.values())]
        return all(gone)


class Cgroups:
    """Makes groups. `controllers` are the limits that can really be set here."""

    def __init__(self, version: int, parents: Dict[str, str]) -> None:
        self.version = version
        self._parents = parents
        self.controllers = tuple(name for name in CONTROLLERS if name in parents)

    def create(self, name: str, limits: Limits) -> Group:
        """Make a group of that name. Raises `OSError`, leaving nothing."""
        folders = {key: os.path.join(parent, name) for key, parent in self._parents.items()}
        try:
            for path in sorted(set(folders.values())):
                os.mkdir(path)
            for controller, path in folders.items():
                for file, value in _settings(self.version, controller, limits):
                    _write(os.path.join(path, file), value)
            return Group(folders, version=self.version, memory_bytes=limits.memory_bytes)
        except OSError:
            for path in set(folders.values()):
                _remove_folder(path)
            raise


def find(limits: Limits, owner_name: str) -> Optional[Cgroups]:
    """The way to make groups here, found by making one; None when there is none.

    `owner_name` names the group that is made for the trial (and, in version 2, the one this process moves to).
    """
    mounts = _mounts()
    usable: Dict[str, str] = {}
    for controller in CONTROLLERS:
        parent = _parent_v1(mounts, controller)
        if parent and _can_limit(1, controller, parent, owner_name, limits):
            usable[controller] = parent
    if usable:
        return Cgroups(1, usable)
    for parent in _parents_v2(mounts):
        enabled = _enable_v2(parent, owner_name)
        usable = {c: parent for c in enabled if _can_limit(2, c, parent, owner_name, limits)}
        if usable:
            return Cgroups(2, usable)
    return None


def parents() -> List[str]:
    """Folders below which hosts that are started from here may have made groups."""
    mounts = _mounts()
    found = [_parent_v1(mounts, controller) for controller in CONTROLLERS]
    return list(dict.fromkeys(path for path in [*found, *_parents_v2(mounts)] if path))


def folders_of(controller: str) -> List[Tuple[int, str]]:
    """Version and folder of where this process's own group is limited by a controller, or may be."""
    mounts = _mounts()
    first = _parent_v1(mounts, controller)
    return [(1, path) for path in (first,) if path] + [(2, path) for path in _parents_v2(mounts)]


def abandoned() -> List[str]:
    """Groups whose owners are dead."""
    return [path for parent in parents() for path in leftovers.abandoned(parent)]


def remove_with_members(path: str) -> bool:
    """Remove a group with whatever still runs in it; True when it is gone."""
    _kill_members(path)
    return _remove_folder(path)


def _settings(version: int, controller: str, limits: Limits) -> List[Tuple[str, str]]:
    """Files of a group and what to write to them."""
    if controller == "pids":
        return [("pids.max", str(limits.processes))]
    if controller == "memory":
        return _memory_settings(version, limits.memory_bytes)
    if limits.cpus is None:
        return []
    quota = max(1000, int(limits.cpus * _PERIOD_US))
    if version == 1:
        return [("cpu.cfs_period_us", str(_PERIOD_US)), ("cpu.cfs_quota_us", str(quota))]
    return [("cpu.max", "%d %d" % (quota, _PERIOD_US))]


def _memory_settings(version: int, size: int) -> List[Tuple[str, str]]:
    memory = str(size)
    if version == 1:
        return [("memory.limit_in_bytes", memory), ("?memory.memsw.limit_in_bytes", memory)]
    return [("memory.max", memory), ("?memory.swap.max", "0"), ("?memory.oom.group", "0")]


def _write(path: str, value: str) -> None:
    """Write one setting; a name that begins with `?` may be unknown to this kernel."""
    folder, name = os.path.split(path)
    optional = name.startswith("?")
    try:
        descriptor = os.open(os.path.join(folder, name.lstrip("?")), os.O_WRONLY)
    except FileNotFoundError:
        if optional:
            return
        raise
    try:
        os.write(descriptor, value.encode("ascii"))
    finally:
        os.close(descriptor)


def _can_limit(version: int, controller: str, parent: str, owner_name: str, limits: Limits) -> bool:
    if controller == "cpu" and limits.cpus is None:
        return False
    try:
        group = Cgroups(version, {controller: parent}).create(owner_name + _PROBE_SUFFIX, limits)
    except OSError:
        return False
    return group.remove()


def _mounts() -> List[Tuple[str, str, List[str]]]:
    """Mounted cgroup hierarchies as (type, mount point, super options)."""
    found = []
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
        for line in file:
            before, _, after = line.partition(" - ")
            kind, _, options = after.split()[:3]
            if kind in ("cgroup", "cgroup2"):
                found.append((kind, before.split()[4], options.split(",")))
    return found


def _own_paths() -> Dict[str, str]:
    """This process's group by controller (`""`: version 2), as the kernel names it."""
    paths = {}
    with open("/proc/self/cgroup", encoding="utf-8", errors="surrogateescape") as file:
        for line in file:
            _, controllers, path = line.rstrip("\n").split(":", 2)
            for controller in controllers.split(","):
                paths[controller] = path
    return paths


def _parent_v1(mounts: List[Tuple[str, str, List[str]]], controller: str) -> Optional[str]:
    own = _own_paths().get(controller, "/")
    for kind, point, options in mounts:
        if kind == "cgroup" and controller in options:
            path = os.path.normpath(point + own)
            # In a container the kernel's name of the group may lie outside what is mounted here.
            return path if os.path.isdir(path) else point
    return None


def _parents_v2(mounts: List[Tuple[str, str, List[str]]]) -> List[str]:
    own = _own_paths().get("", "/")
    for kind, point, _ in mounts:
        if kind == "cgroup2":
            path = os.path.normpath(point + own)
            return [p for p in dict.fromkeys((path, point)) if os.path.isdir(p)]
    return []


def _enable_v2(parent: str, owner_name: str) -> List[str]:
    """Controllers that groups below `parent` have, after trying to switch on those that are missing.

    A group with members cannot hand out controllers. When this process is its only member it moves to a group below.
    """
    try:
        with open(os.path.join(parent, "cgroup.controllers"), encoding="ascii") as file:
            offered = [name for name in file.read().split() if name in CONTROLLERS]
        control = os.path.join(parent, "cgroup.subtree_control")
        for attempt in (1, 2):
            try:
                _write(control, " ".join("+" + name for name in offered))
                break
            except OSError:
                if attempt == 2 or not _move_out_of(parent, owner_name):
                    break
        with open(control, encoding="ascii") as file:
            return [name for name in file.read().split() if name in CONTROLLERS]
    except OSError:
        return []


def _move_out_of(parent: str, owner_name: str) -> bool:
    if _members(parent) != [os.getpid()]:
        return False
    below = os.path.join(parent, owner_name + "host")
    try:
        os.mkdir(below)
        _write(os.path.join(below, "cgroup.procs"), "0")
    except OSError:
        return False
    return True


def _members(path: str) -> List[int]:
    try:
        with open(os.path.join(path, "cgroup.procs"), encoding="ascii") as file:
            return [int(line) for line in file]
    except OSError:
        return []


def _kill_members(path: str) -> None:
    for pid in _members(path):
        try:
            os.kill(pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            continue


def _remove_folder(path: str) -> bool:
    """Remove a group. The kernel may still be letting go of its last members for a moment."""
    for attempt in range(20):
        try:
            os.rmdir(path)
        except FileNotFoundError:
            return True
        except OSError:
            time.sleep(0.001 * attempt)
        else:
            return True
    return False
