"""The host's event loop: descriptors, timers, signals. No threads, one `epoll`, nothing per request."""

from __future__ import annotations

import heapq
import os
import select
import signal
import time
from typing import Callable, Dict, List, Tuple

IN, OUT = select.EPOLLIN, select.EPOLLOUT


class Loop:
    """Calls a handler with the events of its descriptor, and timers when they are due."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._handlers: Dict[int, Callable[[int], None]] = {}
        self._timers: List[Tuple[float, int, Callable[[], None]]] = []
        self._timer_count = 0

    def watch(self, fd: int, handler: Callable[[int], None], events: int = IN) -> None:
        """Call `handler(events)` whenever the descriptor is ready."""
        self._handlers[fd] = handler
        self._epoll.register(fd, events)

    def modify(self, fd: int, events: int) -> None:
        """Change what a watched descriptor is watched for."""
        if fd in self._handlers:
            self._epoll.modify(fd, events)

    def unwatch(self, fd: int) -> None:
        """Forget a descriptor; unknown ones are no error. Call before closing it."""
        if self._handlers.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def later(self, delay_s: float, callback: Callable[[], None]) -> None:
        """Call once, after a delay."""
        self._timer_count += 1
        heapq.heappush(self._timers, (time.monotonic() + delay_s, self._timer_count, callback))

    def turn(self) -> None:
        """Wait for something to happen and handle it."""
        for fd, events in self._epoll.poll(self._until_next_timer()):
            # A handler earlier in this round may have forgotten a later one's descriptor.
            handler = self._handlers.get(fd)
            if handler is not None:
                handler(events)

    def run_timers(self) -> None:
        """Call the timers that are due."""
        now = time.monotonic()
        while self._timers and self._timers[0][0] <= now:
            heapq.heappop(self._timers)[2]()

    def _until_next_timer(self) -> float:
        return max(0.0, self._timers[0][0] - time.monotonic()) if self._timers else -1

    def watch_signals(
        self, child_ended: Callable[[], None], terminated: Callable[[], None]
    ) -> None:
        """Handle SIGCHLD and SIGTERM in the loop, ignore SIGINT (Ctrl-C is the driver's to answer)."""
        wake, wake_end = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(wake_end, warn_on_full_buffer=False)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        for number in (signal.SIGTERM, signal.SIGCHLD):
            signal.signal(number, lambda *_: None)

        def woken(_: int) -> None:
            if signal.SIGTERM in os.read(wake, 4096):
                terminated()
            child_ended()

        self.watch(wake, woken)
