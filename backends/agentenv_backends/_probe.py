"""Tries, from inside a slot, what must not be possible there, and prints what it found as JSON.

`doctor.py` pipes this file's text into a slot's Python, with a call of `run` at its end. Standard
library only, Python 3.8 or newer.

A slot may turn out not to be confined at all, with root's rights on the real machine. So every
attempt is one that changes nothing even when it succeeds: a kernel setting is opened and not
written, a file system that does not exist is mounted.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import hashlib
import json
import os
import platform
import resource
import signal
import socket
import stat
import sys
import time
from pathlib import Path

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

SETTINGS = (
    "/proc/sys/kernel/core_pattern",
    "/proc/sys/kernel/modprobe",
    "/proc/sys/kernel/hostname",
    "/proc/sys/kernel/panic",
    "/proc/sys/vm/swappiness",
    "/proc/sys/vm/overcommit_memory",
    "/proc/sysrq-trigger",
    "/sys/power/state",
    "/sys/kernel/uevent_helper",
    "/dev/mem",
    "/dev/kmsg",
)
# name: (number on x86_64, number on aarch64, arguments). The arguments are chosen so that nothing
# comes of a call that is allowed: it fails for another reason, or ends with the child that made it.
SYSTEM_CALLS: dict[str, tuple[int, int, tuple[Any, ...]]] = {
    "mount": (165, 40, (b"none", b"/", b"no-such-filesystem", 0, 0)),
    "unshare(user)": (272, 97, (0x10000000,)),
    "ptrace": (101, 117, (0, 0, 0, 0)),
    "keyctl": (250, 219, (0, -3, 1)),
    "add_key": (248, 217, (b"user", b"agentenv-probe", b"x", 1, -2)),
    "bpf": (321, 280, (0, 0, 0)),
    "perf_event_open": (298, 241, (0, 0, -1, -1, 0)),
    "userfaultfd": (323, 282, (0,)),
    "io_uring_setup": (425, 425, (1, 0)),
    "kexec_load": (246, 104, (0, 0, 0, 0x8000)),
    "init_module": (175, 105, (0, 0, b"")),
}
REFUSALS = (errno.EPERM, errno.EACCES, errno.ENOSYS)
MEGABYTE = 1 << 20


def can_write(path: str) -> bool:
    """Whether a file opens for writing. Nothing is written."""
    try:
        os.close(os.open(path, os.O_WRONLY))
    except OSError:
        return False
    return True


def works(action: Callable[[], object]) -> bool:
    """Whether an action succeeds, tried in a child process."""
    child = os.fork()
    if child == 0:
        signal.alarm(5)
        code = 1
        with contextlib.suppress(Exception):
            action()
            code = 0
        os._exit(code)
    return os.waitpid(child, 0)[1] == 0


def system_call(name: str) -> Callable[[], None]:
    """A system call that must be refused; raises when it is."""
    column = {"x86_64": 0, "aarch64": 1}[platform.machine()]
    entry = SYSTEM_CALLS[name]

    def call() -> None:
        library = ctypes.CDLL(None, use_errno=True)
        result = library.syscall(entry[column], *entry[2])
        if result == -1 and ctypes.get_errno() in REFUSALS:
            raise OSError(ctypes.get_errno(), name)

    return call


def make_device() -> None:
    """Make another /dev/null, and take it away again."""
    path = Path("probe-null")
    os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, 3))
    path.unlink()


def possible() -> list[str]:
    """Names of what worked though it should not."""
    actions: dict[str, Callable[[], object]] = {
        "mknod": make_device,
        "chroot": lambda: os.chroot("/tmp"),  # noqa: S108
        "raw socket": lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, 1),
        "controlling terminal": lambda: os.open("/dev/tty", os.O_RDWR),
    }
    if platform.machine() in ("x86_64", "aarch64"):
        actions.update({name: system_call(name) for name in SYSTEM_CALLS})
    return sorted(name for name, action in actions.items() if works(action))


def connects(family: int, address: Any) -> bool:
    """Whether something answers there. Where no socket can be had, nothing does."""
    try:
        with socket.socket(family, socket.SOCK_STREAM) as client:
            client.settimeout(0.5)
            client.connect(address)
    except OSError:
        return False
    return True


def interfaces() -> list[str]:
    """Networks that can be used, but for the loopback: without sockets, none."""
    try:
        return [name for _, name in socket.if_nameindex() if name != "lo"]
    except OSError:
        return []


def readable(path: str) -> str:
    """A small file's text, empty when it cannot be read."""
    try:
        with Path(path).open("rb") as file:
            return file.read(65536).replace(b"\0", b" ").decode("utf-8", "replace")
    except OSError:
        return ""


def digest(path: str) -> str:
    """What a file's text hashes to."""
    return hashlib.sha256(readable(path).encode()).hexdigest()


def processes() -> list[str]:
    """Ids of the processes to be seen."""
    return [path.name for path in Path("/proc").iterdir() if path.name.isdigit()]


def finds(name: str, below: list[str]) -> bool:
    """Whether a file of that name can be found, at most three folders deep."""
    for top in below:
        for folder, folders, files in os.walk(top):
            if name in files:
                return True
            if folder.count(os.sep) - top.count(os.sep) >= 3:
                folders.clear()
    return False


def facts(asked: dict[str, Any]) -> dict[str, Any]:
    """Everything that takes no resources to find out."""
    status = dict(
        line.split(":", 1) for line in readable("/proc/self/status").splitlines() if ":" in line
    )
    seen = processes()
    environments = "".join(readable(f"/proc/{process}/environ") for process in seen)
    return {
        "uid": os.getuid(),
        "groups": os.getgroups(),
        "capabilities": int(status["CapEff"], 16),
        "no_new_privileges": status.get("NoNewPrivs", "0").strip() == "1",
        "seccomp": status.get("Seccomp", "0").strip() == "2",
        "writable": [path for path in SETTINGS if can_write(path)],
        "possible": possible(),
        "driver_seen": any(
            asked["driver"] in readable(f"/proc/{process}/cmdline") for process in seen
        ),
        "processes": len(seen),
        "paths_seen": [path for path in asked["paths"] if os.access(path, os.R_OK)],
        "neighbour_seen": finds(asked["neighbour"], ["/tmp", str(Path.cwd().parent)]),  # noqa: S108
        "secret_seen": asked["secret"] in environments + str(dict(os.environ))
        or digest(f"/proc/{asked['driver_pid']}/environ") == asked["driver_environment"],
        "host_port": connects(socket.AF_INET, ("127.0.0.1", asked["port"])),
        "abstract_socket": connects(socket.AF_UNIX, "\0" + asked["abstract"]),
        "interfaces": interfaces(),
        "open_files": resource.getrlimit(resource.RLIMIT_NOFILE)[1],
        "core_size": resource.getrlimit(resource.RLIMIT_CORE)[1],
    }


def eat_memory(megabytes: int) -> None:
    """Take and touch so much memory, and hold it a moment."""
    page = bytearray(os.urandom(4096))
    hoard = [page * (4 * MEGABYTE // 4096) for _ in range(megabytes // 4)]
    time.sleep(0.5)
    hoard.clear()


def memory(asked: dict[str, Any]) -> dict[str, Any]:
    """Whether one process can go over the limit, and whether several can together, each of them far below it."""
    limit, share = asked["megabytes"], asked["process_megabytes"] // 2
    alone = works(lambda: eat_memory(limit * 3 // 2))
    children = []
    for _ in range(limit * 3 // 2 // share + 1):
        child = os.fork()
        if child == 0:
            code = 1
            with contextlib.suppress(MemoryError):
                eat_memory(share)
                code = 0
            os._exit(code)
        children.append(child)
    statuses = [os.waitpid(child, 0)[1] for child in children]
    together = not any(statuses)
    return {"alone": alone, "together": together}


def forks(asked: dict[str, Any]) -> dict[str, Any]:
    """How many children can be alive at once, tried up to `most`."""
    children: list[int] = []
    try:
        for _ in range(asked["most"]):
            child = os.fork()
            if child == 0:
                signal.pause()
            children.append(child)
    except OSError:
        pass
    for child in children:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    return {"alive": len(children)}


def fill(path: Path, megabytes: int) -> int:
    """How many megabytes fit into a file."""
    block = b"x" * MEGABYTE
    written = 0
    try:
        with path.open("wb", buffering=0) as file:
            for _ in range(megabytes):
                written += file.write(block)
    except OSError:
        pass
    return written // MEGABYTE


def disk(asked: dict[str, Any]) -> dict[str, Any]:
    """How many megabytes fit into one file, and into two, of a folder."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    paths = [Path(asked["folder"]) / f"probe-{number}" for number in (1, 2)]
    sizes = [fill(path, asked["megabytes"]) for path in paths]
    for path in paths:
        with contextlib.suppress(OSError):
            path.unlink()
    return {"one": sizes[0], "both": sum(sizes)}


PARTS = {"facts": facts, "memory": memory, "forks": forks, "disk": disk}


def run(part: str, asked: dict[str, Any]) -> None:
    """Print what a part finds."""
    sys.stdout.write(json.dumps(PARTS[part](asked)))
