"""More members than a group needs, so that one slow or lost rollout does not hold it up.

A group of g starts g + `extra` members at once and keeps g. Which ones, is where bias comes in: the time a rollout
takes is correlated with what it is worth, so a rule that looks at time changes the distribution that is trained on.

* `by_index` keeps the g lowest-numbered members that were not lost. The choice is made before any of them runs, so
  there is no bias, and the same seed keeps the same members unless one is lost. It does not help against stragglers.
* `by_deadline` does the same until a deadline; past it, it keeps the g lowest-numbered of those that ended. Biased only
  beyond the deadline, against rollouts longer than that. The same seed keeps the same members unless a deadline passes.
* `first_finished` keeps the first g that end. Always biased towards short rollouts, and not reproducible.

A member is lost to infrastructure or to a failing verifier, not by what its agent did, so replacing it is not counted
as bias here; where long rollouts are lost more often, it is one.
"""

from __future__ import annotations

import math
from enum import StrEnum

from pydantic import BaseModel, ConfigDict, Field


class Keep(StrEnum):
    """Which members of a group are kept, when more were started than it needs."""

    BY_INDEX = "by_index"
    """Spares replace lost members only. Unbiased; does not help against stragglers."""
    BY_DEADLINE = "by_deadline"
    """Spares replace lost members, and after a deadline those that are still running."""
    FIRST_FINISHED = "first_finished"
    """Whichever end first. Fastest, and biased towards short rollouts."""


class OverProvision(BaseModel):
    """How many members more than a group needs are started, and which are kept. By default none, as with Atropos."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    extra: int = Field(default=0, ge=0)
    """Members started beyond `group_size`. Each takes a slot of its own while it runs."""
    keep: Keep = Keep.BY_DEADLINE
    """Which are kept."""
    quantile: float = Field(default=0.5, gt=0, le=1)
    """For `by_deadline`: the share of `group_size` that must have ended before a deadline is set."""
    factor: float = Field(default=2.0, ge=1)
    """For `by_deadline`: the deadline, as a multiple of the time that share took, counted from the group's start."""


class MemberChoice:
    """Decides for one group, from what has ended so far. Time is the caller's: seconds since the group started."""

    def __init__(self, rule: OverProvision, group_size: int) -> None:
        self._rule = rule
        self._size = group_size
        self._ended: dict[int, float] = {}
        self._lost: set[int] = set()

    @property
    def started(self) -> int:
        """How many members the group starts with."""
        return self._size + self._rule.extra

    @property
    def hopeless(self) -> bool:
        """Whether too many members were lost for the group to be completed."""
        return self.started - len(self._lost) < self._size

    def ended(self, member: int, *, usable: bool, at_s: float) -> None:
        """Note that a member ended, with something to train on (`usable`) or lost for good."""
        if usable:
            self._ended[member] = at_s
        else:
            self._lost.add(member)

    def kept(self, now_s: float) -> tuple[int, ...] | None:
        """The members that make the group, in rising order; None while it should be waited for more."""
        if self._rule.keep is Keep.FIRST_FINISHED:
            in_order = list(self._ended)
            return tuple(sorted(in_order[: self._size])) if len(in_order) >= self._size else None
        wanted = [n for n in range(self.started) if n not in self._lost][: self._size]
        if len(wanted) == self._size and all(n in self._ended for n in wanted):
            return tuple(wanted)
        deadline = self._deadline_s()
        if deadline is None or now_s < deadline or len(self._ended) < self._size:
            return None
        return tuple(sorted(self._ended)[: self._size])

    def ask_again_in(self, now_s: float) -> float | None:
        """In how many seconds to ask `kept` again though nothing ends meanwhile; None: only when something ends."""
        deadline = self._deadline_s()
        return None if deadline is None or deadline <= now_s else deadline - now_s

    def _deadline_s(self) -> float | None:
        if self._rule.keep is not Keep.BY_DEADLINE or self._rule.extra == 0:
            return None
        needed = math.ceil(self._rule.quantile * self._size)
        times = sorted(self._ended.values())
        return None if len(times) < needed else times[needed - 1] * self._rule.factor
