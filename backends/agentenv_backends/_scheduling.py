"""Who gets which slot, and which hosts and slots to start or end: the pool's decisions, without
its I/O.

`Scheduler` is a state machine. Events go in as method calls, `Action`s come out of `take_actions`,
time is read from the clock it is given. Nothing in it waits, so a simulation can drive it through
any order of faults in microseconds. `_fleet` keeps its books; `_planning` decides how many hosts and
slots there should be.

An event about something the scheduler no longer knows (a slot of a host that is gone) is not an
error: it came too late.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from math import inf
from typing import TYPE_CHECKING

from agentenv_backends._actions import Action, Refuse
from agentenv_backends._fleet import Fleet, HostPhase, SlotPhase
from agentenv_backends._planning import Planner
from agentenv_backends.errors import BackendError, BackendStoppedError, HostStartError

if TYPE_CHECKING:
    from collections.abc import Callable

    from agentenv_backends._fleet import FleetHost
    from agentenv_backends.settings import Limits


@dataclass(slots=True)
class Counters:
    """What happened since the pool was made. Only grows."""

    granted: int = 0
    granted_at_once: int = 0
    """Of these, those for whom a slot stood ready."""
    released: int = 0
    launched: int = 0
    failed_launches: int = 0
    opened: int = 0
    failed_opens: int = 0
    quarantined: int = 0
    """Slots that could not be closed: never handed out again."""
    lost_slots: int = 0
    lost_hosts: int = 0
    idle_hosts: int = 0
    """Hosts ended because nobody needed them."""


class Scheduler:
    """Decides. See the module's docstring for how it is driven."""

    def __init__(self, limits: Limits, clock: Callable[[], float]) -> None:
        self.limits = limits
        self.counters = Counters()
        self._clock = clock
        self._fleet = Fleet(limits)
        self._planner = Planner(self._fleet, limits, clock)
        self._waiters: OrderedDict[int, None] = OrderedDict()
        self._running = False

    # --- What it knows ---------------------------------------------------------------------------

    @property
    def waiting(self) -> int:
        """Tickets that were neither granted nor refused."""
        return len(self._waiters)

    @property
    def wake_at(self) -> float:
        """When `tick` is to be called next, by the clock."""
        return self._planner.wake_at

    @property
    def proved(self) -> bool:
        """Whether a host has ever opened a slot."""
        return self._planner.proved

    @property
    def broken(self) -> BackendError | None:
        """Why no host can be had, while that is so."""
        return self._planner.last_error if self._planner.gave_up else None

    def hosts(self, phase: HostPhase) -> int:
        """Hosts in `phase`."""
        return self._fleet.count(phase)

    def slots(self, phase: SlotPhase) -> int:
        """Slots in `phase`, on all hosts."""
        return self._fleet.slots(phase)

    def slots_of(self, host_id: str) -> dict[str, SlotPhase]:
        """The slots of a host."""
        host = self._fleet.hosts.get(host_id)
        return dict(host.slots) if host else {}

    def take_actions(self) -> list[Action]:
        """What is to be done now, in this order. Each action is given out once."""
        actions, self._fleet.actions = self._fleet.actions, []
        return actions

    # --- Callers ---------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin: launch hosts up to the minimum, and open what is to be kept warm, at least a slot."""
        self._running = True
        self._plan()

    def stop(self) -> None:
        """Refuse everyone who waits and end every host. Launches under way are the driver's to
        cancel.
        """
        self._running = False
        self._refuse_all(
            BackendStoppedError("the backend was stopped while this call waited for a slot")
        )
        for host in list(self._fleet.live()):
            self._fleet.end(host, "the backend was stopped")

    def enqueue(self, ticket: int) -> None:
        """Someone wants a slot. Strictly first come, first served."""
        if self._planner.gave_up:
            self._planner.try_once_more()
        self._waiters[ticket] = None
        self._plan()
        if ticket not in self._waiters and not self._planner.gave_up:
            self.counters.granted_at_once += 1

    def withdraw(self, ticket: int) -> bool:
        """Someone no longer wants a slot. False when it was granted or refused already."""
        known = ticket in self._waiters
        self._waiters.pop(ticket, None)
        return known

    def put_back(self, slot_id: str) -> None:
        """A granted slot was not used: it is as good as new."""
        host = self._fleet.host_of(slot_id, SlotPhase.HELD)
        if host:
            self.counters.granted -= 1
            self._fleet.make_available(host, slot_id)
            self._plan()

    def release(self, slot_id: str) -> None:
        """A holder is done. The slot is closed, and a new one opened in its place; or its host is
        ended, if hosts are for a single use.
        """
        host = self._fleet.host_of(slot_id, SlotPhase.HELD)
        if host is None:
            return
        self.counters.released += 1
        if self.limits.single_use_hosts:
            self._fleet.end(host, f"slot {slot_id} was released")
        else:
            self._fleet.discard(host, slot_id, replace=True)
            self._end_if_useless(host)
        self._plan()

    def pin(self, host_id: str) -> None:
        """Something lies on this host that is still needed: do not end it for being idle."""
        host = self._fleet.hosts.get(host_id)
        if host:
            self._fleet.pin(host, 1)
            self._plan()

    def unpin(self, host_id: str) -> None:
        """What one `pin` was for is no longer there, or no longer needed."""
        host = self._fleet.hosts.get(host_id)
        if host:
            self._fleet.pin(host, -1)
            self._plan()

    def tick(self) -> None:
        """Time has passed."""
        self._plan()

    # --- Reports from hosts and slots ------------------------------------------------------------

    def host_launched(self, host_id: str, expires_at: float | None = None) -> None:
        """A host is up. It will end by itself at `expires_at`, by the clock; None: never."""
        host = self._fleet.hosts[host_id]
        lives_until = inf if expires_at is None else expires_at
        self._fleet.go_live(host, lives_until - self.limits.trajectory_life_s)
        self.counters.launched += 1
        if not self._running:
            self._fleet.end(host, "the backend was stopped")
            return
        if host.retires_at <= self._clock():
            reason = f"it will live shorter than a trajectory may take ({self.limits.trajectory_life_s:g} s)"
            self._planner.launch_failed(HostStartError(f"host {host_id} is of no use: {reason}"))
            self._fleet.end(host, reason)
        elif self.limits.warm_slots:  # whether it opens any is better known before one is needed
            self._fleet.open_slot(host)
        self._plan()

    def host_failed(self, host_id: str, error: BackendError) -> None:
        """A host did not come up."""
        self._fleet.forget(host_id)
        self.counters.failed_launches += 1
        self._planner.launch_failed(error)
        self._plan()

    def host_lost(self, host_id: str, reason: str) -> None:
        """A host is gone, and its slots with it."""
        host = self._fleet.hosts.get(host_id)
        if host is None or host.phase is not HostPhase.LIVE:
            return
        self.counters.lost_hosts += 1
        if not host.proved:
            error = HostStartError(f"host {host_id} opened no slot: {reason}")
            self._planner.launch_failed(error)
        elif not host.in_use:
            self._planner.wasted()
        self._fleet.end(host, reason)
        self._plan()

    def host_closed(self, host_id: str) -> None:
        """Nothing of a host is left (or nothing more can be done about it)."""
        self._fleet.forget(host_id)
        self._plan()

    def slot_opened(self, slot_id: str) -> None:
        """A slot takes commands."""
        host = self._fleet.host_of(slot_id, SlotPhase.OPENING)
        if host:
            self.counters.opened += 1
            host.failures = 0
            host.retry_at = float("-inf")
            if not host.proved:
                host.proved = True
                self._planner.host_proved()
            self._fleet.make_available(host, slot_id)
            self._plan()

    def slot_failed(self, slot_id: str, reason: str) -> None:
        """A slot did not open."""
        host = self._fleet.host_of(slot_id, SlotPhase.OPENING)
        if host:
            self.counters.failed_opens += 1
            host.failures += 1
            host.retry_at = self._clock() + self.limits.backoff(host.failures)
            host.trouble = reason
            self._fleet.discard(host, slot_id, replace=False)
            self._end_if_useless(host)
            self._plan()

    def slot_lost(self, slot_id: str) -> None:
        """A slot died by itself. Its remains are closed, and a new one follows."""
        if self._fleet.host_of(slot_id, SlotPhase.OPENING):
            self.slot_failed(slot_id, "it died while it was opened")
        host = self._fleet.host_of(slot_id, SlotPhase.AVAILABLE, SlotPhase.HELD)
        if host is None:
            return
        self.counters.lost_slots += 1
        held = host.slots[slot_id] is SlotPhase.HELD
        if not held:
            self._planner.wasted()
        if self.limits.single_use_hosts:
            self._fleet.end(host, f"slot {slot_id} is lost")
        else:
            self._fleet.discard(host, slot_id, replace=held)
            self._end_if_useless(host)
        self._plan()

    def slot_closed(self, slot_id: str, *, clean: bool) -> None:
        """Nothing of a slot is left; or, when not `clean`, it must never be used again."""
        host = self._fleet.host_of(slot_id, SlotPhase.CLOSING)
        if host is None:
            return
        replace = slot_id in host.replaced
        self._fleet.forget_slot(host, slot_id)
        if not clean:
            self.counters.quarantined += 1
            self._fleet.quarantine(host, f"slot {slot_id} could not be closed")
        elif replace and host.retry_at <= self._clock() and host.room:
            self._fleet.open_slot(host)
        self._end_if_useless(host)
        self._plan()

    # --- Machinery -------------------------------------------------------------------------------

    def _plan(self) -> None:
        if not self._running:
            return
        self._planner.retire()
        while self._waiters and self._fleet.slots(SlotPhase.AVAILABLE):
            self.counters.granted += 1
            self._planner.used()
            self._fleet.grant(self._waiters.popitem(last=False)[0])
        self._planner.plan(len(self._waiters))
        self.counters.idle_hosts = self._planner.idle_hosts
        if self._planner.gave_up:
            cause = self._planner.last_error or HostStartError("no host can be had")
            self._refuse_all(cause)

    def _end_if_useless(self, host: FleetHost) -> None:
        if host.useless:
            trouble = f"slots fail again and again, lastly: {host.trouble}"
            self.host_lost(host.host_id, trouble)

    def _refuse_all(self, cause: BackendError) -> None:
        while self._waiters:
            ticket, _ = self._waiters.popitem(last=False)
            self._fleet.actions.append(Refuse(ticket, cause))
