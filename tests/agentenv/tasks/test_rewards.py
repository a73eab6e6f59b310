import math
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentenv.tasks.errors import (
    RewardFileEmptyError,
    RewardFileNotFoundError,
    VerifierOutputParseError,
)
from agentenv.tasks.rewards import MAX_REWARD_BYTES, rewards_from


@pytest.mark.parametrize(
    ("text", "value"),
    [("1", 1.0), ("0.5\n", 0.5), (" 0 \n", 0.0), ("1e-3", 0.001), (".25", 0.25), ("+1.", 1.0)],
)
def test_a_plain_number_between_0_and_1_is_a_reward(text, value):
    assert rewards_from(None, text.encode()) == {"reward": value}


@pytest.mark.parametrize(
    "text",
    [
        "nan", "NaN", "inf", "-inf", "Infinity", "-0.1", "1.5", "1e400", "1e9", "true", "True", "None", "one", "1 2",
        "1\n0", "0x1", "1_0", "1,0", "\u0661", "9" * 5000, "1" + "\0", "\xff", "{}", '"1"', "0.5 points", "1e99999",
    ],
)  # fmt: skip
def test_other_texts_are_refused_with_what_they_are(text):
    with pytest.raises(VerifierOutputParseError, match=r"reward"):
        rewards_from(None, text.encode("latin-1", "replace") if text == "\xff" else text.encode())


@pytest.mark.parametrize(
    "text",
    [
        '{"reward": NaN}', '{"reward": Infinity}', '{"reward": -Infinity}', '{"reward": true}', '{"reward": "1"}',
        '{"reward": null}', '{"reward": [1]}', '{"reward": {"a": 1}}', '{"reward": 1.5}', '{"reward": -0.5}',
        '{"reward": 1e400}', '{"reward": 1' + "0" * 400 + "}", '{"reward": 1' + "0" * 5000 + "}", "1", "[1]", '"1"',
        "true", "{", '{"reward": 1} {"reward": 0}', '{"reward": 0, "reward": 1}', '{"a": 1, "b": 2}',
        '{"reward": 1, "tokens": 1e12}', '{"reward": 1, "tokens": NaN}', '{"reward": 1, "ok": true}',
        "[" * 30_000, '{"a":' * 12_000, "\xff\xfe",
    ],
)  # fmt: skip
def test_other_json_is_refused(text):
    with pytest.raises(VerifierOutputParseError):
        rewards_from(text.encode("latin-1"), b"1")


def test_json_goes_before_text_and_may_tell_other_numbers_beside_the_reward():
    found = rewards_from(b'{"reward": 0.25, "seconds": 1200, "drift": -3.5}', b"1")
    assert found == {"reward": 0.25, "seconds": 1200.0, "drift": -3.5}


def test_where_no_key_is_called_reward_each_lies_between_0_and_1():
    assert rewards_from(b'{"style": 0.5, "tests": 1}', None) == {"style": 0.5, "tests": 1.0}


@pytest.mark.parametrize(
    ("json_file", "text_file"), [(b"", b"1"), (b" \n", None), (b"{}", None), (None, b"")]
)
def test_an_empty_file_is_told_apart(json_file, text_file):
    with pytest.raises(RewardFileEmptyError):
        rewards_from(json_file, text_file)


def test_no_file_is_told_apart():
    with pytest.raises(RewardFileNotFoundError, match=r"reward\.json"):
        rewards_from(None, None)


def test_an_oversized_file_is_refused_unread():
    with pytest.raises(VerifierOutputParseError, match="more than"):
        rewards_from(None, b"1" + b" " * MAX_REWARD_BYTES)


@given(st.binary(max_size=200))
def test_whatever_the_bytes_there_is_a_number_in_range_or_a_stated_refusal(content):
    for files in ((content, None), (None, content)):
        try:
            rewards = rewards_from(*files)
        except (RewardFileEmptyError, VerifierOutputParseError):
            continue
        assert all(math.isfinite(value) for value in rewards.values())
        assert 0 <= rewards.get("reward", 0) <= 1


@given(st.fractions(min_value=0, max_value=1, max_denominator=1000))
def test_a_number_is_read_exactly(value: Fraction):
    assert rewards_from(None, repr(float(value)).encode()) == {"reward": float(value)}
