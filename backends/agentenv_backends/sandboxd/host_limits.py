"""The limits of a host that is a container, as far as they can be seen from inside it, and what came of them."""

from __future__ import annotations

import os
from typing import List, Optional

from . import cgroups

_NO_LIMIT = 1 << 60
_HOST_FILES = {
    1: ("memory.limit_in_bytes", "memory.max_usage_in_bytes", "memory.oom_control"),
    2: ("memory.max", "", "memory.events"),
}
"""By version: the limit, the most that was ever taken, and what is counted."""
_LIMIT_FILES = {
    "pids": ("pids.max", "pids.max"),
    "memory": ("memory.limit_in_bytes", "memory.max"),
    "cpu": ("cpu.cfs_quota_us", "cpu.max"),
}


class HostMemory:
    """The memory of a whole host that is a container: its limit, and what the kernel counts about it."""

    def __init__(self, version: int, folder: str) -> None:
        limit, peak, events = _HOST_FILES[version]
        self.limit_bytes = _number_in(os.path.join(folder, limit))
        """What all slots of the host may take together."""
        if self.limit_bytes >= _NO_LIMIT:
            raise ValueError("there is no limit")
        self._peak = os.path.join(folder, peak) if peak else ""
        self._events = os.open(os.path.join(folder, events), os.O_RDONLY | os.O_CLOEXEC)

    @classmethod
    def find(cls) -> Optional[HostMemory]:
        """None where the kernel's counts are not to be seen, or there is no limit."""
        for version, folder in cgroups.folders_of("memory"):
            try:
                return cls(version, folder)
            except (OSError, ValueError):
                continue
        return None

    def count(self, what: bytes) -> int:
        """How often the kernel has counted `what`."""
        _, found, rest = os.pread(self._events, 4096, 0).partition(what + b" ")
        return int(rest.split()[0]) if found else 0

    def was_full(self) -> bool:
        """Whether the limit was ever reached."""
        if self._peak:
            return _number_in(self._peak) >= self.limit_bytes - cgroups.CHARGED_AHEAD
        return self.count(b"oom") > 0


def limits_of_host() -> List[str]:
    """Controllers that limit this host as a whole, as far as can be seen from inside it."""
    return [
        controller
        for controller, files in _LIMIT_FILES.items()
        if any(
            _is_limit(os.path.join(folder, files[version - 1]))
            for version, folder in cgroups.folders_of(controller)
        )
    ]


def _is_limit(path: str) -> bool:
    try:
        with open(path, encoding="ascii") as file:
            first = file.read().split()[0]
    except OSError:
        return False
    return first not in ("max", "-1") and int(first) < _NO_LIMIT


class MemoryWatch:
    """A host's memory as one of its slots is concerned. `alone`: the host's only one."""

    def __init__(self, host: HostMemory, *, alone: bool) -> None:
        self._host = host
        self._alone = alone
        self.is_shared = not alone
        self._oom_kills = host.count(b"oom_kill")

    def note_oom_kills(self) -> bool:
        """Whether the kernel killed for lack of memory in this host since this was last asked."""
        before, self._oom_kills = self._oom_kills, self._host.count(b"oom_kill")
        return self._oom_kills > before

    def reached_memory_limit(self) -> bool:
        """Whether this slot used up the limit. One among several is never blamed."""
        return self._alone and self._host.was_full()


def _number_in(path: str) -> int:
    with open(path, encoding="ascii") as file:
        text = file.read().strip()
    return _NO_LIMIT if text == "max" else int(text)
