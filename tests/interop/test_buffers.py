"""Groups of another size than their environment registered wait in its buffer until some add up to it."""

import pytest

from tests.interop.api import Api, group, marks

HELD = {
    "two halves": (4, (2, 2), [2, 0], [0, 1]),
    "four quarters": (4, (1, 1, 1, 1), [1, 2, 3, 0], [0, 1, 2, 3]),
    "a later one that fits is taken first": (4, (3, 2, 1), [3, 5, 2], [0, 2]),
    "those that add up, when the first do not": (6, (3, 2, 2, 2), [3, 5, 7, 3], [1, 2, 3]),
    "of three, the two that add up": (8, (6, 5, 3), [6, 11, 6], [1, 2]),
}


@pytest.mark.parametrize(("size", "sent", "left", "queued"), HELD.values(), ids=HELD)
def test_groups_leave_the_buffer_when_they_add_up(
    api: Api, size: int, sent: tuple[int, ...], left: list[int], queued: list[int]
):
    api.start(batch_size=size)
    env_id = api.register_env(group_size=size)
    answers = [api.send(rows, mark=mark, env_id=env_id) for mark, rows in enumerate(sent)]
    assert answers == [{"status": "buffered", "buffer_size": rows} for rows in left]
    assert api.status()["queue_size"] == len(queued)


def test_what_left_the_buffer_together_makes_a_batch_together(api: Api):
    api.start(batch_size=8)
    env_id = api.register_env(group_size=4)
    for mark, rows in enumerate((2, 2, 4)):
        api.send(rows, mark=mark, env_id=env_id)
    assert sorted(marks(api.batch()) or []) == [0, 1, 2]


@pytest.mark.parametrize("sent", [(3, 3, 3), (8,), (5, 3)])
def test_sizes_that_never_add_up_stay(api: Api, sent: tuple[int, ...]):
    api.start(batch_size=4)
    env_id = api.register_env(group_size=4)
    total = 0
    for rows in sent:
        total += rows
        answer = api.send(rows, env_id=env_id)
        assert answer == {"status": "buffered", "buffer_size": total}
    assert api.status()["queue_size"] == 0
    assert api.batch() is None


def test_a_buffered_group_is_no_latest_example_yet(api: Api):
    api.start()
    env_id = api.register_env(group_size=4)
    api.send(4, mark=1, env_id=env_id)
    api.send(2, mark=2, env_id=env_id)
    assert api.get("/latest_example")["tokens"][0][0] == 1


def test_each_environment_has_a_buffer_of_its_own(api: Api):
    api.start(batch_size=4)
    first, second = (api.register_env(group_size=4) for _ in range(2))
    assert api.send(2, env_id=first)["buffer_size"] == 2
    assert api.send(2, env_id=second)["buffer_size"] == 2
    assert api.status()["queue_size"] == 0


def test_a_group_of_the_right_size_passes_by_the_buffer(api: Api):
    api.start(batch_size=4)
    env_id = api.register_env(group_size=4)
    api.send(2, env_id=env_id)
    assert api.send(4, mark=9, env_id=env_id) == {"status": "received"}
    assert marks(api.batch()) == [9]


def test_a_list_tells_how_many_were_buffered(api: Api):
    api.start(batch_size=8)
    env_id = api.register_env(group_size=4)
    many = [group(rows, env_id=env_id) for rows in (4, 2, 1)]
    assert api.post("/scored_data_list", many) == {
        "status": "received",
        "groups_processed": 3,
        "buffered": 2,
        "last_buffer_size": 3,
    }
    assert api.status()["queue_size"] == 1
