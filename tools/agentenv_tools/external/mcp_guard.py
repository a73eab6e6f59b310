"""Runs one program, and ends it with everything it started when it should end or its driver is gone.

    python -I -S mcp_guard.py WATCHED_FD GRACE_S PROGRAM ARGUMENTS...

The program has this process' standard streams; nothing of what it says passes through here. WATCHED_FD is the end of a
pipe whose other end only the driver holds: it closes when the driver wants the end, and by itself when the driver dies,
however it dies. Then the program gets SIGTERM, GRACE_S seconds, and SIGKILL. When it has ended, so do all processes
it started, wherever they moved: they are this process' descendants, being a subreaper. Exits as the program did.

Standard library only.
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_REAP_EVERY_MS = 5_000
_KILL_FOR_S = 10.0


def main(argv: list[str]) -> int:
    """Run the program of `argv` to its end; its exit status."""
    watched, grace_s, command = int(argv[1]), float(argv[2]), argv[3:]
    prctl = ctypes.CDLL(None).prctl
    prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # the pipe is the only way to end this
    pid = _spawn(command, watched, prctl)
    program = Program(pid)
    program.wait(watched)
    if program.status is None:
        program.signal(signal.SIGTERM)
        program.wait(None, grace_s)
    end_descendants(program)
    code = 0 if program.status is None else os.waitstatus_to_exitcode(program.status)
    return code if code >= 0 else 128 - code


def _spawn(command: list[str], watched: int, prctl: Callable[..., int]) -> int:
    pid = os.fork()
    if pid == 0:
        try:
            os.close(watched)
            prctl(
                _PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0
            )  # for the case that this one is killed
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE):
                signal.signal(number, signal.SIG_DFL)
            os.execvp(command[0], command)  # noqa: S606 - no shell is wanted
        except OSError as error:
            os.write(2, f"{command[0]}: {error.strerror}\n".encode())
        finally:
            os._exit(127)
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 0)
    os.dup2(nothing, 1)
    return pid


class Program:
    """The direct child, and what became of it."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.status: int | None = None
        self._pidfd = os.pidfd_open(pid)

    def wait(self, watched: int | None, timeout_s: float | None = None) -> None:
        """Until the program has ended, or `watched` is closed, or the time is over."""
        poll = select.poll()
        poll.register(self._pidfd, select.POLLIN)
        if watched is not None:
            poll.register(watched, select.POLLIN | select.POLLHUP)
        give_up = None if timeout_s is None else time.monotonic() + timeout_s
        while self.status is None and (give_up is None or time.monotonic() < give_up):
            patience = _REAP_EVERY_MS
            if give_up is not None:
                patience = max(0, min(patience, int(1000 * (give_up - time.monotonic())) + 1))
            ready = {descriptor for descriptor, _ in poll.poll(patience)}
            self.reap()
            if watched in ready:
                return

    def signal(self, number: int) -> None:
        """Send a signal, unless the program has ended."""
        if self.status is None:
            os.kill(self.pid, number)

    def reap(self) -> bool:
        """Collect whoever has ended; whether there are children left."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return False
            if pid == 0:
                return True
            if pid == self.pid:
                self.status = status


def end_descendants(program: Program) -> None:
    """Kill whatever is left below this process, until nothing is."""
    give_up = time.monotonic() + _KILL_FOR_S
    while program.reap() and time.monotonic() < give_up:
        for pid in descendants(os.getpid()):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        time.sleep(0.005)


def descendants(root: int) -> set[int]:
    """Every process below `root`, as of now."""
    parents = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                with open(f"/proc/{name}/stat", "rb") as stat:
                    parents[int(name)] = int(stat.read().rpartition(b")")[2].split()[1])
            except (OSError, ValueError, IndexError):
                continue  # it has just ended
    found: set[int] = set()
    wave = {root}
    while wave:
        wave = {pid for pid, parent in parents.items() if parent in wave} - found
        found |= wave
    return found


if __name__ == "__main__":
    sys.exit(main(sys.argv))
