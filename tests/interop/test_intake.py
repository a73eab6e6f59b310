"""Groups are checked when they come in, and come out as they were."""

import json
from typing import Any

import pytest

from tests.interop.api import GROUP_KEYS, Api, group, marks

QUESTION = {"role": "user", "content": "What is six times seven?"}
ANSWER = {"role": "assistant", "content": "Forty-two."}


def one_row(**more: Any) -> dict[str, Any]:
    """A group of one sequence of three tokens."""
    return group(1, **more)


def taken(api: Api, *groups: dict[str, Any]) -> list[dict[str, Any]]:
    """The groups as the trainer gets them, sent one by one."""
    rows = sum(len(each["tokens"]) for each in groups)
    api.start(batch_size=rows)
    for each in groups:
        assert api.post("/scored_data", each) == {"status": "received"}
    batch = api.batch()
    assert batch is not None
    return batch


def test_a_group_comes_out_with_every_key_and_null_for_what_it_did_not_have(api: Api):
    (got,) = taken(api, group(2, mark=5))
    assert set(got) >= GROUP_KEYS
    sent = group(2, mark=5)
    assert {name: got[name] for name in sent} == sent
    assert all(got[name] is None for name in GROUP_KEYS - set(sent))


FULL: dict[str, Any] = {
    "tokens": [[1, 2, 3], [1, 4]],
    "masks": [[-100, 2, 3], [-100, 4]],
    "scores": [1.0, -0.25],
    "advantages": [[0.5, 0.5, 0.5], [-0.5, -0.5]],
    "ref_logprobs": [[0.0, -1.5, -0.125], [0.0, -2.0]],
    "messages": [[QUESTION, ANSWER], [QUESTION | {"reward": None}, ANSWER | {"reward": 0.5}]],
    "generation_params": {"temperature": 0.7, "stop": ["x"]},
    "inference_logprobs": [[1.0, -0.7, -0.2], [1.0, -3.14159]],
    "overrides": [{"temperature": 0.5}, {"set_advantage_to_zero": True}],
    "group_overrides": {"sft": True, "group_size": 2},
    "images": ["aGVsbG8=", None],
    "distill_token_ids": [[[], [7, 8], [9]], [[], [1]]],
    "distill_logprobs": [[[], [-0.5, -1.5], [-0.25]], [[], [-1.0]]],
}


def test_everything_a_group_may_carry_comes_out_as_it_went_in(api: Api):
    (got,) = taken(api, FULL)
    assert {name: got[name] for name in FULL} == FULL


def test_groups_keep_their_own_extras_and_their_order(api: Api):
    first = one_row(mark=1, overrides=[{"temperature": 0.5}], messages=[[QUESTION, ANSWER]])
    second = one_row(mark=2, generation_params={"temperature": 0.8})
    got = taken(api, first, second)
    assert marks(got) == [1, 2]
    assert got[0]["overrides"] == first["overrides"]
    assert got[0]["messages"] == first["messages"]
    assert got[0]["generation_params"] is None
    assert got[1]["overrides"] is None
    assert got[1]["generation_params"] == second["generation_params"]


def test_supervised_groups_are_counted_and_keep_their_overrides(api: Api):
    api.start(batch_size=4)
    supervised = {"group_overrides": {"sft": True}, "overrides": [{"sft": True}]}
    for mark in range(4):
        api.send(1, mark=mark, messages=[[QUESTION, ANSWER]], **supervised)
    assert api.status()["queue_size"] == 4
    batch = api.batch()
    assert batch is not None
    assert [{name: got[name] for name in supervised} for got in batch] == [supervised] * 4


CONVERSATIONS: dict[str, list[Any]] = {
    "none at all": [],
    "without rewards": [[QUESTION, ANSWER]],
    "with rewards of null": [[QUESTION | {"reward": None}, ANSWER | {"reward": None}]],
    "with a reward here and there": [[QUESTION, ANSWER | {"reward": 0.9}]],
    "a reward of zero": [[QUESTION, ANSWER | {"reward": 0.0}]],
    "with the results of tools": [[QUESTION, ANSWER, {"role": "tool", "content": "42"}, ANSWER]],
    "in roles nobody knows": [[{"role": "narrator", "content": "Meanwhile"}, ANSWER]],
    "with keys nobody knows": [[QUESTION | {"cost": 3, "more": {"deep": [1, None, True]}}, ANSWER]],
    "in parts": [
        [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,"}}]}]
    ],
    "content that is an object": [[{"role": "user", "content": {"a": {"b": ["c", 1]}}}, ANSWER]],
    "content that is a list of texts": [[QUESTION, {"role": "assistant", "content": ["a", "b"]}]],
    "content of null": [[QUESTION, {"role": "assistant", "content": None, "tool_calls": []}]],
    "empty and blank contents": [[{"role": "user", "content": ""}, {"role": "a", "content": " "}]],
    "in other scripts": [
        [{"role": "user", "content": "žluťoučký 世界 🌍 \n\t\r \" ' \\ / \u0000"}]
    ],
    "very long": [[{"role": "user", "content": "A" * 20_000}, ANSWER]],
}


@pytest.mark.parametrize("messages", CONVERSATIONS.values(), ids=CONVERSATIONS)
def test_conversations_come_out_as_they_went_in(api: Api, messages: list[Any]):
    (got,) = taken(api, one_row(messages=messages))
    assert got["messages"] == messages


@pytest.mark.parametrize("key", ["role", "content"])
@pytest.mark.parametrize("where", [0, 1])
def test_a_message_needs_a_role_and_a_content(api: Api, key: str, where: int):
    api.start()
    conversation = [dict(QUESTION), dict(ANSWER)]
    del conversation[where][key]
    answer = api.http.post("/scored_data", json=one_row(messages=[conversation]))
    assert answer.status_code == 422
    assert api.status()["queue_size"] == 0


@pytest.mark.parametrize("key", ["tokens", "masks", "scores"])
def test_tokens_masks_and_scores_are_needed(api: Api, key: str):
    api.start()
    body = one_row()
    del body[key]
    assert api.http.post("/scored_data", json=body).status_code == 422


WRONG: dict[str, dict[str, Any]] = {
    "tokens that are fractions": {"tokens": [[1, 2, 1.5]]},
    "tokens that are words": {"tokens": [["a", "b", "c"]]},
    "tokens that are null": {"tokens": [[1, None, 2]]},
    "tokens that are no lists": {"tokens": [1, 2, 3]},
    "scores that are words": {"scores": ["good"]},
    "scores that are null": {"scores": [None]},
    "log-probs that are null": {"inference_logprobs": [[None, -1.0, -1.0]]},
    "overrides that are null": {"overrides": [None]},
    "overrides that are no list": {"overrides": {"sft": True}},
    "group overrides that are a list": {"group_overrides": []},
    "messages that are texts": {"messages": [["hello"]]},
    "an environment's id that is a word": {"env_id": "x"},
    "generation parameters that are a list": {"generation_params": [1]},
    "distilled ids that are flat": {"distill_token_ids": [[1, 2, 3]]},
}


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
def test_values_of_another_type_are_refused(api: Api, wrong: dict[str, Any]):
    api.start()
    assert api.http.post("/scored_data", json=one_row() | wrong).status_code == 422
    assert api.status()["queue_size"] == 0


@pytest.mark.parametrize("tokens", [[1.0, 2.0, 3.0], ["1", "2", "3"], [True, 2, 3]])
def test_numbers_written_otherwise_are_taken_for_what_they_are(api: Api, tokens: list[Any]):
    (got,) = taken(api, one_row() | {"tokens": [tokens]})
    assert got["tokens"] == [[1, 2, 3]]


def test_keys_nobody_knows_are_dropped(api: Api):
    (got,) = taken(api, one_row(surprise=1))
    assert "surprise" not in got


def test_a_list_of_groups_is_taken_in_one_request(api: Api):
    api.start(batch_size=6)
    many = [group(2, mark=mark) for mark in range(3)]
    assert api.post("/scored_data_list", many) == {"status": "received", "groups_processed": 3}
    assert api.status()["queue_size"] == 3
    assert marks(api.batch()) == [0, 1, 2]


def test_an_empty_list_of_groups_is_nothing(api: Api):
    api.start()
    assert api.post("/scored_data_list", []) == {"status": "received", "groups_processed": 0}


def test_of_a_list_with_a_wrong_group_nothing_is_stored(api: Api):
    api.start()
    many = [group(2), {"tokens": [[1]]}]
    assert api.http.post("/scored_data_list", json=many).status_code == 422
    assert api.status()["queue_size"] == 0


def test_there_is_a_latest_example_before_any_came(fresh_api: Api):
    fresh_api.register()
    latest = fresh_api.get("/latest_example")
    assert latest["tokens"] == latest["masks"] == latest["scores"] == latest["messages"] == []


def test_the_latest_example_is_the_last_group_whole(api: Api):
    api.start()
    api.send(1, mark=1)
    api.post("/scored_data", FULL)
    latest = api.get("/latest_example")
    assert set(latest) >= GROUP_KEYS
    assert {name: latest[name] for name in FULL} == FULL


def test_the_latest_example_outlives_its_batch_and_a_reset(api: Api):
    api.start(batch_size=1)
    api.send(1, mark=77)
    assert api.batch()
    api.reset()
    assert api.get("/latest_example")["tokens"][0][0] == 77


def test_a_group_of_no_environment_or_an_unknown_one_is_queued(api: Api):
    api.start(batch_size=4)
    for env_id in (None, 5):
        body = json.dumps(group(2, env_id=env_id) | {"env_id": env_id})
        headers = {"content-type": "application/json"}
        answer = api.http.post("/scored_data", content=body, headers=headers)
        assert answer.json() == {"status": "received"}
    batch = api.batch()
    assert batch is not None
    assert [each["env_id"] for each in batch] == [None, 5]
