"""What a way of starting hosts must provide. Everything else (slots, waiting, health, replacement) is `SlotPool`'s.

A host runs `sandboxd` and holds any number of slots. A slot's isolation is built once, by `open_slot`; resetting a
slot is closing it and opening a new one, so that nothing of the old can remain.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

    from agentenv_backends.base import Capabilities
    from agentenv_backends.errors import SlotLostError
    from agentenv_backends.requests import Request
    from agentenv_backends.results import Result


@dataclass(frozen=True, slots=True)
class Leftover:
    """Something that a run which is no more left behind."""

    kind: str
    """`container`, `image`, `folder`, `cgroup`, ..."""
    name: str
    owner: str
    """Who made it, as far as its name or label tells."""
    removed: bool
    """False when it was only looked for, or could not be removed."""


@dataclass(frozen=True, slots=True)
class KeptSnapshot:
    """A snapshot that outlives its run."""

    archive: bytes
    """As `Host.fetch_snapshot` gave it."""
    note: bytes
    """What was kept with it."""


class SnapshotCache(Protocol):
    """Keeps snapshots for later runs, by keys. A provider that can has one as `snapshot_cache` once it is prepared.

    A key that is not there, or what is there and not whole, is None: never something else. Bounded in number and size.
    Both raise `BackendError` when the place where they lie does not answer; the pool takes that for None.
    """

    async def load(self, key: str) -> KeptSnapshot | None:
        """What was stored under this key, by any run."""
        ...

    async def store(self, key: str, kept: KeptSnapshot) -> None:
        """Keep it, instead of what was there. May make room by removing what was not used for longest."""
        ...


class Host(Protocol):
    """A live host, connected to."""

    host_id: str

    def on_slot_lost(self, callback: Callable[[str, SlotLostError], None]) -> None:
        """Call `callback(slot_id, error)` when a slot dies by itself. At most one callback; set before any slot."""
        ...

    def on_lost(self, callback: Callable[[str], None]) -> None:
        """Call `callback(reason)` once when the host is gone without having been asked. Set before any slot."""
        ...

    async def open_slot(self, slot_id: str) -> None:
        """Build a slot and return when it takes commands. Raises `SlotLostError` or `HostLostError`."""
        ...

    def workspace_dir(self, slot_id: str) -> str:
        """The workspace of an open slot, as commands in it see it."""
        ...

    async def close_slot(self, slot_id: str) -> None:
        """End a slot and return when no process of it is left. Unknown ids are no error."""
        ...

    async def execute(self, slot_id: str, request: Request) -> Result:
        """Carry one request; many may be under way at once, those of one slot run in the order they were sent.

        Cancelling withdraws the request: its process tree is killed inside the slot.
        Raises `SlotLostError`, `HostLostError` or `SandboxTimeoutError`.
        """
        ...

    async def take_snapshot(self, slot_id: str, snapshot_id: str) -> None:
        """Freeze the workspace of an open slot under a name of its own. Raises as `execute` does."""
        ...

    async def restore_snapshot(self, slot_id: str, snapshot_id: str) -> None:
        """Give a slot that nothing was done in yet those contents, copy-on-write where the host can.

        Raises as `execute` does, and `SlotLostError` when there is no such snapshot.
        """
        ...

    async def fetch_snapshot(self, snapshot_id: str) -> bytes:
        """The snapshot as an archive, to be put on another host."""
        ...

    async def put_snapshot(self, snapshot_id: str, archive: bytes) -> None:
        """Make a snapshot of what `fetch_snapshot` gave."""
        ...

    async def drop_snapshot(self, snapshot_id: str) -> None:
        """Let go of a snapshot; slots restored from it keep what they have. Unknown names are no error."""
        ...

    async def ping(self) -> None:
        """Return when the host has answered, which also renews its lease. Raises `HostLostError`."""
        ...

    async def close(self) -> None:
        """End the host and everything in it; return when no process of it is left. Idempotent."""
        ...


class HostProvider(Protocol):
    """Starts hosts of one kind."""

    async def prepare(self) -> Capabilities:
        """Check that this machine can do what the configuration asks, once, before any launch.

        Raises `BackendUnavailableError` or `CapabilityError` with the way out.
        """
        ...

    async def launch(self, host_id: str) -> Host:
        """Start one host and connect to it. Raises `HostStartError`; leaves nothing behind then, or when cancelled."""
        ...

    async def sweep(self, *, remove: bool = True) -> tuple[Leftover, ...]:
        """Find what dead runs left behind, and nothing of live ones; remove it, unless `remove` is False."""
        ...
