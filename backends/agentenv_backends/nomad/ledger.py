"""Which allocations are free, whose the others are, and how many there ought to be: decisions, without their I/O.

The scheduler knows a count, and places and replaces as it sees fit; the pool knows hosts. Between them:

* Launching a host claims a free allocation, the one with the lowest index. If too few are free or on their way, the
  count is raised by as many as are missing, for all that wait at once.
* An allocation serves one host. One that has served is *spent*: it is never claimed again.
* When the count is lowered, those with the highest indexes are stopped. So it is lowered as far as no host that is
  in use has a higher one, once there have been too many for a while. Whoever needs a host sooner gets a spent one's
  place: stopping an allocation without lowering the count has another placed there.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from agentenv_backends.nomad.allocations import Allocation

_FIRST_SHUN_S, _LONGEST_SHUN_S = 0.1, 1.0
"""One that did not answer is not tried again for so long, at first and later."""
UNREACHABLE_S = 15.0
"""One that runs and did not answer for so long is replaced."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be done now."""

    count: int | None = None
    """The count to set; None: as it is."""
    stop: tuple[str, ...] = ()
    """Allocations to be stopped, for others in their places."""
    reschedule: bool = False
    """Have those placed anew that have failed for good."""


@dataclass(slots=True)
class _Trouble:
    since: float
    retry_at: float


class Ledger:
    """Keeps the books of one job. Times are by whatever clock the caller has."""

    def __init__(self, max_hosts: int, cooldown_s: float) -> None:
        self.count = 0
        """As it was registered last."""
        self.waiting = 0
        """Launches that have no allocation yet."""
        self._max_hosts = max_hosts
        self._cooldown_s = cooldown_s
        self._allocations: dict[str, Allocation] = {}
        self._claimed: set[str] = set()
        self._spent: set[str] = set()
        self._broken: set[str] = set()
        self._stopped: set[str] = set()
        self._trouble: dict[str, _Trouble] = {}
        self._surplus_since: float | None = None

    # --- what is known -----------------------------------------------------------------------------

    def get(self, allocation_id: str) -> Allocation | None:
        """An allocation as it was listed last."""
        return self._allocations.get(allocation_id)

    @property
    def unclaimed(self) -> list[Allocation]:
        """Those that hold a place and nobody has, up or not, by index."""
        held = self._claimed | self._spent
        free = [
            each
            for each in self._allocations.values()
            if each.holds_place and each.allocation_id not in held
        ]
        return sorted(free, key=lambda each: each.index)

    @property
    def missing(self) -> int:
        """Places for which there is no allocation at all."""
        return max(0, self.count - sum(each.holds_place for each in self._allocations.values()))

    def wake_at(self, now: float) -> float:
        """When something may be to be done although nothing happens."""
        times = [trouble.retry_at for trouble in self._trouble.values() if trouble.retry_at > now]
        if self._surplus_since is not None:
            times.append(self._surplus_since + self._cooldown_s)
        return min(times, default=inf)

    # --- what happens ------------------------------------------------------------------------------

    def update(self, allocations: Iterable[Allocation]) -> list[Allocation]:
        """Take in a listing. Returns the claimed ones that are over; those not listed any more are not among them."""
        seen = {each.allocation_id: each for each in allocations}
        self._allocations = seen
        self._trouble = {name: each for name, each in self._trouble.items() if name in seen}
        over = [each for name, each in seen.items() if name in self._claimed and each.is_over]
        for each in over:
            self._claimed.discard(each.allocation_id)
            self._spent.add(each.allocation_id)
        return over

    def claim(self, now: float) -> Allocation | None:
        """The free one to use next, which is then claimed."""
        for each in self.unclaimed:
            trouble = self._trouble.get(each.allocation_id)
            if each.is_up and (trouble is None or trouble.retry_at <= now):
                self._claimed.add(each.allocation_id)
                return each
        return None

    def give_back(self, allocation_id: str, now: float, *, silent: bool) -> None:
        """A claimed one was not used; `silent`: because it did not answer."""
        self._claimed.discard(allocation_id)
        if not silent:
            self._trouble.pop(allocation_id, None)
            return
        trouble = self._trouble.setdefault(allocation_id, _Trouble(now, now))
        trouble.retry_at = now + min(_LONGEST_SHUN_S, max(_FIRST_SHUN_S, now - trouble.since))
        if now - trouble.since > UNREACHABLE_S:
            self.spend(allocation_id, broken=True)

    def spend(self, allocation_id: str, *, broken: bool = False) -> None:
        """A claimed one has served its host. `broken`: it may hang, so it is to be stopped whether needed or not."""
        self._claimed.discard(allocation_id)
        self._trouble.pop(allocation_id, None)
        self._spent.add(allocation_id)
        if broken:
            self._broken.add(allocation_id)

    def stopped(self, allocation_id: str) -> None:
        """One was stopped, as planned."""
        self._stopped.add(allocation_id)

    # --- what is to be done ------------------------------------------------------------------------

    def plan(self, now: float) -> Plan:
        """What to do now; the same again until it is done."""
        # Those above the count are about to go.
        live = [
            each
            for each in self._allocations.values()
            if each.holds_place and (each.index < self.count or each.allocation_id in self._claimed)
        ]
        claimed = [each for each in live if each.allocation_id in self._claimed]
        stuck = sum(each.is_stuck for each in live if each.allocation_id not in self._claimed)
        spent = [
            each.allocation_id
            for each in live
            if each.allocation_id in self._spent
            and each.allocation_id not in self._stopped
            and not each.is_stuck
        ]
        stop = [name for name in spent if name in self._broken]
        idle = [name for name in spent if name not in self._broken]
        # What is unlisted is on its way; what was stopped is about to be replaced.
        coming = self.count - len(claimed) - len(idle) - stuck
        lacking = min(self.waiting, self.waiting - coming)
        if lacking > 0:
            self._surplus_since = None
            taken = idle[:lacking]
            lacking -= len(taken)
            reschedule = lacking > 0 and stuck > 0
            lacking -= stuck
            wanted = min(self._max_hosts, self.count + max(0, lacking))
            count = wanted if wanted > self.count else None
            return Plan(count, tuple(stop + taken), reschedule)
        return Plan(self._lowered(now, claimed), tuple(stop))

    def _lowered(self, now: float, claimed: list[Allocation]) -> int | None:
        if len(claimed) < len(self._claimed):
            # A listing that lacks a host in use, be it empty, is no reason to end it: where it stands is not known.
            self._surplus_since = None
            return None
        highest = max((each.index + 1 for each in claimed), default=0)
        wanted = max(len(claimed) + self.waiting, highest)
        if wanted >= self.count:
            self._surplus_since = None
            return None
        if self._surplus_since is None:
            self._surplus_since = now
        if now - self._surplus_since < self._cooldown_s:
            return None
        self._surplus_since = None
        return wanted
