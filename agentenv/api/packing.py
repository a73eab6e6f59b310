"""Which groups make up the next batch, and which buffered groups go to the queue together.

The rules are the protocol's. A batch has exactly `batch_size` rows. G is the size of the largest group in the queue;
groups of one size s are taken in packs of G/s, first in first out, and packs in the order they were completed in.

Nothing is remembered between batches and the queue is not walked: the packs of a class (one environment, one size) are
always the first of its groups, so that a batch costs what it holds, however long the queue is.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

EnvKey = int | None
Class = tuple[EnvKey, int]
"""An environment, and a number of rows."""


@dataclass(frozen=True, slots=True)
class Minimum:
    """What an environment is to have of each batch, at least."""

    env_id: int
    fraction: float


def next_batch(
    classes: Mapping[Class, Collection[int]], batch_size: int, minima: Sequence[Minimum] = ()
) -> list[int] | None:
    """The queue's numbers of the next batch's groups, in its order, or None while there is none.

    `minima` in the order the environments registered in. Groups larger than a batch are passed over: they fit none.
    """
    fitting = {key: groups for key, groups in classes.items() if key[1] <= batch_size}
    largest = max((size for _, size in fitting), default=0)
    if not largest:
        return None
    if minima:
        return _with_minima(fitting, largest, batch_size, minima)
    return _exact(fitting, largest, batch_size)


def _exact(
    classes: Mapping[Class, Collection[int]], largest: int, batch_size: int
) -> list[int] | None:
    by_size: dict[int, list[Collection[int]]] = defaultdict(list)
    for (_, size), groups in classes.items():
        by_size[size].append(groups)
    in_packs = (_in_packs(sum(map(len, queues)), size, largest) for size, queues in by_size.items())
    if sum(in_packs) < batch_size:
        return None
    packs = [
        _packs(heapq.merge(*queues), size, largest)
        for size, queues in by_size.items()
        if largest % size == 0
    ]
    batch: list[int] = []
    taken = 0
    for _, size, pack in heapq.merge(*packs):
        for group in pack:
            batch.append(group)
            taken += size
            if taken >= batch_size:
                return batch if taken == batch_size else None
    return None


def _in_packs(count: int, size: int, largest: int) -> int:
    """Rows in the complete packs of so many groups."""
    return 0 if largest % size else count * size // largest * largest


def _packs(groups: Iterable[int], size: int, largest: int) -> Iterator[tuple[int, int, list[int]]]:
    """Complete packs, each after the number of the group that completed it."""
    pack: list[int] = []
    for group in groups:
        pack.append(group)
        if len(pack) * size == largest:
            yield group, size, pack
            pack = []


class _Draft:
    """A batch under way. `taken` counts the groups it has of each class, always the first ones."""

    def __init__(self, batch_size: int) -> None:
        self.groups: list[int] = []
        self.left = batch_size
        self.taken: dict[Class, int] = defaultdict(int)

    def take(self, key: Class, group: int) -> bool:
        """Take a group if it fits."""
        if key[1] > self.left:
            return False
        self.groups.append(group)
        self.left -= key[1]
        self.taken[key] += 1
        return True


def _with_minima(
    classes: Mapping[Class, Collection[int]],
    largest: int,
    batch_size: int,
    minima: Sequence[Minimum],
) -> list[int] | None:
    packable = {
        key: groups
        for key, groups in classes.items()
        if key[0] is not None and _in_packs(len(groups), key[1], largest)
    }
    sizes: dict[EnvKey, list[int]] = defaultdict(list)
    for env_id, size in packable:
        sizes[env_id].append(size)
    wanted = _wanted(minima, sizes, batch_size)
    rows = sum(_in_packs(len(groups), size, largest) for (_, size), groups in packable.items())
    if wanted is None or rows < batch_size:
        return None
    draft = _Draft(batch_size)
    for env_id, minimum in wanted.items():
        own = {key: groups for key, groups in packable.items() if key[0] == env_id}
        _fill_minimum(draft, own, largest, minimum)
    _fill_rest(draft, packable, largest)
    return draft.groups if draft.left == 0 else None


def _wanted(
    minima: Sequence[Minimum], sizes: Mapping[EnvKey, Sequence[int]], batch_size: int
) -> dict[int, int] | None:
    """Rows each environment is to have, or None while one that is to have some has no pack."""
    wanted = {}
    for minimum in minima:
        rows = int(batch_size * minimum.fraction)
        if rows > 0 and not sizes.get(minimum.env_id):
            return None
        if rows > 0:
            wanted[minimum.env_id] = rows
    total = sum(wanted.values())
    if total > batch_size:
        scale = batch_size / total
        return {
            env_id: max(min(sizes[env_id]), int(rows * scale)) for env_id, rows in wanted.items()
        }
    return wanted


def _fill_minimum(
    draft: _Draft, classes: Mapping[Class, Collection[int]], largest: int, rows: int
) -> None:
    """Take groups in the order their packs were completed in."""
    taken = 0
    full: set[Class] = set()
    by_class = [
        _tagged(key, _packs(iter(groups), key[1], largest)) for key, groups in classes.items()
    ]
    for _, key, pack in heapq.merge(*by_class):
        for group in pack:
            if taken >= rows or len(full) == len(classes):
                return
            if key in full or not draft.take(key, group):
                full.add(key)  # what does not fit now will not later: the batch only fills
            else:
                taken += key[1]


def _tagged(
    key: Class, packs: Iterator[tuple[int, int, list[int]]]
) -> Iterator[tuple[int, Class, list[int]]]:
    for completed, _, pack in packs:
        yield completed, key, pack


def _fill_rest(draft: _Draft, classes: Mapping[Class, Collection[int]], largest: int) -> None:
    """Take what is left of the packs in the order of the queue."""
    heads = {
        key: _left_of_packs(groups, key, largest, draft.taken[key])
        for key, groups in classes.items()
    }
    heap = [(group, key) for key, rest in heads.items() if (group := next(rest, None)) is not None]
    heapq.heapify(heap)
    while heap and draft.left:
        group, key = heap[0]
        following = next(heads[key], None) if draft.take(key, group) else None
        if following is None:
            heapq.heappop(heap)
        else:
            heapq.heapreplace(heap, (following, key))


def _left_of_packs(groups: Iterable[int], key: Class, largest: int, taken: int) -> Iterator[int]:
    position = 0
    for _, _, pack in _packs(iter(groups), key[1], largest):
        for group in pack:
            if position >= taken:
                yield group
            position += 1


class Buffer:
    """Groups of an environment whose sizes are not its group size, until some of them add up to it.

    Which: the first that fit one after the other; else any that add up, later ones preferred.
    What has been tried is kept, so that a buffer in which nothing adds up costs each new group the same.
    """

    def __init__(self, target: int, groups: Iterable[tuple[int, int]] = ()) -> None:
        """`groups`: numbers and rows of those it begins with, oldest first."""
        self.target = target
        self.rows = 0
        self._groups: list[tuple[int, int]] = []
        self._greedy: list[int] = []
        self._greedy_rows = 0
        self._sums = [
            1
        ]  # bit n of the i-th: whether some of the first i groups have n rows together
        for group, rows in groups:
            self._push(group, rows)

    def __len__(self) -> int:
        return len(self._groups)

    @property
    def groups(self) -> list[tuple[int, int]]:
        """Numbers and rows of its groups, oldest first."""
        return list(self._groups)

    @property
    def hopeless(self) -> int:
        """How many of its groups are too large ever to leave it."""
        return sum(rows > self.target for _, rows in self._groups)

    def add(self, group: int, rows: int) -> list[int]:
        """Put a group in. Returns those that add up now, in the buffer's order; they are for `without`."""
        self._push(group, rows)
        if self._greedy_rows == self.target:
            return [self._groups[index][0] for index in self._greedy]
        if self._sums[-1] >> self.target & 1:
            return [self._groups[index][0] for index in sorted(self._any_sum())]
        return []

    def without(self, groups: Iterable[int]) -> Buffer:
        """What is left when these have gone."""
        gone = set(groups)
        return Buffer(self.target, (entry for entry in self._groups if entry[0] not in gone))

    def _push(self, group: int, rows: int) -> None:
        reachable = self._sums[-1]
        self._sums.append(reachable | reachable << rows & (2 << self.target) - 1)
        if self._greedy_rows + rows <= self.target:
            self._greedy.append(len(self._groups))
            self._greedy_rows += rows
        self._groups.append((group, rows))
        self.rows += rows

    def _any_sum(self) -> list[int]:
        left, found = self.target, []
        for index in range(len(self._groups) - 1, -1, -1):
            rows = self._groups[index][1]
            if rows <= left and self._sums[index] >> (left - rows) & 1:
                found.append(index)
                left -= rows
        return found
