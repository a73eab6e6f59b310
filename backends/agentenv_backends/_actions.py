"""What the scheduler can ask for, and how it is answered."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from agentenv_backends.errors import BackendError


@dataclass(frozen=True, slots=True)
class LaunchHost:
    """Start a host; answer with `host_launched` or `host_failed`."""

    host_id: str


@dataclass(frozen=True, slots=True)
class CloseHost:
    """End a host; answer with `host_closed`, whether or not that worked."""

    host_id: str
    reason: str


@dataclass(frozen=True, slots=True)
class OpenSlot:
    """Open a slot; answer with `slot_opened` or `slot_failed`."""

    host_id: str
    slot_id: str


@dataclass(frozen=True, slots=True)
class CloseSlot:
    """Close a slot; answer with `slot_closed`."""

    host_id: str
    slot_id: str


@dataclass(frozen=True, slots=True)
class Grant:
    """Hand a fresh slot to a waiter; hand it back by `put_back` if the waiter has gone."""

    ticket: int
    host_id: str
    slot_id: str


@dataclass(frozen=True, slots=True)
class Refuse:
    """Tell a waiter that it will get no slot."""

    ticket: int
    error: BackendError


Action = LaunchHost | CloseHost | OpenSlot | CloseSlot | Grant | Refuse
