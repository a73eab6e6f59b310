import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from rich.console import Console

from agentenv.cli.commands import run_dir_for
from agentenv.cli.doctor import can_run, protections_table
from agentenv.cli.main import main, run_cli
from agentenv.run.directory import read_groups
from agentenv_backends.doctor import InForce, Protection
from tests.agentenv.cli.cli_env import CliConfig, CliEnv, Silent

ROOT = Path(__file__).parents[3]
NAME = "tests.agentenv.cli.cli_env:CliEnv"


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """In a folder of its own, without settings from outside, and with the logging it found."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    for name in [name for name in os.environ if name.startswith("AGENTENV_")]:
        monkeypatch.delenv(name)
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers, root.level = handlers, level


def _config(path: Path, text: str = "") -> str:
    file = path / "config.yaml"
    file.write_text(f"environment: {NAME}\n{text}")
    return str(file)


def test_process_can_be_watched_and_says_where(tmp_path, capsys):
    words = ["--run-dir", "out", "--env.total_steps", "1", "--watch", "--no-report"]
    assert main(["process", _config(tmp_path), *words]) == 0
    assert "watch it at http://127.0.0.1:" in capsys.readouterr().out


def test_process_writes_groups_config_summary_and_report_and_says_where(tmp_path, capsys):
    assert main(["process", _config(tmp_path), "--run-dir", "out", "--env.total_steps", "2"]) == 0
    groups = list(read_groups("out"))
    assert len(groups) == 2
    assert {len(group.trajectories) for group in groups} == {2}
    assert json.loads(Path("out/summary.json").read_text())["groups"]["written"] == 2
    assert b"canary" not in b"".join(path.read_bytes() for path in Path("out").iterdir())
    shown = capsys.readouterr().out
    for part in ("2/2", "out/report.html", "out/groups.jsonl", "4 scored"):
        assert part in shown
    assert sorted(path.name for path in Path("out").iterdir()) == [
        "config.in_force.yaml",
        "config.yaml",
        "groups.jsonl",
        "report.html",
        "summary.json",
        "trajectories.sqlite",
    ]


def test_the_config_of_a_run_does_the_same_run_again(tmp_path):
    first = [
        "process",
        _config(tmp_path, "env: {group_size: 3}"),
        "--run-dir",
        "one",
        "--env.total_steps",
        "2",
    ]
    assert main(first) == 0
    config = yaml.safe_load(Path("one/config.yaml").read_text())
    assert config["environment"] == NAME
    assert (config["env"]["group_size"], config["env"]["total_steps"]) == (3, 2)
    assert main(["process", "one/config.yaml", "--run-dir", "two"]) == 0
    scores = [
        {group.group_id: group.group["scores"] for group in read_groups(path)}
        for path in ("one", "two")
    ]
    assert scores[0] == scores[1]


def test_an_environment_has_a_command_line_of_its_own(tmp_path, capsys):
    Path("own.yaml").write_text("env: {total_steps: 1}")
    arguments = [
        "process",
        "--config",
        "own.yaml",
        "--run-dir",
        "out",
        "--env.group_size",
        "2",
        "--no-report",
    ]
    assert run_cli(CliEnv, arguments) == 0
    assert len(list(read_groups("out"))) == 1
    assert not Path("out/report.html").exists()


def test_environment_variables_count(tmp_path, monkeypatch):
    monkeypatch.setenv("AGENTENV_ENV__TOTAL_STEPS", "1")
    assert run_cli(CliEnv, ["process", "--run-dir", "out"]) == 0
    assert len(list(read_groups("out"))) == 1


def test_a_run_without_a_directory_gets_a_new_one_below_runs(tmp_path):
    env = CliEnv(CliConfig(), [])
    first = run_dir_for(env)
    assert first.parent == Path("runs")
    assert first.name.startswith("cli-test-")
    first.mkdir(parents=True)
    assert run_dir_for(env) != first
    env.config.data_path_to_save_groups = "data/groups.jsonl"
    assert run_dir_for(env) == Path("data/groups")


def test_a_run_that_collects_nothing_fails_and_still_says_why(tmp_path, capsys):
    assert run_cli(CliEnv, ["process", "--run-dir", "out", "--env.fails"]) == 1
    captured = capsys.readouterr()
    assert "verifier_failed" in captured.out
    assert "the verifier broke" in captured.err
    assert "\x1b[31m" not in captured.out + captured.err
    assert json.loads(Path("out/summary.json").read_text())["groups"]["written"] == 0


def test_a_directory_that_holds_groups_is_not_overwritten(tmp_path, capsys):
    arguments = ["process", "--run-dir", "out", "--env.total_steps", "1"]
    assert run_cli(CliEnv, arguments) == 0
    before = Path("out/groups.jsonl").read_bytes()
    assert run_cli(CliEnv, arguments) == 1
    assert "already holds 1 groups" in capsys.readouterr().err
    assert Path("out/groups.jsonl").read_bytes() == before


def test_evaluate_prints_the_metrics(capsys):
    assert run_cli(CliEnv, ["evaluate"]) == 0
    assert "accuracy" in capsys.readouterr().out


def test_evaluate_says_when_there_are_none(capsys):
    assert run_cli(Silent, ["evaluate"]) == 0
    assert "returned no metrics" in capsys.readouterr().out


def test_serve_refuses_a_trainer_it_cannot_reach_by_address(capsys):
    assert run_cli(CliEnv, ["serve", "--env.rollout_server_url", "localhost:8000"]) == 2
    assert "http://" in capsys.readouterr().err


def test_report_is_built_again_from_what_is_there(capsys):
    assert (
        run_cli(CliEnv, ["process", "--run-dir", "out", "--env.total_steps", "1", "--no-report"])
        == 0
    )
    assert main(["report", "out"]) == 0
    assert "out/report.html" in capsys.readouterr().out
    assert "Token texts are missing" in Path("out/report.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["process"], 2, "a configuration file is needed"),
        (["process", "nowhere.yaml"], 2, "nowhere.yaml cannot be read"),
        (["proces"], 2, "invalid choice: 'proces'"),
        ([], 2, "COMMAND"),
        (["process", "config.yaml", "--group_size", "3"], 2, "did you mean --env.group_size?"),
        (["process", "config.yaml", "--env.group_sise", "3"], 2, "did you mean env.group_size?"),
        (["process", "config.yaml", "--run-dirr", "x"], 2, "unknown: --run-dirr"),
        (["process", "config.yaml", "--env.group_size", "zero"], 2, "env.group_size = 'zero'"),
        (["process", "none.yaml"], 2, "has no `environment:"),
        (["process", "wrong.yaml"], 2, "is no subclass of AgentEnv"),
        (["process", "typo.yaml"], 2, "has no CliEnf; did you mean CliEnv?"),
        (["process", "module.yaml"], 2, "there is no module 'tests.agentenv.nothing'"),
        (["process", "short.yaml"], 2, "did you mean shell_tasks?"),
        (["report", "nowhere"], 1, "nowhere"),
        (["report", "nowhere", "--env.group_size", "1"], 2, "report takes no settings"),
    ],
)
def test_what_cannot_be_done_is_refused_with_the_way_out(
    tmp_path, capsys, arguments, status, message
):
    _config(tmp_path)
    for name, environment in [
        ("wrong", "tests.agentenv.cli.cli_env:NoEnvironment"),
        ("typo", "tests.agentenv.cli.cli_env:CliEnf"),
        ("module", "tests.agentenv.nothing:Env"),
        ("short", "shell_task"),
    ]:
        Path(f"{name}.yaml").write_text(f"environment: {environment}")
    Path("none.yaml").write_text("env: {}")
    assert main(arguments) == status
    assert message in capsys.readouterr().err
    assert not Path("runs").exists()


def test_a_file_written_for_another_environment_is_refused(tmp_path, capsys):
    config = _config(tmp_path)
    assert run_cli(Silent, ["process", "--config", config]) == 2
    assert "is for environment" in capsys.readouterr().err


def test_an_error_inside_the_named_module_is_not_taken_for_a_missing_one(tmp_path):
    Path("broken_env_module.py").write_text("import a_module_that_is_not_there\n")
    Path("broken.yaml").write_text("environment: broken_env_module:Env")
    with pytest.raises(ModuleNotFoundError, match="a_module_that_is_not_there"):
        main(["process", "broken.yaml"])


def test_short_names_are_modules_of_the_bundled_environments(capsys):
    Path("short.yaml").write_text("environment: shell_tasks")
    assert main(["process", "short.yaml", "--help"]) == 0
    assert "--env.first_task" in capsys.readouterr().out


def test_help_tells_every_setting_with_its_meaning_and_default_and_no_secret(capsys):
    assert run_cli(CliEnv, ["process", "--help"]) == 0
    shown = capsys.readouterr().out
    for part in ("--env.group_size", "Trajectories per item. [integer >= 1, default 2]", "--env.fails", "--run-dir",
                 "--env.backend.isolation", "bubblewrap | none", "--openai.base_url", "AGENTENV_ENV__"):  # fmt: skip
        assert part in shown
    assert "canary" not in shown


def test_help_of_the_program_names_its_commands(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    shown = capsys.readouterr().out
    for command in ("process", "evaluate", "serve", "doctor", "report"):
        assert command in shown


def test_the_version_is_told(capsys):
    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out.startswith("agentenv ")


def test_doctor_shows_each_protection_and_what_to_do(capsys):
    found = [
        Protection("no network", InForce.YES, "own network namespace"),
        Protection("memory is limited", InForce.NO, "no cgroup", "run it as root"),
    ]
    Console(width=200).print(protections_table(found))
    shown = capsys.readouterr().out
    for part in ("no network", "own network namespace", "memory is limited", "run it as root"):
        assert part in shown
    assert can_run(found)


def test_doctor_fails_when_no_slot_can_be_opened():
    assert not can_run(
        [
            Protection(
                "slots can be opened", InForce.NO, "BackendUnavailableError", "install bubblewrap"
            )
        ]
    )


@pytest.mark.sandbox
def test_doctor_tries_this_machine(capsys):
    assert main(["doctor"]) == 0
    assert "no capabilities" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("interrupts", [1, 2])
def test_ctrl_c_ends_cleanly_and_keeps_what_was_collected(tmp_path, interrupts):
    config = _config(tmp_path, "env: {total_steps: 100000, latency_s: 0.05, max_num_workers: 2}")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([*sys.path, str(ROOT)])}
    command = [sys.executable, "-m", "agentenv.cli.main", "process", config, "--run-dir", "out"]
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        groups = Path("out/groups.jsonl")
        while process.poll() is None and not (groups.exists() and groups.stat().st_size):
            time.sleep(0.01)
        for _ in range(interrupts):
            process.send_signal(signal.SIGINT)
        out, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert "groups written" in out
    written = list(read_groups("out"))
    assert 0 < len(written) == json.loads(Path("out/summary.json").read_text())["groups"]["written"]
    assert Path("out/report.html").exists()
    assert not Path("out/run.lock").exists()
