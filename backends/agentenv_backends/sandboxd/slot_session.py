"""What a persistent shell and a terminal share: how they are started, listened to, waited for and ended.

Both are sessions (`Processes.sessions`): children of the init below which everything stays that they start.
"""

from __future__ import annotations

import time

from . import frames
from .lean import SIGKILL, find_program
from .refusal import RefusedError
from .slot_processes import signal_quietly
from .slot_recording import Book

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Callable, Dict, List, Optional, Tuple

    from .slot_init import Link
    from .slot_processes import Processes
    from .slot_spawn import Arguments, FileActions, Spawner
    from .slot_watch import Watch

_MAX_WAIT_S = 3600.0
"""A poll takes no more than 24 days; a longer wait is many."""


class WithdrawnError(Exception):
    """The host has withdrawn the request that is being answered."""


def socket_pair() -> Tuple[int, int]:
    """Two connected stream sockets. Raises `OSError`."""
    import _socket  # noqa: PLC0415 - without the heavy module around it

    ours, theirs = _socket.socketpair()
    return ours.detach(), theirs.detach()


class Surroundings:
    """What a shell or terminal has to do with: the init's watch, its processes, the request that is under way."""

    def __init__(
        self, link: Link, watch: Watch, processes: Processes, spawner: Spawner, env: Dict[str, str]
    ) -> None:
        self.watch = watch
        self.env = env
        self.book = Book()
        self._link = link
        self.sessions = processes.sessions
        """Wait status of each session, None while it lives."""
        self._processes = processes
        self._spawner = spawner
        self._lent_by = 0
        self.request_id = -1
        """The request whose withdrawal `wait` raises for."""

    def wait(self, is_done: Callable[[], bool], until: float) -> bool:
        """Attend to everything until `is_done()`, or until that time of `time.monotonic`: then False.

        Raises `WithdrawnError`, once for a request, and `HostGoneError`.
        """
        if self._link.withdrawn(self.request_id):
            raise WithdrawnError
        while not is_done():
            left = until - time.monotonic()
            if left <= 0:
                return False
            if self.attend(min(left, _MAX_WAIT_S) * 1000 + 1) and self._link.cancelled(
                self.request_id
            ):
                raise WithdrawnError
        return True

    def attend(self, timeout_ms: Optional[float]) -> bool:
        """Take in what comes next on any descriptor; whether the stream to the host is readable."""
        watch, host_speaks = self.watch, False
        for fd, events in watch.poll.poll(timeout_ms):
            if fd == watch.link_fd:
                host_speaks = True
            elif fd == watch.child_signals:
                watch.read_child_signal()
                self._processes.reap()
            else:
                handler = watch.handlers.get(fd)
                if handler is not None:  # another's has just closed it
                    handler(events)
        return host_speaks

    def lend(self, channel: int, terms: bytes, descriptors: List[int]) -> None:
        """Lend the host of that slot what leads to a shell. Raises `HostGoneError`."""
        self._lent_by = channel
        frame = frames.encode(frames.LEND, channel=channel, header=terms)
        self._link.pass_descriptors(frame, descriptors)

    def recall(self) -> None:
        """Have the host give it back. Raises `HostGoneError`."""
        self._link.send(frames.encode(frames.RECALL, channel=self._lent_by))

    def program(self, name: str) -> str:
        """Path of a program in the slot. Raises `RefusedError`."""
        path = find_program(name, self.env["PATH"])
        if not path:
            raise RefusedError("not_installed", "%s is not installed in this sandbox" % name)
        return path

    def start_session(
        self, path: str, arguments: Arguments, actions: FileActions, env: Dict[str, str]
    ) -> int:
        """Start a program that outlives this request. Raises `OSError`."""
        pid = self._spawner.spawn(path, arguments, env, actions, subreaper=True)
        self._processes.sessions[pid] = None
        return pid

    def end_session(self, pid: int) -> int:
        """Kill a session that may have ended already, with all it started. Returns its wait status."""
        status = self._processes.sessions.pop(pid)
        if status is not None:
            self._processes.kill_leftovers()
            return status
        signal_quietly(pid, SIGKILL)
        # No longer a session, so it is one of the leftovers itself.
        return dict(self._processes.kill_leftovers()).get(pid, SIGKILL)
