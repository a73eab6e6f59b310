"""Which processes are a test's own, by its process tree: no other process of the machine is counted or killed.

A process may end, or become a zombie, between any two questions about it. Here that is an answer and not an error: a
process that has ended is not alive, and has no name, no command and no children.
"""

from __future__ import annotations

import os
import signal
import subprocess
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

_PROC = Path("/proc")


@dataclass(frozen=True, slots=True)
class Process:
    """A process, told apart by its start time from all others that had or will have its pid."""

    pid: int
    start_time: int

    @property
    def alive(self) -> bool:
        """Whether it still exists and is no zombie."""
        fields = _stat(self.pid)
        return fields is not None and fields[0] != "Z" and int(fields[19]) == self.start_time

    @property
    def name(self) -> str:
        """The program's name as the kernel knows it; empty when it is gone."""
        try:
            return (_PROC / str(self.pid) / "comm").read_text().strip()
        except OSError:
            return ""

    @property
    def command(self) -> list[str]:
        """What it was started with; empty when it has ended."""
        try:
            text = (_PROC / str(self.pid) / "cmdline").read_text(errors="replace")
        except OSError:
            return []
        return text.split("\0")[:-1]

    @property
    def stopped(self) -> bool:
        """Whether a signal has stopped it."""
        fields = _stat(self.pid)
        return self.alive and fields is not None and fields[0] == "T"

    def kill(self, how: signal.Signals = signal.SIGKILL) -> None:
        """Send a signal, if it is still that process."""
        if self.alive:
            try:
                os.kill(self.pid, how)
            except ProcessLookupError:
                return


@contextmanager
def child(command: Sequence[str], **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    """A process that is killed and waited for at the end of the block, also where that fails.

    One that outlives its test makes the garbage collector fail another test.
    """
    with subprocess.Popen(command, **options) as process:
        try:
            yield process
        finally:
            process.kill()


def process_of(pid: int) -> Process:
    """The process that has this pid now. Raises `ProcessLookupError` when none has."""
    fields = _stat(pid)
    if fields is None:
        raise ProcessLookupError(pid)
    return Process(pid, int(fields[19]))


def running(pid: int) -> bool:
    """Whether some process has this pid now and is no zombie."""
    fields = _stat(pid)
    return fields is not None and fields[0] != "Z"


def descendants(pid: int) -> set[Process]:
    """Every living process below `pid`, at whatever depth, at this moment."""
    children: dict[int, list[Process]] = {}
    for entry in _PROC.iterdir():
        if not entry.name.isdigit():
            continue
        fields = _stat(int(entry.name))
        if fields is not None and fields[0] != "Z":
            process = Process(int(entry.name), int(fields[19]))
            children.setdefault(int(fields[1]), []).append(process)
    found: set[Process] = set()
    level = [pid]
    while level:
        below = [process for parent in level for process in children.get(parent, ())]
        level = [process.pid for process in below if process not in found]
        found.update(below)
    return found


def children(pid: int) -> set[Process]:
    """The living children of `pid`."""
    return {process for process in descendants(pid) if parent_of(process) == pid}


def parent_of(process: Process) -> int | None:
    """Its parent's pid, if it is alive."""
    fields = _stat(process.pid)
    return int(fields[1]) if fields is not None else None


def alive(processes: Iterable[Process]) -> set[Process]:
    """Those that are."""
    return {process for process in processes if process.alive}


def proportional_memory(pid: int) -> int:
    """Bytes of memory, those shared with other processes in equal parts; 0 when it is gone."""
    try:
        lines = (_PROC / str(pid) / "smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:")), 0)


def processor_time(pid: int) -> float:
    """Seconds of processor time that `pid`, what runs below it and their dead children have used so far."""
    seconds = 0.0
    for each in (pid, *(process.pid for process in descendants(pid))):
        fields = _stat(each)
        if fields is not None:
            dead_children = sum(int(field) for field in fields[13:15])
            seconds += dead_children / os.sysconf("SC_CLK_TCK") + _own_processor_time(each)
    return seconds


def _own_processor_time(pid: int) -> float:
    """Seconds its threads have used. Not from `stat`, which leaves out all that is short of a tick."""
    nanoseconds = 0
    for task in (_PROC / str(pid) / "task").glob("*/schedstat"):
        try:
            nanoseconds += int(task.read_text().split()[0])
        except OSError:
            continue
    return nanoseconds / 1e9


def open_descriptors() -> int:
    """How many file descriptors this process has."""
    return sum(1 for _ in (_PROC / "self/fd").iterdir())


def resident_memory(pid: int) -> int:
    """Bytes of memory in use now."""
    return int((_PROC / str(pid) / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _stat(pid: int) -> list[str] | None:
    """The fields of `/proc/PID/stat` from the state on; None when there is no such process."""
    try:
        text = (_PROC / str(pid) / "stat").read_text(errors="replace")
    except OSError:
        return None
    return text.rpartition(")")[2].split()
