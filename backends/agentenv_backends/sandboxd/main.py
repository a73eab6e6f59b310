"""Where the server's process begins.

    sandboxd.pyz            the driver's stream is the socket on descriptor 0
    sandboxd.pyz --stdio    it is read on descriptor 0 and written on 1, sockets or pipes (`docker exec -i`)

Complaints go to descriptor 2.
"""

from __future__ import annotations

import logging
import os
import resource
import stat
import sys

from .lean import PR_SET_CHILD_SUBREAPER, prctl
from .server import Server

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Tuple

_log = logging.getLogger("agentenv.sandboxd")


def main() -> None:
    """Serve the driver until it is gone."""
    logging.basicConfig(stream=sys.stderr, format="%(name)s: %(message)s", level=logging.WARNING)
    reading, writing = _driver_stream()
    try:
        os.setsid()
    except PermissionError:
        _log.debug("this process already leads a group")
    _raise_file_limit()
    _close_on_exec()
    prctl(PR_SET_CHILD_SUBREAPER, 1)
    Server(reading, writing).run()


def _driver_stream() -> Tuple[int, int]:
    """Descriptors of the driver's stream, where nothing but the server can write or read by mistake."""
    wrong = sys.argv[1:] not in ([], ["--stdio"])
    reading, writing = os.dup(0), os.dup(1 if sys.argv[1:] else 0)
    kinds = [os.fstat(descriptor).st_mode for descriptor in (reading, writing)]
    if wrong or not all(stat.S_ISSOCK(kind) or stat.S_ISFIFO(kind) for kind in kinds):
        sys.exit(
            "usage: sandboxd [--stdio]: frames on a socket at descriptor 0, or with --stdio on pipes or sockets at 0 "
            "(to read) and 1 (to write), never a terminal"
        )
    null = os.open("/dev/null", os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(null, 1)
    return reading, writing


def _raise_file_limit() -> None:
    """Three descriptors a slot: take what the system lets us have."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _close_on_exec() -> None:
    """Descriptors that this process was started with are not for slots."""
    for name in os.listdir("/proc/self/fd"):
        descriptor = int(name)
        if descriptor > 2:
            try:
                os.set_inheritable(descriptor, False)
            except OSError:
                continue
