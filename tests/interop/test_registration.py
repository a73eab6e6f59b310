"""Trainers and environments register, and what the server tells each of them."""

import json
from typing import Any

import pytest

from tests.interop.api import ENV, TRAINER, Api, group


def test_a_trainer_is_given_a_number_as_its_id(api: Api):
    assert isinstance(api.register()["uuid"], int)


@pytest.mark.parametrize("name", sorted(TRAINER))
@pytest.mark.parametrize("how", ["missing", "null"])
def test_every_field_of_a_trainer_is_needed(api: Api, name: str, how: str):
    body: dict[str, Any] = TRAINER | {name: None}
    if how == "missing":
        del body[name]
    assert api.http.post("/register", json=body).status_code == 422


def test_info_tells_what_the_trainer_registered(api: Api):
    api.register(batch_size=24, max_token_len=99)
    assert api.get("/info") == {"batch_size": 24, "max_token_len": 99}


def test_a_second_trainer_gets_an_id_of_its_own_and_changes_no_settings(api: Api):
    first, second = api.register(batch_size=24), api.register(batch_size=48)
    assert first["uuid"] != second["uuid"]
    assert api.get("/info")["batch_size"] == 24


def test_the_names_for_metrics_are_the_trainers(api: Api):
    api.register(wandb_group="g", wandb_project="p")
    assert api.get("/wandb_info") == {"group": "g", "project": "p"}


def test_a_new_server_knows_no_trainer(fresh_api: Api):
    assert fresh_api.get("/info") == {"batch_size": -1, "max_token_len": -1}
    assert fresh_api.get("/wandb_info") == {"group": None, "project": None}
    assert fresh_api.status() == {"current_step": 0, "queue_size": 0}
    assert "message" in fresh_api.get("/")


def test_a_batch_without_a_trainer_is_an_error_that_says_so(fresh_api: Api):
    answer = fresh_api.get("/batch")
    assert (answer["status"], answer["batch"]) == ("error", [])
    assert "register" in answer["message"]


def test_environments_wait_until_the_trainer_has_asked_for_a_batch(api: Api):
    api.register()
    assert api.post("/register-env", ENV)["status"] == "wait for trainer to start"
    assert api.batch() is None
    assert api.post("/register-env", ENV)["status"] == "success"


def test_an_environment_learns_where_the_trainer_stands(api: Api):
    api.start(starting_step=7, checkpoint_dir="d", save_checkpoint_interval=3, num_steps=11)
    assert (
        api.post("/register-env", ENV).items()
        >= {
            "status": "success",
            "env_id": 0,
            "wandb_name": "env_0",
            "checkpoint_dir": "d",
            "starting_step": 7,
            "checkpoint_interval": 3,
            "num_steps": 11,
        }.items()
    )


def test_an_environment_that_comes_later_starts_at_the_current_step(api: Api):
    api.start(batch_size=2, starting_step=7)
    api.send(2)
    assert api.batch()
    assert api.post("/register-env", ENV)["starting_step"] == 8


def test_environments_are_numbered_and_their_names_counted(api: Api):
    api.start()
    names = ["a", "b", "a", "a"]
    answers = [api.post("/register-env", ENV | {"desired_name": name}) for name in names]
    assert [answer["env_id"] for answer in answers] == [0, 1, 2, 3]
    assert [answer["wandb_name"] for answer in answers] == ["a_0", "b_0", "a_1", "a_2"]


@pytest.mark.parametrize("name", sorted(ENV))
@pytest.mark.parametrize("how", ["missing", "null"])
def test_every_field_of_an_environment_is_needed(api: Api, name: str, how: str):
    api.start()
    body: dict[str, Any] = ENV | {name: None}
    if how == "missing":
        del body[name]
    assert api.http.post("/register-env", json=body).status_code == 422


@pytest.mark.parametrize("share", [None, 0.5])
def test_a_least_share_of_the_batch_is_optional(api: Api, share: float | None):
    api.start()
    assert api.register_env(min_batch_allocation=share) == 0


def test_an_environment_may_take_its_leave(api: Api):
    api.start()
    env_id = api.register_env()
    assert api.post("/disconnect-env", {"env_id": env_id}) == {"status": "success"}


def test_the_leave_of_an_unknown_environment_fails_with_the_reason(api: Api):
    api.start()
    answer = api.post("/disconnect-env", {"env_id": 3})
    assert answer["status"] == "failure"
    assert answer["error"]


def test_a_reset_forgets_trainer_environments_and_data(api: Api):
    api.start(batch_size=2, starting_step=5)
    env_id = api.register_env(group_size=4)
    api.send(2, env_id=env_id)
    api.send(4)
    api.reset()
    assert api.get("/info")["batch_size"] == -1
    assert api.status() == {"current_step": 0, "queue_size": 0}
    assert api.get("/wandb_info") == {"group": None, "project": None}
    api.register(batch_size=2, starting_step=1)
    assert api.post("/register-env", ENV)["status"] == "wait for trainer to start"
    assert api.batch() is None
    assert api.register_env() == 0
    assert api.status() == {"current_step": 1, "queue_size": 0}


def test_a_reset_also_forgets_batches_that_were_formed_and_not_taken(api: Api):
    api.start(batch_size=2)
    for mark in range(3):
        api.send(2, mark=mark)
    assert api.batch()
    api.reset()
    api.start(batch_size=2)


def test_a_reset_says_so_in_plain_text(api: Api):
    answer = api.http.get("/reset_data")
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain")


@pytest.mark.parametrize("path", ["/register", "/register-env", "/scored_data", "/disconnect-env"])
@pytest.mark.parametrize("body", ["[]", '"text"', "{", "null", ""])
def test_a_body_of_another_shape_is_refused(api: Api, path: str, body: str):
    api.start()
    headers = {"content-type": "application/json"}
    assert api.http.post(path, content=body, headers=headers).status_code == 422


def test_a_body_that_is_not_said_to_be_json_is_refused(api: Api):
    api.start()
    content = json.dumps(group())
    answer = api.http.post("/scored_data", content=content, headers={"content-type": "text/plain"})
    assert answer.status_code == 422


def test_unknown_paths_and_other_methods_are_refused(api: Api):
    assert api.http.get("/nothing").status_code == 404
    assert api.http.get("/scored_data").status_code == 405
    assert api.http.post("/batch", json={}).status_code == 405
