"""What a slot's init listens to. One `poll` for all, so that nothing goes unread while something runs."""

from __future__ import annotations

import os
import select

from .lean import SIGINFO_SIZE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Callable, Dict

POLLIN, POLLOUT = select.POLLIN, select.POLLOUT


class Watch:
    """Descriptors under watch: the stream to the host, deaths of children, and what terminals add.

    Whoever polls hands what is neither of the first two nor its own to `handlers`.
    """

    def __init__(self, link_fd: int, child_signals: int) -> None:
        self.link_fd = link_fd
        self.child_signals = child_signals
        self.handlers: Dict[int, Callable[[int], object]] = {}
        """By descriptor: who takes in what has come, given the events. They neither block nor raise."""
        self.poll = select.poll()
        self.poll.register(child_signals, POLLIN)
        self.poll.register(link_fd, POLLIN)

    def add(self, fd: int, handler: Callable[[int], object], events: int = POLLIN) -> None:
        """Have `handler(events)` called when the descriptor is ready; again, to change what for."""
        self.handlers[fd] = handler
        self.poll.register(fd, events)

    def handle(self, fd: int, events: int) -> None:
        """Call the handler of a descriptor that is ready; none is left where another one's has just closed it."""
        handler = self.handlers.get(fd)
        if handler is not None:
            handler(events)

    def forget(self, fd: int) -> None:
        """Watch a descriptor no more; one that is not watched is no error."""
        if self.handlers.pop(fd, None) is not None:
            self.poll.unregister(fd)

    def close(self, fd: int) -> None:
        """Close a descriptor, watched or not."""
        self.forget(fd)
        os.close(fd)

    def read_child_signal(self) -> None:
        """Take note that children have died; call when `child_signals` is readable."""
        os.read(self.child_signals, SIGINFO_SIZE)
