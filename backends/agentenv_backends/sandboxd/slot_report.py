"""What confines this slot, as the kernel tells it from inside. Asked once per host, by its first slot."""

from __future__ import annotations

import os
import sys

from .lean import find_program

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Dict

_WATCHED = ("/proc/sys/kernel/core_pattern", "/proc/sys/kernel/modprobe", "/proc/sys/vm/swappiness")


def report(workspace: str, path: str) -> Dict[str, Any]:
    """Facts as seen by the slot's init, which has the same identity and confinement as its commands."""
    status = _status()
    usage = os.statvfs(workspace)
    return {
        "pid": os.getpid(),
        "ids": os.getresuid(),
        "seccomp": status.get("Seccomp") == "2",
        "no_new_privs": status.get("NoNewPrivs") == "1",
        "no_capabilities": int(status.get("CapEff", "1"), 16) == 0,
        "interfaces": _interfaces(),
        "sockets": _gets_sockets(),
        "sysctl_writable": any(os.access(path, os.W_OK) for path in _WATCHED),
        "root_readonly": bool(os.statvfs("/").f_flag & os.ST_RDONLY),
        "dev_readonly": bool(os.statvfs("/dev").f_flag & os.ST_RDONLY),
        "workspace_bytes": usage.f_blocks * usage.f_frsize,
        "python": "%d.%d.%d" % sys.version_info[:3],
        "bash": find_program("bash", path),
        "tmux": find_program("tmux", path),
    }


def _gets_sockets() -> bool:
    import _socket  # noqa: PLC0415 - one slot of a host needs it

    try:
        _socket.socket(_socket.AF_INET, _socket.SOCK_DGRAM, 0).close()
    except OSError:
        return False
    return True


def _read(path: str) -> str:
    with open(path, encoding="ascii", errors="replace") as file:
        return file.read()


def _status() -> Dict[str, str]:
    lines = (line.partition(":") for line in _read("/proc/self/status").splitlines())
    return {name: value.strip() for name, _, value in lines}


def _interfaces() -> int:
    """Network interfaces other than loopback."""
    names = [line.partition(":")[0].strip() for line in _read("/proc/net/dev").splitlines()[2:]]
    return len([name for name in names if name != "lo"])
