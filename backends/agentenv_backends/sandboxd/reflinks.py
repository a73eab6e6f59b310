"""Copying without copying: file systems that let two files share their blocks until one is written to (btrfs, XFS)."""

from __future__ import annotations

import fcntl
import os
import struct

BLOCK = 4096
"""Where shared parts begin in both files, on every file system that we know of."""
_FICLONERANGE = 0x4020940D
_FOLDER = os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC


def share(target: int, target_offset: int, source: int, source_offset: int, length: int) -> bool:
    """Have `target` hold the same bytes as `source`; False where that cannot be, and nothing has changed then.

    Offsets are multiples of `BLOCK`. So is the length, or it is 0: to the end of `source`.
    """
    request = struct.pack("qQQQ", source, source_offset, length, target_offset)
    try:
        fcntl.ioctl(target, _FICLONERANGE, request)
    except OSError:
        return False
    return True


def nameless_file(folder: str) -> int:
    """A new file on the file system of a folder, which is gone when nobody holds it open. Raises `OSError`."""
    return os.open(folder, _FOLDER, 0o600)


def can_share(folder: str) -> bool:
    """Whether files in a folder can share their blocks."""
    try:
        with os.fdopen(nameless_file(folder), "wb", buffering=0) as one:
            one.write(bytes(BLOCK))
            with os.fdopen(nameless_file(folder), "wb", buffering=0) as two:
                return share(two.fileno(), 0, one.fileno(), 0, BLOCK)
    except OSError:
        return False
