"""How old a group may be when a trainer gets it, in steps of the trainer.

A group's age is the trainer's step at hand-out less the group's policy version, which is the step whose weights sampled
its oldest token. Steps count batches handed out, first in, first out.

Two ways to hold a bound:

* **Admission** starts no group that could become too old, even if everything else under way ends before it. Nothing
  is thrown away; when one rollout is much slower than the others, the trainer waits for it.
* **Early cancel** ends a group that would be too old even if it finished now. Alone it starves slow rollouts: the
  item is tried again from the start, is too slow again, and what reaches the trainer is biased towards short ones. So
  it is the safety net behind admission, for what that cannot foresee: another environment's groups, a trainer that
  jumps.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from pydantic import BaseModel, ConfigDict, Field

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

KeyT = TypeVar("KeyT")


@dataclass(frozen=True, slots=True)
class Supply:
    """What stands between the policy and the trainer at one moment, in sequences unless said otherwise."""

    step: int
    """The trainer's step: batches handed out so far, counted from its starting step."""
    batch_size: int
    """Sequences in a batch."""
    waiting: int = 0
    """Sequences that are finished and will be handed out before anything that is still under way."""
    running: int = 0
    """Sequences of groups under way."""


class StalenessLimit(BaseModel):
    """The bound, and whether to hold it by admission. By default there is none, as with Atropos."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    max_steps: int | None = Field(default=None, ge=0)
    """Steps of the trainer that a group's weights may be behind at hand-out; 0: on policy; null: no bound."""
    admission: bool = True
    """Start no group that could become too old, instead of only cancelling those that did."""

    def usable(self, policy_version: int | None, step: int) -> bool:
        """Whether a group of weights `policy_version` may be trained on at trainer step `step`.

        A group that does not say its version cannot be judged, and is usable.
        """
        if self.max_steps is None or policy_version is None:
            return True
        return step - policy_version <= self.max_steps

    def admits(self, supply: Supply, oldest_running: int | None, group_size: int) -> bool:
        """Whether one more group of `group_size` sequences may start now.

        `oldest_running` is the lowest policy version among the groups under way, None when there is none. What this
        guarantees where every start asks it, with one environment, groups of one size, and a trainer that takes
        batches in order: no group is older than `max_steps` at hand-out, whatever order they finish in.

        Why: once the new group runs, each group under way has `waiting + running` other sequences that may get
        ahead of it, so it is handed out at step `step + (waiting + running) // batch_size` at the latest. A group that
        finishes and a batch that is taken leave that step as it is; only starts raise it.
        """
        if self.max_steps is None or not self.admission or supply.batch_size < 1:
            return True
        oldest = supply.step if oldest_running is None else min(oldest_running, supply.step)
        others = supply.waiting + supply.running
        return supply.step + others // supply.batch_size <= oldest + self.max_steps

    def overdue(self, under_way: Mapping[KeyT, int | None], supply: Supply) -> list[KeyT]:
        """Which groups under way would be too old at hand-out even if they finished now, in the order given.

        `under_way` holds each group's policy version, or what stands in for it: the trainer's step when the group
        started. Their items should be collected anew.
        """
        if supply.batch_size < 1:
            return []
        soonest = supply.step + supply.waiting // supply.batch_size
        return [key for key, version in under_way.items() if not self.usable(version, soonest)]


def oldest_version(versions: Iterable[str | int | None]) -> int | None:
    """The lowest numeric version among those an engine reported; None when one of them is no number, or there is none.

    An engine whose versions are names says nothing about age, so the caller falls back on the step of the start.
    """
    numbers: list[int] = []
    for version in versions:
        if isinstance(version, int):
            numbers.append(version)
        elif isinstance(version, str) and version.isascii() and version.isdecimal():
            numbers.append(int(version))
        else:
            return None
    return min(numbers, default=None)
