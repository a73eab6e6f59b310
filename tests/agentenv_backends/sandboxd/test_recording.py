"""What a slot keeps of what its shell and terminal wrote."""

from __future__ import annotations

import itertools
import json
import time

from hypothesis import given
from hypothesis import strategies as st

from agentenv_backends.sandboxd.slot_pane import KEPT_BYTES, PaneOutput
from agentenv_backends.sandboxd.slot_recording import MAX_BYTES, Book, Recording, whole_characters

SIZE = (80, 24)


def pieces(data: bytes, cuts: list[int]) -> list[bytes]:
    places = sorted({cut % (len(data) + 1) for cut in cuts} | {0, len(data)})
    return [data[start:end] for start, end in itertools.pairwise(places)]


def taken(book: Book) -> list[tuple[str, int, list[tuple[str, bytes]]]]:
    """Session, dropped bytes, and kind and text of each event."""
    header, texts = book.take()
    found = []
    for session, _, _, dropped, rows in json.loads(header):
        events = []
        for _, kind, size in rows:
            events.append((kind, texts[:size]))
            texts = texts[size:]
        found.append((session, dropped, events))
    assert texts == b""
    return found


def begin(kind: str = "shell") -> tuple[Book, Recording]:
    book = Book()
    return book, book.begin(kind, SIZE)


@given(st.text(), st.lists(st.integers(min_value=0)))
def test_events_are_cut_between_characters_only(text: str, cuts: list[int]) -> None:
    book, recording = begin()
    shown = ""
    for piece in pieces(text.encode(), cuts):
        recording.output(piece)
        for _, _, events in taken(book):
            shown += "".join(text.decode("utf-8") for _, text in events)
    assert shown == text


@given(st.binary())
def test_bytes_that_are_no_text_are_not_held_back_for_long(data: bytes) -> None:
    whole, rest = whole_characters(data)
    assert whole + rest == data
    assert len(rest) <= 3


def test_the_two_streams_of_a_shell_do_not_tear_each_others_characters() -> None:
    book, recording = begin()
    recording.output(b"\xc3", 0)
    recording.output(b"err\xe2\x82", 1)
    recording.output(b"\xa9", 0)
    recording.output(b"\xac", 1)
    ((_, _, events),) = taken(book)
    assert b"".join(text for _, text in events).decode() == "erré€"


def test_a_line_is_shown_as_typed_after_what_was_still_to_be_completed() -> None:
    book, recording = begin()
    recording.output(b"job \xe2\x82")
    recording.line(b"echo 1\necho 2", time.monotonic())
    recording.output(b"\xac1\n")
    ((_, _, events),) = taken(book)
    assert [text for kind, text in events if kind == "i"] == [b"echo 1\necho 2\n"]
    shown = b"".join(text for kind, text in events if kind == "o")
    assert shown == b"job \xe2\x82$ echo 1\r\necho 2\r\n\xac1\n"
    recording.line(b"x" * MAX_BYTES, time.monotonic())
    size = 2 * MAX_BYTES + len("\n$ \r\n")
    assert taken(book) == [("shell-1", size, [])]


def test_what_is_kept_is_bounded_for_all_sessions_together_and_the_rest_counted() -> None:
    book, first = begin()
    second = book.begin("tmux", SIZE)
    for _ in range(40):
        first.output(b"x" * 20_000)
        second.output(b"y" * 20_000)
        second.input(b"key")
    found = taken(book)
    kept = sum(len(text) for _, _, events in found for _, text in events)
    dropped = sum(dropped for _, dropped, _ in found)
    assert kept <= MAX_BYTES
    assert kept + dropped == 40 * 40_003
    first.output(b"again")
    assert taken(book) == [("shell-1", 0, [("o", b"again")])]


def test_many_small_events_are_bounded_too() -> None:
    book, recording = begin()
    for _ in range(100_000):
        recording.input(b"x")
    ((_, dropped, events),) = taken(book)
    assert len(events) < 20_000
    assert len(events) + dropped == 100_000


def test_once_something_was_dropped_nothing_later_is_kept() -> None:
    book, recording = begin()
    recording.output(b"first")
    recording.output(b"x" * (2 * MAX_BYTES))
    recording.output(b"later")
    assert taken(book) == [("shell-1", 2 * MAX_BYTES + 5, [("o", b"first")])]


def test_sessions_are_numbered_and_ended_ones_are_handed_out_once() -> None:
    book, first = begin()
    first.output(b"a")
    first.end()
    book.begin("tmux", SIZE).resize((100, 30))
    assert taken(book) == [("shell-1", 0, [("o", b"a")]), ("tmux-2", 0, [("r", b"100x30")])]
    first.output(b"b")
    assert taken(book) == []


def test_a_batch_begins_with_the_size_that_held_when_it_began() -> None:
    book, recording = begin("tmux")
    recording.resize((100, 30))
    recording.resize((100, 30))
    assert json.loads(book.take()[0])[0][1:3] == [80, 24]
    recording.output(b"x")
    assert json.loads(book.take()[0])[0][1:3] == [100, 30]


MARKED = st.lists(
    st.sampled_from(
        [b"\x1b]7373;p\x07", b"\x1b]7373;c\x07", b"\x1b", b"\x1b]", b"\x1b]0;t\x07", b"ab", b"\r\n"]
    )
)


@given(MARKED, st.lists(st.integers(min_value=0)))
def test_marks_are_counted_and_taken_out_wherever_the_output_is_cut(
    parts: list[bytes], cuts: list[int]
) -> None:
    _, recording = begin("tmux")
    output = PaneOutput(recording)
    data = b"".join(parts) + b"."
    for piece in pieces(data, cuts):
        output.take_in(piece)
    clean = data.replace(b"\x1b]7373;p\x07", b"").replace(b"\x1b]7373;c\x07", b"")
    assert output.read(0, 1 << 20) == (clean, len(clean))
    assert (output.prompts, output.commands) == (
        data.count(b"\x1b]7373;p\x07"),
        data.count(b"\x1b]7373;c\x07"),
    )


def test_old_output_goes_and_offsets_stay_true() -> None:
    _, recording = begin("tmux")
    output = PaneOutput(recording)
    for n in range(300):
        output.take_in(b"%010d" % n * 1000)
    data, end = output.read(0, 1 << 30)
    assert KEPT_BYTES <= len(data) <= 2 * KEPT_BYTES
    assert end == 3_000_000
    assert output.read(end - 5, 100) == (b"00299", end)
    assert output.read(end + 5, 100) == (b"", end)
    assert output.read(2_469_137, 3) == (b"246", 2_469_140)
