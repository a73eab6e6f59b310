"""What a board keeps of rollouts: enough to show, and never more than its bounds."""

import asyncio
from typing import Any

import pytest

from agentenv.observer import Judgement
from agentenv.task import Task, Verdict
from agentenv.types import AgentConfig
from agentenv.watch import Board, board, pictures
from agentenv_tools.schema import ImagePart, ToolCall, ToolResult
from tests.agentenv.watch.rollouts import begin, end, say


def test_a_trajectory_is_told_with_its_steps_tokens_and_cost():
    watched = Board()
    begin(watched, "sort")
    say(watched, "sort", "hello")
    told = watched.changes(0, shown=1)
    (row,) = told["trajectories"]
    assert (row["task"], row["state"], row["outcome"]) == ("sort", "working", None)
    assert (row["steps"], row["tool_calls"], row["tool_errors"]) == (1, 1, 1)
    assert (row["input_tokens"], row["output_tokens"], row["cost_usd"]) == (100, 20, 0.5)
    kinds = [entry["kind"] for entry in told["entries"]]
    assert kinds == ["task", "reasoning", "reply", "call", "result"]
    assert told["totals"]["running"] == 1
    end(watched, "sort")
    told = watched.changes(told["version"], shown=1, seen=5)
    assert [entry["kind"] for entry in told["entries"]] == ["tests", "end"]
    assert told["trajectories"][0]["reward"] == 0.5
    assert told["totals"]["outcomes"] == {"scored": 1}


def test_only_what_changed_is_told_and_a_part_at_a_time(monkeypatch):
    monkeypatch.setattr(board, "_ROWS_AT_ONCE", 3)
    watched = Board()
    for number in range(5):
        begin(watched, str(number))
    first = watched.changes(0)
    second = watched.changes(first["version"])
    assert [row["task"] for row in first["trajectories"]] == ["0", "1", "2"]
    assert [row["task"] for row in second["trajectories"]] == ["3", "4"]
    say(watched, "1", "x")
    third = watched.changes(second["version"])
    assert [row["task"] for row in third["trajectories"]] == ["1"]
    assert watched.changes(third["version"])["trajectories"] == []


def test_memory_is_bounded_in_trajectories_entries_and_characters(monkeypatch):
    monkeypatch.setattr(board, "KEPT_ENDED", 10)
    monkeypatch.setattr(board, "MAX_CHARS", 100_000)
    watched = Board()
    for number in range(50):
        name = str(number)
        begin(watched, name)
        for _ in range(60):
            say(watched, name, "y" * 50)
        if number < 40:
            end(watched, name)
    begin(watched, "long")
    say(watched, "long", "z" * 5_000_000)
    kept = [watched.changes(0, shown=number) for number in range(1, 52)]
    numbers = [row["number"] for row in kept[0]["trajectories"]]
    assert numbers == [*range(31, 41), *range(41, 52)]
    sizes = [sum(len(entry["text"]) for entry in told["entries"]) for told in kept]
    assert 0 < sum(sizes) <= 100_000
    assert max(len(told["entries"]) for told in kept) <= board.KEPT_ENTRIES
    assert max(len(entry["text"]) for entry in kept[-1]["entries"]) < board.ENTRY_CHARS + 200
    assert kept[0]["totals"]["started"] == 51
    for name in [*map(str, range(40, 50)), "long"]:
        end(watched, name)
    assert len(watched.changes(0)["trajectories"]) == 10


async def test_whoever_waits_hears_of_the_next_event_and_of_the_end():
    watched = Board()
    waiting = asyncio.ensure_future(watched.news(0, 600))
    await asyncio.sleep(0)
    assert not waiting.done()
    begin(watched, "a")
    await waiting
    waiting = asyncio.ensure_future(watched.news(watched.version, 600))
    await asyncio.sleep(0)
    watched.close()
    await waiting
    await watched.news(watched.version, 600)


async def test_a_trajectory_is_withdrawn_while_it_runs():
    watched = Board()
    asked: list[str] = []
    begin(watched, "a", lambda: asked.append("a"))
    assert watched.cancel(1)
    assert asked == ["a"]
    end(watched, "a")
    assert not watched.cancel(1)
    assert not watched.cancel(2)


def test_a_rollout_without_a_name_is_called_by_its_instruction():
    watched = Board()
    watched.started("t", Task("  sort\n the  lines ", None, AgentConfig()), lambda: None)
    assert watched.changes(0)["trajectories"][0]["task"] == "sort the lines"


@pytest.mark.parametrize("arguments", [{"a": "\ud800"}, {"a": {"b": ["c" * 100_000] * 50}}])
def test_arguments_of_any_kind_are_shown_cut(arguments):
    watched = Board()
    begin(watched, "a")
    watched.tool_started("a", ToolCall("bash", arguments))
    entry = watched.changes(0, shown=1)["entries"][-1]
    assert len(entry["text"]) < board.ENTRY_CHARS + 200


def test_steps_tests_and_notes_of_verifiers_are_told_in_order():
    watched = Board()
    task = Task("first do this", {"id": "sort/one"}, AgentConfig(), metadata={"name": "sort"})
    watched.started("t", task, lambda: None)
    watched.step_started("t", "one", "first do this")
    watched.judged("t", Judgement("one", {"reward": 0.5, "style": 1.0}, "2 of 4 passed"))
    watched.step_started("t", "two", "then do that")
    watched.judged("t", Judgement("two", None, "half a line", "VerifierTimeoutError: 3 s"))
    odd: dict[Any, Any] = {("odd",): {1, 2}}
    watched.verified("t", Verdict(0.25, {"log": "a\nb", "counts": {"ok": 1}, "x": odd}))
    told = watched.changes(0, shown=1)
    assert told["trajectories"][0]["task"] == "sort"
    entries = [(entry["title"], entry["text"], entry["failed"]) for entry in told["entries"]]
    assert entries[:5] == [
        ("Task", "first do this", False),
        ("Step of the task: one", "", False),
        ("Tests of step one: reward 0.5, style 1", "2 of 4 passed", False),
        ("Step of the task: two", "then do that", False),
        ("Tests of step two: no reward", "VerifierTimeoutError: 3 s\nhalf a line", True),
    ]
    title, text, _ = entries[5]
    assert title == "Reward: 0.25"
    assert 'log:\na\nb\ncounts: {"ok": 1}' in text


def test_images_are_kept_within_bounds_the_latest_ones(monkeypatch):
    monkeypatch.setattr(pictures, "MAX_PICTURE_CHARS", 100)
    monkeypatch.setattr(pictures, "MAX_KEPT_CHARS", 250)
    watched = Board()
    begin(watched, "a")
    sizes = (80, 101, 90, 100)
    images = tuple(ImagePart("image/png", "A" * size, 2, 3) for size in sizes)
    watched.tool_finished("a", ToolCall("look", {}), ToolResult(True, "seen", images=images))
    (entry,) = watched.changes(0, shown=1, seen=1)["entries"]
    assert entry["pictures"] == (
        {"note": "image/png, 2 x 3 pixels", "number": 1},
        {"note": "image/png, 2 x 3 pixels: 75 bytes are too many for this page"},
        {"note": "image/png, 2 x 3 pixels", "number": 2},
        {"note": "image/png, 2 x 3 pixels", "number": 3},
    )
    assert [watched.pictures.get(number) for number in (1, 2, 3)] == [None, images[2], images[3]]
    many = tuple(ImagePart("image/png", "", 1, 1) for _ in range(1_000))
    watched.tool_finished("a", ToolCall("look", {}), ToolResult(True, images=many))
    (entry,) = watched.changes(0, shown=1, seen=2)["entries"]
    assert len(entry["pictures"]) == 21
    assert entry["pictures"][-1] == {"note": "980 more images are not kept here"}


def test_a_page_that_slept_is_told_what_is_left_and_the_end_last(monkeypatch):
    monkeypatch.setattr(board, "KEPT_ENDED", 2)
    monkeypatch.setattr(board, "_ROWS_AT_ONCE", 2)
    watched = Board()
    begin(watched, "runs")
    begin(watched, "slept through")
    known = watched.version
    end(watched, "slept through")
    assert watched.changes(known)["kept"] is None
    for name in ("a", "b", "c"):
        begin(watched, name)
        end(watched, name)
    watched.close()
    told = watched.changes(known)
    assert told["kept"] == [1, 4, 5]
    assert watched.changes(watched.version)["kept"] is None
    closed = [watched.changes(0)["closed"], watched.changes(watched.version)["closed"]]
    assert closed == [False, True]
