"""How many slots and hosts there should be, and when to try for them again.

What is wanted is a slot for everyone who waits and `warm_slots` besides; at the start at least one,
which shows that slots can be had. Slots are opened on the oldest hosts first, so that the youngest
fall idle; those that nobody waits for one after another, so that they take little from those at
work. Three things keep the pool from churning:

* what fails is tried again later and later;
* what dies though nobody used it is made again later and later, until a slot is handed out again;
* a host is ended only when the pool could have done without it for `idle_host_s` on end.

A host that is to end by itself before long is retired: others are started in its place, while it goes on
for the trajectories it has.
"""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING

from agentenv_backends._fleet import HostPhase, SlotPhase

if TYPE_CHECKING:
    from collections.abc import Callable

    from agentenv_backends._fleet import Fleet, FleetHost
    from agentenv_backends.errors import BackendError
    from agentenv_backends.settings import Limits


class Planner:
    """Opens slots, launches hosts and ends those that nobody needs. Pure: the clock is given."""

    def __init__(self, fleet: Fleet, limits: Limits, clock: Callable[[], float]) -> None:
        self.wake_at = inf
        """When to plan again although nothing has happened."""
        self.last_error: BackendError | None = None
        self.idle_hosts = 0
        """Hosts ended because nobody needed them, so far."""
        self.proved = False
        """Whether a host has ever opened a slot."""
        self._fleet = fleet
        self._limits = limits
        self._clock = clock
        self._failed_launches = 0
        self._launch_at = -inf
        self._wasted = 0
        self._ahead_at = -inf
        self._needless: dict[str, float] = {}
        """Hosts that the pool could do without now -> since when it could."""

    @property
    def gave_up(self) -> bool:
        """Whether no host can be had: none is left, and launches fail one after another."""
        usable = self._fleet.count(HostPhase.LAUNCHING) + self._fleet.count(HostPhase.LIVE)
        return self._failed_launches >= self._limits.launch_attempts and not usable

    def plan(self, waiting: int) -> None:
        """Ask for what is wanted now, where `waiting` callers have no slot."""
        self.wake_at = inf
        fleet = self._fleet
        coming = fleet.slots(SlotPhase.OPENING) + fleet.replacing
        there = fleet.slots(SlotPhase.AVAILABLE) + coming
        at_once = max(waiting - there, 0 if coming else 1)
        self._launch(self._open(waiting + self._ahead() - there, at_once), waiting)
        self._end_needless(waiting)
        self.wake_at = min(self.wake_at, fleet.next_retirement)

    def retire(self) -> None:
        """Take no more trajectories to hosts whose time has come, and end those that have none.

        Snapshots that lie there go a little earlier than they would; whoever needs one has it made anew.
        """
        now = self._clock()
        while self._fleet.next_retirement <= now:
            self._fleet.retire_next()
        for host in list(self._fleet.retired):
            for slot_id in list(host.available):
                self._fleet.discard(host, slot_id, replace=False)
            if not host.in_use:
                self._fleet.end(host, "its lifetime is nearly over")

    # --- What went well, and what did not --------------------------------------------------------

    def launch_failed(self, error: BackendError) -> None:
        """A host did not come up, or is gone before it opened any slot."""
        self._failed_launches += 1
        self.last_error = error
        self._launch_at = self._clock() + self._limits.backoff(self._failed_launches)

    def host_proved(self) -> None:
        """A new host opened a slot."""
        self.proved = True
        self._failed_launches = 0

    def try_once_more(self) -> None:
        """Someone asks after everyone was refused: allow one more launch."""
        self._failed_launches = self._limits.launch_attempts - 1

    def wasted(self) -> None:
        """What was made ahead is gone without ever having been used."""
        if self._ahead_at <= self._clock():  # many that go together are one mishap
            self._wasted += 1
            self._ahead_at = self._clock() + self._limits.backoff(self._wasted)

    def used(self) -> None:
        """A slot was handed out."""
        self._wasted = 0
        self._ahead_at = -inf

    # --- Steps of a plan -------------------------------------------------------------------------

    def _ahead(self) -> int:
        if self._ahead_at > self._clock():
            self.wake_at = self._ahead_at
            return 0
        return self._limits.warm_slots if self.proved else max(1, self._limits.warm_slots)

    def _open(self, wanted: int, at_once: int) -> int:
        """Open up to `at_once` of `wanted` slots, or more later; return how many there is no room for."""
        for host in list(self._fleet.roomy) if wanted > 0 else ():
            room = host.room
            if host.retry_at > self._clock():
                self.wake_at = min(self.wake_at, host.retry_at)
                if host.failures < self._limits.slot_attempts:
                    wanted -= room  # only not yet
                continue
            taken = min(room, wanted)
            wanted -= taken
            for _ in range(min(taken, at_once)):
                self._fleet.open_slot(host)
                at_once -= 1
            if wanted <= 0:
                break
        return wanted

    def _launch(self, missing_slots: int, waiting: int) -> None:
        launching = self._fleet.count(HostPhase.LAUNCHING)
        while self._launch_needed(missing_slots, launching, waiting) and not self.gave_up:
            if self._launch_at > self._clock():
                self.wake_at = min(self.wake_at, self._launch_at)
                return
            self._fleet.launch()
            launching += 1
            if self._failed_launches:
                return  # after a failure, one at a time

    def _launch_needed(self, missing_slots: int, launching: int, waiting: int) -> bool:
        limits, hosts = self._limits, self._fleet.hosts
        if len(hosts) >= limits.max_hosts or (launching and self._failed_launches):
            return False
        if missing_slots > launching * limits.slots_per_host:
            return True
        below_minimum = len(self._fleet.lasting) + launching < limits.min_hosts
        return below_minimum and (waiting > 0 or self._ahead_at <= self._clock())

    def _end_needless(self, waiting: int) -> None:
        fleet, since = self._fleet, self._needless
        may_end = 0 if waiting else len(fleet.lasting) - self._limits.min_hosts
        spare = fleet.free - self._limits.warm_slots
        self._needless = {}
        for host in list(reversed(fleet.idle)) if may_end > 0 else ():
            if host.free <= spare:
                may_end -= 1
                spare -= host.free
                self._end_when_due(host, since.get(host.host_id, self._clock()))
            if may_end <= 0:
                break

    def _end_when_due(self, host: FleetHost, since: float) -> None:
        due = since + self._limits.idle_host_s
        if due <= self._clock():
            self.idle_hosts += 1
            self._fleet.end(host, "idle")
        else:
            self._needless[host.host_id] = since
            self.wake_at = min(self.wake_at, due)
