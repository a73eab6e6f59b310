"""Batches that were handed out and are not acknowledged yet.

A trainer that names itself (a consumer) holds its batch until it acknowledges it: whenever it asks again before, it
gets the same batch. A batch not acknowledged within the lease goes to whoever asks next; its first holder may still
acknowledge until then, and is refused afterwards.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from agentenv.api.refusals import LostLeaseError, UnknownBatchError

if TYPE_CHECKING:
    from agentenv.api.queue import Entry

MAX_REMEMBERED = 1_000
"""Acknowledged batches that are remembered, so that an acknowledgement may be repeated."""


@dataclass(frozen=True, slots=True)
class Batch:
    """A batch in a trainer's hands."""

    batch_id: int
    step: int
    """The step it is for: batches handed out before it, and `starting_step`."""
    entries: tuple[Entry, ...]
    """Empty once it is acknowledged."""
    consumer: str | None
    """None: a client that does not acknowledge."""
    deadline: float
    """Seconds since the epoch, after which another consumer may have it."""
    acknowledged: bool = False


class Leases:
    """The batches handed out, and the last of those acknowledged."""

    def __init__(self) -> None:
        self._open: OrderedDict[int, Batch] = OrderedDict()
        self._done: OrderedDict[int, Batch] = OrderedDict()

        self.bytes = 0
        """Of the groups in open batches."""

    def __len__(self) -> int:
        return len(self._open)

    @property
    def open(self) -> list[Batch]:
        """Batches that are not acknowledged, oldest first."""
        return list(self._open.values())

    def restore(self, batch: Batch) -> None:
        """Put a batch back after a restart."""
        if batch.acknowledged:
            self._done[batch.batch_id] = batch
        else:
            self.add(batch)

    def add(self, batch: Batch) -> None:
        """A new batch is handed out."""
        self._open[batch.batch_id] = batch
        self.bytes += _bytes(batch)

    def again(self, consumer: str | None, now: float, deadline: float) -> Batch | None:
        """The batch a consumer gets instead of a new one: its own, or one whose lease has ended."""
        own = (b for b in self._open.values() if consumer is not None and b.consumer == consumer)
        ended = (b for b in self._open.values() if b.deadline <= now)
        found = next(own, None) or next(ended, None)
        if found is None:
            return None
        batch = replace(found, consumer=consumer, deadline=deadline)
        self._open[batch.batch_id] = batch
        return batch

    def acknowledge(self, batch_id: int, consumer: str | None) -> tuple[Batch, bool]:
        """Let go of a batch; returns it as it was, and whether this is the first time.

        Raises `UnknownBatchError`, or `LostLeaseError` when another consumer holds or has acknowledged it.
        """
        batch = self._open.get(batch_id) or self._done.get(batch_id)
        if batch is None:
            raise UnknownBatchError(f"no batch {batch_id} was handed out lately")
        if batch.consumer != consumer:
            raise LostLeaseError(
                f"batch {batch_id} went to {batch.consumer or 'another client'} when its lease had ended; "
                "throw away what was made of it"
            )
        if batch.acknowledged:
            return batch, False
        self._remove(batch)
        self._done[batch_id] = replace(batch, entries=(), acknowledged=True)
        return batch, True

    def end(self, batch: Batch) -> Batch | None:
        """Make a batch free for whoever asks next, unless somebody else has it by now."""
        if self._open.get(batch.batch_id) is not batch:
            return None
        ended = self._open[batch.batch_id] = replace(batch, deadline=0.0)
        return ended

    def drop(self, batch: Batch) -> bool:
        """Take an open batch out without remembering it, unless somebody else has it by now."""
        if self._open.get(batch.batch_id) is not batch:
            return False
        self._remove(batch)
        return True

    def _remove(self, batch: Batch) -> None:
        del self._open[batch.batch_id]
        self.bytes -= _bytes(batch)

    def forget_old(self) -> list[int]:
        """Forget the oldest acknowledged batches over the limit; returns which."""
        gone = []
        while len(self._done) > MAX_REMEMBERED:
            gone.append(self._done.popitem(last=False)[0])
        return gone

    def done(self, batch_id: int) -> Batch:
        """An acknowledged batch as it is kept."""
        return self._done[batch_id]


def _bytes(batch: Batch) -> int:
    return sum(entry.size for entry in batch.entries)
