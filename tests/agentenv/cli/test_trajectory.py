import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from agentenv.atif import read_trajectory, to_sequences
from agentenv.atif.store import TRAJECTORIES_FILE, Trajectories
from agentenv.cli.main import main, run_cli
from agentenv.run.directory import read_groups
from tests.agentenv.atif.goldens import GOLDEN
from tests.agentenv.cli.cli_env import CliEnv


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """In a folder of its own, and with the logging it found."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers, root.level = handlers, level


def process(*flags: str) -> int:
    return run_cli(
        CliEnv, ["process", "--run-dir", "out", "--no-report", "--env.total_steps", "2", *flags]
    )


def test_every_rollout_of_a_run_leaves_a_trajectory_with_what_was_trained_on(capsys):
    assert process() == 0
    stored = Trajectories("out")
    rows = {}
    for group in read_groups("out"):
        for trajectory in group.trajectories:
            found = to_sequences(stored.read(trajectory.trajectory_id))
            rows[trajectory.trajectory_id] = trajectory
            for sequence, kept in zip(found, trajectory.sequences, strict=True):
                assert kept.row is not None
                assert sequence.tokens == group.group["tokens"][kept.row]
                assert sequence.masks == group.group["masks"][kept.row]
                assert sequence.logprobs == group.group["inference_logprobs"][kept.row]
    assert {entry.trajectory_id for entry in stored.summaries()} == rows.keys()
    assert stored.read(next(iter(rows))).agent.name == "cli test"


def test_rollouts_that_are_in_no_group_leave_one_too():
    assert process("--env.fails") == 1
    assert not list(read_groups("out"))
    assert "verifier_failed" in {entry.outcome for entry in Trajectories("out").summaries()}


def test_a_run_keeps_none_when_it_is_told_so():
    assert process("--env.record_trajectories", "false") == 0
    assert not Path("out", TRAJECTORIES_FILE).exists()


def test_evaluation_leaves_them_in_a_run_directory_and_says_where(capsys):
    assert run_cli(CliEnv, ["evaluate"]) == 0
    (file,) = Path("runs").glob(f"*/{TRAJECTORIES_FILE}")
    assert f"2 trajectories: {file}" in capsys.readouterr().out


def test_they_are_listed_exported_and_valid(capsys):
    assert process() == 0
    names = [entry.trajectory_id for entry in Trajectories("out").summaries()]
    assert main(["trajectory", "list", "out"]) == 0
    assert all(name in capsys.readouterr().out for name in names[:1])
    assert main(["trajectory", "export", "out", names[0][:12], "-o", "files"]) == 0
    assert Path("files", names[0], "trajectory.json").exists()
    assert (
        main(["trajectory", "export", "out", "--all", "-o", "files", "--version", "ATIF-v1.5"]) == 0
    )
    files = [str(Path("files") / name) for name in names]
    assert main(["trajectory", "validate", "--strict", *files]) == 0
    assert read_trajectory(files[0]).schema_version == "ATIF-v1.5"


def test_what_is_wrong_with_files_is_named_and_the_status_is_1(capsys):
    Path("bad.json").write_text('{"agent": {}, "steps": []}')
    good = str(GOLDEN / "v1.8.json")
    assert main(["trajectory", "validate", "bad.json", "gone.json", good]) == 1
    shown = capsys.readouterr().out
    for part in (
        "trajectory.agent.name: Field required",
        "'gone.json' cannot be read",
        f"{good}: valid",
    ):
        assert part in shown


def test_media_are_looked_for_unless_told_otherwise(capsys):
    Path("t.json").write_bytes((GOLDEN / "v1.6.json").read_bytes())
    assert main(["trajectory", "validate", "t.json"]) == 1
    assert "images/dot.png" in capsys.readouterr().out
    assert main(["trajectory", "validate", "--no-media", "t.json"]) == 0


def test_a_file_is_converted(capsys):
    assert main(["trajectory", "convert", str(GOLDEN / "dialect.json"), "out.json"]) == 0
    assert read_trajectory("out.json", strict=True).schema_version == "ATIF-v1.7"
    assert main(["trajectory", "convert", "out.json", "back.json", "--version", "1.0.0"]) == 0
    assert '"schema_version": "1.0.0"' in Path("back.json").read_text()


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["export", "out"], 2, "--all"),
        (["export", "out", "x", "--all"], 2, "--all"),
        (["export", "out", "nobody"], 1, "no trajectory is 'nobody'"),
        (["list", "nowhere"], 1, "record_trajectories"),
        (["convert", "nowhere.json", "x.json"], 1, "cannot be read"),
        (["convert", "a", "b", "--version", "2"], 2, "invalid choice"),
    ],
)
def test_bad_input_says_what_is_wrong(arguments: list[str], status: int, said: str, capsys):
    assert process() == 0
    capsys.readouterr()
    assert main(["trajectory", *arguments]) == status
    assert said in capsys.readouterr().err
