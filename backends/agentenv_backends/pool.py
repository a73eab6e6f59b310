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
import itertools
from dataclasses import dataclass, field, replace
from functools import partial
from math import inf
from typing import TYPE_CHECKING, Self

from agentenv_backends._actions import CloseHost, CloseSlot, Grant, LaunchHost, OpenSlot, Refuse
from agentenv_backends._aio import finish
from agentenv_backends._keeper import HostKeeper
from agentenv_backends._leases import Lease, advance
from agentenv_backends._scheduling import Counters, HostPhase, Scheduler, SlotPhase
from agentenv_backends.base import PoolStats, Slot, SlotState
from agentenv_backends.errors import (
    AcquireTimeoutError,
    BackendError,
    BackendStoppedError,
    HostLostError,
    HostStartError,
    InfrastructureError,
    SlotLostError,
    SlotStateError,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from agentenv_backends._actions import Action
    from agentenv_backends.base import Capabilities
    from agentenv_backends.host import HostProvider
    from agentenv_backends.requests import Request
    from agentenv_backends.results import Result
    from agentenv_backends.settings import PoolSettings


@dataclass(slots=True)
class _Waiter:
    trajectory_id: str
    granted: asyncio.Future[Lease] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )


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
        self._capabilities: Capabilities | None = None
        self._leases: dict[str, Lease] = {}
        self._waiters: dict[int, _Waiter] = {}
        self._tickets = itertools.count(1)
        self._starting: asyncio.Task[None] | None = None
        self._stopping: asyncio.Task[None] | None = None
        self._alarm: asyncio.TimerHandle | None = None

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_exc: object) -> None:
        await self.stop()

    # --- Life ------------------------------------------------------------------------------------

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
        self._apply(self._scheduler.start)
        self._put_back(await self._wait_for_slot("the start", inf))

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
        await self._keeper.finish(stop=partial(self._apply, self._scheduler.stop))
        if self._alarm is not None:
            self._alarm.cancel()

    # --- Callers ---------------------------------------------------------------------------------

    async def acquire(self, trajectory_id: str, *, timeout_s: float | None = None) -> Slot:
        """Take a slot, strictly first come, first served. See `Backend.acquire`.

        Raises also `HostStartError` when no host can be had, `BackendStoppedError` outside of
        start and stop.
        """
        if self._starting is None or self._stopping is not None:
            raise BackendStoppedError(
                "no slot can be had: the backend was not started, or was stopped"
            )
        limit = self._settings.acquire_timeout_s if timeout_s is None else timeout_s
        return (await self._wait_for_slot(trajectory_id, limit)).slot

    async def _wait_for_slot(self, trajectory_id: str, timeout_s: float) -> Lease:
        ticket = next(self._tickets)
        waiter = self._waiters[ticket] = _Waiter(trajectory_id)
        self._apply(partial(self._scheduler.enqueue, ticket))
        expiry = None
        if timeout_s < inf and not waiter.granted.done():
            expire = partial(self._expire, ticket, timeout_s)
            expiry = asyncio.get_running_loop().call_later(timeout_s, expire)
        try:
            return await waiter.granted
        except asyncio.CancelledError:
            self._abandon(ticket, waiter)
            raise
        finally:
            if expiry is not None:
                expiry.cancel()
            self._waiters.pop(ticket, None)

    def _expire(self, ticket: int, timeout_s: float) -> None:
        waiter = self._waiters[ticket]
        if not waiter.granted.done():
            waiter.granted.set_exception(AcquireTimeoutError(self._why_none(waiter, timeout_s)))
            self._scheduler.withdraw(ticket)

    def _abandon(self, ticket: int, waiter: _Waiter) -> None:
        """The waiter was cancelled, perhaps in the very moment it was answered."""
        self._scheduler.withdraw(ticket)
        if waiter.granted.cancelled() or waiter.granted.exception() is not None:
            return
        self._put_back(waiter.granted.result())

    def _put_back(self, lease: Lease) -> None:
        self._leases.pop(lease.slot.slot_id, None)
        self._apply(partial(self._scheduler.put_back, lease.slot.slot_id))

    async def release(self, slot: Slot, *, reset_workspace: bool = True) -> None:
        """Give a slot back; return when no process of it is left, or at once with
        `reset_workspace=False`.

        Either way the slot is closed and a new one opened in its place, which nobody waits for.
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
            await self._keeper.closed(slot.slot_id)

    async def execute(self, slot: Slot, request: Request) -> Result:
        """Carry one request. See `Backend.execute`."""
        return await self._carry(self._lease(slot), request)

    async def execute_batch(
        self, calls: Sequence[tuple[Slot, Request]]
    ) -> list[Result | InfrastructureError]:
        """Carry several requests at once. See `Backend.execute_batch`.

        Raises `SlotStateError` before anything is sent when one of the slots is not held by the
        caller.
        """
        leases = [(self._lease(slot), request) for slot, request in calls]
        answers = await asyncio.gather(
            *(self._carry(lease, request) for lease, request in leases), return_exceptions=True
        )
        return [_answer(answer) for answer in answers]

    async def _carry(self, lease: Lease, request: Request) -> Result:
        deadline_s = getattr(request, "timeout_s", self.default_timeout_s)
        try:
            return await lease.carry(request, deadline_s, self.grace_s)
        except HostLostError as error:
            self._keeper.lost(lease.slot.host_id, str(error))
            raise
        except SlotLostError as error:
            self._on_slot_lost(lease.slot.slot_id, error)
            raise

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

    def _why_none(self, waiter: _Waiter, timeout_s: float) -> str:
        limits, stats = self._settings.limits, self.stats()
        others = [other.trajectory_id for other in self._waiters.values() if other is not waiter]
        holders = [lease.slot.trajectory_id or "?" for lease in self._leases.values()]
        return (
            f"no slot came free for {waiter.trajectory_id} within {timeout_s:g} s: "
            f"{stats.acquired_slots} of {stats.total_slots} slots on {stats.hosts} of at most "
            f"{limits.max_hosts} hosts are held (by {_some(holders)}); also waiting: "
            f"{_some(others)}. Raise `slots`, `max_hosts` or `acquire_timeout_s`, or run fewer "
            "trajectories at a time"
        )

    # --- Carrying out the scheduler's actions ----------------------------------------------------

    def _apply(self, event: Callable[[], object]) -> None:
        event()
        while actions := self._scheduler.take_actions():
            for action in actions:
                self._do(action)
        self._set_alarm()

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
            case Grant(ticket, host_id, slot_id):
                self._grant(ticket, host_id, slot_id)
            case Refuse(ticket, error):
                self._refuse(ticket, error)

    def _grant(self, ticket: int, host_id: str, slot_id: str) -> None:
        waiter = self._waiters.get(ticket)
        if waiter is None or waiter.granted.done():  # cancelled; its task has not run since
            self._scheduler.put_back(slot_id)
            return
        host = self._keeper.host(host_id)
        slot = Slot(slot_id, host_id, host.workspace_dir(slot_id))
        slot.trajectory_id = waiter.trajectory_id
        advance(slot, SlotState.ACQUIRED)
        lease = self._leases[slot_id] = Lease(slot, host)
        waiter.granted.set_result(lease)

    def _refuse(self, ticket: int, cause: BackendError) -> None:
        waiter = self._waiters.get(ticket)
        if waiter is None or waiter.granted.done():
            return
        error: BackendError
        if isinstance(cause, BackendStoppedError):
            error = BackendStoppedError(*cause.args)
        else:
            error = HostStartError(f"no host can be had for {waiter.trajectory_id}: {cause}")
            error.__cause__ = cause
        waiter.granted.set_exception(error)

    def _revoke(self, host_id: str, reason: str) -> None:
        for lease in self._leases.values():
            if lease.slot.host_id == host_id:
                lease.revoke(HostLostError(f"host {host_id} is gone: {reason}"))

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


def _some(names: Sequence[str], shown: int = 5) -> str:
    if not names:
        return "nobody"
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more
