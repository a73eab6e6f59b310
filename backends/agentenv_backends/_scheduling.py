"""Who gets which slot, and which hosts and slots to start or end: the pool's decisions, without
its I/O.

`Scheduler` is a state machine. Events go in as method calls, `Action`s come out of `take_actions`,
time is read from the clock it is given. Nothing in it waits, so a simulation can drive it through
any order of faults in microseconds.

An event about something the scheduler no longer knows (a slot of a host that is gone) is not an
error: it came too late.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from dataclasses import dataclass, field
from enum import Enum
from math import inf
from typing import TYPE_CHECKING

from agentenv_backends._actions import (
    Action,
    CloseHost,
    CloseSlot,
    Grant,
    LaunchHost,
    OpenSlot,
    Refuse,
)
from agentenv_backends.errors import BackendError, BackendStoppedError, HostStartError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from agentenv_backends.settings import Limits


class HostPhase(Enum):
    """Where a host is in its life."""

    LAUNCHING = "launching"
    LIVE = "live"
    CLOSING = "closing"


class SlotPhase(Enum):
    """Where a slot is in its life. It goes through these once, in order, and never back."""

    OPENING = "opening"
    AVAILABLE = "available"
    HELD = "held"
    CLOSING = "closing"


@dataclass(slots=True)
class _Host:
    host_id: str
    phase: HostPhase = HostPhase.LAUNCHING
    slots: dict[str, SlotPhase] = field(default_factory=dict)
    available: list[str] = field(default_factory=list)
    replaced: set[str] = field(default_factory=set)
    """Closing slots in whose place a new one is to be opened without being asked."""
    proved: bool = False
    """A slot of it was opened once."""
    failures: int = 0
    """Slots that did not open, one after another."""
    quarantined: int = 0
    """Slots that could not be closed, in all."""
    trouble: str = ""
    """What went wrong last."""
    retry_at: float = -inf
    idle_since: float | None = None

    @property
    def idle(self) -> bool:
        return len(self.available) == len(self.slots)

    @property
    def in_use(self) -> bool:
        return SlotPhase.HELD in self.slots.values()


@dataclass(slots=True)
class Counters:
    """What happened since the pool was made. Only grows."""

    granted: int = 0
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
        self.wake_at = inf
        """When `tick` is to be called next, by the clock."""
        self._clock = clock
        self._actions: list[Action] = []
        self._hosts: dict[str, _Host] = {}
        self._hosts_by_slot: dict[str, _Host] = {}
        self._phases: Counter[SlotPhase] = Counter()
        self._replacing = 0
        self._waiters: OrderedDict[int, None] = OrderedDict()
        self._failed_launches = 0
        self._launch_at = -inf
        self._last_error: BackendError | None = None
        self._running = False
        self._last_host = 0
        self._last_slot = 0

    # --- What it knows ---------------------------------------------------------------------------

    @property
    def waiting(self) -> int:
        """Tickets that were neither granted nor refused."""
        return len(self._waiters)

    @property
    def broken(self) -> BackendError | None:
        """Why no host can be had, while that is so."""
        return self._last_error if self._gave_up() else None

    def hosts(self, phase: HostPhase) -> int:
        """Hosts in `phase`."""
        return sum(host.phase is phase for host in self._hosts.values())

    def slots(self, phase: SlotPhase) -> int:
        """Slots in `phase`, on all hosts."""
        return self._phases[phase]

    def slots_of(self, host_id: str) -> dict[str, SlotPhase]:
        """The slots of a host."""
        host = self._hosts.get(host_id)
        return dict(host.slots) if host else {}

    def take_actions(self) -> list[Action]:
        """What is to be done now, in this order. Each action is given out once."""
        actions, self._actions = self._actions, []
        return actions

    # --- Callers ---------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin: launch hosts up to the minimum."""
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
        for host in list(self._hosts.values()):
            if host.phase is HostPhase.LIVE:
                self._end_host(host, "the backend was stopped")

    def enqueue(self, ticket: int) -> None:
        """Someone wants a slot. Strictly first come, first served."""
        if self._gave_up():
            self._failed_launches -= 1  # one more try for everyone who asks after we gave up
        self._waiters[ticket] = None
        self._plan()

    def withdraw(self, ticket: int) -> bool:
        """Someone no longer wants a slot. False when it was granted or refused already."""
        known = ticket in self._waiters
        self._waiters.pop(ticket, None)
        return known

    def put_back(self, slot_id: str) -> None:
        """A granted slot was not used: it is as good as new."""
        host = self._host_of(slot_id, SlotPhase.HELD)
        if host:
            self.counters.granted -= 1
            self._make_available(host, slot_id)
            self._plan()

    def release(self, slot_id: str) -> None:
        """A holder is done. The slot is closed, and a new one opened in its place."""
        host = self._host_of(slot_id, SlotPhase.HELD)
        if host:
            self.counters.released += 1
            self._discard(host, slot_id, replace=True)
            self._end_if_useless(host)
            self._plan()

    def tick(self) -> None:
        """Time has passed."""
        self._plan()

    # --- Reports from hosts and slots ------------------------------------------------------------

    def host_launched(self, host_id: str) -> None:
        """A host is up."""
        host = self._hosts[host_id]
        host.phase = HostPhase.LIVE
        self.counters.launched += 1
        if not self._running:
            self._end_host(host, "the backend was stopped")
            return
        for _ in range(min(self.limits.warm_slots, self.limits.slots_per_host)):
            self._open_slot(host)
        self._note_idle(host)
        self._plan()

    def host_failed(self, host_id: str, error: BackendError) -> None:
        """A host did not come up."""
        self._hosts.pop(host_id, None)
        self.counters.failed_launches += 1
        self._count_failed_launch(error)
        self._plan()

    def host_lost(self, host_id: str, reason: str) -> None:
        """A host is gone, and its slots with it."""
        host = self._hosts.get(host_id)
        if host is None or host.phase is not HostPhase.LIVE:
            return
        self.counters.lost_hosts += 1
        self._end_host(host, reason)
        if not host.proved:
            self._count_failed_launch(HostStartError(f"host {host_id} opened no slot: {reason}"))
        self._plan()

    def host_closed(self, host_id: str) -> None:
        """Nothing of a host is left (or nothing more can be done about it)."""
        self._hosts.pop(host_id, None)
        self._plan()

    def slot_opened(self, slot_id: str) -> None:
        """A slot takes commands."""
        host = self._host_of(slot_id, SlotPhase.OPENING)
        if host:
            self.counters.opened += 1
            host.failures = 0
            host.retry_at = -inf
            if not host.proved:
                host.proved = True
                self._failed_launches = 0
            self._make_available(host, slot_id)
            self._plan()

    def slot_failed(self, slot_id: str, reason: str) -> None:
        """A slot did not open."""
        host = self._host_of(slot_id, SlotPhase.OPENING)
        if host:
            self.counters.failed_opens += 1
            host.failures += 1
            host.retry_at = self._clock() + self.limits.backoff(host.failures)
            host.trouble = reason
            self._discard(host, slot_id, replace=False)
            self._end_if_useless(host)
            self._plan()

    def slot_lost(self, slot_id: str) -> None:
        """A slot died by itself. Its remains are closed; a new one follows when it was in use."""
        host = self._hosts_by_slot.get(slot_id)
        if host is None or host.slots[slot_id] is SlotPhase.CLOSING:
            return
        self.counters.lost_slots += 1
        # Replacing one that died while nobody used it could go on for ever; that one is opened
        # again when wanted.
        self._discard(host, slot_id, replace=host.slots[slot_id] is SlotPhase.HELD)
        self._end_if_useless(host)
        self._plan()

    def slot_closed(self, slot_id: str, *, clean: bool) -> None:
        """Nothing of a slot is left; or, when not `clean`, it must never be used again."""
        host = self._host_of(slot_id, SlotPhase.CLOSING)
        if host is None:
            return
        replace = slot_id in host.replaced
        self._forget_slot(host, slot_id)
        if not clean:
            self.counters.quarantined += 1
            host.quarantined += 1
            host.trouble = f"slot {slot_id} could not be closed"
        elif replace and host.retry_at <= self._clock() and not self._worn(host):
            self._open_slot(host)
        self._note_idle(host)
        self._end_if_useless(host)
        self._plan()

    # --- Planning --------------------------------------------------------------------------------

    def _plan(self) -> None:
        if not self._running:
            return
        self.wake_at = inf
        self._grant()
        missing = self._open_wanted(
            len(self._waiters) - self._phases[SlotPhase.OPENING] - self._replacing
        )
        self._launch_wanted(missing)
        if self._gave_up():
            self._refuse_all(self._last_error or HostStartError("no host can be had"))
        self._end_idle_hosts()

    def _grant(self) -> None:
        while self._waiters and self._phases[SlotPhase.AVAILABLE]:
            host = next(host for host in self._hosts.values() if host.available)
            ticket, _ = self._waiters.popitem(last=False)
            slot_id = host.available.pop()
            self._enter(host, slot_id, SlotPhase.HELD)
            host.idle_since = None
            self.counters.granted += 1
            self._actions.append(Grant(ticket, host.host_id, slot_id))

    def _open_wanted(self, wanted: int) -> int:
        """Open up to `wanted` slots; return how many there was no room for."""
        for host in self._live() if wanted > 0 else ():
            room = self._room(host)
            if room and host.retry_at > self._clock():
                self.wake_at = min(self.wake_at, host.retry_at)
                if host.failures < self.limits.slot_attempts:
                    wanted -= room  # only not yet
                continue
            for _ in range(min(room, max(wanted, 0))):
                self._open_slot(host)
                wanted -= 1
        return wanted

    def _launch_wanted(self, missing_slots: int) -> None:
        launching = self.hosts(HostPhase.LAUNCHING)
        while self._launch_needed(missing_slots, launching) and not self._gave_up():
            if self._launch_at > self._clock():
                self.wake_at = min(self.wake_at, self._launch_at)
                return
            self._last_host += 1
            host = _Host(f"h{self._last_host}")
            self._hosts[host.host_id] = host
            self._actions.append(LaunchHost(host.host_id))
            launching += 1
            if self._failed_launches:
                return  # after a failure, one at a time

    def _launch_needed(self, missing_slots: int, launching: int) -> bool:
        if len(self._hosts) >= self.limits.max_hosts or (launching and self._failed_launches):
            return False
        below_minimum = self.hosts(HostPhase.LIVE) + launching < self.limits.min_hosts
        return below_minimum or missing_slots > launching * self.limits.slots_per_host

    def _end_idle_hosts(self) -> None:
        spare = self.hosts(HostPhase.LIVE) - self.limits.min_hosts
        if spare <= 0 or self._waiters:
            return
        for host in reversed(
            list(self._live())
        ):  # the youngest first: slots are taken from the oldest
            if host.idle_since is None or not spare:
                continue
            due = host.idle_since + self.limits.idle_host_s
            if due <= self._clock():
                spare -= 1
                self.counters.idle_hosts += 1
                self._end_host(host, "idle")
            else:
                self.wake_at = min(self.wake_at, due)

    # --- Bookkeeping -----------------------------------------------------------------------------

    def _live(self) -> Iterator[_Host]:
        return (host for host in self._hosts.values() if host.phase is HostPhase.LIVE)

    def _host_of(self, slot_id: str, phase: SlotPhase) -> _Host | None:
        host = self._hosts_by_slot.get(slot_id)
        return host if host is not None and host.slots[slot_id] is phase else None

    def _enter(self, host: _Host, slot_id: str, phase: SlotPhase) -> None:
        old = host.slots.get(slot_id)
        if old is not None:
            self._phases[old] -= 1
        self._phases[phase] += 1
        host.slots[slot_id] = phase

    def _open_slot(self, host: _Host) -> None:
        self._last_slot += 1
        slot_id = f"{host.host_id}-s{self._last_slot}"
        self._hosts_by_slot[slot_id] = host
        self._enter(host, slot_id, SlotPhase.OPENING)
        host.idle_since = None
        self._actions.append(OpenSlot(host.host_id, slot_id))

    def _make_available(self, host: _Host, slot_id: str) -> None:
        self._enter(host, slot_id, SlotPhase.AVAILABLE)
        host.available.append(slot_id)
        self._note_idle(host)

    def _discard(self, host: _Host, slot_id: str, *, replace: bool) -> None:
        if host.slots[slot_id] is SlotPhase.AVAILABLE:
            host.available.remove(slot_id)
        self._enter(host, slot_id, SlotPhase.CLOSING)
        host.idle_since = None
        if replace:
            host.replaced.add(slot_id)
            self._replacing += 1
        self._actions.append(CloseSlot(host.host_id, slot_id))

    def _forget_slot(self, host: _Host, slot_id: str) -> None:
        self._phases[host.slots.pop(slot_id)] -= 1
        del self._hosts_by_slot[slot_id]
        if slot_id in host.replaced:
            host.replaced.remove(slot_id)
            self._replacing -= 1

    def _end_host(self, host: _Host, reason: str) -> None:
        for slot_id in list(host.slots):
            self._forget_slot(host, slot_id)
        host.available.clear()
        host.phase = HostPhase.CLOSING
        host.idle_since = None
        self._actions.append(CloseHost(host.host_id, reason))

    def _note_idle(self, host: _Host) -> None:
        if host.phase is HostPhase.LIVE and host.idle:
            host.idle_since = self._clock()

    def _room(self, host: _Host) -> int:
        """How many more slots may be opened on it."""
        return 0 if self._worn(host) else self.limits.slots_per_host - len(host.slots)

    def _worn(self, host: _Host) -> bool:
        """Too many slots of it are still there though they should not be: it takes no new ones."""
        return host.quarantined >= self.limits.slot_attempts

    def _end_if_useless(self, host: _Host) -> None:
        """Give a host up that opens no more slots, but not while someone works on one of them."""
        exhausted = host.failures >= self.limits.slot_attempts and not host.available
        if (exhausted or self._worn(host)) and not host.in_use:
            self.host_lost(host.host_id, f"slots fail again and again, lastly: {host.trouble}")

    def _count_failed_launch(self, error: BackendError) -> None:
        self._failed_launches += 1
        self._last_error = error
        self._launch_at = self._clock() + self.limits.backoff(self._failed_launches)

    def _gave_up(self) -> bool:
        usable = any(host.phase is not HostPhase.CLOSING for host in self._hosts.values())
        return self._failed_launches >= self.limits.launch_attempts and not usable

    def _refuse_all(self, cause: BackendError) -> None:
        while self._waiters:
            ticket, _ = self._waiters.popitem(last=False)
            self._actions.append(Refuse(ticket, cause))
