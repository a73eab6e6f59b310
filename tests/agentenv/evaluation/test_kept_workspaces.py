"""Verifiers that need the workspace, asked again about what agents left in it, in real sandboxes."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from agentenv.cli.main import main
from agentenv.evaluation.reader import SweepReader
from agentenv.tasks import RunOptions, oracle_agent, run_task
from agentenv.tasks.workspaces import WorkspaceNotKeptError, kept_workspace
from tests.agentenv.evaluation.test_environments import HERE, rows, run, write
from tests.agentenv.tasks.task_dirs import CHECKING, LOCAL, write_task

pytestmark = [pytest.mark.sandbox, pytest.mark.slow]
LOOKING = """#!/bin/sh
echo looked with other eyes
if [ "$(cat answer.txt deep/er/file)" = "42
deep" ] && [ "$(readlink link)" = answer.txt ] && [ -x run.sh ] && [ ! -e given.txt ] &&
  [ "$(cat /logs/artifacts/log)" = kept ] && [ ! -e /tmp/elsewhere ]; then found=0.5; else found=0.25; fi
echo "{\\"reward\\": $found, \\"style\\": 1}" > /logs/verifier/reward.json
"""
SOLVING = """#!/bin/sh
echo 42 > answer.txt; mkdir -p deep/er; echo deep > deep/er/file; ln -s answer.txt link; rm given.txt
echo '#!/bin/sh' > run.sh; chmod +x run.sh; echo kept > /logs/artifacts/log; echo gone > /tmp/elsewhere
"""


def sweep(tmp_path: Path, **changes: Any) -> list[str]:
    values: dict[str, Any] = {
        "tasks": {"ours": {"directory": str(tmp_path / "tasks"), "provider": "local"}},
        "models": {"oracle": {"agent": "oracle"}, "nop": {"agent": "nop"}},
        "concurrency": 2,
        "keep_workspaces": True,
    }
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(values | changes))
    words = [str(tmp_path / "sweep.yaml"), "--run-dir", str(tmp_path / "run")]
    return ["evaluate", *words, "--plain", "--no-report"]


def rewards(tmp_path: Path) -> dict[str, tuple[float | None, float | None]]:
    """By model: the reward, and the first one."""
    with SweepReader(tmp_path / "run") as reader:
        arms = reader.arms()
        found = [stored.row for stored in reader.samples()]
        return {arms[row.arm].model: (row.reward, row.first_reward) for row in found}


@pytest.mark.parametrize("keep_outputs", [True, False])
def test_changed_tests_judge_what_was_left_and_the_first_reward_stays(
    tmp_path, capsys, keep_outputs
):
    files = {"environment/given.txt": "given"}
    task = write_task(tmp_path / "tasks" / "one", LOCAL, files, solution=SOLVING)
    command = sweep(tmp_path, keep_outputs=keep_outputs)
    assert main(command) == 0
    assert rewards(tmp_path) == {"oracle": (1.0, None), "nop": (0.0, None)}
    (task / "tests" / "test.sh").write_text(LOOKING)
    assert main([*command, "--rescore"]) == 0
    assert "scored again: 2, 2 of them with another reward" in capsys.readouterr().out
    assert rewards(tmp_path) == {"oracle": (0.5, 1.0), "nop": (0.25, 0.0)}
    with SweepReader(tmp_path / "run") as reader:
        notes = [reader.trajectory(stored.sample)["score_metadata"] for stored in reader.samples()]
        folders = [stored.row.output_dir for stored in reader.samples()]
        assert {stored.row.rewards for stored in reader.samples()} == {
            '{"reward": 0.5, "style": 1.0}', '{"reward": 0.25, "style": 1.0}',
        }  # fmt: skip
    assert all(note["test-stdout.txt"].startswith("looked with other eyes\n") for note in notes)
    for folder in folders:
        kept = {entry.name for entry in (tmp_path / "run" / folder).iterdir()}
        assert kept == {"workspace"} if not keep_outputs else {"workspace", "result.json"} < kept
    (task / "tests" / "test.sh").write_text("#!/bin/sh\ntrue\n")
    assert main([*command, "--rescore"]) == 0
    assert "verifier failed: 2" in capsys.readouterr().out
    assert rewards(tmp_path) == {"oracle": (None, 1.0), "nop": (None, 0.0)}


def test_what_was_not_kept_is_refused_with_the_reason(tmp_path, capsys):
    large = f"{SOLVING}\nhead -c 3000000 /dev/urandom > large"
    write_task(tmp_path / "tasks" / "one", LOCAL, {"environment/given.txt": ""}, solution=large)
    command = sweep(tmp_path, workspace_max_mb=1)
    assert main(command) == 0
    assert main([*command, "--rescore"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "scored again: 1, 0 of them" in shown
    assert "1 x the tests of a task directory need its sandbox: its workspace takes more" in shown
    assert rewards(tmp_path) == {"oracle": (1.0, None), "nop": (0.0, 0.0)}


async def test_what_separate_tests_judge_outside_of_the_workspace_is_not_judged_again(tmp_path):
    toml = LOCAL.replace("[verifier]", '[verifier]\nuser = "nobody"\nenvironment_mode = "separate"')
    inside, outside = (
        write_task(
            tmp_path / name,
            f'artifacts = ["{path}"]\n{toml}',
            solution=f"#!/bin/sh\necho 42 > {path}\n",
            tests=CHECKING.replace("answer.txt", path),
        )
        for name, path in (("inside", "/workspace/answer.txt"), ("outside", "/tmp/answer.txt"))
    )
    for task in (inside, outside):
        done = await run_task(
            task,
            agent=oracle_agent(),
            provider="local",
            folder=tmp_path / "out" / task.name,
            options=RunOptions(keep_workspace_bytes=1 << 20),
        )
        assert done.reward == 1.0, done.error
    assert kept_workspace(tmp_path / "out" / "inside").used
    with pytest.raises(WorkspaceNotKeptError, match=r"/tmp/answer\.txt, which is outside"):
        kept_workspace(tmp_path / "out" / "outside")


def test_an_environments_verification_is_given_the_workspace_again(tmp_path, capsys):
    def file(**changes: Any) -> str:
        env = {"backend": {"type": "local", "slots": 2}, **changes}
        task_set = {"environment": f"{HERE}:WorkspaceEnv", "count": 2, "env": env}
        return write(tmp_path, tasks={"echo": task_set}, keep_workspaces=True)

    directory = str(tmp_path / "run")
    assert run(file(), "--run-dir", directory) == 0
    before = [row.reward for row in rows(tmp_path / "run")]
    assert set(before) == {0.0, 1.0}
    assert run(file(right="wrong"), "--run-dir", directory, "--rescore", "--other-spec") == 0
    after = rows(tmp_path / "run")
    assert [row.reward for row in after] == [1.0 - reward for reward in before]
    assert [row.first_reward for row in after] == before
    assert "scored again: 6, 6 of them" in capsys.readouterr().out
