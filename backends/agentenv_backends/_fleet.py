"""The scheduler's books: which hosts and slots there are, and what was asked to be done about them.

Decides nothing. Every change of a host or a slot that anything is counted by is made here, so that the counts always
add up and each change leaves exactly one action behind. What a plan asks for is kept at hand (which hosts have room, or
are idle, or retire next), so that it takes no longer with a thousand hosts than with ten.
"""

from __future__ import annotations

import heapq
from bisect import bisect_left, insort
from collections import Counter
from dataclasses import dataclass, field
from enum import Enum
from math import inf
from typing import TYPE_CHECKING

from agentenv_backends._actions import Action, CloseHost, CloseSlot, Grant, LaunchHost, OpenSlot

if TYPE_CHECKING:
    from collections.abc import Iterator

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
class FleetHost:
    """A host as the scheduler sees it."""

    host_id: str
    serial: int
    """Its place in the order of launches."""
    limits: Limits
    phase: HostPhase = HostPhase.LAUNCHING
    slots: dict[str, SlotPhase] = field(default_factory=dict)
    available: list[str] = field(default_factory=list)
    held: int = 0
    """How many of `slots` someone holds. Counted, as it is asked for all hosts whenever anything happens."""
    replaced: set[str] = field(default_factory=set)
    """Closing slots in whose place a new one is to be opened without being asked."""
    pins: int = 0
    """How many things lie on it that must not go with an idle host."""
    proved: bool = False
    """A slot of it was opened once."""
    failures: int = 0
    """Slots that did not open, one after another."""
    quarantined: int = 0
    """Slots that could not be closed, in all."""
    trouble: str = ""
    """What went wrong last."""
    retry_at: float = -inf
    retires_at: float = inf
    """When it has too little life left for another trajectory."""
    retired: bool = False
    """It takes no new trajectories, and is ended when it has none."""
    counted_free: int = 0
    """Its share of `Fleet.free`."""

    @property
    def in_use(self) -> bool:
        """Whether someone holds a slot of it."""
        return self.held > 0

    @property
    def idle(self) -> bool:
        """Whether nothing goes on in it."""
        return len(self.available) == len(self.slots) and not self.pins

    @property
    def worn(self) -> bool:
        """Too many slots of it are still there though they should not be: it takes no new ones."""
        return self.quarantined >= self.limits.slot_attempts

    @property
    def useless(self) -> bool:
        """Whether it opens no more slots, and nobody works on one of them."""
        exhausted = self.failures >= self.limits.slot_attempts and not self.available
        return (exhausted or self.worn) and not self.in_use

    @property
    def room(self) -> int:
        """How many more slots may be opened on it."""
        return 0 if self.worn or self.retired else self.limits.slots_per_host - len(self.slots)

    @property
    def free(self) -> int:
        """Slots that nobody holds: it has them, or may yet open them."""
        if self.worn or self.retired:
            return len(self.available)
        return self.limits.slots_per_host - self.held


class OldestFirst:
    """Some of the hosts, in the order of their launches."""

    def __init__(self) -> None:
        self._serials: list[int] = []
        self._hosts: dict[int, FleetHost] = {}

    def __len__(self) -> int:
        return len(self._serials)

    def __iter__(self) -> Iterator[FleetHost]:
        return map(self._hosts.__getitem__, self._serials)

    def __reversed__(self) -> Iterator[FleetHost]:
        return map(self._hosts.__getitem__, reversed(self._serials))

    def keep(self, host: FleetHost, belongs: bool) -> None:
        """Have `host` in it, or not."""
        if belongs == (host.serial in self._hosts):
            return
        if belongs:
            insort(self._serials, host.serial)
            self._hosts[host.serial] = host
        else:
            del self._serials[bisect_left(self._serials, host.serial)]
            del self._hosts[host.serial]


class Fleet:
    """All hosts, oldest first, and their slots. `actions` gathers what is to be done."""

    def __init__(self, limits: Limits) -> None:
        self.actions: list[Action] = []
        self.hosts: dict[str, FleetHost] = {}
        self.replacing = 0
        """Slots being closed that will be followed by a new one."""
        self.free = 0
        """Slots that nobody holds, of all lasting hosts; see `FleetHost.free`."""
        self.lasting = OldestFirst()
        """Hosts that are up and take trajectories."""
        self.retired = OldestFirst()
        """Hosts that are up and take no new trajectories."""
        self.roomy = OldestFirst()
        """Hosts that are up and may open further slots."""
        self.idle = OldestFirst()
        """Lasting hosts in which nothing goes on."""
        self._offering = OldestFirst()
        self._retirements: list[tuple[float, int, FleetHost]] = []
        self._host_phases: Counter[HostPhase] = Counter()
        self._limits = limits
        self._by_slot: dict[str, FleetHost] = {}
        self._phases: Counter[SlotPhase] = Counter()
        self._last_host = 0
        self._last_slot = 0

    # --- What there is ---------------------------------------------------------------------------

    def live(self) -> Iterator[FleetHost]:
        """Hosts that are up."""
        return (host for host in self.hosts.values() if host.phase is HostPhase.LIVE)

    def count(self, phase: HostPhase) -> int:
        """Hosts in `phase`."""
        return self._host_phases[phase]

    @property
    def next_retirement(self) -> float:
        """When the next host is to be retired."""
        heap = self._retirements
        while heap and (heap[0][2].retired or heap[0][2].phase is not HostPhase.LIVE):
            heapq.heappop(heap)
        return heap[0][0] if heap else inf

    def slots(self, phase: SlotPhase) -> int:
        """Slots in `phase`, on all hosts."""
        return self._phases[phase]

    def host_of(self, slot_id: str, *phases: SlotPhase) -> FleetHost | None:
        """The host of a slot that is in one of `phases`; None when it is not, or is no more."""
        host = self._by_slot.get(slot_id)
        return host if host is not None and host.slots[slot_id] in phases else None

    # --- Hosts -----------------------------------------------------------------------------------

    def launch(self) -> None:
        """Start one more host."""
        self._last_host += 1
        serial = self._last_host
        host = FleetHost(f"{self._limits.host_prefix}h{serial}", serial, self._limits)
        self.hosts[host.host_id] = host
        self._host_phases[host.phase] += 1
        self.actions.append(LaunchHost(host.host_id))

    def go_live(self, host: FleetHost, retires_at: float) -> None:
        """A host is up, until it is to be retired."""
        self._pass_to(host, HostPhase.LIVE)
        host.retires_at = retires_at
        if retires_at < inf:
            heapq.heappush(self._retirements, (retires_at, host.serial, host))
        self._note(host)

    def retire_next(self) -> None:
        """Have the host whose turn it is, of which there must be one, take no new trajectories."""
        host = heapq.heappop(self._retirements)[2]
        host.retired = True
        self._note(host)

    def pin(self, host: FleetHost, count: int) -> None:
        """So many more things lie on a host that must not go with it for being idle."""
        host.pins += count
        self._note(host)

    def quarantine(self, host: FleetHost, trouble: str) -> None:
        """One more slot of a host could not be closed."""
        host.quarantined += 1
        host.trouble = trouble
        self._note(host)

    def forget(self, host_id: str) -> None:
        """Nothing of a host is left, or it never came up. Unknown ids are no error."""
        host = self.hosts.pop(host_id, None)
        if host is not None:
            self._host_phases[host.phase] -= 1

    def end(self, host: FleetHost, reason: str) -> None:
        """End a host; its slots go with it, whatever they are in the middle of."""
        for slot_id in list(host.slots):
            self.forget_slot(host, slot_id)
        host.available.clear()
        self._pass_to(host, HostPhase.CLOSING)
        self._note(host)
        self.actions.append(CloseHost(host.host_id, reason))

    # --- Slots -----------------------------------------------------------------------------------

    def open_slot(self, host: FleetHost) -> None:
        """Open one more slot on `host`."""
        self._last_slot += 1
        slot_id = f"{host.host_id}-s{self._last_slot}"
        self._by_slot[slot_id] = host
        self._enter(host, slot_id, SlotPhase.OPENING)
        self.actions.append(OpenSlot(host.host_id, slot_id))

    def make_available(self, host: FleetHost, slot_id: str) -> None:
        """A slot may be handed out."""
        host.available.append(slot_id)
        self._enter(host, slot_id, SlotPhase.AVAILABLE)

    def grant(self, ticket: int) -> None:
        """Hand an available slot, of which there must be one, to whoever has `ticket`."""
        host = next(iter(self._offering))
        slot_id = host.available.pop()
        self._enter(host, slot_id, SlotPhase.HELD)
        self.actions.append(Grant(ticket, host.host_id, slot_id))

    def discard(self, host: FleetHost, slot_id: str, *, replace: bool) -> None:
        """Close a slot, and count on another one in its place if it is to be replaced."""
        if host.slots[slot_id] is SlotPhase.AVAILABLE:
            host.available.remove(slot_id)
        self._enter(host, slot_id, SlotPhase.CLOSING)
        if replace:
            host.replaced.add(slot_id)
            self.replacing += 1
        self.actions.append(CloseSlot(host.host_id, slot_id))

    def forget_slot(self, host: FleetHost, slot_id: str) -> None:
        """A slot is no more."""
        phase = host.slots.pop(slot_id)
        self._phases[phase] -= 1
        host.held -= phase is SlotPhase.HELD
        del self._by_slot[slot_id]
        if slot_id in host.replaced:
            host.replaced.remove(slot_id)
            self.replacing -= 1
        self._note(host)

    def _enter(self, host: FleetHost, slot_id: str, phase: SlotPhase) -> None:
        old = host.slots.get(slot_id)
        if old is not None:
            self._phases[old] -= 1
        self._phases[phase] += 1
        host.held += (phase is SlotPhase.HELD) - (old is SlotPhase.HELD)
        host.slots[slot_id] = phase
        self._note(host)

    def _pass_to(self, host: FleetHost, phase: HostPhase) -> None:
        self._host_phases[host.phase] -= 1
        self._host_phases[phase] += 1
        host.phase = phase

    def _note(self, host: FleetHost) -> None:
        """A host has changed: what is known of all together changes with it."""
        live = host.phase is HostPhase.LIVE
        lasts = live and not host.retired
        self.lasting.keep(host, lasts)
        self.retired.keep(host, live and host.retired)
        self.roomy.keep(host, live and host.room > 0)
        self.idle.keep(host, lasts and host.idle)
        self._offering.keep(host, bool(host.available))
        free = host.free if lasts else 0
        self.free += free - host.counted_free
        host.counted_free = free
