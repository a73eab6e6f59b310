"""`SlotPool`: the `Backend` over any way of starting hosts.

The pool carries out what `_scheduling.Scheduler` decides, one task for each action, and reports
how it went:

    acquire, release, faults ──► Scheduler ──► launch, open, close, grant ──► HostProvider, Host
                                     ▲                                              │
                                     └────────────────── reports ◄──────────────────┘

Every wait on a provider or a host has a deadline. Every slot handed out is a new `Slot` object
over a workspace that was opened for it alone, so that a stale reference can never reach the next
holder.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from functools import partial
from math import inf
from typing import TYPE_CHECKING, Self, TypeVar

from agentenv_backends._actions import CloseHost, CloseSlot, Grant, LaunchHost, OpenSlot, Refuse
from agentenv_backends._aio import finish
from agentenv_backends._fleet import HostPhase, SlotPhase
from agentenv_backends._keeper import HostKeeper
from agentenv_backends._leases import Lease, advance
from agentenv_backends._library import SnapshotLibrary
from agentenv_backends._scheduling import Counters, Scheduler
from agentenv_backends._shelf import Hosts, SnapshotShelf
from agentenv_backends._waiting import WaitingRoom, no_host, some
from agentenv_backends.base import PoolStats, Slot, SlotState
from agentenv_backends.errors import (
    BackendStoppedError,
    CapabilityError,
    HostLostError,
    InfrastructureError,
    SlotLostError,
    SlotStateError,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from agentenv_backends._actions import Action
    from agentenv_backends.base import Capabilities, KnownSnapshot, Snapshot
    from agentenv_backends.host import HostProvider
    from agentenv_backends.requests import Request
    from agentenv_backends.results import Result
    from agentenv_backends.settings import PoolSettings

T = TypeVar("T")
_ONLY_PROFILE = "default"


class SlotPool:
    """Hands out the slots of one or more hosts. Implements `Backend`.

    Lives in one event loop: `start`, then any calls from any number of tasks, then `stop`; `async
    with` does both.
    """

    def __init__(self, provider: HostProvider, settings: PoolSettings) -> None:
        self.default_timeout_s = settings.default_timeout_s
        self.grace_s = settings.grace_s
        self._settings = settings
        self._scheduler = Scheduler(settings.limits, _loop_time)
        self._keeper = HostKeeper(
            provider, settings, self._scheduler, self._apply, self._on_slot_lost
        )
        self._shelf = SnapshotShelf(
            Hosts(self._keeper.find, self._keeper.lost, self._pin, self._unpin, self._carry),
            settings,
        )
        self._library = SnapshotLibrary(
            self._shelf,
            lambda: getattr(provider, "snapshot_cache", None),
            settings.snapshot_timeout_s,
        )
        self._capabilities: Capabilities | None = None
        self._leases: dict[str, Lease] = {}
        self._waiting = WaitingRoom(
            self._scheduler, self._apply, self._put_back, self._who_holds_them
        )
        self._starting: asyncio.Task[None] | None = None
        self._stopping: asyncio.Task[None] | None = None
        self._first_slot: asyncio.Future[None] | None = None
        self._alarm: asyncio.TimerHandle | None = None

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_exc: object) -> None:
        await self.stop()

    # --- Life ------------------------------------------------------------------------------------

    @property
    def profiles(self) -> Sequence[str]:
        """One: all slots are of the same kind."""
        return (_ONLY_PROFILE,)

    @property
    def capabilities(self) -> Capabilities:
        """What this backend can do; valid after `start`."""
        if self._capabilities is None:
            raise BackendStoppedError("the backend was not started: await its `start()` first")
        return self._capabilities

    async def start(self) -> None:
        """Launch the minimum of hosts; return when one of them has opened a slot, while the others
        are on their way.

        Raises `BackendUnavailableError`, `CapabilityError` or `HostStartError`, then nothing is
        left running and the pool is of no further use. Calling it again waits for the first call;
        a stopped pool does not start again.
        """
        if self._stopping is not None:
            raise BackendStoppedError("the backend was stopped; build a new one")
        if self._starting is None:
            self._starting = asyncio.create_task(self._start())
        try:
            await asyncio.shield(self._starting)
        except BaseException:
            await self.stop()
            raise

    async def _start(self) -> None:
        self._capabilities = await self._keeper.prepare()
        self._first_slot = asyncio.get_running_loop().create_future()
        self._apply(self._scheduler.start)
        await self._first_slot

    async def stop(self, *, purge: bool = False) -> None:
        """End every host. Idempotent, bounded; when cancelled it finishes all the same, then
        passes that on.

        Who waits for a slot gets `BackendStoppedError`, who waits for an answer `HostLostError`.
        """
        if self._stopping is None:
            self._stopping = asyncio.create_task(self._stop())
        await finish(self._stopping)

    async def _stop(self) -> None:
        if self._starting is not None:
            self._starting.cancel()
            await asyncio.wait({self._starting}, timeout=self._settings.close_timeout_s)
        await self._library.close()
        await self._keeper.finish(stop=partial(self._apply, self._scheduler.stop))
        await self._shelf.close()
        if self._alarm is not None:
            self._alarm.cancel()

    # --- Callers ---------------------------------------------------------------------------------

    async def acquire(
        self, trajectory_id: str, *, timeout_s: float | None = None, profile: str | None = None
    ) -> Slot:
        """Take a slot, strictly first come, first served. See `Backend.acquire`.

        Raises also `HostStartError` when no host can be had,
        `BackendStoppedError` outside of start and stop.
        """
        if self._starting is None or self._stopping is not None:
            raise BackendStoppedError(
                "no slot can be had: the backend was not started, or was stopped"
            )
        if profile not in (None, _ONLY_PROFILE):
            raise CapabilityError(
                f"no profile {profile!r}: all slots of this backend are of one kind"
            )
        limit = self._settings.acquire_timeout_s if timeout_s is None else timeout_s
        return (await self._waiting.wait(trajectory_id, limit)).slot

    def _put_back(self, lease: Lease) -> None:
        self._leases.pop(lease.slot.slot_id, None)
        self._apply(partial(self._scheduler.put_back, lease.slot.slot_id))

    async def release(self, slot: Slot, *, reset_workspace: bool = True) -> None:
        """Give a slot back; return when no process of it is left, or at once with
        `reset_workspace=False`.

        Either way the slot is closed (or its host ended, if hosts are for a single use) and a new
        one opened in its place, which nobody waits for.
        Requests still under way in it end in `SlotLostError`. Cancelling `release` only ends the
        wait.
        """
        lease = self._lease(slot)
        del self._leases[slot.slot_id]
        if slot.state is SlotState.LOST:
            return
        advance(slot, SlotState.RELEASING)
        lease.end(
            SlotLostError(f"slot {slot.slot_id} was released while the request was under way")
        )
        self._apply(partial(self._scheduler.release, slot.slot_id))
        if reset_workspace:
            await self._keeper.gone(slot.host_id, slot.slot_id)

    async def execute(self, slot: Slot, request: Request) -> Result:
        """Carry one request. See `Backend.execute`."""
        return await self._request(self._lease_in_use(slot), request)

    async def execute_batch(
        self, calls: Sequence[tuple[Slot, Request]]
    ) -> list[Result | InfrastructureError]:
        """Carry several requests at once. See `Backend.execute_batch`.

        Raises `SlotStateError` before anything is sent when one of the slots is not held by the
        caller.
        """
        leases = [(self._lease_in_use(slot), request) for slot, request in calls]
        answers = await asyncio.gather(
            *(self._request(lease, request) for lease, request in leases), return_exceptions=True
        )
        return [_answer(answer) for answer in answers]

    async def snapshot(self, slot: Slot) -> Snapshot:
        """Freeze the slot's workspace. See `Backend.snapshot`.

        A host that holds a snapshot is not ended for being idle. Where hosts are for a single use,
        the snapshot is fetched at once and outlives its host.
        """
        self._require_snapshots()
        return await self._shelf.take(self._lease_in_use(slot))

    async def restore(self, slot: Slot, snapshot: Snapshot) -> None:
        """Give an unused slot the contents of `snapshot`. See `Backend.restore`.

        Raises `HostLostError` when every host that held the snapshot is gone: it has to be made
        anew. When a restore fails or is cancelled after it has begun, the slot takes no requests.
        """
        self._require_snapshots()
        await self._shelf.restore(self._lease(slot), snapshot)

    async def drop_snapshot(self, snapshot: Snapshot) -> None:
        """Let go of a snapshot, after the restores of it under way. See `Backend.drop_snapshot`.

        Cancelling it only ends the wait.
        """
        if not self._library.give_back(snapshot):
            await self._shelf.drop(snapshot)

    async def recall_snapshot(self, key: str) -> KnownSnapshot | None:
        """The snapshot that is kept under a key. See `Backend.recall_snapshot`."""
        self._require_snapshots()
        return await self._library.recall(key)

    async def remember_snapshot(self, key: str, snapshot: Snapshot, note: bytes) -> None:
        """Have a snapshot found again. See `Backend.remember_snapshot`."""
        self._library.remember(key, snapshot, note)

    def _require_snapshots(self) -> None:
        if not self.capabilities.snapshot:
            raise CapabilityError("this backend takes no snapshots of workspaces")

    async def _request(self, lease: Lease, request: Request) -> Result:
        work = partial(lease.host.execute, lease.slot.slot_id, request)
        deadline_s = getattr(request, "timeout_s", self.default_timeout_s)
        return await self._carry(lease, work, type(request).__name__, deadline_s)

    async def _carry(
        self, lease: Lease, work: Callable[[], Awaitable[T]], what: str, deadline_s: float
    ) -> T:
        try:
            return await lease.carry(work, what, deadline_s, self.grace_s)
        except HostLostError as error:
            self._keeper.lost(lease.slot.host_id, str(error))
            raise
        except SlotLostError as error:
            self._on_slot_lost(lease.slot.slot_id, error)
            raise

    def _lease_in_use(self, slot: Slot) -> Lease:
        lease = self._lease(slot)
        if lease.restoring:
            raise SlotStateError(f"slot {slot.slot_id} is still being restored from a snapshot")
        return lease

    def _lease(self, slot: Slot) -> Lease:
        lease = self._leases.get(slot.slot_id)
        if lease is None or lease.slot is not slot:
            raise SlotStateError(
                f"slot {slot.slot_id} is {slot.state} and not held: it was released before, "
                "or does not come from this backend's `acquire`"
            )
        return lease

    # --- What can be seen ------------------------------------------------------------------------

    def stats(self) -> PoolStats:
        """Counts as of now. `total_slots` is what the live hosts may hold; slots are opened as
        they are needed.
        """
        scheduler = self._scheduler
        hosts = scheduler.hosts(HostPhase.LIVE)
        return PoolStats(
            hosts=hosts,
            total_slots=hosts * self._settings.limits.slots_per_host,
            available_slots=scheduler.slots(SlotPhase.AVAILABLE),
            acquired_slots=scheduler.slots(SlotPhase.HELD),
            waiting=scheduler.waiting,
            acquired_total=scheduler.counters.granted,
            lost_slots=scheduler.counters.lost_slots,
            lost_hosts=scheduler.counters.lost_hosts,
            started=self._starting is not None and self._stopping is None,
        )

    def counters(self) -> Counters:
        """What happened since the pool was made, as a copy."""
        return replace(self._scheduler.counters)

    def _who_holds_them(self) -> str:
        stats = self.stats()
        holders = [lease.slot.trajectory_id or "?" for lease in self._leases.values()]
        return (
            f"{stats.acquired_slots} of {stats.total_slots} slots on {stats.hosts} of at most "
            f"{self._settings.limits.max_hosts} hosts are held (by {some(holders)})"
        )

    # --- Carrying out the scheduler's actions ----------------------------------------------------

    def _apply(self, event: Callable[[], object]) -> None:
        event()
        while actions := self._scheduler.take_actions():
            for action in actions:
                self._do(action)
        self._set_alarm()
        if self._first_slot is not None:
            self._notice_first_slot(self._first_slot)

    def _notice_first_slot(self, noticed: asyncio.Future[None]) -> None:
        if noticed.done():
            self._first_slot = None
        elif self._scheduler.proved:
            noticed.set_result(None)
        elif (cause := self._scheduler.broken) is not None:
            noticed.set_exception(no_host("the start", cause))

    def _do(self, action: Action) -> None:
        match action:
            case LaunchHost(host_id):
                self._keeper.launch(host_id)
            case OpenSlot(host_id, slot_id):
                self._keeper.open(host_id, slot_id)
            case CloseSlot(host_id, slot_id):
                self._keeper.close(host_id, slot_id)
            case CloseHost(host_id, reason):
                self._keeper.end(host_id, reason)
                self._revoke(host_id, reason)
                self._shelf.forget(host_id)
            case Grant(ticket, host_id, slot_id):
                self._grant(ticket, host_id, slot_id)
            case Refuse(ticket, error):
                self._waiting.refuse(ticket, error)

    def _grant(self, ticket: int, host_id: str, slot_id: str) -> None:
        trajectory_id = self._waiting.name(ticket)
        if trajectory_id is None:  # cancelled; its task has not run since
            self._scheduler.put_back(slot_id)
            return
        host = self._keeper.host(host_id)
        slot = Slot(slot_id, host_id, host.workspace_dir(slot_id))
        slot.trajectory_id = trajectory_id
        advance(slot, SlotState.ACQUIRED)
        lease = self._leases[slot_id] = Lease(slot, host)
        self._waiting.grant(ticket, lease)

    def _revoke(self, host_id: str, reason: str) -> None:
        for lease in self._leases.values():
            if lease.slot.host_id == host_id:
                lease.revoke(HostLostError(f"host {host_id} is gone: {reason}"))

    def _pin(self, host_id: str) -> None:
        self._apply(partial(self._scheduler.pin, host_id))

    def _unpin(self, host_id: str) -> None:
        self._apply(partial(self._scheduler.unpin, host_id))

    def _set_alarm(self) -> None:
        due = self._scheduler.wake_at
        if self._alarm is not None:
            if self._alarm.when() == due:
                return
            self._alarm.cancel()
            self._alarm = None
        if due < inf and self._stopping is None:
            self._alarm = asyncio.get_running_loop().call_at(due, self._ring)

    def _ring(self) -> None:
        # Forgotten first: a loop may call a moment early, and then the same time is set again.
        self._alarm = None
        self._apply(self._scheduler.tick)

    def _on_slot_lost(self, slot_id: str, error: SlotLostError) -> None:
        lease = self._leases.get(slot_id)
        if lease is not None:
            lease.revoke(error)
        self._apply(partial(self._scheduler.slot_lost, slot_id))


def _loop_time() -> float:
    return asyncio.get_running_loop().time()


def _answer(answer: Result | BaseException) -> Result | InfrastructureError:
    if isinstance(answer, BaseException) and not isinstance(answer, InfrastructureError):
        raise answer
    return answer
