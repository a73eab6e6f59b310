"""Environments that asked for a least share of every batch."""

from tests.interop.api import Api, marks


def send(api: Api, env_id: int | None, count: int, *, first: int = 0, size: int = 2) -> None:
    """Groups of one environment, marked from `first` on."""
    for mark in range(first, first + count):
        api.send(size, mark=mark, env_id=env_id)


def test_an_environment_gets_its_share_before_groups_that_came_earlier(api: Api):
    api.start(batch_size=8)
    sharing, other = api.register_env(min_batch_allocation=0.5), api.register_env()
    send(api, other, 6, first=10)
    send(api, sharing, 2)
    assert marks(api.batch()) == [0, 1, 10, 11]
    assert api.status()["queue_size"] == 4


def test_without_data_of_that_environment_there_is_no_batch(api: Api):
    api.start(batch_size=8)
    api.register_env(min_batch_allocation=0.5)
    other = api.register_env()
    send(api, other, 8)
    assert api.batch() is None
    assert api.status() == {"current_step": 0, "queue_size": 8}


def test_an_environment_that_took_its_leave_is_not_waited_for(api: Api):
    api.start(batch_size=8)
    sharing, other = api.register_env(min_batch_allocation=0.5), api.register_env()
    send(api, other, 4)
    api.post("/disconnect-env", {"env_id": sharing})
    assert marks(api.batch()) == [0, 1, 2, 3]


def test_shares_that_add_up_to_more_than_a_batch_are_scaled_down(api: Api):
    api.start(batch_size=8)
    first, second = (api.register_env(min_batch_allocation=0.75) for _ in range(2))
    send(api, first, 3)
    send(api, second, 3, first=10)
    assert marks(api.batch()) == [0, 1, 10, 11]


def test_a_share_of_less_than_one_sequence_is_none(api: Api):
    api.start(batch_size=8)
    api.register_env(min_batch_allocation=0.1)
    other = api.register_env()
    send(api, other, 4)
    assert marks(api.batch()) == [0, 1, 2, 3]


def test_where_shares_are_asked_for_groups_of_no_environment_are_left_out(api: Api):
    api.start(batch_size=4)
    sharing = api.register_env(min_batch_allocation=0.5)
    send(api, None, 4, first=10)
    send(api, sharing, 2)
    assert marks(api.batch()) == [0, 1]
    assert api.status()["queue_size"] == 4


def test_groups_of_an_unknown_environment_take_what_is_left(api: Api):
    api.start(batch_size=4)
    sharing = api.register_env(min_batch_allocation=0.5)
    send(api, 7, 2, first=10)
    send(api, sharing, 1)
    assert marks(api.batch()) == [0, 10]


def test_what_exceeds_the_share_is_taken_in_the_order_in_which_it_came(api: Api):
    api.start(batch_size=8)
    sharing, other = api.register_env(min_batch_allocation=0.25), api.register_env()
    send(api, sharing, 1)
    send(api, other, 1, first=10)
    send(api, sharing, 2, first=1)
    send(api, other, 1, first=11)
    assert marks(api.batch()) == [0, 10, 1, 2]


def test_small_groups_of_a_share_are_packed_to_the_largest_size_first(api: Api):
    api.start(batch_size=8)
    sharing = api.register_env(min_batch_allocation=0.5, group_size=2)
    other = api.register_env(group_size=4)
    send(api, other, 2, first=10, size=4)
    send(api, sharing, 1)
    assert api.batch() is None
    send(api, sharing, 1, first=1)
    assert marks(api.batch()) == [0, 1, 10]


def test_shares_hold_for_one_batch_after_the_other(api: Api):
    api.start(batch_size=4)
    sharing, other = api.register_env(min_batch_allocation=0.5), api.register_env()
    send(api, other, 2, first=10)
    send(api, sharing, 1)
    assert marks(api.batch()) == [0, 10]
    send(api, sharing, 1, first=1)
    assert marks(api.batch()) == [1, 11]
    assert api.status() == {"current_step": 2, "queue_size": 0}
