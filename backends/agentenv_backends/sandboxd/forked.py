"""What a fork of the server's does first that goes on as a helper of its own."""

from __future__ import annotations

import os
import signal

from .lean import PR_SET_DUMPABLE, prctl

_PR_SET_PDEATHSIG = 1


def die_with_parent() -> None:
    """Be killed when the parent is no more. A change of identity takes that back."""
    prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def become_helper(parent: int, ours: int) -> bool:
    """Forget what belongs to the server: its signal handlers, and its open files but for `ours`: an end of a stream
    that it closes would never be heard. False when the server is gone already.
    """
    die_with_parent()
    if os.getppid() != parent:
        return False
    prctl(PR_SET_DUMPABLE, 0)
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGTERM, signal.SIGCHLD):
        signal.signal(number, signal.SIG_DFL)
    for name in os.listdir("/proc/self/fd"):
        if int(name) > 2 and int(name) != ours:
            try:
                os.close(int(name))
            except OSError:
                continue  # that of the listing itself
    return True
