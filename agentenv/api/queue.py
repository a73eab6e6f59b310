"""The groups that wait: for their batch, or in a buffer for others of their environment.

Only an index: sizes, environments, versions. The groups themselves are in the database.
"""

from __future__ import annotations

import heapq
import math
from collections import Counter, defaultdict
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from agentenv.api.packing import Buffer, Class, EnvKey, next_batch

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from agentenv.api.registry import Environment, Registry


_SPARE = 1_000


@dataclass(frozen=True, slots=True)
class Entry:
    """A stored group."""

    seq: int
    """Its number in the database, in the order of arrival."""
    rows: int
    size: int
    """Bytes of its packed form."""
    env_id: int | None = None
    policy_version: int | None = None
    group_id: str | None = None
    position: int | None = None
    """Its place in the queue; None while it is buffered."""


class GroupQueue:
    """The queue and the buffers. Everything takes as long as the groups it is about, not as the queue."""

    def __init__(self) -> None:
        self._entries: dict[int, Entry] = {}
        self._classes: dict[Class, dict[int, None]] = defaultdict(dict)
        self._seq_at: dict[int, int] = {}
        self._buffers: dict[int, Buffer] = {}
        self._rows: Counter[EnvKey] = Counter()
        self._versions: list[tuple[int, int]] = []
        self._next_position = 0
        self.queued = 0
        self.bytes = 0
        """Of all groups, buffered ones too."""

    @property
    def buffered(self) -> int:
        """How many groups are in buffers."""
        return len(self._entries) - self.queued

    # ---- in ----

    def put(self, entry: Entry, env: Environment | None) -> tuple[list[Entry], int | None]:
        """Take a group in: into the queue, or into `env`'s buffer when its size is not the group size.

        Returns the entries that are in the queue now and were not, and the rows left in the buffer if it was used.
        """
        if env is None or entry.rows == env.group_size:
            return [self.enqueue(entry)], None
        buffer = self._buffer_of(env)
        self._remember(entry)
        released = buffer.add(entry.seq, entry.rows)
        if released:
            self._buffers[env.env_id] = buffer = buffer.without(released)
        return [self.enqueue(self._forget(seq)) for seq in released], buffer.rows

    def enqueue(self, entry: Entry) -> Entry:
        """Put a group at the queue's end, or where its position says."""
        if entry.position is None:
            entry = replace(entry, position=self._next_position)
        assert entry.position is not None
        self._next_position = max(self._next_position, entry.position + 1)
        self._remember(entry)
        self._classes[entry.env_id, entry.rows][entry.position] = None
        self._seq_at[entry.position] = entry.seq
        self._rows[entry.env_id] += entry.rows
        self.queued += 1
        return entry

    def restore_buffered(self, entry: Entry, env: Environment) -> None:
        """Put a group back into a buffer it waited in before a restart."""
        self._remember(entry)
        self._buffer_of(env).add(entry.seq, entry.rows)

    def resize(self, env: Environment) -> None:
        """An environment's group size has changed: its buffered groups are to add up to the new one."""
        if env.env_id in self._buffers:
            self._buffer_of(env)

    def _buffer_of(self, env: Environment) -> Buffer:
        buffer = self._buffers.get(env.env_id)
        if buffer is None or buffer.target != env.group_size:
            buffer = Buffer(env.group_size, buffer.groups if buffer else ())
            self._buffers[env.env_id] = buffer
        return buffer

    # ---- out ----

    def take_batch(self, registry: Registry) -> list[Entry] | None:
        """The next batch's groups, taken out; None while there is none."""
        chosen = next_batch(self._classes, registry.batch_size, registry.minima())
        if chosen is None:
            return None
        return [self._take(self._seq_at[position]) for position in chosen]

    def take_stale(self, oldest: int) -> list[Entry]:
        """Take out the groups sampled by a policy older than `oldest`."""
        stale = []
        while self._versions and self._versions[0][0] < oldest:
            _, seq = heapq.heappop(self._versions)
            if seq in self._entries:
                stale.append(self._take(seq))
        return stale

    def take_all(self) -> list[Entry]:
        """Take everything out."""
        return [self._take(seq) for seq in list(self._entries)]

    def _take(self, seq: int) -> Entry:
        entry = self._forget(seq)
        if entry.position is None:
            assert entry.env_id is not None
            self._buffers[entry.env_id] = self._buffers[entry.env_id].without({seq})
            return entry
        key = (entry.env_id, entry.rows)
        del self._classes[key][entry.position], self._seq_at[entry.position]
        if not self._classes[key]:
            del self._classes[key]
        self._rows[entry.env_id] -= entry.rows
        self.queued -= 1
        return entry

    def _remember(self, entry: Entry) -> None:
        self._entries[entry.seq] = entry
        self.bytes += entry.size
        if entry.policy_version is not None:
            heapq.heappush(self._versions, (entry.policy_version, entry.seq))
            if len(self._versions) > 2 * len(self._entries) + _SPARE:  # of groups that have gone
                known = (e for e in self._entries.values() if e.policy_version is not None)
                self._versions = [(e.policy_version or 0, e.seq) for e in known]
                heapq.heapify(self._versions)

    def _forget(self, seq: int) -> Entry:
        entry = self._entries.pop(seq)
        self.bytes -= entry.size
        return entry

    # ---- what is told of it ----

    @property
    def largest(self) -> int:
        """Rows of the largest group in the queue, at least 1."""
        return max((rows for _, rows in self._classes), default=1)

    def largest_of(self, env_id: int) -> int:
        """Rows of an environment's largest group in the queue, 0 without any."""
        return max((rows for env, rows in self._classes if env == env_id), default=0)

    def rows_of(self, env_id: EnvKey) -> int:
        """Rows of an environment in the queue."""
        return self._rows[env_id]

    def rows_left_by_others(self, env_id: int, needed: Mapping[EnvKey, int]) -> int:
        """Rows of the other environments beyond what they need themselves, in full groups of the largest size."""
        largest = self.largest
        if largest <= 1:
            return 0
        return sum(
            max(0, math.ceil(rows / largest) * largest - needed.get(other, 0))
            for other, rows in self._rows.items()
            if other != env_id and rows
        )

    def buffered_by_env(self) -> dict[int, Buffer]:
        """The buffers that hold something."""
        return {env_id: buffer for env_id, buffer in self._buffers.items() if len(buffer)}

    def unpackable(self, batch_size: int) -> int:
        """How many groups no batch will ever hold as things are: their sizes fit neither the largest nor a batch."""
        sizes = {key: len(groups) for key, groups in self._classes.items()}
        largest = max((rows for _, rows in sizes if rows <= batch_size), default=0)
        stuck = sum(
            count
            for (_, rows), count in sizes.items()
            if rows > batch_size or not largest or largest % rows or batch_size % largest
        )
        return (stuck if batch_size > 0 else 0) + sum(
            buffer.hopeless for buffer in self._buffers.values()
        )


def total_rows(entries: Iterable[Entry]) -> int:
    """Rows of all of them."""
    return sum(entry.rows for entry in entries)
