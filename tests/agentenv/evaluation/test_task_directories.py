"""Sweeps over task directories, in real sandboxes of this machine."""

import json
from typing import Any

import pytest
import yaml

from agentenv.atif import read_trajectory, to_sequences
from agentenv.cli.main import main
from agentenv.errors import ConfigError
from agentenv.evaluation.reader import SweepReader
from agentenv.evaluation.runner import Sweep
from agentenv.evaluation.sources import check_arms, open_source
from agentenv.evaluation.spec import AgentSettings, Arm, SweepConfig
from agentenv.evaluation.store import SweepStore
from agentenv.evaluation.task_source import TaskDirectorySource, model_agent
from agentenv.evaluation.trajectories import SweepTrajectories
from agentenv.testing import FakeEngine, FakePolicy, FakeRequest, running_engine
from agentenv_environments.task_set.environment import BUNDLED
from tests.agentenv.evaluation.sweeps import outputs
from tests.agentenv.fake_env import END, TOKENIZER, call_text

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


async def test_an_engine_with_tokens_works_on_a_task_and_its_exact_tokens_are_kept(tmp_path):
    def script(request: FakeRequest) -> str:
        return call_text("pwd") if request.turn == 0 else "I looked around."

    TOKENIZER.save_pretrained(tmp_path / "tokenizer")
    engine = FakeEngine(script, tokenizer=TOKENIZER, end_ids=END)
    async with running_engine(engine) as running:
        server = {
            "server_type": "vllm",
            "base_url": running.base_url,
            "tokenizer_name": str(tmp_path / "tokenizer"),
        }
        config = SweepConfig.model_validate(
            {
                "tasks": {"bundled": {**TASKS, "count": 1}},
                "models": {"fake": {"openai": server, "renderer": "qwen3"}},
                "settings": {"short": {"agent": {"toolsets": ["terminal"]}}},
                "keep_tokens": True,
            }
        )
        check_arms(config)
        store = await SweepStore.open(tmp_path / "run", config)
        await Sweep(config, store).run()
        await store.close()
    with SweepReader(tmp_path / "run") as reader, SweepTrajectories(tmp_path / "run") as stored:
        (sample,) = reader.samples()
        trajectory = stored.read(sample.row.trajectory_id)
    assert (sample.row.outcome, sample.row.reward, sample.row.replies) == ("scored", 0.0, 2)
    (sequence,) = to_sequences(trajectory)
    sampled = [turn.end - turn.start for turn in sequence.turns]
    assert [request.prompt_ids for request in engine.requests] == [
        tuple(sequence.tokens[: turn.start]) for turn in sequence.turns
    ]
    assert sum(sampled) == sample.row.output_tokens
    assert sum(mask != -100 for mask in sequence.masks) == sum(sampled)
    assert all(value <= 0 for turn in sequence.turns for value in sequence.logprobs[turn.start : turn.end])  # fmt: skip
    assert trajectory.steps[-1].message == "I looked around."


def test_what_cannot_run_task_directories_is_refused():
    def source(**model: Any) -> Any:
        values = {"tasks": {"x": TASKS}, "models": {"m": model}}
        return open_source(SweepConfig.model_validate(values), Arm("x", "m", "default"))

    policy = FakePolicy(tokenizer=TOKENIZER)
    with pytest.raises(ConfigError, match="nothing says what they are made with"):
        model_agent(policy, AgentSettings(), "m")
    with pytest.raises(ConfigError, match=r"models\.m\.openai"):
        source(openai={"server_typo": "vllm"})
    values = {"tasks": {"x": {"environment": "shell_tasks"}}, "models": {"m": {"agent": "nop"}}}
    with pytest.raises(ConfigError, match="is for task directories"):
        open_source(SweepConfig.model_validate(values), Arm("x", "m", "default"))
