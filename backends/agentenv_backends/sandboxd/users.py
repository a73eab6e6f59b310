"""Slots as Unix users of a container: which of them are free, and whether this process may make and end them."""

from __future__ import annotations

import os
import re
import stat
from collections import deque
from typing import Deque, List, NamedTuple, Optional, Tuple

from .settings import HostSettings

NEEDED = {"CHOWN": 0, "DAC_OVERRIDE": 1, "FOWNER": 3, "KILL": 5, "SETGID": 6, "SETUID": 7}
"""Capabilities by their numbers."""
_COMMON_PLACES = ("/tmp", "/var/tmp", "/run/lock", "/dev/shm", "/dev/mqueue")  # noqa: S108 - to be cleaned
_MEMORY_SYSTEMS = ("tmpfs", "ramfs", "mqueue")
_FOR_ALL = 0o1777


class UsersError(Exception):
    """Slots cannot be users here. The message says what to do."""


class SlotHome(NamedTuple):
    """What a slot has to itself while it is open."""

    number: int
    uid: int
    """Of its commands, and its group; 0 with `run_as_root`."""
    keeper: int
    """Of its init."""
    workspace: str
    tmp: str
    folders: Tuple[str, ...] = ()
    """Further folders of its own."""
    door: str = ""
    """The folder that holds both and nothing else, which only this slot may pass; empty: there is none. It is root's,
    so that a slot that opens its workspace to everyone opens it to nobody.
    """


class Users:
    """Hands out homes: a free pair of folders, and two ids that no process has had before, or has now."""

    def __init__(self, settings: HostSettings) -> None:
        _check_privileges()
        self._as_root = settings.run_as_root
        self._folders = settings.slot_folders
        self._further = settings.folders
        self._prefilled = False
        for path in self._all_paths():
            self._prefilled |= _made_ready(path)
        if self._prefilled and len(self._folders) > 1:
            raise UsersError(
                "slot_folders: something lies in one of them already; each slot needs an empty one of its own"
            )
        self._doors = [_door_of(pair, self._folders) for pair in self._folders]
        for door in filter(None, self._doors):
            _set_door(door, 0)
        first, count = _ids(settings)
        self.ids = range(first, first + count)
        self._free_ids: Deque[int] = deque(range(first, first + count - count % 2, 2))
        self._free_folders = set(range(len(self._folders)))
        self.places = places_for_all(self._all_paths())

    @property
    def single_use(self) -> bool:
        """Whether the host's one slot cannot be opened a second time: what a new one has cannot be given again."""
        return self._as_root or self._prefilled

    def take(self) -> SlotHome:
        """A home for a slot, its folders ready. Raises `UsersError` when all are taken, or `OSError`."""
        if not self._free_folders and self.single_use:
            raise UsersError(
                "the host's one slot was used, and what it had cannot be made as new again (it was root's, or the "
                "image had something in its folders): each slot needs a host of its own"
            )
        if not self._free_folders:
            raise UsersError("every one of the %d slot_folders is taken" % len(self._folders))
        if not self._free_ids:
            raise UsersError("all uids from %d to %d are taken" % (self.ids[0], self.ids[-1]))
        number = min(self._free_folders)
        workspace, tmp = self._folders[number]
        uid, keeper = self._free_ids[0], self._free_ids[0] + 1
        door = self._doors[number]
        home = SlotHome(
            number, 0 if self._as_root else uid, keeper, workspace, tmp, self._further, door
        )
        if door:
            _set_door(door, home.uid)
        for path in (workspace, tmp, *self._further):
            if self._prefilled:
                _hand_over(path, home.uid)
            os.chown(path, home.uid, home.uid)
            os.chmod(path, stat.S_IRWXU)
        if self._as_root:
            os.chmod(tmp, _FOR_ALL)  # programs that root starts as others find it as everywhere
        self._free_folders.remove(number)
        self._free_ids.popleft()
        return home

    def give_back(self, home: SlotHome) -> None:
        """A home of which nothing is left, or where nothing was done. The ids come last again."""
        if home.door:
            _set_door(home.door, 0)
        self._free_folders.add(home.number)
        self._free_ids.append(home.keeper - 1)

    def _all_paths(self) -> List[str]:
        return [path for pair in self._folders for path in pair] + list(self._further)


def _hand_over(path: str, uid: int) -> None:
    """Make what an image had in a slot's folder the slot's own."""
    if uid == 0:
        return
    for root, folders, files in os.walk(path):
        for name in folders + files:
            os.lchown(os.path.join(root, name), uid, uid)


def _check_privileges() -> None:
    held = _effective_capabilities() if os.geteuid() == 0 else 0
    missing = [name for name, number in NEEDED.items() if not held >> number & 1]
    if missing:
        raise UsersError(
            "isolation user needs root of a container with the capabilities %s; here %s missing. Start the container "
            "as user 0 and add them (docker run --user 0 --cap-drop ALL %s)"
            % (
                ", ".join(NEEDED),
                "%s %s" % (", ".join(missing), "is" if len(missing) == 1 else "are"),
                " ".join("--cap-add " + name for name in NEEDED),
            )
        )


def _effective_capabilities() -> int:
    with open("/proc/self/status", encoding="ascii", errors="replace") as file:
        return next(int(line.split()[1], 16) for line in file if line.startswith("CapEff:"))


def _made_ready(path: str) -> bool:
    """Make a slot's folder where there is none. Whether something lies in it."""
    try:
        os.makedirs(path, exist_ok=True)
        if os.path.realpath(path) != path:
            raise UsersError("slot_folders: %s leads through a link" % path)
        return bool(os.listdir(path))
    except OSError as error:
        raise UsersError("slot_folders: %s cannot be used: %s" % (path, error)) from error


def _door_of(pair: Tuple[str, str], folders: Tuple[Tuple[str, str], ...]) -> str:
    """The parent of a slot's two folders, where nothing else lies in it and it can be written."""
    door = os.path.dirname(pair[0])
    shared = [path for each in folders for path in each if os.path.dirname(path) == door]
    alone = sorted(shared) == sorted(pair) and set(os.listdir(door)) == {
        os.path.basename(path) for path in pair
    }
    return door if alone and os.access(door, os.W_OK) else ""


def _set_door(door: str, group: int) -> None:
    os.chown(door, 0, group)
    os.chmod(door, stat.S_IRWXU | (stat.S_IXGRP if group else 0))


def _ids(settings: HostSettings) -> Tuple[int, int]:
    """First and number of the ids for slots, all of which this user namespace must know."""
    first, count = settings.uid_base, settings.uid_count
    if first <= 0 or count < 2 * len(settings.slot_folders):
        raise UsersError(
            "uid_base %d, uid_count %d: two ids are needed for each of %d slots, none of them 0"
            % (first, count, len(settings.slot_folders))
        )
    for path in ("/proc/self/uid_map", "/proc/self/gid_map"):
        with open(path, encoding="ascii") as file:
            ranges = [tuple(int(number) for number in line.split()) for line in file]
        if not any(
            inside <= first and first + count <= inside + size for inside, _, size in ranges
        ):
            raise UsersError(
                "ids %d to %d are not mapped in this container (%s): choose others (uid_base, uid_count)"
                % (first, first + count - 1, path)
            )
    return first, count


# --- places where every user may leave something -------------------------------------------------------------------


def places_for_all(own: List[str]) -> Tuple[str, ...]:
    """Writable folders outside of `own` in which a slot could leave files: file systems in memory, and the folders
    that Unix has for everyone.
    """
    found = {path for path in _COMMON_PLACES if os.path.isdir(path)}
    found.update(path for path in _writable_memory_mounts() if os.path.isdir(path))
    real = {os.path.realpath(path) for path in found}
    return tuple(sorted(path for path in real if path not in own and os.access(path, os.W_OK)))


def disk_size(path: str) -> Optional[int]:
    """Size of the file system that is a slot's folder's own; None when it shares one."""
    if not os.path.ismount(path):
        return None
    usage = os.statvfs(path)
    return usage.f_blocks * usage.f_frsize


def _writable_memory_mounts() -> List[str]:
    found = []
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
        for line in file:
            before, _, after = line.partition(" - ")
            point, options = before.split()[4:6]
            kind = after.split()[0]
            if kind in _MEMORY_SYSTEMS and "ro" not in options.split(","):
                found.append(re.sub(r"\\(\d{3})", lambda code: chr(int(code[1], 8)), point))
    return found
