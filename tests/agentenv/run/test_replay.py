"""Casts as screens: right for what programs do, bounded for what a model may print on purpose."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentenv.run import replay
from agentenv.run.casts import CastFile, cast_path, encode_cast
from agentenv.run.replay import Replays, render
from agentenv_backends.results import Recording, TerminalEvent


def recorded(*outputs: str, width: int = 40, height: int = 10, gap_s: float = 1.0) -> Recording:
    events = tuple(TerminalEvent(at * gap_s, "o", text) for at, text in enumerate(outputs))
    return Recording("tmux-1", width, height, events)


def screens(recording: Recording) -> list[list[str]]:
    """Every screen whole, as the page puts them together."""
    rows: dict[int, str] = {}
    lines, shown = 0, []
    for frame in render(recording).frames:
        if "size" in frame:
            rows, lines = {}, frame["size"][1]
        rows = {**rows, **frame["rows"]}
        shown.append([rows.get(number, "") for number in range(lines)])
    return shown


def final(*outputs: str, **size: int) -> str:
    return "\n".join(screens(recorded(*outputs, **size))[-1]).rstrip("\n")


# ---- what programs do ----


def test_a_frame_holds_the_rows_that_changed_and_when():
    frames = render(recorded("$ ls\r\n", "a\r\nb\r\n$ ")).frames
    assert frames == [
        {"t": 0, "at": [0, 1], "rows": {0: "$ ls"}, "size": [40, 10]},
        {"t": 1000, "at": [2, 3], "rows": {1: "a", 2: "b", 3: "$"}},
    ]


def test_output_scrolls_and_is_redrawn_as_on_a_terminal():
    assert final("\r\n".join(map(str, range(20))), height=4) == "16\n17\n18\n19"
    assert final("progress 10%", "\rprogress 20%", "\r\x1b[Kdone") == "done"
    assert final("a\x1b[3;5Hb\x1b[2Jc") == "\n\n     c"
    assert final("one\r\ntwo\r\nthree\x1b[2;2H\x1b[J") == "one\nt"
    assert final("\x1b[31mred\x1b[0m \x1b[7minverse\x1b[0m") == "red inverse"


def test_a_program_with_a_screen_of_its_own_gives_the_old_one_back():
    shown = screens(recorded("$ vi x\r\n", "\x1b[?1049h\x1b[H\x1b[2Jtext\r\n~", "\x1b[?1049l$ "))
    assert ["\n".join(screen).rstrip("\n") for screen in shown] == [
        "$ vi x",
        "text\n~",
        "$ vi x\n$",
    ]


def test_wide_characters_take_two_columns_and_the_cursor_counts_characters():
    (frame,) = render(recorded("漢字x")).frames
    assert (frame["rows"], frame["at"]) == ({0: "漢字x"}, [3, 0])


def test_a_sequence_torn_between_events_is_put_together():
    whole = "\x1b[3;5Hx\x1b]0;title\x07y\x1b(B\x1b[1;31mz"
    for cut in range(len(whole)):
        assert final(whole[:cut], whole[cut:]) == final(whole)


def test_a_new_size_starts_a_new_screen():
    events = (
        TerminalEvent(0, "o", "hello"),
        TerminalEvent(1, "r", "20x5"),
        TerminalEvent(2, "r", "nonsense"),
        TerminalEvent(3, "r", "999999999x999999999"),
    )
    frames = render(Recording("tmux-1", 40, 10, events)).frames
    assert [frame.get("size") for frame in frames] == [[40, 10], [20, 5], [500, 200]]
    assert frames[1]["rows"] == {0: "hello"}


def test_what_was_typed_unseen_is_not_shown():
    events = (TerminalEvent(0, "i", "password\r"), TerminalEvent(1, "o", "$ "))
    assert [frame["rows"] for frame in render(Recording("s", 40, 10, events)).frames] == [{0: "$"}]


def test_moments_close_to_each_other_share_a_screen():
    assert len(render(recorded(*"hello", gap_s=0.005)).frames) == 1
    assert len(render(recorded(*"hello", gap_s=1)).frames) == 5


def test_a_long_recording_has_a_bounded_number_of_screens_and_ends_with_the_last():
    many = render(recorded(*[f"{number}\r\n" for number in range(5_000)]))
    assert len(many.frames) <= replay.MAX_FRAMES
    assert "4999" in many.frames[-1]["rows"].values()
    assert many.notes == []


# ---- what a model may print on purpose ----

M = 100_000
HOSTILE = {
    "a clipboard write": "\x1b]52;c;Y2FuYXJ5\x07ok",
    "an endless clipboard write": "\x1b]52;c;" + "A" * M,
    "titles": "\x1b]0;x\x07" * (M // 6),
    "an endless sequence": "\x1b[" + "1" * M,
    "endless parameters": "\x1b[" + "1;" * (M // 2) + "m",
    "sequences without end": "\x1b[1" * (M // 3),
    "strings without end": "\x1b]" * (M // 2),
    "escapes": "\x1b" * M,
    "escapes that go on": "\x1b " * (M // 2),
    "device strings": "\x1bP" + "q" * M + "\x1b\\",
    "far moves": "\x1b[1000000000A\x1b[1000000000;1000000000H\x1b[1000000000C" * (M // 50),
    "far repeats": "\x1b[1000000000@\x1b[1000000000L\x1b[1000000000P" * (M // 50),
    "clearing": ("x" * 400 + "\x1b[2J") * (M // 500),
    "alignment": "\x1b#8" * (M // 3),
    "inverting": "\x1b[?5h\x1b[?5l" * (M // 10),
    "132 columns": "\x1b[?3h\x1b[?3l" * (M // 10),
    "other screens": "\x1b[?1049h\x1b[?1049l" * (M // 16),
    "resets": "\x1bc" * (M // 2),
    "saved cursors": "\x1b7" * (M // 2),
    "heaped marks": "a" + "\u0301\u0316" * (M // 2),
    "wide ones": "漢" * M,
    "reordering": "\u202e\u2066abc\u2069" * (M // 6),
    "odd digits": "\x1b[²J\x1b[٣m\x1b[7J\x1b[9K\x1b[1;2;3;4A\x1b[?5A" * (M // 40),
    "line feeds": "\n" * M,
    "control codes": "".join(map(chr, range(0x20))) * (M // 32),
    "eight-bit controls": "\x9b2J\x9d0;x\x9c\x90q\x9c" * (M // 12),
    "surrogates": "\ud800\udfff" * 100,
}


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("size", [(120, 40), (500, 200)])
def test_hostile_output_neither_hangs_nor_grows(name, size):
    result = render(recorded(HOSTILE[name], "end", width=size[0], height=size[1]), max_seconds=1)
    text = json.dumps(result.frames)
    assert len(text) < 3_000_000
    assert "\\u001b" not in text
    assert "\\u202e" not in text
    assert len(result.frames) <= 2


@given(
    st.lists(
        st.text(st.sampled_from("\x1b[]?;#()0159hlmHJKABLMPX@c78\\\x07\x08\r\n\tx漢")), max_size=8
    )
)
def test_any_output_gives_screens_of_the_right_size(outputs):
    for screen in screens(recorded(*outputs, width=20, height=5)):
        assert len(screen) == 5
        assert all(len(row) <= 20 for row in screen)


def test_rendering_ends_in_time_and_says_so():
    flood = recorded("\n" * 3_000_000, "never seen", width=500, height=200)
    result = render(flood, max_seconds=0.05)
    assert result.notes == ["It ends here: rendering took longer than 0.05 s."]


def test_screens_that_take_too_much_room_end_the_replay_and_it_says_so():
    full = [f"\x1b[H{chr(97 + number % 26) * 8_000}" for number in range(400)]
    result = render(recorded(*full, width=200, height=40), max_seconds=600)
    assert len(json.dumps(result.frames)) < 1.2 * replay.MAX_FRAME_CHARS + 50_000
    assert result.notes == ["It ends here: its screens take more room than one terminal may have."]


# ---- the casts of a run ----


def _write(tmp_path: Any, session: str, *outputs: str) -> str:
    cast = CastFile(cast_path("g", "t", session), recorded(*outputs))
    (tmp_path / "casts").mkdir(exist_ok=True)
    (tmp_path / cast.path).write_bytes(encode_cast(cast.recording))
    return cast.path


def test_a_cast_of_ten_megabytes_is_shown_as_far_as_its_first(tmp_path):
    path = _write(tmp_path, "shell-1", *["x" * 99 + "\r\n"] * 100_000)
    assert (tmp_path / path).stat().st_size > 10_000_000
    (shown,) = Replays(tmp_path).of([path])
    assert (shown["session"], shown["path"]) == ("shell-1", path)
    cut = "Only the first 1,000,000 bytes of the file are shown."
    assert shown["notes"][-1] == cut  # a slow machine also says that it took too long
    assert 0 < len(shown["frames"]) <= replay.MAX_FRAMES


def test_a_cast_that_is_gone_damaged_or_elsewhere_is_named_with_the_reason(tmp_path):
    (tmp_path / "casts").mkdir()
    (tmp_path / "casts" / "bad.cast").write_text("nonsense")
    (tmp_path / "secret.cast").write_bytes(encode_cast(recorded("secret")))
    shown = Replays(tmp_path).of(["casts/none.cast", "casts/bad.cast", "../secret.cast", 7])
    assert [entry["frames"] for entry in shown] == [[], [], []]
    assert all(entry["notes"][0].startswith("It cannot be read: ") for entry in shown)
    assert Replays(tmp_path).of("casts/none.cast") == []


def test_the_casts_of_a_run_have_a_share_of_the_page_together(tmp_path):
    paths = [_write(tmp_path, f"shell-{number}", "y" * 300) for number in range(4)]
    shown = Replays(tmp_path, max_chars=500).of(paths)
    assert [bool(entry["frames"]) for entry in shown] == [True, True, False, False]
    assert shown[3]["notes"] == ["Not in this page, which holds as many terminals as it may."]
