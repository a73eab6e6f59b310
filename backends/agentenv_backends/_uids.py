"""Ranges of user ids for slots, each claimed by at most one host of this machine at a time.

Slots of a host that root started run as users of their own, so that the kernel keeps them apart
and counts their processes apart. A claim is a socket in the abstract name space: taking it is
atomic, and the kernel gives it back when its process ends, however it ends.
"""

from __future__ import annotations

import socket
from pathlib import Path

RANGE_SIZE = 4096
_UNUSED = 1_900_000_000
"""From here to 2**31 no distribution assigns user ids."""
_UNUSED_RANGES = 256


class UidRange:
    """`RANGE_SIZE` user ids from `base` on, ours until `release`."""

    def __init__(self, base: int, claim: socket.socket) -> None:
        self.base = base
        self._claim = claim

    def release(self) -> None:
        """Give the range back. Its processes must have ended."""
        self._claim.close()


def claim_uid_range() -> UidRange | None:
    """The first free range, or None when all are taken."""
    for base in _candidates():
        claim = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            claim.bind(f"\0agentenv-uids-{base}")
        except OSError:
            claim.close()
        else:
            return UidRange(base, claim)
    return None


def _candidates() -> range:
    """First ids of ranges. In a user namespace with few ids: those in the upper half of them."""
    first, count = 0, 0
    for line in Path("/proc/self/uid_map").read_text(encoding="ascii").splitlines():
        inside, _, size = (int(number) for number in line.split())
        if size > count:
            first, count = inside, size
    end = min(first + count, _UNUSED + _UNUSED_RANGES * RANGE_SIZE)
    start = _UNUSED if end > _UNUSED else first + count // 2
    return range(start, end - RANGE_SIZE + 1, RANGE_SIZE)
