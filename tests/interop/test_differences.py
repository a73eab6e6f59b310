"""Where ours differs from Atropos' server on purpose. Each test is a sentence of what its users get instead."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.interop.api import Api, group, marks
from tests.interop.servers import AgentEnvServer

Start = Callable[..., AgentEnvServer]
JSON = {"content-type": "application/json"}
_WITHIN_S, _POLL_S = 30.0, 0.05


def test_the_oldest_groups_are_handed_out_first(ours: Api):
    ours.start(batch_size=2)
    for mark in range(5):
        ours.send(2, mark=mark)
    assert [marks(ours.batch()) for _ in range(6)] == [[0], [1], [2], [3], [4], None]


def test_the_step_counts_the_batches_that_were_handed_out(ours: Api):
    ours.start(batch_size=2, starting_step=3)
    for mark in range(3):
        ours.send(2, mark=mark)
    steps = []
    while ours.batch():
        steps.append(ours.status()["current_step"])
    assert steps == [4, 5, 6]


def test_a_batch_that_was_not_taken_is_still_counted_as_queued(ours: Api):
    ours.start(batch_size=2)
    env_id = ours.register_env(group_size=2)
    for _ in range(3):
        ours.send(2, env_id=env_id)
    assert ours.batch()
    assert ours.status()["queue_size"] == 2
    assert ours.status_env(env_id)["queue_size"] == 2


def test_a_trainer_that_registers_after_data_came_gets_them(ours: Api):
    ours.send(2, mark=4)
    ours.register(batch_size=2)
    assert ours.get("/info")["batch_size"] == 2
    assert marks(ours.batch()) == [4]


def test_a_poll_between_a_reset_and_the_next_trainer_breaks_nothing(ours: Api):
    assert not ours.get("/batch")["batch"]
    ours.start(batch_size=2)
    assert ours.register_env() == 0
    ours.send(2, mark=1)
    assert marks(ours.batch()) == [1]


WRONG: dict[str, dict[str, Any]] = {
    "a mask for each token": {"masks": [[-100, 1], [-100, 1, 2]]},
    "masks for each row": {"masks": [[-100, 1, 2]]},
    "a score for each row": {"scores": [1.0]},
    "log-probs for each row": {"inference_logprobs": [[1.0, -1.0, -1.0]]},
    "a log-prob for each token": {"inference_logprobs": [[1.0, -1.0], [1.0, -1.0, -1.0]]},
    "an advantage for each token": {"advantages": [[1.0, 1.0, 1.0], [1.0, 1.0, 1.0, 1.0]]},
    "rows at all": {"tokens": [], "masks": [], "scores": []},
    "tokens in each row": {"tokens": [[0, 1, 2], []], "masks": [[-100, 1, 2], []]},
    "ids that are not negative": {"tokens": [[0, -1, 2], [0, 1, 2]]},
    "ids of 32 bits": {"tokens": [[0, 2**31, 2], [0, 1, 2]]},
}


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
def test_a_group_needs(ours: Api, wrong: dict[str, Any]):
    ours.start(batch_size=2)
    answer = ours.http.post("/scored_data", json=group(2) | wrong)
    assert answer.status_code == 422
    (problem,) = answer.json()["detail"]
    assert set(problem["loc"]) & set(wrong)
    assert problem["msg"]
    assert ours.status()["queue_size"] == 0


def test_advantages_of_another_length_are_taken_by_a_server_that_was_told_to(start_ours: Start):
    server = start_ours("--accept-misaligned-advantages")
    advantages = [[1.0], [1.0, 1.0, 1.0, 1.0]]
    with Api(server.url) as api:
        api.start(batch_size=2)
        api.send(2, advantages=advantages)
        assert [got["advantages"] for got in api.batch() or []] == [advantages]


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
@pytest.mark.parametrize("key", ["scores", "inference_logprobs", "advantages"])
def test_a_number_that_is_none_is_refused_where_it_comes_in(ours: Api, key: str, number: str):
    ours.start(batch_size=2)
    rows: Any = ["X", 1.0] if key == "scores" else [[1.0, "X", -1.0], [1.0, -1.0, -1.0]]
    body = json.dumps(group(2) | {key: rows}).replace('"X"', number)
    answer = ours.http.post("/scored_data", content=body, headers=JSON)
    assert 400 <= answer.status_code <= 422
    assert ours.status()["queue_size"] == 0
    ours.send(2)
    assert ours.batch()


def test_of_a_list_with_a_wrong_group_the_refusal_says_which(ours: Api):
    ours.start(batch_size=2)
    many = [group(2), group(2) | {"scores": [1.0]}]
    answer = ours.http.post("/scored_data_list", json=many)
    assert answer.status_code == 422
    assert 1 in answer.json()["detail"][0]["loc"]
    assert ours.status()["queue_size"] == 0


def test_a_group_larger_than_a_batch_stands_in_nobodys_way_and_is_shown(ours: Api):
    ours.start(batch_size=4)
    ours.send(8, mark=1)
    ours.send(4, mark=2)
    assert marks(ours.batch()) == [2]
    assert ours.batch() is None
    assert ours.get("/status")["unpackable"]


def test_an_environment_of_no_weight_may_still_ask(ours: Api):
    ours.start()
    env_id = ours.register_env(weight=0.0)
    assert ours.status_env(env_id)["env_weight"] > 0


def test_an_unknown_environment_is_told_so(ours: Api):
    ours.start()
    answer = ours.ask_status_env(3)
    assert 400 <= answer.status_code < 500
    assert "3" in answer.text


def test_an_environment_that_vanished_blocks_no_batch_for_long(start_ours: Start):
    server = start_ours("--env-timeout-s", "1")
    with Api(server.url) as api:
        api.start(batch_size=4)
        gone = api.register_env(min_batch_allocation=0.5)
        other = api.register_env()
        for mark in range(2):
            api.send(2, mark=mark, env_id=other)
        assert marks(until_batch(api)) == [0, 1]
        api.send(2, mark=9, env_id=gone)
        assert api.status_env(gone)["unallocated_fraction"] == 0.5


def until_batch(api: Api) -> list[dict[str, Any]]:
    """The next batch, asked for until it is there."""
    found: list[dict[str, Any]] = []

    def there() -> bool:
        found.extend(api.batch() or [])
        return bool(found)

    until(there, "there is a batch")
    return found


def until(condition: Callable[[], object], what: str) -> None:
    """Return when `condition()` is true."""
    deadline = time.monotonic() + _WITHIN_S
    while not condition():
        assert time.monotonic() < deadline, f"not within {_WITHIN_S:g} s: {what}"
        time.sleep(_POLL_S)


def test_a_killed_server_goes_on_where_it_was(tmp_path: Path):
    with AgentEnvServer(tmp_path) as server:
        with Api(server.url) as api:
            api.start(batch_size=4, starting_step=10)
            env_id = api.register_env(group_size=4)
            for mark in range(3):
                api.send(4, mark=mark, env_id=env_id)
            api.send(2, mark=7, env_id=env_id)
            assert marks(api.batch()) == [0]
            until(lambda: not api.get("/status")["leases"], "the batch is known to have arrived")
        server.kill()
        server.start()
        with Api(server.url) as api:
            assert api.get("/info") == {"batch_size": 4, "max_token_len": 512}
            assert api.status() == {"current_step": 11, "queue_size": 2}
            assert api.status_env(env_id)["self_queue_size"] == 2
            assert api.get("/latest_example")["tokens"][0][0] == 2
            assert api.send(2, mark=8, env_id=env_id) == {"status": "buffered", "buffer_size": 0}
            taken = [marks(api.batch()) for _ in range(4)]
            assert taken == [[1], [2], [7, 8], None]


def test_groups_in_a_trainers_hands_and_new_ones_are_kept_apart_over_a_kill(tmp_path: Path):
    with AgentEnvServer(tmp_path) as server:
        with Api(server.url) as api:
            api.start(batch_size=4)
            for mark in range(2):
                api.send(2, mark=mark)
            held = api.get("/batch?consumer=a")
            assert marks(held["batch"]) == [0, 1]
        server.kill()
        server.start()
        with Api(server.url) as api:
            for mark in range(2, 4):
                api.send(2, mark=mark)
            again = api.get("/batch?consumer=a")
            assert (again["batch_id"], marks(again["batch"])) == (held["batch_id"], [0, 1])
            api.post("/batch/acknowledge", {"batch_id": held["batch_id"], "consumer": "a"})
            assert marks(api.get("/batch?consumer=a")["batch"]) == [2, 3]


def test_a_trainer_that_acknowledges_gets_its_batch_until_it_has(ours: Api):
    ours.start(batch_size=2)
    for mark in range(3):
        ours.send(2, mark=mark)
    first = ours.get("/batch?consumer=a")
    other = ours.get("/batch?consumer=b")
    assert ours.get("/batch?consumer=a") == first
    assert [marks(got["batch"]) for got in (first, other)] == [[0], [1]]
    body = {"batch_id": first["batch_id"], "consumer": "a"}
    for _ in range(2):
        assert ours.post("/batch/acknowledge", body)["status"] == "success"
    assert marks(ours.get("/batch?consumer=a")["batch"]) == [2]
    wrong = ours.http.post("/batch/acknowledge", json=body | {"consumer": "b"})
    assert wrong.status_code == 409
    assert ours.http.post("/batch/acknowledge", json=body | {"batch_id": 99}).status_code == 404


def test_a_reply_that_never_reached_the_trainer_is_given_again(ours: Api):
    ours.start(batch_size=2)
    ours.send(2, mark=5, length=200_000)
    with (
        httpx.Client(base_url=ours.http.base_url, trust_env=False) as leaver,
        leaver.stream("GET", "/batch", headers={"accept-encoding": "identity"}) as answer,
    ):
        assert answer.status_code == 200
        next(answer.iter_raw(1_000))
    assert marks(until_batch(ours)) == [5]


def test_a_group_sent_twice_under_one_name_is_there_once(ours: Api):
    ours.start(batch_size=2)
    first = ours.send(2, mark=1, group_id="a")
    assert ours.send(2, mark=1, group_id="a") == first
    assert ours.status()["queue_size"] == 1
    assert marks(ours.batch()) == [1]
    assert ours.send(2, mark=1, group_id="a") == first
    assert ours.batch() is None


def test_groups_of_too_old_a_policy_are_dropped_and_counted(start_ours: Start):
    server = start_ours("--max-staleness", "1")
    with Api(server.url) as api:
        api.start(batch_size=2, starting_step=10)
        for mark, version in enumerate((8, 9, 10, None)):
            api.send(2, mark=mark, **({} if version is None else {"policy_version": version}))
        assert marks(api.batch()) == [1]
        assert marks(api.batch()) == [2]
        assert marks(api.batch()) == [3]
        assert api.get("/status")["counts"]["dropped_as_stale"] == 1
