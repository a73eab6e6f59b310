"""The numbers by which environments throttle themselves."""

import pytest

from tests.interop.api import Api


def test_an_environment_alone_on_an_empty_server(api: Api):
    api.start(starting_step=3)
    env_id = api.register_env(group_size=4)
    assert (
        api.status_env(env_id).items()
        >= {
            "current_step": 3,
            "queue_size": 0,
            "unallocated_fraction": 1.0,
            "self_queue_size": 0,
            "max_group_size": 1,
            "env_weight": 1.0,
        }.items()
    )


def test_the_body_comes_with_a_get(api: Api):
    api.start()
    env_id = api.register_env()
    assert api.http.get("/status-env", params={"env_id": env_id}).status_code == 422


@pytest.mark.parametrize("env_id", [9, "x", None])
def test_unknown_environments_are_refused(api: Api, env_id: object):
    api.start()
    api.register_env()
    assert api.ask_status_env(env_id).status_code >= 400


def test_weights_are_shares_of_weight_times_length_among_those_that_are_there(api: Api):
    api.start()
    shares = [
        api.register_env(max_token_length=length, weight=weight)
        for length, weight in ((1000, 1.0), (3000, 1.0), (1000, 4.0))
    ]
    assert [api.status_env(env_id)["env_weight"] for env_id in shares] == [0.125, 0.375, 0.5]
    api.post("/disconnect-env", {"env_id": shares[2]})
    assert [api.status_env(env_id)["env_weight"] for env_id in shares[:2]] == [0.25, 0.75]


@pytest.mark.parametrize("weight", [0.0, -3.0, 0.001])
def test_no_environment_is_starved_altogether(api: Api, weight: float):
    api.start()
    api.register_env()
    assert api.status_env(api.register_env(weight=weight))["env_weight"] == 0.01


def test_what_nobody_has_asked_a_share_of_is_told(api: Api):
    api.start()
    first = api.register_env(min_batch_allocation=0.25)
    second = api.register_env(min_batch_allocation=0.5)
    third = api.register_env()
    assert api.status_env(third)["unallocated_fraction"] == 0.25
    api.post("/disconnect-env", {"env_id": second})
    assert api.status_env(third)["unallocated_fraction"] == 0.75
    api.register_env(min_batch_allocation=0.9)
    assert api.status_env(first)["unallocated_fraction"] == 0.0


def test_the_queue_is_counted_in_groups_of_the_one_who_asks(api: Api):
    api.start(batch_size=64)
    large, small = api.register_env(group_size=4), api.register_env(group_size=2)
    for _ in range(3):
        api.send(4, env_id=large)
    api.send(2, env_id=small)
    # 12 sequences of its own and 2 of the other, which count as a whole group of the largest size.
    assert (
        api.status_env(large).items()
        >= {
            "queue_size": 4,
            "self_queue_size": 3,
            "max_group_size": 4,
        }.items()
    )
    assert (
        api.status_env(small).items()
        >= {
            "queue_size": 7,
            "self_queue_size": 1,
            "max_group_size": 4,
        }.items()
    )


def test_what_is_set_aside_for_another_environment_does_not_count(api: Api):
    api.start(batch_size=16)
    sharing = api.register_env(group_size=4, min_batch_allocation=0.5)
    other = api.register_env(group_size=4)
    for _ in range(3):
        api.send(4, env_id=sharing)
    assert api.status_env(other)["queue_size"] == 1
    assert api.status_env(sharing)["queue_size"] == 3


def test_among_groups_of_one_those_of_others_do_not_count(api: Api):
    api.start(batch_size=64)
    first, second = (api.register_env(group_size=1) for _ in range(2))
    for env_id in (first, first, second):
        api.send(1, env_id=env_id)
    assert api.status_env(first)["queue_size"] == 2
    assert api.status_env(second)["queue_size"] == 1


def test_groups_of_no_environment_count_as_anothers(api: Api):
    api.start(batch_size=64)
    env_id = api.register_env(group_size=2)
    for _ in range(3):
        api.send(2)
    status = api.status_env(env_id)
    assert (status["queue_size"], status["self_queue_size"]) == (3, 0)


def test_steps_and_an_emptied_queue_show(api: Api):
    api.start(batch_size=4)
    env_id = api.register_env(group_size=2)
    for _ in range(2):
        api.send(2, env_id=env_id)
    assert api.status_env(env_id)["queue_size"] == 2
    assert api.batch()
    status = api.status_env(env_id)
    assert (status["current_step"], status["queue_size"], status["max_group_size"]) == (1, 0, 1)


def test_an_environment_whose_groups_are_larger_than_it_said_is_counted_in_those(api: Api):
    api.start(batch_size=64)
    api.send(4, env_id=0)
    env_id = api.register_env(group_size=2)
    status = api.status_env(env_id)
    assert (status["queue_size"], status["self_queue_size"]) == (1, 1)


@pytest.mark.parametrize("length", [0, 2048])
def test_an_environment_is_told_of_a_start(api: Api, length: int):
    api.start()
    api.register_env()
    env_id = api.register_env(max_token_length=length)
    assert 0.01 <= api.status_env(env_id)["env_weight"] <= 0.5
