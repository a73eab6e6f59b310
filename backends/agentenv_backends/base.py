"""The backend contract: where commands run.

A *host* is one sandbox server somewhere (a local process, a container, an allocation). A *slot* is an isolated
workspace inside a host. A `Backend` hands slots to trajectories and carries requests to them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from agentenv_backends.errors import InfrastructureError
    from agentenv_backends.requests import Request
    from agentenv_backends.results import Result


class SlotState(StrEnum):
    """Where a slot is in its life. Legal steps: AVAILABLE -> ACQUIRED -> RELEASING -> AVAILABLE, and any -> LOST."""

    AVAILABLE = "available"
    ACQUIRED = "acquired"
    RELEASING = "releasing"
    LOST = "lost"


@dataclass(eq=False, slots=True)
class Slot:
    """An isolated workspace, held by at most one trajectory at a time."""

    slot_id: str
    host_id: str
    workspace_dir: str = "/workspace"
    """As commands inside the slot see it. It is no path of the driver's machine."""
    state: SlotState = SlotState.AVAILABLE
    trajectory_id: str | None = None
    metadata: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a backend can do beyond the base contract, and how well a slot is confined.

    Asking for something that is not declared here is a `CapabilityError` at start.
    """

    isolation: str
    """`bubblewrap`, `user` (a Unix user per slot), `container` or `none`."""
    network_control: bool
    """`allow_network: false` is enforced."""
    memory_limit: bool
    process_limit: bool
    disk_limit: bool
    stateful_terminals: bool = False
    """`ShellRequest` is served; `TmuxRequest` too where the slots have tmux (`tmux` says so)."""
    tmux: bool = False
    snapshot: bool = False
    """`Backend.snapshot` and `restore`."""
    network_allow_list: bool = False

    def lacking(self, limits: Iterable[str]) -> list[str]:
        """Which of `limits` (`memory`, `processes`, `disk`, `network`) are not enforced for each slot."""
        in_force = {
            "memory": self.memory_limit,
            "processes": self.process_limit,
            "disk": self.disk_limit,
            "network": self.network_control,
        }
        return [name for name in limits if not in_force[name]]


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The frozen contents of a workspace, to start others from. Valid until it is dropped or the backend stops."""

    snapshot_id: str
    host_id: str
    """Where it lies; restoring on another host carries it there first."""


@dataclass(frozen=True, slots=True)
class KnownSnapshot:
    """A snapshot that is kept under a key."""

    snapshot: Snapshot
    note: bytes
    """What was kept with it."""


@dataclass(frozen=True, slots=True)
class PoolStats:
    """A snapshot of the pool, for progress displays and `/status`."""

    hosts: int
    total_slots: int
    available_slots: int
    acquired_slots: int
    waiting: int
    """Trajectories waiting for a slot."""
    acquired_total: int
    lost_slots: int
    lost_hosts: int
    started: bool = True


class Backend(Protocol):
    """Hands out slots and carries requests to them.

    Guarantees, for every implementation (the conformance suite holds them):

    * A slot handed out is indistinguishable from a new one.
    * `execute` returns within the request's deadline plus `grace_s`, or raises `SandboxTimeoutError`; within a second
      after the deadline already when the host gives no sign of life then.
    * A request runs at most once. When its outcome cannot be known, `HostLostError` or `SlotLostError` is raised.
    * After `stop` no process, container, socket or temporary file of this backend is left.

    Not guaranteed: that a slot lives until it is released. Whoever holds it must be ready for `SlotLostError`.
    """

    default_timeout_s: float
    grace_s: float

    @property
    def profiles(self) -> Sequence[str]:
        """Names of the kinds of slots there are, the usual one first. Most backends have one, `default`."""
        ...

    @property
    def capabilities(self) -> Capabilities:
        """What this backend can do; valid after `start`."""
        ...

    async def start(self) -> None:
        """Start hosts up to the configured minimum.

        Raises `BackendUnavailableError`, `CapabilityError` or `HostStartError`; nothing is left running then.
        """
        ...

    async def stop(self, *, purge: bool = False) -> None:
        """End every host this backend started. Idempotent; safe to call when `start` failed."""
        ...

    async def acquire(
        self, trajectory_id: str, *, timeout_s: float | None = None, profile: str | None = None
    ) -> Slot:
        """Take a slot, first come first served. `profile`: of which kind, where there are several; None: the usual.

        Raises `CapabilityError` when there is no such profile.

        Raises `AcquireTimeoutError` after `timeout_s` (None: the backend's configured `acquire_timeout_s`), or
        another `InfrastructureError` when no host can be had. Cancelling the wait leaks nothing.
        """
        ...

    async def release(self, slot: Slot, *, reset_workspace: bool = True) -> None:
        """Give a slot back. It is reset before anyone else gets it, whatever `reset_workspace` says: the flag exists
        for callers of the source interface, and False only skips waiting for the reset.

        Never raises for a slot that died meanwhile; raises `SlotStateError` when the slot is not held.
        """
        ...

    async def execute(self, slot: Slot, request: Request) -> Result:
        """Carry one request. Raises `InfrastructureError` when the sandbox failed, `SlotStateError` on misuse."""
        ...

    async def execute_batch(
        self, calls: Sequence[tuple[Slot, Request]]
    ) -> list[Result | InfrastructureError]:
        """Carry several requests at once, answers in the order of `calls`.

        One failing request never fails its neighbours: its error is its own element. Returns when all are answered.
        """
        ...

    async def snapshot(self, slot: Slot) -> Snapshot:
        """Freeze the slot's workspace as it is now. Every process in the slot is killed first.

        The slot itself goes on unchanged; nothing it does later shows in the snapshot.
        Raises `CapabilityError` where the backend declares no `snapshot`, else as `execute` does.
        """
        ...

    async def restore(self, slot: Slot, snapshot: Snapshot) -> None:
        """Give a slot that nothing was done in yet the contents of `snapshot`, of its own: no slot sees another's
        writes.

        Raises `SlotStateError` when the slot was used already or the snapshot was dropped, else as `execute` does.
        """
        ...

    async def drop_snapshot(self, snapshot: Snapshot) -> None:
        """Let go of a snapshot. Slots restored from it are not affected. Idempotent; never raises for a lost host."""
        ...

    async def recall_snapshot(self, key: str) -> KnownSnapshot | None:
        """The snapshot that `remember_snapshot` was given under this key: earlier in this run or, where the backend
        keeps them, in another run with the same base. None when there is none; never another one, and never an error.

        Whoever gets one lets go of it by `drop_snapshot`.
        """
        ...

    async def remember_snapshot(self, key: str, snapshot: Snapshot, note: bytes) -> None:
        """Have a snapshot found again under `key`, with `note`. Returns at once; what it fails at is logged.

        The caller lets go of it by `drop_snapshot`, as ever; it is kept for others all the same, in bounds.
        """
        ...

    def stats(self) -> PoolStats:
        """Counts as of now."""
        ...
