"""What a board keeps of rollouts: enough to show, and never more than its bounds."""

import asyncio

import pytest

from agentenv.watch import Board, board
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
    from agentenv.task import Task
    from agentenv.types import AgentConfig

    watched = Board()
    watched.started("t", Task("  sort\n the  lines ", None, AgentConfig()), lambda: None)
    assert watched.changes(0)["trajectories"][0]["task"] == "sort the lines"


@pytest.mark.parametrize("arguments", [{"a": "\ud800"}, {"a": {"b": ["c" * 100_000] * 50}}])
def test_arguments_of_any_kind_are_shown_cut(arguments):
    from agentenv_tools.schema import ToolCall

    watched = Board()
    begin(watched, "a")
    watched.tool_started("a", ToolCall("bash", arguments))
    entry = watched.changes(0, shown=1)["entries"][-1]
    assert len(entry["text"]) < board.ENTRY_CHARS + 200
