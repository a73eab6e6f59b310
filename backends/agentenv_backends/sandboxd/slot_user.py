"""Slots kept apart by Unix users: who a slot's init is, and who its commands are.

                real      effective   saved
    init        keeper    slot        keeper
    commands    slot      slot        slot

The kernel lets a process signal another when its real or effective id is the other's real or saved one. So the init
reaches its commands, all at once by `kill(-1)`, and nothing else; they do not reach it. Its effective id is theirs, so
what it does with files it does with their rights. No capability is left to either. Both ids belong to this slot alone.

Where commands are the container's root (`uid` 0) they go without CAP_KILL, so that `kill -9 -1` and the like pass the
init by. Not guaranteed there: a root that looks for the keeper's id can become it.
"""

from __future__ import annotations

import os

from .lean import set_capabilities

_CAP_KILL = 5


class SlotUser:
    """The two identities of a slot."""

    def __init__(self, uid: int, keeper: int) -> None:
        self.uid = uid
        self.keeper = keeper
        self._capabilities = 0

    @property
    def is_root(self) -> bool:
        """Whether commands are the container's root."""
        return self.uid == 0

    def become_init(self) -> None:
        """Take the init's identity, for good. Raises `OSError`."""
        if self.is_root:
            self._capabilities = _permitted() & ~(1 << _CAP_KILL)
        os.setgroups([])
        os.setresgid(self.uid, self.uid, self.uid)
        os.setresuid(self.keeper, self.uid, self.keeper)

    def become_command(self) -> None:
        """Take a command's identity, for good, in a child of the init that is about to begin one. Raises `OSError`."""
        os.setresuid(self.uid, self.uid, self.uid)
        if self.is_root:
            set_capabilities(self._capabilities)

    def is_init(self) -> bool:
        """Whether this process is the init, who may `kill(-1)`: it reaches the slot's processes and no others."""
        return not self.is_root and os.getresuid() == (self.keeper, self.uid, self.keeper)


def _permitted() -> int:
    with open("/proc/self/status", encoding="ascii", errors="replace") as file:
        return next(int(line.split()[1], 16) for line in file if line.startswith("CapPrm:"))
