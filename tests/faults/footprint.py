"""What hosts have left in the system: processes, cgroups, temporary folders."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from agentenv_backends.sandboxd import leftovers
from tests.processes import alive, descendants
from tests.waiting import WITHIN_S, eventually

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from tests.processes import Process

_CGROUPS = Path("/sys/fs/cgroup")


def traces_of(hosts: Iterable[Process]) -> list[Path]:
    """Cgroups and temporary folders that belong to these processes, dead or alive."""
    owners = {leftovers.Owner(host.pid, host.start_time) for host in hosts}
    places = [*_cgroups(), *Path(tempfile.gettempdir()).glob(f"{leftovers.PREFIX}*")]
    owned = ((place, leftovers.owner_of(place.name)) for place in places)
    return [place for place, owner in owned if owner in owners]


def _cgroups() -> Iterator[Path]:
    # `os.walk` passes over folders that vanish meanwhile, as those of a host that ends do.
    for parent, names, _ in os.walk(_CGROUPS):
        ours = [name for name in names if name.startswith(leftovers.PREFIX)]
        names[:] = [name for name in names if name not in ours]
        yield from (Path(parent, name) for name in ours)


class Footprint:
    """Every process that was seen below one process, and the things that hosts among them own."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._others = descendants(pid)
        self.seen: set[Process] = set()

    def look(self) -> set[Process]:
        """Take in what runs now; returns it, without what had been there before this object was."""
        now = descendants(self._pid) - self._others
        self.seen |= now
        return now

    def left(self) -> tuple[set[Process], list[Path]]:
        """What is still there of all that was seen, and what is new."""
        running = alive(self.seen) | self.look()
        return running, traces_of(self.seen)

    def _told(self) -> str:
        running, traces = self.left()
        programs = [(process.pid, process.name, process.command[:3]) for process in running]
        return f"{programs} {[str(trace) for trace in traces]}"

    async def gone(self, *, within_s: float = WITHIN_S) -> None:
        """Return when nothing is left."""
        await eventually(
            lambda: not any(self.left()), lambda: f"nothing left: {self._told()}", within_s=within_s
        )
