"""Where the server's process begins."""

from __future__ import annotations

import logging
import os
import resource
import socket
import sys

from .lean import PR_SET_CHILD_SUBREAPER, prctl
from .server import Server

_log = logging.getLogger("agentenv.sandboxd")


def main() -> None:
    """Serve the driver on standard input, which is a socket."""
    logging.basicConfig(stream=sys.stderr, format="%(name)s: %(message)s", level=logging.WARNING)
    try:
        driver = socket.socket(fileno=0)
    except OSError:
        sys.exit("sandboxd speaks on its standard input, which must be a socket")
    try:
        os.setsid()
    except PermissionError:
        _log.debug("this process already leads a group")
    _raise_file_limit()
    _close_on_exec()
    os.set_inheritable(0, False)
    prctl(PR_SET_CHILD_SUBREAPER, 1)
    Server(driver).run()


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
