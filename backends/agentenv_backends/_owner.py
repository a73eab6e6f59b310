"""Who a driver is, told apart from all others, and whether it is certainly no more.

A driver is a process, told apart by boot, pid namespace, pid and start time. Only from inside the same boot and pid
namespace can one say that it is dead.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from agentenv_backends.sandboxd import leftovers


@dataclass(frozen=True, slots=True)
class Owner:
    """A driver."""

    boot: str
    pid_namespace: int
    pid: int
    start_time: int

    @classmethod
    def me(cls) -> Self:
        """This process."""
        process = leftovers.owner_of_this_process()
        return cls(*_here(), process.pid, process.start_time)

    @classmethod
    def read(cls, label: str) -> Self | None:
        """The owner that a label names; None when it names none."""
        try:
            boot, namespace, pid, start_time = label.split(":")
            return cls(boot, int(namespace), int(pid), int(start_time))
        except ValueError:
            return None

    def label(self) -> str:
        """As a label's value."""
        return f"{self.boot}:{self.pid_namespace}:{self.pid}:{self.start_time}"

    def is_dead(self) -> bool:
        """Whether it is certain that this driver is no more."""
        if (self.boot, self.pid_namespace) != _here():
            return False
        return not leftovers.Owner(self.pid, self.start_time).is_alive()

    def __str__(self) -> str:
        here = (
            "" if (self.boot, self.pid_namespace) == _here() else " of another machine or container"
        )
        return f"process {self.pid}{here}"


def _here() -> tuple[str, int]:
    boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    return boot, os.stat("/proc/self/ns/pid").st_ino  # noqa: PTH116 - a link that leads to no path
