"""What is left of sandboxes, as the machine's processes show it."""

import contextlib
import os
import signal
from pathlib import Path


def processes_of(folder: Path) -> list[int]:
    """What runs, or is about to, in sandboxes whose file systems are in `folder`."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            words = path.read_bytes().split(b"\0")
            if words[0].endswith(b"bwrap") and any(
                word.startswith(os.fsencode(folder)) for word in words
            ):
                found.append(int(path.parent.name))
    return found


def kill_processes_of(folder: Path) -> None:
    """Also those that were in the middle of starting, which no signal to a group reached."""
    for pid in processes_of(folder):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
