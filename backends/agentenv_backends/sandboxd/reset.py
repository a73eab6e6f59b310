"""The end of a slot that was a Unix user: proof that nothing of it is left, by a process that does nothing else.

It kills the user's processes, removes its System V objects, empties its folders, and takes its files out of places
where everyone may write. Its exit status 0 is the proof; anything else means that the folders must not be used again.
"""

from __future__ import annotations

import os
import signal
import stat
import sys
import time
from typing import Callable, List, NoReturn, Set, Tuple

from .lean import default_signals
from .slot_processes import is_dead
from .slot_user import SlotUser
from .trees import empty_folder, remove
from .users import SlotHome

TIME_LIMIT_S = 30
_DEATH_S = 5.0
_PAUSE_S = 0.002
_ROUNDS = 3
_MAX_DEPTH = 64
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class NotProvedError(Exception):
    """Something of the slot is left, or may be."""


def start(home: SlotHome, places: Tuple[str, ...], slots: range) -> int:
    """Start the process and return its id. `slots`: ids that slots may have. Raises `OSError`."""
    pid = os.fork()
    if pid == 0:
        _run(home, places, slots)
    return pid


def _run(home: SlotHome, places: Tuple[str, ...], slots: range) -> NoReturn:
    status = 1
    try:
        signal.set_wakeup_fd(-1)
        default_signals()
        signal.alarm(TIME_LIMIT_S)
        _end_processes(home)
        for path in (home.workspace, home.tmp, *home.folders):
            _give_folder_back(path)
        for place in places:
            _clean_place(place, home.uid, slots)
        status = 0
    except BaseException as error:  # noqa: BLE001 - the child of a fork has nobody to raise to
        sys.stderr.write("slot %d is not clean: %r\n" % (home.number, error))
    finally:
        os._exit(status)


# --- processes ------------------------------------------------------------------------------------------------------


def _end_processes(home: SlotHome) -> None:
    for _ in range(_ROUNDS):
        _as_keeper(home, lambda: os.kill(-1, signal.SIGKILL))
        deadline = time.monotonic() + _DEATH_S
        while time.monotonic() < deadline:
            if not living({home.uid, home.keeper}):
                # Not before: a process may have been about to make one when it was killed.
                _remove_shared_objects(home)
                return
            time.sleep(_PAUSE_S)
    raise NotProvedError("processes of uid %d survive SIGKILL" % home.uid)


def _as_keeper(home: SlotHome, action: Callable[[], None]) -> None:
    """Do something as the slot's keeper: with the rights of its processes, none of which can signal it.

    Raises `NotProvedError` when it could not be done.
    """
    user = SlotUser(home.uid, home.keeper)
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            user.become_init()
            if user.is_init():
                action()
                status = 0
        except BaseException as error:  # noqa: BLE001 - the child of a fork has nobody to raise to
            sys.stderr.write("slot %d, as its keeper: %r\n" % (home.number, error))
        finally:
            os._exit(status)
    if os.waitpid(pid, 0)[1] != 0:
        raise NotProvedError("something could not be done as uid %d" % home.keeper)


def living(uids: Set[int]) -> List[int]:
    """Processes that have any of these ids in any way, zombies left out."""
    found = []
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        try:
            with open("/proc/%s/status" % name, "rb") as file:
                ids = next(line for line in file if line.startswith(b"Uid:")).split()[1:]
            with open("/proc/%s/stat" % name, "rb") as file:
                fields = file.read().rpartition(b")")[2].split()
        except (OSError, StopIteration):
            continue  # it has ended
        if uids.intersection(int(number) for number in ids) and not is_dead(fields):
            found.append(int(name))
    return found


# --- System V objects -------------------------------------------------------------------------------------------------


def _remove_shared_objects(home: SlotHome) -> None:
    """Shared memory, message queues and semaphores outlive processes; only who made them may remove them."""
    found = _shared_objects(home.uid)
    if not found:
        return
    import ctypes  # noqa: PLC0415 - seldom needed, and not to be found by every user

    library = ctypes.CDLL(None)

    def remove() -> None:
        for kind, number in found:
            index, ipc_rmid = (0,) if kind == "sem" else (), 0
            getattr(library, kind + "ctl")(number, *index, ipc_rmid, None)

    _as_keeper(home, remove)
    if _shared_objects(home.uid):
        raise NotProvedError("System V objects of uid %d stay" % home.uid)


def _shared_objects(uid: int) -> List[Tuple[str, int]]:
    """Kind and number of what a user made or owns."""
    found = []
    for kind in ("shm", "msg", "sem"):
        try:
            with open("/proc/sysvipc/" + kind, encoding="ascii") as file:
                names = file.readline().split()
                rows = [line.split() for line in file]
        except FileNotFoundError:
            continue  # the kernel has none of that kind
        owners = (names.index("uid"), names.index("cuid"))
        # The number stands second, under a name that depends on the kind.
        found += [(kind, int(row[1])) for row in rows if str(uid) in [row[n] for n in owners]]
    return found


# --- files ---------------------------------------------------------------------------------------------------------


def _give_folder_back(path: str) -> None:
    """Empty a slot's folder, and make it as it was: root's, without attributes (an access list is one).

    It is closed first: another slot may be at work in it, if this one had opened it to everybody.
    """
    os.chown(path, 0, 0)
    for name in os.listxattr(path):
        os.removexattr(path, name)
    os.chmod(path, stat.S_IRWXU)
    empty_folder(path)
    if os.listdir(path):
        raise NotProvedError("%s is not empty" % path)


def _clean_place(place: str, uid: int, slots: range) -> None:
    """Remove what a user left in a folder for everybody, where other slots may be at work at the same moment."""
    top = os.open(place, _FOLDER)
    try:
        for _ in range(_ROUNDS):
            if not _clean(top, uid, slots, os.fstat(top).st_dev, _MAX_DEPTH):
                return
    finally:
        os.close(top)
    raise NotProvedError("files of uid %d stay in %s" % (uid, place))


def _clean(folder: int, uid: int, slots: range, device: int, depth: int) -> int:
    """Remove what a user has in an open folder and below it; returns how much there was.

    Folders of other slots are left alone: what is in them goes with those.
    """
    found = 0
    for name in os.listdir(folder):
        try:
            info = os.stat(name, dir_fd=folder, follow_symlinks=False)
            if info.st_uid == uid:
                found += 1
                remove(folder, os.fsencode(name))
            elif stat.S_ISDIR(info.st_mode) and info.st_dev == device and info.st_uid not in slots:
                found += _clean_below(folder, name, uid, slots, device, depth - 1)
        except (FileNotFoundError, NotADirectoryError):
            continue  # its owner's doing
    return found


def _clean_below(folder: int, name: str, uid: int, slots: range, device: int, depth: int) -> int:
    if not depth:
        raise NotProvedError("folders too deep to be looked through: %s" % name)
    below = os.open(name, _FOLDER, dir_fd=folder)
    try:
        return _clean(below, uid, slots, device, depth)
    finally:
        os.close(below)
