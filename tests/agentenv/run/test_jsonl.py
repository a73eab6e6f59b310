import enum
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentenv.run.jsonl import BadLine, Line, encode_line, scan

TEXTS = st.text(st.characters(), max_size=30)
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXTS,
    lambda inner: st.lists(inner) | st.dictionaries(TEXTS, inner),
    max_leaves=20,
)


@given(VALUES)
def test_what_is_written_reads_back_the_same_whatever_it_is(value):
    line = encode_line({"value": value})
    text = line.decode()
    assert text.splitlines() == [text.removesuffix("\n")]
    if not any(
        "\ud800" <= character <= "\udfff" for character in json.dumps(value, ensure_ascii=False)
    ):
        assert json.loads(text) == {"value": value}


@given(
    st.lists(st.integers() | st.floats(allow_nan=False, allow_infinity=False), min_size=1),
    st.integers(0, 3 * 2048),
)
def test_long_lists_of_numbers_keep_every_number(numbers, length):
    values = (numbers * length)[:length]
    assert json.loads(encode_line(values)) == values


def test_numbers_that_json_has_not_become_strings():
    line = encode_line({"a": float("nan"), "b": [1.0, float("inf"), -float("inf")]})
    assert json.loads(line) == {"a": "NaN", "b": [1.0, "Infinity", "-Infinity"]}


def test_line_breaks_of_every_kind_stay_inside_the_line():
    line = encode_line({"t": "a\n\r\u2028\u2029\x85\x0b\x00b"})
    assert len(line.decode().splitlines()) == 1
    assert json.loads(line)["t"] == "a\n\r\u2028\u2029\x85\x0b\x00b"


def test_lone_surrogates_are_replaced_so_that_the_file_stays_utf8():
    assert json.loads(encode_line("a\ud800b").decode()) == "a?b"


def test_values_foreign_to_json_become_what_they_mean():
    class Colour(enum.StrEnum):
        RED = "red"

    @dataclass
    class Point:
        x: int

    values = [
        np.float32(0.5),
        np.array([1, 2]),
        Colour.RED,
        Path("/tmp"),
        {2, 1},
        Point(3),
        b"x",
        np.nan,
    ]
    expected = [0.5, [1, 2], "red", "/tmp", [1, 2], {"x": 3}, "b'x'", "NaN"]
    assert json.loads(encode_line(values)) == expected


def test_a_value_that_holds_itself_is_cut_and_not_followed_for_ever():
    value: list[object] = []
    value.append(value)
    assert b"nested too deep" in encode_line(value)


def test_a_file_is_read_line_by_line_with_numbers_and_offsets(tmp_path):
    file = tmp_path / "f.jsonl"
    file.write_bytes(b'\xef\xbb\xbf{"a":1}\n\n{"a":2}\n')
    assert list(scan(file)) == [Line(1, 0, {"a": 1}), Line(3, 12, {"a": 2})]


def test_an_empty_file_has_no_lines(tmp_path):
    (tmp_path / "f.jsonl").touch()
    assert list(scan(tmp_path / "f.jsonl")) == []


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b'{"a":1,"a":2}\n', "'a' stands twice"),
        (b'{"a":NaN}\n', "NaN"),
        (b"[1]\n", "an object is expected"),
        (b'{"a":\n', "Expecting value"),
        (b'{"a":"\xff"}\n', "utf-8"),
        (b"[" * 200_000 + b"\n", "Error"),
    ],
)
def test_a_damaged_line_is_told_with_its_reason_and_the_next_one_is_read(tmp_path, text, reason):
    file = tmp_path / "f.jsonl"
    file.write_bytes(text + b'{"ok":true}\n')
    bad, good = scan(file)
    assert isinstance(bad, BadLine)
    assert reason in bad.reason
    assert not bad.torn
    assert isinstance(good, Line)


def test_a_last_line_without_its_end_is_torn(tmp_path):
    file = tmp_path / "f.jsonl"
    file.write_bytes(b'{"a":1}\n{"a":"hal')
    _, torn = scan(file)
    assert torn == BadLine(2, 8, 9, "cut short", torn=True)


def test_integers_of_any_size_survive_in_lists():
    values = [1, 2**64, -(2**70), 10**400]
    assert json.loads(encode_line(values)) == values
