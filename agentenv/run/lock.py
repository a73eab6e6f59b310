"""One process at a time in a run directory.

The lock is the kernel's (`flock`), so it ends with the process that holds it, however that process
ends; the file only says who that is. A file that a dead process left behind is taken over.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
from typing import TYPE_CHECKING

from agentenv.errors import RunDirectoryError

if TYPE_CHECKING:
    from pathlib import Path


class FileLock:
    """An exclusive lock, held from `acquire` to `release`. Blocking calls, both short."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fd: int | None = None

    def acquire(self) -> None:
        """Take the lock at once or raise `RunDirectoryError` naming its holder."""
        while self._fd is None:
            fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            try:
                self._lock(fd)
                if not _same_file(fd, self.path):
                    continue  # its last holder removed it between our open and our lock
                _write_holder(fd)
                self._fd, fd = fd, -1
            finally:
                if fd >= 0:
                    os.close(fd)

    def release(self) -> None:
        """Give the lock back and remove its file. Idempotent."""
        if self._fd is None:
            return
        fd, self._fd = self._fd, None
        with contextlib.suppress(FileNotFoundError):
            self.path.unlink()
        os.close(fd)

    def _lock(self, fd: int) -> None:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(fd, 200, 0).decode("utf-8", "replace").strip() or "another process"
            raise RunDirectoryError(
                f"{self.path.parent} is in use by {holder}; "
                f"choose another run directory, or end that process"
            ) from None
        except OSError as error:
            raise RunDirectoryError(
                f"{self.path.parent} is on a file system without locks ({error.strerror}); "
                f"choose a local one"
            ) from error


def _same_file(fd: int, path: Path) -> bool:
    ours = os.fstat(fd)
    try:
        theirs = path.stat()
    except FileNotFoundError:
        return False
    return (ours.st_dev, ours.st_ino) == (theirs.st_dev, theirs.st_ino)


def _write_holder(fd: int) -> None:
    os.ftruncate(fd, 0)
    os.pwrite(fd, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
