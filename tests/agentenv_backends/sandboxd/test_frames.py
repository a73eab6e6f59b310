from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentenv_backends.sandboxd import frames

if TYPE_CHECKING:
    from collections.abc import Callable

kinds = st.sampled_from(sorted(frames.KINDS))
frame_values = st.fixed_dictionaries(
    {
        "kind": kinds,
        "channel": st.integers(0, 2**32 - 1),
        "request_id": st.integers(0, 2**64 - 1),
        "header": st.binary(max_size=60),
        "body": st.binary(max_size=200),
        "flags": st.integers(0, 255),
    }
)


def values_of(frame: frames.Frame) -> dict[str, object]:
    return {
        "kind": frame.kind,
        "channel": frame.channel,
        "request_id": frame.request_id,
        "header": frame.header,
        "body": frame.body,
        "flags": frame.flags,
    }


@given(st.lists(frame_values, min_size=1, max_size=4), st.data())
def test_frames_survive_any_cutting_of_the_stream(
    sent: list[dict[str, Any]], data: st.DataObject
) -> None:
    stream = b"".join(frames.encode(**values) for values in sent)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=8)))
    reader, got = frames.FrameReader(), []
    for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        got += reader.feed(stream[start:end])
    assert [values_of(frame) for frame in got] == sent
    assert b"".join(frame.raw for frame in got) == stream
    assert reader.pending == 0


def test_a_frame_arrives_once_its_last_byte_does_at_every_split_point() -> None:
    stream = frames.encode(frames.REQUEST, channel=7, request_id=9, header=b'{"a":1}', body=b"body")
    for cut in range(len(stream)):
        reader = frames.FrameReader()
        assert reader.feed(stream[:cut]) == []
        assert len(reader.feed(stream[cut:])) == 1


def test_one_byte_at_a_time_gives_the_same_frames() -> None:
    stream = frames.encode(frames.PING) + frames.encode(frames.REPLY, body=b"x" * 300)
    reader = frames.FrameReader()
    got = [frame for byte in stream for frame in reader.feed(bytes([byte]))]
    assert [frame.kind for frame in got] == [frames.PING, frames.REPLY]


@pytest.mark.parametrize(
    "damage",
    [
        lambda stream: b"\0" + stream[1:],
        lambda stream: stream[:2] + b"\xff" + stream[3:],
        lambda stream: stream[:16] + b"\xff\xff\xff\xff" + stream[20:],
        lambda stream: stream[:20] + b"\xff\xff\xff\xff" + stream[24:],
    ],
    ids=["magic", "kind", "header length", "body length"],
)
def test_a_damaged_prefix_ends_the_stream(damage: Callable[[bytes], bytes]) -> None:
    stream = frames.encode(frames.REQUEST, header=b"{}", body=b"body")
    with pytest.raises(frames.FrameError):
        frames.FrameReader().feed(damage(stream))


def test_what_is_over_a_limit_is_not_sent() -> None:
    with pytest.raises(frames.FrameError, match="limit"):
        frames.encode(frames.REQUEST, header=b"x" * (frames.MAX_HEADER + 1))
    with pytest.raises(frames.FrameError, match="limit"):
        frames.encode(frames.REQUEST, body=bytes(frames.MAX_BODY + 1))


def test_flags_can_be_changed_without_touching_the_rest() -> None:
    raw = frames.encode(
        frames.REPLY, channel=3, request_id=5, header=b"{}", body=b"b", flags=frames.MAYBE_OOM
    )
    changed = frames.FrameReader().feed(frames.with_flags(raw, frames.WAS_OOM))[0]
    original = frames.FrameReader().feed(raw)[0]
    assert changed.flags == frames.WAS_OOM
    assert {**values_of(changed), "flags": 0} == {**values_of(original), "flags": 0}
