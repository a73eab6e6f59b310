"""How many groups an environment may have under way, by what waits at the trainer. Pure functions of numbers.

The rules are those of the protocol (Atropos), so that environments of both kinds share one server fairly. Sizes of
queues count groups of this environment's size, as the server reports them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

UNKNOWN_BATCH = -1
"""A batch size that the server does not know yet."""


@dataclass(frozen=True, slots=True)
class Queue:
    """What waits at the server, as it tells one environment."""

    current_step: int
    queue_size: int
    """Groups of every environment that compete for the next batches, in groups of this one's size."""
    self_queue_size: int = 0
    """This environment's own."""
    max_group_size: int = 1
    """Sequences of the largest group in the queue."""
    unallocated_fraction: float = 1.0
    """Share of a batch that no environment has reserved."""


@dataclass(frozen=True, slots=True)
class OffPolicyLimit:
    """The bound on what waits, for one environment of one trainer."""

    batch_size: int
    """Sequences in a batch; `UNKNOWN_BATCH` while no trainer has said so."""
    group_size: int
    max_batches_offpolicy: int
    """Batches that may wait; 0 or less: any number."""
    min_batch_allocation: float | None = None
    """Share of each batch that is this environment's own."""

    def derived_batch_size(self, unallocated_fraction: float) -> int:
        """Sequences of a batch that this environment may count on."""
        if self.batch_size == UNKNOWN_BATCH:
            return UNKNOWN_BATCH
        return int(self.batch_size * (unallocated_fraction + (self.min_batch_allocation or 0)))

    def is_full(self, queue: Queue) -> bool:
        """Whether nothing more should be started: enough waits, and this environment's own share is met."""
        if self.derived_batch_size(queue.unallocated_fraction) == UNKNOWN_BATCH:
            return True
        if self.max_batches_offpolicy <= 0:
            return False
        most = self.max_batches_offpolicy * self.batch_size
        if queue.queue_size * self.group_size < most:
            return False
        if self.min_batch_allocation is None:
            return True
        own = self._reserved(queue) * (queue.max_group_size // self.group_size)
        return own - queue.self_queue_size <= 0

    def groups(self, queue: Queue, most: int) -> int:
        """Groups that may be under way now; `most` is what the environment can work at."""
        if self.is_full(queue):
            return 0
        if self.max_batches_offpolicy <= 0:
            return most
        derived = self.derived_batch_size(queue.unallocated_fraction)
        room = self.max_batches_offpolicy * derived // self.group_size - queue.queue_size
        return max(0, min(most, max(min(most, room), self._for_own_share(queue))))

    def is_finished(self, queue: Queue, total_steps: int) -> bool:
        """Whether what the trainer has and what waits is more than it will ever take."""
        batches = queue.queue_size * self.group_size // max(1, self.batch_size)
        return queue.current_step + batches > total_steps

    def _reserved(self, queue: Queue) -> int:
        """Packs of the largest group's size that this environment's share amounts to."""
        share = self.min_batch_allocation or 0.0
        return math.ceil(
            share * self.batch_size * self.max_batches_offpolicy / queue.max_group_size
        )

    def _for_own_share(self, queue: Queue) -> int:
        """Groups needed to fill what is reserved, where other environments' groups already fill the queue."""
        if self.min_batch_allocation is None:
            return 0
        largest, own = queue.max_group_size, self.group_size
        wanted = (self._reserved(queue) + largest // own) * largest
        held = largest * queue.self_queue_size // (largest / own)
        return max(0, math.ceil((wanted - held) / own))


def crossed(old: int, new: int, every: int) -> bool:
    """Whether a multiple of `every` lies after `old` and not after `new`. Never for `every` of 0 or less.

    So an interval of 1 fires at each step, and a jump over several multiples fires once.
    """
    return every > 0 and new // every > old // every
