from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from agentenv.api.codec import (
    CodecError,
    PackedGroup,
    decode_message,
    encode_message,
    pack,
    packed_group,
    unpack,
)
from agentenv.api.group import GroupError, scored_group, wire_group
from tests.agentenv.api.groups import make_group

TOKEN = st.integers(0, 2**31 - 1)
SINGLE = st.floats(-50, 1, width=32)


@st.composite
def scored_groups(draw: st.DrawFn) -> dict[str, Any]:
    rows = draw(st.lists(st.lists(TOKEN, min_size=1, max_size=6), min_size=1, max_size=4))
    usual = draw(st.booleans())
    masks = [
        [draw(st.sampled_from([-100, token if usual else 1])) for token in row] for row in rows
    ]

    def aligned(value: st.SearchStrategy[float]) -> list[list[float]]:
        return [[draw(value) for _ in row] for row in rows]

    sparse = [[1.0 if mask == -100 else draw(SINGLE) for mask in row] for row in masks]
    return {
        "tokens": rows,
        "masks": masks,
        "scores": [draw(st.floats(allow_nan=False, allow_infinity=False)) for _ in rows],
        "inference_logprobs": draw(st.sampled_from([None, [], sparse, aligned(SINGLE)])),
        "ref_logprobs": draw(st.sampled_from([None, [], aligned(SINGLE)])),
        "advantages": draw(st.sampled_from([None, [], aligned(st.floats(-9, 9))])),
        "messages": draw(st.sampled_from([None, [], [[{"role": "user", "content": "ü"}]]])),
        "overrides": draw(st.sampled_from([None, [{"sft": True}] * len(rows)])),
        "generation_params": draw(st.sampled_from([None, {}, {"temperature": 0.5}])),
        "group_overrides": None,
        "images": draw(st.sampled_from([None, ["data"], "x"])),
        "env_id": draw(st.sampled_from([None, 0, 7])),
        "distill_token_ids": draw(st.sampled_from([None, [[[1, 2], []]]])),
        "distill_logprobs": None,
    }


@given(scored_groups())
def test_a_group_comes_out_of_the_binary_form_as_it_went_in(group):
    packed = pack(wire_group(group, policy_version=3, group_id="g"))
    back = unpack(packed)
    assert scored_group(back) == group
    assert (back.policy_version, back.group_id, packed.rows) == (3, "g", len(group["tokens"]))


def test_masks_and_logprobs_of_the_usual_kind_take_no_room_of_their_own():
    usual = pack(wire_group(make_group(8, 512)))
    without = pack(wire_group(make_group(8, 512, inference_logprobs=None)))
    ones = make_group(8, 512)
    ones["masks"] = [[1] * 512 for _ in range(8)]
    sizes = [
        zstandard.get_frame_parameters(packed.body).content_size
        for packed in (usual, without, pack(wire_group(ones)))
    ]
    assert sizes[0] - sizes[1] == 4 * 8 * 511  # the log-probs of what was sampled
    assert sizes[0] < sizes[2]


def test_a_message_carries_heads_bodies_and_its_own_facts():
    groups = [
        pack(wire_group(make_group(seed=1), group_id="a")),
        pack(wire_group(make_group(env_id=4), policy_version=2)),
    ]
    about, frames = decode_message(encode_message(groups, {"batch_id": 9}))
    assert about == {"batch_id": 9}
    assert frames == [
        ({"group_id": "a"}, groups[0].body),
        ({"env_id": 4, "policy_version": 2}, groups[1].body),
    ]
    assert decode_message(encode_message([]))[1] == []


def test_a_message_that_is_cut_anywhere_is_refused():
    data = encode_message([pack(wire_group(make_group()))])
    for length in range(len(data)):
        with pytest.raises(CodecError):
            decode_message(data[:length])
    with pytest.raises(CodecError):
        decode_message(data + b"x")


def repacked(change: Callable[[bytes], bytes]) -> bytes:
    body = pack(wire_group(make_group())).body
    raw = zstandard.ZstdDecompressor().decompress(body)
    return zstandard.ZstdCompressor().compress(change(raw))


@pytest.mark.parametrize(
    "change",
    [
        lambda raw: raw[:10],
        lambda raw: raw[:-1],
        lambda raw: raw + b"x",
        lambda raw: b"\x09" + raw[1:],
        lambda raw: raw[:8] + b"\xff\xff\xff\x7f" + raw[12:],
        lambda raw: raw[:4] + b"\xff\xff\xff\xff" + raw[8:],
    ],
)
def test_a_body_that_does_not_add_up_is_refused(change: Callable[[bytes], bytes]):
    with pytest.raises(CodecError):
        unpack(PackedGroup(repacked(change), 2))


def test_a_body_is_not_unpacked_beyond_the_limit():
    packed = pack(wire_group(make_group(2, 4_000)))
    with pytest.raises(CodecError, match="at most 1000"):
        unpack(packed, max_bytes=1_000)
    with pytest.raises(CodecError, match="zstd"):
        unpack(packed_group({}, b"no frame at all"))


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ({"scores": [1.0]}, ("scores",)),
        ({"masks": [[1, 2, 3]]}, ("masks",)),
        ({"masks": [[1, 2], [1, 2, 3]]}, ("masks", 0)),
        ({"tokens": [[1, 2, 2**40], [1, 2, 3]]}, ("tokens",)),
    ],
)
def test_lists_that_make_no_arrays_are_named(change, where):
    with pytest.raises(GroupError) as refused:
        wire_group(make_group() | change)
    assert refused.value.where == where


def test_arrays_are_taken_as_they_are():
    group = make_group()
    arrays = group | {key: [np.array(row) for row in group[key]] for key in ("tokens", "masks")}
    assert scored_group(unpack(pack(wire_group(arrays))))["tokens"] == group["tokens"]
