"""Sweeps over environment classes, by way of the command line."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from agentenv.cli.main import main
from agentenv.evaluation.reader import SweepReader

HERE = "tests.agentenv.evaluation.sweep_env"


def write(path: Path, **changes: Any) -> str:
    values: dict[str, Any] = {
        "name": "echo",
        "tasks": {"echo": {"environment": f"{HERE}:SweptEnv", "count": 6}},
        "models": {"fake": {"price": {"input": 1.0, "output": 10.0}}},
        "attempts": 3,
        "retry": {"wait_s": 0.0},
    }
    file = path / "sweep.yaml"
    file.write_text(yaml.safe_dump(values | changes))
    return str(file)


def run(*words: str) -> int:
    return main(["evaluate", *words, "--plain", "--no-report"])


def rows(directory: Path) -> list[Any]:
    with SweepReader(directory) as reader:
        return [stored.row for stored in reader.samples()]


def test_a_sweep_over_an_environment_ends_with_a_table(tmp_path, capsys):
    assert run(write(tmp_path), "--run-dir", str(tmp_path / "run")) == 0
    found = rows(tmp_path / "run")
    assert len(found) == 18
    assert {row.reward for row in found} == {0.0, 1.0}
    assert all(row.input_tokens > row.output_tokens > 0 for row in found)
    assert all(
        row.cost_usd == pytest.approx((row.input_tokens + 10 * row.output_tokens) / 1e6)
        for row in found
    )
    shown = capsys.readouterr().out
    assert "pass@3" in shown
    assert "18/18 samples" in shown


def test_engine_failures_are_tried_again_and_change_no_result(tmp_path):
    run(write(tmp_path), "--run-dir", str(tmp_path / "sound"))
    broken = {"environment": f"{HERE}:SweptEnv", "count": 6, "env": {"broken": True}}
    assert run(write(tmp_path, tasks={"echo": broken}), "--run-dir", str(tmp_path / "faulty")) == 0
    assert [row.reward for row in rows(tmp_path / "faulty")] == [
        row.reward for row in rows(tmp_path / "sound")
    ]
    assert {row.tries for row in rows(tmp_path / "faulty")} == {2}


def test_what_cannot_be_used_is_refused_before_anything_starts(tmp_path, capsys):
    directory = str(tmp_path / "run")
    assert run(write(tmp_path, attempts=0, models={}), "--run-dir", directory) == 2
    shown = capsys.readouterr().err
    assert "attempts: Input should be greater than or equal to 1" in shown
    assert "models: Dictionary should have at least 1 item" in shown
    assert not Path(directory).exists()
    assert run(write(tmp_path), "--rescore") == 2
    assert run(write(tmp_path), "--env.seed", "1") == 2
    capsys.readouterr()
    unknown = {"echo": {"environment": f"{HERE}:SweptEnv", "count": 2, "env": {"rihgt": "x"}}}
    assert run(write(tmp_path, tasks=unknown), "--run-dir", directory) == 2
    assert "env.rihgt" in capsys.readouterr().err.replace("\n", "")
    late = {"fake": {}, "late": {"openai": {"server_typo": "vllm"}}}
    assert run(write(tmp_path, models=late), "--run-dir", directory) == 2
    assert "models.late" in capsys.readouterr().err.replace("\n", "")
    assert not Path(directory).exists()
    (tmp_path / "env.yaml").write_text(f"environment: {HERE}:SweptEnv")
    assert run(str(tmp_path / "env.yaml")) == 2
    assert "is for sweeps" in capsys.readouterr().err


def test_another_sweep_in_the_directory_is_refused_unless_asked_for(tmp_path, capsys):
    directory = str(tmp_path / "run")
    assert run(write(tmp_path), "--run-dir", directory) == 0
    assert run(write(tmp_path, attempts=2), "--run-dir", directory) == 1
    assert "attempts: 2 instead of 3" in capsys.readouterr().err
    assert run(write(tmp_path, attempts=2), "--run-dir", directory, "--other-spec") == 0


def test_fewer_tasks_than_counted_are_an_error(tmp_path, capsys):
    many = {"echo": {"environment": f"{HERE}:SweptEnv", "count": 1001}}
    assert run(write(tmp_path, tasks=many), "--run-dir", str(tmp_path / "run")) == 1
    assert "has 1000 tasks, not count=1001" in capsys.readouterr().err.replace("\n", "")


def test_verifiers_that_judge_from_the_record_score_again(tmp_path, capsys):
    directory = str(tmp_path / "run")
    run(write(tmp_path), "--run-dir", directory)
    before = [row.reward for row in rows(tmp_path / "run")]
    wrong = {"echo": {"environment": f"{HERE}:SweptEnv", "count": 6, "env": {"right": "wrong"}}}
    file = write(tmp_path, tasks=wrong)
    assert run(file, "--run-dir", directory, "--rescore", "--other-spec") == 0
    assert [row.reward for row in rows(tmp_path / "run")] == [1.0 - reward for reward in before]
    assert "scored again: 18, 18 of them" in capsys.readouterr().out


def test_verifiers_that_need_the_workspace_keep_their_scores_and_say_so(tmp_path, capsys):
    directory = str(tmp_path / "run")
    looking = {"echo": {"environment": f"{HERE}:LookingEnv", "count": 6}}
    run(write(tmp_path, tasks=looking), "--run-dir", directory)
    before = [row.reward for row in rows(tmp_path / "run")]
    assert run(write(tmp_path, tasks=looking), "--run-dir", directory, "--rescore") == 0
    assert [row.reward for row in rows(tmp_path / "run")] == before
    shown = " ".join(capsys.readouterr().out.split())
    assert "kept as they were: 18" in shown
    assert "18 x verification calls 'terminal' in the workspace, which is gone" in shown


def test_after_an_interruption_nobody_waits_for_a_report(tmp_path, capsys):
    interrupted = {"echo": {"environment": f"{HERE}:InterruptedEnv", "count": 6}}
    file = write(tmp_path, tasks=interrupted, concurrency=1)
    assert main(["evaluate", file, "--run-dir", str(tmp_path / "run"), "--plain"]) == 130
    assert 0 < len(rows(tmp_path / "run")) < 18
    assert not (tmp_path / "run" / "report.html").exists()
    assert f"agentenv report {tmp_path / 'run'}" in capsys.readouterr().out.replace("\n", "")


def test_the_report_of_a_sweep_is_written_again(tmp_path, capsys):
    run(write(tmp_path), "--run-dir", str(tmp_path / "run"))
    assert main(["report", str(tmp_path / "run")]) == 0
    assert (tmp_path / "run" / "report.html").stat().st_size > 10_000
    assert main(["report", str(tmp_path), "--serve"]) == 1
    assert "holds no sweep" in capsys.readouterr().err


def test_help_of_a_sweep_is_shown(tmp_path, capsys):
    assert main(["evaluate", write(tmp_path), "--help"]) == 0
    assert "Exit status of a sweep" in capsys.readouterr().out


def test_compare_and_export(tmp_path, capsys):
    run(write(tmp_path), "--run-dir", str(tmp_path / "a"))
    run(write(tmp_path, seeds=[5]), "--run-dir", str(tmp_path / "b"))
    assert main(["compare", str(tmp_path / "a"), str(tmp_path / "b")]) == 0
    assert "6 in common" in capsys.readouterr().out
    assert main(["compare", str(tmp_path / "a"), str(tmp_path / "none")]) == 1
    capsys.readouterr()
    assert main(["compare", *(str(tmp_path / name) for name in "aba")]) == 0
    shown = capsys.readouterr().out
    assert shown.count("+0.000") == 1
    assert "adjusted" in shown
    target = tmp_path / "x.jsonl"
    assert main(["export", str(tmp_path / "a"), str(target), "--trajectories"]) == 0
    lines = [json.loads(line) for line in target.read_text().splitlines()]
    assert len(lines) == 18
    assert lines[0]["trajectory"]["steps"][0]["tool_calls"][0]["name"] == "terminal"
