import gzip
import json
import random
from collections.abc import Callable
from typing import Any

import pytest

from agentenv.api import reading
from agentenv.api.codec import encode_message, pack, unpack
from agentenv.api.group import scored_group, wire_group
from agentenv.api.reading import (
    InvalidBodyError,
    InvalidGzipError,
    ReadLimits,
    inflate,
    read_at_once,
    read_groups,
    read_json,
    read_message,
)
from agentenv.api.writing import KEYS, group_json
from tests.agentenv.api.groups import make_group

LIMITS = ReadLimits()


def read_one(group: dict[str, Any], limits: ReadLimits = LIMITS) -> dict[str, Any]:
    (packed,) = read_json(json.dumps(group).encode(), limits, many=False)
    back: dict[str, Any] = json.loads(group_json(packed))
    return back


def refused(group: dict[str, Any], limits: ReadLimits = LIMITS) -> dict[str, Any]:
    with pytest.raises(InvalidBodyError) as error:
        read_json(json.dumps(group).encode(), limits, many=False)
    return error.value.detail[0]


FULL = make_group(
    advantages=[[0.1, 0.2, 0.3], [1, 2, 3]],
    ref_logprobs=[[-0.5] * 3] * 2,
    messages=[[{"role": "x", "content": None, "extra": [1, {"a": 1.5}]}], []],
    generation_params={"temperature": 0.7},
    overrides=[{}, {"set_advantage_to_zero": True}],
    group_overrides={"group_size": 2},
    images=["data", None],
    env_id=3,
    distill_token_ids=[[[1], []]],
    distill_logprobs=[[[-0.5], []]],
)


def test_every_key_comes_back_and_null_where_it_was_absent():
    assert read_one(FULL) == FULL
    bare = {"tokens": [[5]], "masks": [[5]], "scores": [1]}
    assert read_one(bare) == dict.fromkeys(KEYS) | bare
    assert len(KEYS) == 14


def test_the_fast_way_and_the_slow_way_read_the_same(monkeypatch):
    fast = read_one(FULL)
    monkeypatch.setattr(reading, "_fast_groups", lambda *_, **__: None)
    assert read_one(FULL) == fast == FULL


def test_plain_numbers_go_the_fast_way(monkeypatch):
    def slow(*_, **__):
        raise AssertionError("read slowly")

    monkeypatch.setattr(reading, "_read_slowly", slow)
    assert read_one(FULL) == FULL


def test_numbers_are_coerced_as_the_protocols_server_does():
    group = {
        "tokens": [[1.0, "2", True]],
        "masks": [[-100, "2", 1]],
        "scores": ["0.5"],
        "env_id": "4",
        "inference_logprobs": [["1", -1, -0.25]],
    }
    back = read_one(group)
    assert back["tokens"] == [[1, 2, 1]]
    assert back["masks"] == [[-100, 2, 1]]
    assert (back["scores"], back["env_id"]) == ([0.5], 4)
    assert back["inference_logprobs"] == [[1.0, -1.0, -0.25]]


def test_empty_optional_lists_come_back_empty():
    keys = ("advantages", "ref_logprobs", "inference_logprobs", "messages", "overrides")
    back = read_one(make_group() | {key: [] for key in keys})
    assert [back[key] for key in keys] == [[]] * 5


def test_unknown_keys_are_dropped_and_ours_are_read():
    (packed,) = read_json(
        json.dumps(make_group(policy_version=5, group_id="x", what=1)).encode(),
        LIMITS,
        many=False,
    )
    assert (packed.policy_version, packed.group_id) == (5, "x")
    assert json.loads(group_json(packed)).keys() == {*KEYS, "policy_version"}


def test_a_mask_of_ones_is_taken_as_it_is():
    masks = [[1, 1, 1], [0, 1, 1]]
    assert read_one(make_group(masks=masks))["masks"] == masks


NAN, INFINITY = float("nan"), float("inf")
BAD: list[tuple[dict[str, Any], list[str | int]]] = [
    ({"scores": [1.0]}, ["scores"]),
    ({"scores": [1.0, NAN]}, ["scores", 1]),
    ({"scores": [1.0, INFINITY]}, ["scores", 1]),
    ({"tokens": [[1, 2, 3], [4, 5]]}, ["masks", 1]),
    ({"tokens": [[1, 2, 3], []], "masks": [[1, 2, 3], []], "inference_logprobs": None}, ["tokens", 1]),
    ({"tokens": [], "masks": [], "scores": [], "inference_logprobs": []}, ["tokens"]),
    ({"tokens": [[1, 2, -3], [4, 5, 6]]}, ["tokens", 0, 2]),
    ({"tokens": [[1, 2, 2**31], [4, 5, 6]]}, ["tokens", 0, 2]),
    ({"tokens": [[1, 2, 2**70], [4, 5, 6]]}, ["tokens", 0, 2]),
    ({"tokens": [[1, 2, 1.5], [4, 5, 6]]}, ["tokens", 0, 2]),
    ({"tokens": [[[1, 2, 3]], [4, 5, 6]]}, ["tokens", 0, 0]),
    ({"tokens": "x"}, ["tokens"]),
    ({"masks": [[-1, 2, 3], [4, 5, 6]]}, ["masks", 0, 0]),
    ({"inference_logprobs": [[1.0, NAN, -1.0], [1.0, -1.0, -1.0]]}, ["inference_logprobs", 0, 1]),
    ({"inference_logprobs": [[1.0, 1e300, -1.0]] * 2}, ["inference_logprobs", 0, 1]),
    ({"inference_logprobs": [[1.0, -1.0]] * 2}, ["inference_logprobs", 0]),
    ({"inference_logprobs": [[1.0, -1.0, -1.0]]}, ["inference_logprobs"]),
    ({"ref_logprobs": [[1.0] * 4] * 2}, ["ref_logprobs", 0]),
    ({"advantages": [[1.0] * 4] * 2}, ["advantages"]),
    ({"overrides": [{}]}, ["overrides"]),
    ({"overrides": [None, {}]}, ["overrides", 0]),
    ({"messages": [[{"role": "user"}]]}, ["messages"]),
    ({"messages": [{"role": "user", "content": ""}]}, ["messages", 0]),
    ({"env_id": "x"}, ["env_id"]),
    ({"env_id": [1]}, ["env_id"]),
    ({"env_id": 2**40}, ["env_id"]),
    ({"images": "\ud800"}, ["images"]),
    ({"group_id": "\ud800"}, ["group_id"]),
    ({"policy_version": -1}, ["policy_version"]),
    ({"group_id": "x" * 500}, ["group_id"]),
]  # fmt: skip


@pytest.mark.parametrize(("change", "where"), BAD, ids=[str(case)[:60] for case in BAD])
def test_what_cannot_be_trained_on_is_refused_and_where_it_is_wrong_is_told(
    change: dict[str, Any], where: list[str | int]
):
    detail = refused(make_group() | change)
    assert detail["loc"] == ["body", *where]
    assert detail["msg"]


def test_advantages_may_be_misaligned_where_nobody_uses_them():
    advantages = [[1.0] * 4] * 2
    sft = make_group(advantages=advantages, overrides=[{"sft": True}] * 2)
    assert read_one(sft)["advantages"] == advantages
    lenient = ReadLimits(misaligned_advantages=True)
    assert read_one(make_group(advantages=advantages), lenient)["advantages"] == advantages


@pytest.mark.parametrize("missing", ["tokens", "masks", "scores"])
def test_what_is_required_is_required(missing):
    group = make_group()
    del group[missing]
    assert refused(group)["type"] == "missing"


@pytest.mark.parametrize(
    "body", [b"{", b"nonsense", b'{"tokens": [[1}', b"[" * 100_000, b'"x"', b"3", b"null", b"[1]"]
)
def test_what_is_no_group_is_refused(body):
    for many in (True, False):
        with pytest.raises(InvalidBodyError):
            read_json(body, LIMITS, many=many)


def test_extras_nested_too_deeply_are_refused():
    images = b"[" * 600 + b"]" * 600
    body = json.dumps(make_group()).encode()[:-1] + b', "images": ' + images + b"}"
    with pytest.raises(InvalidBodyError):
        read_json(body, LIMITS, many=False)


def test_one_bad_group_of_a_list_is_named_by_its_place():
    body = json.dumps([make_group(), make_group(scores=[1.0])]).encode()
    with pytest.raises(InvalidBodyError) as error:
        read_json(body, LIMITS, many=True)
    assert error.value.detail[0]["loc"] == ["body", 1, "scores"]
    assert read_json(b"[]", LIMITS, many=True) == []


def test_a_binary_message_is_checked_like_json():
    good = wire_group(make_group(env_id=1), policy_version=2)
    (packed,) = read_message(encode_message([pack(good)]), LIMITS)
    assert scored_group(unpack(packed))["tokens"] == make_group()["tokens"]
    assert (packed.rows, packed.env_id, packed.policy_version) == (2, 1, 2)
    bad = wire_group(make_group(scores=[0.0, NAN]))
    with pytest.raises(InvalidBodyError) as error:
        read_message(encode_message([pack(good), pack(bad)]), LIMITS)
    assert error.value.detail[0]["loc"] == ["body", 1, "scores", 1]
    with pytest.raises(InvalidBodyError):
        read_message(b"AEG2", LIMITS)


def at_once(data: bytes, *, many: bool = False, binary: bool = False) -> Any:
    return read_at_once(data, LIMITS, many=many, binary=binary)


@pytest.mark.parametrize("many", [False, True])
def test_a_short_body_is_read_at_once_and_the_same(many: bool):
    body = json.dumps([FULL, make_group()] if many else FULL).encode()
    read = read_groups(body, LIMITS, many=many, binary=False)
    assert at_once(body, many=many) == read
    assert at_once(encode_message(read), many=many, binary=True) == read


def long_rows(count: int) -> dict[str, Any]:
    rows = [[1]] * count
    return {"tokens": rows, "masks": rows, "scores": [0.0] * count}


@pytest.mark.parametrize(
    "make",
    [
        lambda: long_rows(1_000),
        lambda: make_group(rows=1, tokens=200_000),
        lambda: make_group(messages=[[{"role": "x", "content": "y"}] * 3_000]),
        lambda: long_rows(1) | {f"key{number}": 0 for number in range(2_000)},
    ],
    ids=["rows", "tokens", "messages", "keys"],
)
def test_what_would_keep_the_event_loop_waiting_is_not_read_at_once(
    make: Callable[[], dict[str, Any]],
):
    group = make()
    assert at_once(json.dumps(group).encode()) is None
    assert at_once(json.dumps([group]).encode(), many=True) is None


def test_a_binary_body_that_unpacks_to_much_is_not_read_at_once():
    rows = [[1] * 500_000]
    bomb = encode_message([pack(wire_group({"tokens": rows, "masks": rows, "scores": [0.0]}))])
    messages = [[{"role": "x", "content": "y"}] * 3_000]
    wordy = encode_message([pack(wire_group(make_group(messages=messages)))])
    many = encode_message([pack(wire_group(make_group()))] * 1_100)
    assert len(bomb) < 1_000
    for body in (bomb, wordy, many):
        assert at_once(body, many=True, binary=True) is None
        assert read_groups(body, LIMITS, many=True, binary=True)


def test_what_is_wrong_is_left_to_the_way_that_says_why():
    wrong = make_group(scores=["x", 1])
    assert at_once(json.dumps(wrong).encode()) is None
    two = encode_message([pack(wire_group(make_group()))] * 2)
    assert at_once(two, binary=True) is None
    with pytest.raises(InvalidBodyError, match="send one"):
        read_groups(two, LIMITS, many=False, binary=True)


def test_gzip_of_very_many_members_is_refused():
    with pytest.raises(InvalidGzipError, match="members"):
        inflate(gzip.compress(b"") * 1_000, 100)


def test_gzip_of_several_members_is_read_up_to_a_limit():
    assert inflate(gzip.compress(b"a" * 10) + gzip.compress(b"b"), 11) == b"a" * 10 + b"b"
    with pytest.raises(InvalidGzipError, match="more than 10"):
        inflate(gzip.compress(b"a" * 11), 10)


@pytest.mark.parametrize("data", [b"no gzip", gzip.compress(b"x" * 100)[:-9]])
def test_broken_gzip_is_refused(data):
    with pytest.raises(InvalidGzipError):
        inflate(data, 1_000)


VALUES: list[Any] = [
    None, [], {}, "x", "1", 1, 1.0, True, -1, -100, 2**31, 2**64, 1e300, NAN, INFINITY, [[]], [[1]], [None], "\ud800",
]  # fmt: skip


def spoil(value: Any, draw: random.Random) -> None:
    """Change one place of a JSON value, at any depth."""
    while True:
        places = list(value) if isinstance(value, dict) else list(range(len(value)))
        if not places:
            return
        place = draw.choice(places)
        if not isinstance(value[place], dict | list) or draw.random() < 0.3:
            break
        value = value[place]
    if draw.random() < 0.2:
        del value[place]
    else:
        value[place] = draw.choice(VALUES)


@pytest.mark.parametrize("seed", range(4))
def test_a_body_spoilt_anywhere_is_read_whole_or_refused_and_never_worse(seed: int):
    draw = random.Random(seed)
    for _ in range(300):
        group = json.loads(json.dumps(FULL))
        spoil(group, draw)
        body = json.dumps(group).encode()
        if draw.random() < 0.3:
            at = draw.randrange(len(body))
            body = body[:at] + bytes([draw.randrange(256)]) + body[at + 1 :]
        try:
            (packed,) = read_json(body, LIMITS, many=False)
        except InvalidBodyError:
            continue
        assert len(json.loads(group_json(packed))["tokens"]) == packed.rows
        assert at_once(body) in (None, [packed])
        assert read_message(encode_message([packed]), LIMITS)
        assert at_once(encode_message([packed]), binary=True)
