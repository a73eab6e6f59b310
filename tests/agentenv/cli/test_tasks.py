import pytest

from agentenv.cli.main import main
from tests.agentenv.tasks.task_dirs import write_task


def test_valid_and_invalid_tasks_are_told_with_all_that_is_wrong(tmp_path, capsys):
    write_task(tmp_path / "good")
    write_task(tmp_path / "odd", 'colour = "red"\n[environment]\ndocker_image = "x"\n')
    write_task(tmp_path / "bad", "[environment]\ncpus = true\n")
    assert main(["tasks", "check", str(tmp_path)]) == 1
    said = capsys.readouterr().out.splitlines()
    assert said == [
        f"{tmp_path}/bad: invalid",
        "  problem: task.toml: environment.cpus: true is no number",
        f"{tmp_path}/good: valid",
        f"{tmp_path}/odd: valid",
        "  warning: task.toml: colour is not known",
        "3 checked, 1 invalid",
    ]
    assert main(["tasks", "check", str(tmp_path / "good")]) == 0


def test_the_profile_can_be_given(tmp_path, capsys):
    write_task(tmp_path, tests=None)
    assert main(["tasks", "check", str(tmp_path)]) == 1
    assert main(["tasks", "check", "--profile", "agent_runner", str(tmp_path)]) == 0


@pytest.mark.parametrize("name", ["missing", "."])
def test_a_place_without_tasks_is_refused(tmp_path, capsys, name):
    assert main(["tasks", "check", str(tmp_path / name)]) == 2
    assert "error: " in capsys.readouterr().err
