"""Casts: what the run directory keeps of terminals, by the rules of asciinema's format, version 2."""

import json
import re
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentenv.run.casts import CastFile, cast_path, encode_cast, read_cast
from agentenv.run.directory import GROUPS_FILE, RunDirectory
from agentenv_backends.results import Recording, TerminalEvent
from tests.agentenv.run.records import group


def recording(*events: tuple[float, Any, str], dropped: int = 0, width: int = 80) -> Recording:
    made = tuple(TerminalEvent(at, kind, data) for at, kind, data in events)
    return Recording("shell-1", width, 24, made, dropped)


def lines_of(cast: bytes) -> list[Any]:
    text = cast.decode("utf-8")
    assert text.endswith("\n")
    return [json.loads(line) for line in text.removesuffix("\n").split("\n")]


def check_format(cast: bytes) -> list[Any]:
    """The rules of https://docs.asciinema.org/manual/asciicast/v2/ that a player relies on."""
    header, *events = lines_of(cast)
    assert header["version"] == 2
    assert set(header) == {"version", "width", "height"}
    assert all(type(header[name]) is int and header[name] > 0 for name in ("width", "height"))
    latest = 0.0
    for event in events:
        assert len(event) == 3
        at_s, kind, data = event
        assert isinstance(at_s, float)
        assert latest <= at_s
        latest = at_s
        assert kind in ("o", "i", "r")
        assert isinstance(data, str)
        assert kind != "r" or re.fullmatch(r"\d+x\d+", data)
    return [header, *events]


def test_a_recording_becomes_a_header_and_a_line_an_event():
    cast = encode_cast(
        recording((0, "o", "$ ls\r\n"), (1.23456, "o", "é\x1b[0m"), (2, "r", "90x30"))
    )
    assert check_format(cast) == [
        {"version": 2, "width": 80, "height": 24},
        [0.0, "o", "$ ls\r\n"],
        [1.235, "o", "é\x1b[0m"],
        [2.0, "r", "90x30"],
    ]


_events = st.tuples(
    st.floats() | st.floats(0, 100),
    st.sampled_from(["o", "i", "r"]),
    st.text(st.characters(codec=None), max_size=20) | st.just("100x40") | st.just("9999999x1"),
)


@given(
    st.lists(_events, max_size=20),
    st.integers(-(10**12), 10**12),
    st.integers(0, 10**9),
)
def test_whatever_was_recorded_makes_a_valid_file_that_reads_back(events, width, dropped):
    made = recording(*events, dropped=dropped, width=width)
    cast = encode_cast(made)
    assert cast == encode_cast(made)
    header, *shown = check_format(cast)
    assert 0 < header["width"] <= 500
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "g.t.shell-1.cast"
        file.write_bytes(cast)
        again, more = read_cast(file, 10**6)
    assert not more
    assert [[event.at_s, event.kind, event.data] for event in again.events] == shown


def test_what_was_not_recorded_is_said_where_the_file_ends():
    *_, last = check_format(encode_cast(recording((1, "o", "x"), dropped=1234)))
    assert last == [1.0, "o", "\r\n\x1b[0m[1234 bytes of output were not recorded]\r\n"]


def test_secrets_are_masked_and_control_sequences_after_them_stay():
    cast = encode_cast(
        recording(
            (0, "o", "$ export API_KEY=canary; curl https://me:canary@host/\r\n"),
            (1, "i", "TOKEN=canary"),
            (2, "o", "\x1b[1mPASSWORD=canary\x1b[0m\x1b[5;1H| x = 1"),
        )
    )
    assert b"canary" not in cast
    _, typed, _, shown = check_format(cast)
    assert typed[2] == "$ export API_KEY=***; curl https://***@host/\r\n"
    assert shown[2] == "\x1b[1mPASSWORD=***\x1b[0m\x1b[5;1H| x = 1"


# ---- names ----


@pytest.mark.parametrize(
    "nasty",
    ["../../etc/passwd", "/abs", "a/b", "", ".", "..", "a.b", "CON", "x" * 500, "\x00", "é\n"],
)
def test_names_stay_below_their_folder_whatever_ids_hold(nasty):
    for path in (
        cast_path(nasty, "t", "shell-1"),
        cast_path("g", nasty, "shell-1"),
        cast_path("g", "t", nasty),
    ):
        folder, name = path.split("/")
        assert folder == "casts"
        assert re.fullmatch(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+){2}\.cast", name)
        assert len(name) < 255


def test_plain_ids_stay_readable_and_different_ids_never_share_a_file():
    assert cast_path("000003", "1f-2e", "tmux-1") == "casts/000003.1f-2e.tmux-1.cast"
    names = ["a/b", "a-b", "a.b", "x" * 100, "x" * 101, "é", "è"]
    assert len({cast_path("g", name, "s") for name in names}) == len(names)


# ---- in the run directory ----


async def test_a_groups_casts_are_there_when_its_line_is(tmp_path):
    cast = CastFile(cast_path("g0", "t0", "shell-1"), recording((0, "o", "hi")))
    directory = await RunDirectory.open(tmp_path)
    await directory.append(group(0), [cast])
    await directory.append(group(1))
    await directory.close()
    assert [file.name for file in (tmp_path / "casts").iterdir()] == ["g0.t0.shell-1.cast"]
    again, _ = read_cast(tmp_path / cast.path, 10**6)
    assert again == cast.recording


async def test_a_cast_that_cannot_be_written_costs_no_group(tmp_path, caplog):
    (tmp_path / "casts").write_text("in the way")
    directory = await RunDirectory.open(tmp_path)
    await directory.append(group(0), [CastFile("casts/a.b.c.cast", recording((0, "o", "x")))])
    await directory.close()
    assert (tmp_path / GROUPS_FILE).read_bytes().count(b"\n") == 1
    assert "a.b.c.cast cannot be written" in caplog.text


# ---- reading ----


def test_only_the_first_bytes_of_a_long_cast_are_read_and_no_torn_event(tmp_path):
    file = tmp_path / "g.t.shell-1.cast"
    file.write_bytes(encode_cast(recording(*[(float(n), "o", "x" * 90) for n in range(1000)])))
    read, more = read_cast(file, 5_000)
    assert more
    assert 30 < len(read.events) < 50
    assert {event.data for event in read.events} == {"x" * 90}


@pytest.mark.parametrize(
    "content", [b"", b"{}\n", b'{"version": 1}\n', b"[1]\n", b"\xff\xfe", b'{"version": 3, "x": 1}']
)
def test_what_is_no_cast_is_refused(tmp_path, content):
    file = tmp_path / "x.cast"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=r"."):
        read_cast(file, 1000)


def test_lines_that_are_no_events_are_passed_over(tmp_path):
    file = tmp_path / "x.cast"
    bad = [
        "[1]",
        '["1", "o", "x"]',
        '[1, "z", "x"]',
        '[1, "o", 7]',
        "nonsense",
        "[" * 100_000,
        "",
        "null",
    ]
    file.write_text(
        "\n".join(['{"version": 2, "width": -1}', *bad, '[1, "o", "good"]', '[1e999, "o", "late"]'])
    )
    read, _ = read_cast(file, 10**6)
    assert (read.width, read.height) == (80, 24)
    assert [(event.at_s, event.data) for event in read.events] == [(1.0, "good"), (0.0, "late")]
