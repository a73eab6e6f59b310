"""Names that say who owns a thing, and the removal of what dead owners left.

    agentenv-<run id>-<pid namespace>-<owner's pid>-<owner's start time>-<what>

A pid alone may belong to someone else by now; with the start time it cannot. Of processes of another pid namespace (a
container that shares the folder) nothing is known, so what they own is left alone. So a sweep needs no state file and
never touches what a live host owns.
"""

from __future__ import annotations

import os
import re
import stat
from typing import Dict, List, NamedTuple, Optional

PREFIX = "agentenv-"
_NAME = re.compile(
    r"agentenv-(?P<run>[\w-]+)-(?P<namespace>\d+)-(?P<pid>\d+)-(?P<start>\d+)-(?P<what>\w+)\Z"
)
_PID_NAMESPACE = os.stat("/proc/self/ns/pid").st_ino


class Owner(NamedTuple):
    """A process, told apart from all others that had or will have its pid."""

    pid: int
    start_time: int
    namespace: int = _PID_NAMESPACE
    """In which `pid` is to be understood."""

    def is_alive(self) -> bool:
        """Whether that very process still exists, or may."""
        return self.namespace != _PID_NAMESPACE or start_time(self.pid) == self.start_time


def start_time(pid: int) -> Optional[int]:
    """When a process started, in clock ticks since boot; None when there is none, or only its zombie."""
    try:
        with open("/proc/%d/stat" % pid, "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
    except OSError:
        return None
    return None if fields[0] == b"Z" else int(fields[19])


def owner_of_this_process() -> Owner:
    """This process as an owner."""
    pid = os.getpid()
    return Owner(pid, start_time(pid) or 0)


def name_for(run_id: str, owner: Owner, what: str) -> str:
    """The name of a thing that `owner` owns. `what` is letters and digits."""
    parts = (PREFIX, run_id, owner.namespace, owner.pid, owner.start_time, what)
    return "%s%s-%d-%d-%d-%s" % parts


def owner_of(name: str) -> Optional[Owner]:
    """Whose thing that is; None when the name is not one of ours."""
    match = _NAME.match(name)
    if match is None:
        return None
    return Owner(int(match["pid"]), int(match["start"]), int(match["namespace"]))


def described(name: str) -> str:
    """Whose thing that is, for people."""
    match = _NAME.match(name)
    return "process %s of run %s" % (match["pid"], match["run"]) if match else "unknown"


def orphans(folders: List[str]) -> Dict[int, str]:
    """Processes of this user that were started at home in one of these folders, and in which."""
    homes = {folder: b"\0HOME=" + os.fsencode(folder) + b"/" for folder in folders}
    found: Dict[int, str] = {}
    for name in os.listdir("/proc") if homes else ():
        if name.isdigit():
            environment = _environment(name)
            found.update((int(name), path) for path, home in homes.items() if home in environment)
    return found


def _environment(pid: str) -> bytes:
    try:
        if os.stat("/proc/" + pid).st_uid != os.geteuid():
            return b""
        with open("/proc/%s/environ" % pid, "rb") as file:
            return b"\0" + file.read()
    except OSError:
        return b""


def abandoned(folder: str) -> List[str]:
    """Folders in `folder` whose owners are dead. Only real folders of this user: where others may write, a name says
    nothing, and a link leads anywhere.
    """
    try:
        names = os.listdir(folder)
    except OSError:
        return []
    found = []
    for name in sorted(names):
        owner = owner_of(name)
        path = os.path.join(folder, name)
        if owner is not None and not owner.is_alive() and _is_folder_of_ours(path):
            found.append(path)
    return found


def _is_folder_of_ours(path: str) -> bool:
    try:
        info = os.lstat(path)
    except OSError:
        return False
    return stat.S_ISDIR(info.st_mode) and info.st_uid == os.geteuid()
