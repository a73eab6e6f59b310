import random
from collections.abc import Sequence

import pytest

from agentenv.api.packing import Buffer, Class, Minimum, next_batch

# ---- the rules, written down a second time: plainly, walking the whole queue ----


Queue = list[tuple[int | None, int]]


def exact_batch(queue: Queue, batch_size: int) -> list[int] | None:
    sizes = [size for _, size in queue if size <= batch_size]
    largest = max(sizes, default=0)
    pending: dict[int, list[int]] = {}
    released: list[int] = []
    for number, (_, size) in enumerate(queue):
        if size > batch_size:
            continue
        pending.setdefault(size, []).append(number)
        if len(pending[size]) * size == largest:
            released += pending.pop(size)
    batch: list[int] = []
    rows = 0
    for number in released:
        batch.append(number)
        rows += queue[number][1]
        if rows >= batch_size:
            return batch if rows == batch_size else None
    return None


def batch_with_minima(queue: Queue, batch_size: int, minima: list[Minimum]) -> list[int] | None:
    sizes = [size for _, size in queue if size <= batch_size]
    largest = max(sizes, default=0)
    pending: dict[tuple[int, int], list[int]] = {}
    packable: dict[int, list[int]] = {}
    for number, (env, size) in enumerate(queue):
        if env is None or size > batch_size:
            continue
        pending.setdefault((env, size), []).append(number)
        if len(pending[env, size]) * size == largest:
            packable.setdefault(env, []).extend(pending.pop((env, size)))
    wanted = {}
    for minimum in minima:
        rows = int(batch_size * minimum.fraction)
        if rows > 0 and not packable.get(minimum.env_id):
            return None
        if rows > 0:
            wanted[minimum.env_id] = rows
    total = sum(wanted.values())
    if total > batch_size:
        wanted = {
            env: max(min(queue[n][1] for n in packable[env]), int(rows * (batch_size / total)))
            for env, rows in wanted.items()
        }
    batch: list[int] = []
    taken = 0
    for env, rows in wanted.items():
        own = 0
        for number in packable[env]:
            size = queue[number][1]
            if own >= rows:
                break
            if taken + size <= batch_size:
                batch.append(number)
                own, taken = own + size, taken + size
    rest = sorted(n for numbers in packable.values() for n in numbers if n not in batch)
    for number in rest:
        if taken + queue[number][1] <= batch_size:
            batch.append(number)
            taken += queue[number][1]
    return batch if taken == batch_size else None


def sum_in_buffer(sizes: list[int], target: int) -> list[int]:
    chosen: list[int] = []
    rows = 0
    for index, size in enumerate(sizes):
        if rows + size <= target:
            chosen.append(index)
            rows += size
            if rows == target:
                return chosen
    reach: list[set[int]] = [{0}]
    for size in sizes:
        reach.append(reach[-1] | {rows + size for rows in reach[-1] if rows + size <= target})
    if target not in reach[-1]:
        return []
    chosen, left = [], target
    for index in reversed(range(len(sizes))):
        if left >= sizes[index] and left - sizes[index] in reach[index]:
            chosen.append(index)
            left -= sizes[index]
    return sorted(chosen)


def classes_of(queue: Sequence[tuple[int | None, int]]) -> dict[Class, dict[int, None]]:
    classes: dict[Class, dict[int, None]] = {}
    for number, key in enumerate(queue):
        classes.setdefault(key, {})[number] = None
    return classes


@pytest.mark.parametrize("seed", range(8))
def test_batches_are_those_of_the_plain_rules_until_the_queue_is_dry(seed: int):
    draw = random.Random(seed)
    for _ in range(150):
        sizes = draw.choice([(1, 2, 4, 8), (2, 3, 4, 6), (8,), (1, 4), (16, 4, 2)])
        envs = draw.choice([(0,), (0, 1), (None, 0, 1, 2)])
        queue: Queue = [(draw.choice(envs), draw.choice(sizes)) for _ in range(draw.randrange(40))]
        batch_size = draw.choice([4, 8, 12, 16])
        minima = [
            Minimum(env, draw.choice([0.0, 0.25, 0.5, 0.9]))
            for env in (0, 1)
            if draw.random() < 0.6
        ]
        while True:
            expected = (
                batch_with_minima(queue, batch_size, minima)
                if minima
                else exact_batch(queue, batch_size)
            )
            assert next_batch(classes_of(queue), batch_size, minima) == expected
            if expected is None:
                break
            queue = [key for number, key in enumerate(queue) if number not in expected]


def test_a_group_larger_than_a_batch_does_not_hold_up_the_others():
    assert next_batch(classes_of([(0, 8), (0, 2), (0, 2)]), 4) == [1, 2]


def test_sizes_that_never_add_up_make_no_batch():
    assert next_batch(classes_of([(0, 3)] * 4), 4) is None
    assert next_batch(classes_of([(0, size) for size in (2, 2, 3, 3, 2, 3)]), 12) is None


def test_a_batch_waits_for_an_environment_that_is_to_have_a_share():
    queue = [(0, 4), (0, 4)]
    assert next_batch(classes_of(queue), 8, [Minimum(0, 0.5), Minimum(1, 0.25)]) is None
    assert next_batch(classes_of([*queue, (1, 4)]), 8, [Minimum(0, 0.5), Minimum(1, 0.25)]) == [
        0,
        2,
    ]


def test_nothing_makes_no_batch():
    assert next_batch({}, 4) is None
    assert next_batch(classes_of([(0, 2), (0, 2)]), -1) is None


@pytest.mark.parametrize("seed", range(8))
def test_a_buffer_releases_what_the_plain_rules_release(seed: int):
    draw = random.Random(seed)
    for _ in range(100):
        target = draw.choice([4, 8, 11])
        buffer = Buffer(target)
        plain: list[tuple[int, int]] = []
        for number in range(30):
            rows = draw.randrange(1, target + 2)
            plain.append((number, rows))
            chosen = sum_in_buffer([size for _, size in plain], target)
            released = buffer.add(number, rows)
            assert released == [plain[index][0] for index in chosen]
            buffer = buffer.without(released) if released else buffer
            plain = [entry for entry in plain if entry[0] not in released]
            assert buffer.rows == sum(size for _, size in plain)
            assert len(buffer) == len(plain)


def test_a_buffer_tells_how_many_of_its_groups_can_never_leave():
    buffer = Buffer(4, [(0, 5), (1, 3)])
    assert buffer.hopeless == 1
