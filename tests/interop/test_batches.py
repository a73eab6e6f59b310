"""Which groups make a batch, in what order, and what of them is told by the status."""

import pytest

from tests.interop.api import Api, marks


def send(api: Api, *sizes: int) -> None:
    """One group of each size, marked by its place."""
    for mark, size in enumerate(sizes):
        api.send(size, mark=mark)


def test_too_little_makes_no_batch_and_loses_nothing(api: Api):
    api.start(batch_size=8)
    send(api, 4, 2)
    assert api.batch() is None
    assert api.status() == {"current_step": 0, "queue_size": 2}


def test_a_batch_has_exactly_as_many_sequences_as_the_trainer_wants(api: Api):
    api.start(batch_size=8)
    send(api, 4, 4, 4)
    assert marks(api.batch()) == [0, 1]
    assert api.status() == {"current_step": 1, "queue_size": 1}
    assert api.batch() is None


def test_each_batch_is_a_step(api: Api):
    api.start(batch_size=2, starting_step=10)
    for step in (11, 12, 13):
        api.send(2, mark=step)
        assert marks(api.batch()) == [step]
        assert api.status()["current_step"] == step


PACKED = {
    "small groups fill a pack as large as the largest group": ((2, 4, 2), [1, 0, 2]),
    "packs go out in the order in which they are full": ((1, 2, 1, 4, 1, 1, 2), [3, 0, 2, 4, 5]),
    "one large group": ((8,), [0]),
    "two sizes": ((4, 2, 2), [0, 1, 2]),
    "many small ones": ((1,) * 8, list(range(8))),
    "a large one that came last": ((1, 1, 1, 1, 4), [0, 1, 2, 3, 4]),
}


@pytest.mark.parametrize(("sizes", "expected"), PACKED.values(), ids=PACKED)
def test_groups_of_several_sizes_are_packed(api: Api, sizes: tuple[int, ...], expected: list[int]):
    api.start(batch_size=8)
    send(api, *sizes)
    assert marks(api.batch()) == expected


def test_small_groups_that_fill_no_pack_wait_for_more(api: Api):
    api.start(batch_size=8)
    send(api, 4, 2, 4)
    assert marks(api.batch()) == [0, 2]
    api.send(4, mark=10)
    assert api.batch() is None
    api.send(2, mark=11)
    assert sorted(marks(api.batch()) or []) == [1, 10, 11]


@pytest.mark.parametrize(("batch_size", "sizes"), [(4, (3, 3, 3, 3)), (8, (3, 3, 3)), (4, (8,))])
def test_sizes_that_cannot_add_up_make_no_batch(api: Api, batch_size: int, sizes: tuple[int, ...]):
    api.start(batch_size=batch_size)
    send(api, *sizes)
    assert api.batch() is None
    assert api.status()["queue_size"] == len(sizes)


def test_a_batch_is_handed_out_once(api: Api):
    api.start(batch_size=2)
    send(api, 2)
    assert api.batch()
    assert api.batch() is None


def test_a_group_that_came_before_the_first_poll_is_in_the_first_batch(api: Api):
    api.register(batch_size=2)
    send(api, 2)
    assert marks(api.batch()) == [0]


def test_a_queue_longer_than_a_batch_gives_batches_until_it_is_too_short(api: Api):
    api.start(batch_size=4)
    send(api, *(2 for _ in range(7)))
    batches = [marks(api.batch()) for _ in range(4)]
    assert sorted(batches[:3], key=str) == [[0, 1], [2, 3], [4, 5]]
    assert batches[3] is None
    assert api.status() == {"current_step": 3, "queue_size": 1}
