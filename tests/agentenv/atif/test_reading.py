import json
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentenv.atif import (
    TrajectoryFormatError,
    errors,
    export,
    from_dialect,
    parse_trajectory,
    read_continued,
    read_trajectory,
    to_messages,
    validate,
    write_trajectory,
)
from agentenv.atif.reading import MAX_DEPTH
from agentenv.errors import ConfigError, RunDirectoryError
from tests.agentenv.atif.goldens import GOLDEN, MINORS, broken, golden
from tests.agentenv.atif.records import PIXEL

NAMES = (
    "agent", "steps", "final_metrics", "tool_calls", "observations", "observation", "metrics", "extra", "step_id",
    "message", "results", "tool_input", "subagent_trajectories", "trajectory_id", "content", "source",
)  # fmt: skip


@pytest.mark.parametrize("minor", MINORS)
def test_every_version_is_read_and_written_again(minor: int, tmp_path: Path):
    trajectory = read_trajectory(GOLDEN / f"v1.{minor}.json", strict=True)
    again = read_trajectory(write_trajectory(trajectory, tmp_path / "t.json"), strict=True)
    assert again.schema_version == ("ATIF-v1.8" if minor == 8 else "ATIF-v1.7")
    assert to_messages(again) == to_messages(trajectory)
    assert again.final_metrics == trajectory.final_metrics


@pytest.mark.parametrize("minor", MINORS)
def test_every_version_is_exported_for_readers_of_1_5(minor: int):
    trajectory = read_trajectory(GOLDEN / f"v1.{minor}.json")
    old = export(trajectory, "ATIF-v1.5")
    assert errors(validate(old, strict=True)) == []
    assert old["session_id"]
    for step in old["steps"]:
        assert isinstance(step["message"], str)
        for result in step.get("observation", {}).get("results", []):
            assert isinstance(result["content"], str)
            assert isinstance(result["source_call_id"], str)


def test_what_1_5_cannot_say_is_said_in_text_and_noted():
    old = export(read_trajectory(GOLDEN / "v1.8.json"), "ATIF-v1.5")
    assert "1 embedded trajectories are left out" in old["notes"]
    assert "[image/png: images/dot.png]" in old["steps"][1]["message"]
    assert old["steps"][4]["message"] == "So far: three files."


def test_what_a_compaction_replaced_is_no_longer_in_the_messages():
    assert to_messages(read_trajectory(GOLDEN / "v1.7.json")) == [
        {"role": "user", "content": "So far: three files."},
        {"role": "assistant", "content": "Still three."},
    ]


def test_an_unknown_version_to_export_is_refused():
    with pytest.raises(ConfigError, match=r"1\.0\.0"):
        export(read_trajectory(GOLDEN / "v1.7.json"), "ATIF-v1.3")


# ---- the dialect


def test_the_dialect_is_read_step_by_step_whatever_its_vocabulary():
    trajectory = read_trajectory(GOLDEN / "dialect.json")
    assert validate(trajectory.to_json(), strict=True) == []
    first, second = trajectory.steps
    assert (first.message, second.message) == ("I will look.", "Three.")
    assert first.tool_calls is not None
    assert first.tool_calls[1].arguments == {"input": "hello"}
    assert first.observation is not None
    good, bad = first.observation.results
    assert (good.source_call_id, good.content) == ("c1", "a b c")
    assert (bad.content, bad.extra) == (
        "no such tool",
        {"observation_id": "o2", "error": "no such tool"},
    )
    assert first.metrics is not None
    assert (first.metrics.prompt_tokens, first.metrics.completion_tokens) == (6, 3)
    assert first.extra == {"step_id": 0}
    assert trajectory.final_metrics is not None
    assert trajectory.final_metrics.total_prompt_tokens == 17
    assert trajectory.session_id


def test_an_instruction_that_is_known_comes_first():
    data = json.loads((GOLDEN / "dialect.json").read_text())
    steps = parse_trajectory(from_dialect(data, instruction="Count.")).steps
    assert [(s.step_id, s.source) for s in steps] == [(1, "user"), (2, "agent"), (3, "agent")]


def test_the_dialect_survives_a_round_trip():
    first = export(read_trajectory(GOLDEN / "dialect.json"), "1.0.0")
    again = export(parse_trajectory(first), "1.0.0")
    assert again == first
    assert first["steps"][0]["observations"][1]["observation"]["error"] == "no such tool"
    assert first["final_metrics"] == {
        "total_steps": 2,
        "total_input_tokens": 17,
        "total_output_tokens": 5,
    }


@pytest.mark.parametrize(
    "change",
    [
        {"steps": [{"tool_calls": "x"}]},
        {"steps": [{"tool_calls": [3], "observations": [4], "metrics": 5}]},
        {"steps": [{"observations": [{"tool_id": "c", "observation": 3}]}]},
        {"steps": 3},
        {"steps": [{"model_response": {"a": 1}}]},
        {"final_metrics": 3},
    ],
)
def test_a_dialect_file_that_is_not_valid_is_refused_as_any_other(change: dict[str, object]):
    data = json.loads((GOLDEN / "dialect.json").read_text()) | change
    with pytest.raises(TrajectoryFormatError, match="no valid trajectory"):
        parse_trajectory(data)


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=4)
    ),
    max_leaves=20,
)


@given(
    st.dictionaries(st.sampled_from(NAMES), values), st.sampled_from(["1.0.0", "ATIF-v1.5", None])
)
def test_nothing_that_a_file_may_hold_raises_anything_else(
    data: dict[str, object], version: str | None
):
    with suppress(TrajectoryFormatError):
        parse_trajectory(data | {"schema_version": version})


# ---- files that are none


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "no JSON"),
        (b"{", "line 1, column 2"),
        (b"\xff\xfe", "no JSON"),
        (b'{"a": 1, "a": 2}', "'a' stands twice"),
        (b'{"a": NaN}', "NaN is not JSON"),
        (b"[" * 100_000 + b"]" * 100_000, "nested"),
        (b'{"a":' * (MAX_DEPTH + 1) + b"1" + b"}" * (MAX_DEPTH + 1), "nested deeper"),
        (b"[]", "a JSON object is expected"),
        (b'{"schema_version": "ATIF-v9.9"}', "none of those that are read"),
        (b'{"schema_version": "1.0.1"}', "none of those that are read"),
    ],
)
def test_a_file_that_is_no_trajectory_says_why(content: bytes, said: str, tmp_path: Path):
    file = tmp_path / "t.json"
    file.write_bytes(content)
    with pytest.raises(TrajectoryFormatError, match=said):
        read_trajectory(file)


def test_a_file_that_is_not_there_is_named(tmp_path: Path):
    with pytest.raises(TrajectoryFormatError, match=r"trajectory\.json"):
        read_trajectory(tmp_path)


def test_a_huge_file_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("agentenv.atif.reading.MAX_FILE_BYTES", 100)
    file = tmp_path / "t.json"
    file.write_bytes(b" " * 101)
    with pytest.raises(TrajectoryFormatError, match="larger"):
        read_trajectory(file)


def test_the_error_has_every_problem_and_shows_the_first():
    data = broken(7, lambda d: [step.update(source="x") for step in d["steps"]] * 9)
    data["steps"] = data["steps"] * 9
    with pytest.raises(TrajectoryFormatError, match=r"and [0-9]+ more") as raised:
        parse_trajectory(data)
    assert len(raised.value.problems) > 50


def test_a_byte_order_mark_is_no_error(tmp_path: Path):
    file = tmp_path / "t.json"
    file.write_bytes(b"\xef\xbb\xbf" + (GOLDEN / "v1.0.json").read_bytes())
    assert read_trajectory(file).schema_version == "ATIF-v1.0"


# ---- continuations


def test_continuations_are_followed_from_file_to_file(tmp_path: Path):
    (tmp_path / "trajectory.json").write_text(json.dumps(golden(5)))
    (tmp_path / "trajectory.cont-1.json").write_text(json.dumps(golden(0)))
    assert [t.schema_version for t in read_continued(tmp_path)] == ["ATIF-v1.5", "ATIF-v1.0"]


def test_continuations_in_a_circle_are_refused(tmp_path: Path):
    for name in ("trajectory.json", "trajectory.cont-1.json"):
        (tmp_path / name).write_text(json.dumps(golden(5)))
    with pytest.raises(TrajectoryFormatError, match="continues a trajectory that continues it"):
        read_continued(tmp_path)


# ---- writing


@pytest.mark.parametrize("name", ["../out.png", "/tmp/out.png", "a/../../out.png"])
def test_an_image_cannot_be_written_outside_of_the_folder(name: str, tmp_path: Path):
    trajectory = read_trajectory(GOLDEN / "v1.7.json")
    with pytest.raises(ValueError, match="outside"):
        write_trajectory(trajectory, tmp_path / "in" / "t.json", images={name: PIXEL})
    assert not (tmp_path / "in" / "t.json").exists()


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunDirectoryError, match="cannot be written"):
        write_trajectory(read_trajectory(GOLDEN / "v1.7.json"), tmp_path / "file" / "t.json")
