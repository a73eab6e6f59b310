"""Sweeps over task directories, in real sandboxes of this machine."""

import json
from typing import Any

import pytest
import yaml

from agentenv.atif import read_trajectory
from agentenv.cli.main import main
from agentenv.errors import ConfigError
from agentenv.evaluation.reader import SweepReader
from agentenv.evaluation.runner import Sweep
from agentenv.evaluation.sources import open_source
from agentenv.evaluation.spec import AgentSettings, Arm, SweepConfig
from agentenv.evaluation.store import SweepStore
from agentenv.evaluation.task_source import TaskDirectorySource, model_agent
from agentenv.testing import FakePolicy, FakeRequest
from agentenv_environments.task_set.environment import BUNDLED
from tests.agentenv.evaluation.sweeps import outputs

pytestmark = [pytest.mark.sandbox, pytest.mark.slow]
TASKS: dict[str, Any] = {"directory": BUNDLED, "provider": "local"}


def test_the_oracle_solves_every_bundled_task_and_doing_nothing_none(tmp_path, capsys):
    values = {
        "tasks": {"bundled": TASKS},
        "models": {"oracle": {"agent": "oracle"}, "nop": {"agent": "nop"}},
        "concurrency": 4,
    }
    file = tmp_path / "sweep.yaml"
    file.write_text(yaml.safe_dump(values))
    assert main(["evaluate", str(file), "--run-dir", str(tmp_path / "run"), "--plain"]) == 0
    with SweepReader(tmp_path / "run") as reader:
        arms, tasks = reader.arms(), reader.tasks()
        rows = [(arms[stored.row.arm].model, stored.row.reward) for stored in reader.samples()]
        notes = [reader.trajectory(stored.sample)["score_metadata"] for stored in reader.samples()]
    assert len(tasks) >= 4
    assert sorted(set(rows)) == [("nop", 0.0), ("oracle", 1.0)]
    assert len(rows) == 2 * len(tasks)
    assert all(any(name.endswith("test-stdout.txt") for name in note) for note in notes)
    assert (tmp_path / "run" / "report.html").exists()
    kept = outputs(tmp_path / "run")
    assert len(kept) == len(rows)
    for folder in kept.values():
        assert json.loads((folder / "result.json").read_text())["output_dir"] == str(folder)
        assert list(folder.glob("**/verifier/test-stdout.txt"))
        assert read_trajectory(folder / "agent").steps
    assert main(["evaluate", str(file), "--run-dir", str(tmp_path / "run"), "--rescore"]) == 0
    assert "the tests of a task directory need its sandbox" in capsys.readouterr().out


async def test_a_chat_model_works_on_a_task_and_its_usage_is_counted(tmp_path):
    def script(request: FakeRequest) -> str:
        if request.turn == 0:
            call = {"name": "terminal", "arguments": {"command": "pwd"}}
            return f"<tool_call>\n{json.dumps(call)}\n</tool_call>"
        return "I looked around."

    config = SweepConfig.model_validate(
        {"tasks": {"bundled": {**TASKS, "count": 1}}, "models": {"fake": {"chat": "unused"}}}
    )
    policy = FakePolicy(script, returns_tokens=False)
    agent = model_agent(policy, AgentSettings(toolsets=["terminal"]), "fake")

    def source(config: SweepConfig, arm: Arm) -> TaskDirectorySource:
        return TaskDirectorySource(config.tasks["bundled"], agent, policy=policy)

    store = await SweepStore.open(tmp_path, config)
    await Sweep(config, store, source=source).run()
    await store.close()
    with SweepReader(tmp_path) as reader:
        (stored,) = reader.samples()
        trajectory = reader.trajectory(stored.sample)
    assert (stored.row.outcome, stored.row.reward) == ("scored", 0.0)
    assert stored.row.output_tokens > 0
    assert stored.row.replies == 2
    assert trajectory["steps"][0]["tool_calls"][0]["success"]
    assert policy.closed


def test_what_cannot_run_task_directories_is_refused():
    def source(**model: Any) -> Any:
        values = {"tasks": {"x": TASKS}, "models": {"m": model}}
        return open_source(SweepConfig.model_validate(values), Arm("x", "m", "default"))

    with pytest.raises(ConfigError, match="task directories are run by chat models here"):
        source(openai={"server_type": "vllm", "base_url": "http://127.0.0.1:9/v1"})
    with pytest.raises(ConfigError, match=r"models\.m\.openai"):
        source(openai={"server_typo": "vllm"})
    values = {"tasks": {"x": {"environment": "shell_tasks"}}, "models": {"m": {"agent": "nop"}}}
    with pytest.raises(ConfigError, match="is for task directories"):
        open_source(SweepConfig.model_validate(values), Arm("x", "m", "default"))
