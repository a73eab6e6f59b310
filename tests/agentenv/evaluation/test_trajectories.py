"""Every sample of a sweep has its trajectory in the interchange format, whatever it is a sample of."""

from pathlib import Path
from typing import Any

import pytest

from agentenv.atif import errors, read_trajectory, to_messages, to_sequences, validate
from agentenv.cli.main import main
from agentenv.evaluation.reader import SweepReader
from agentenv.evaluation.sources import EnvironmentSource
from agentenv.evaluation.trajectories import SweepTrajectories
from agentenv.outcomes import Outcome, StopReason
from agentenv.rollout import RolloutRecord
from agentenv.tokens.base import Message
from agentenv_tools.schema import ToolCall
from tests.agentenv.evaluation.sweeps import by_seed, config, sweep_into
from tests.agentenv.evaluation.test_environments import run, write


def problems(file: Path) -> list[Any]:
    trajectory = read_trajectory(file, strict=True)
    return errors(validate(trajectory.to_json(), strict=True, base_dir=file))


def test_those_of_an_environment_hold_the_very_tokens_of_its_rollouts(
    tmp_path, capsys, monkeypatch
):
    kept: dict[str, RolloutRecord] = {}
    run_one = EnvironmentSource.run

    async def noted(self: Any, task: str, **more: Any) -> Any:
        result = await run_one(self, task, **more)
        kept[more["trajectory_id"]] = result.record
        return result

    monkeypatch.setattr(EnvironmentSource, "run", noted)
    directory, target = tmp_path / "run", tmp_path / "files"
    assert run(write(tmp_path, keep_tokens=True), "--run-dir", str(directory)) == 0
    assert main(["trajectory", "export", str(directory), "--all", "-o", str(target)]) == 0
    assert f"18 trajectories: {target}" in capsys.readouterr().out
    assert len(kept) == 18
    for name, record in kept.items():
        folder = target / name.replace(".", "-")
        trajectory = read_trajectory(folder, strict=True)
        assert problems(folder) == []
        assert record.result is not None
        assert tuple(to_sequences(trajectory)) == record.result.sequences
        assert trajectory.final_metrics is not None
        assert trajectory.final_metrics.total_prompt_tokens == record.result.usage.prompt_tokens
        assert (trajectory.extra or {})["reward"] == record.reward


def test_one_is_named_by_the_beginning_of_its_id_or_its_samples(tmp_path, capsys):
    directory = tmp_path / "run"
    run(write(tmp_path), "--run-dir", str(directory))
    with SweepTrajectories(directory) as stored:
        first, *_ = stored.summaries()
        assert stored.count() == 18
        assert stored.find(first.trajectory_id.partition(".")[0]) == first.trajectory_id
        assert stored.read(first.trajectory_id).agent.model_name == "fake"
    capsys.readouterr()
    words = ["trajectory", "export", str(directory)]
    assert main([*words, first.trajectory_id[:16], "-o", str(tmp_path), "--version", "1.0.0"]) == 0
    assert main([*words, "nobody"]) == 1
    assert "no trajectory is 'nobody'" in capsys.readouterr().err
    assert main(["trajectory", "list", str(directory)]) == 0
    assert first.trajectory_id[:20] in capsys.readouterr().out


@pytest.mark.parametrize("outcome", list(Outcome))
async def test_a_sample_that_was_cut_off_leaves_its_conversation(tmp_path, outcome):
    call = ToolCall("terminal", {"command": "ls"}, uniq_id="one")
    said = (
        Message("system", "be good"),
        Message("user", "do it"),
        Message("assistant", "I look.", (call,)),
        Message("tool", '{"output": "a b"}', tool_call_id="one"),
        Message("assistant", "I see."),
    )

    def cut_off(source: Any, task: str, seed: int | None, trajectory_id: str) -> RolloutRecord:
        return RolloutRecord(
            trajectory_id, outcome, StopReason.ERROR, None, None, cause="gone", unfinished=said
        )

    made = config(tasks={"numbers": {"environment": "none", "count": 1}}, attempts=1)
    await sweep_into(tmp_path / "run", made, run_one=cut_off)
    words = ["trajectory", "export", str(tmp_path / "run"), "--all", "-o", str(tmp_path / "out")]
    assert main(words) == 0
    for folder in (tmp_path / "out").iterdir():
        assert problems(folder) == []
        trajectory = read_trajectory(folder)
        assert [step.source for step in trajectory.steps] == ["system", "user", "agent", "agent"]
        looked = trajectory.steps[2]
        assert looked.tool_calls is not None
        assert looked.observation is not None
        assert looked.tool_calls[0].arguments == {"command": "ls"}
        assert looked.observation.results[0].source_call_id == looked.tool_calls[0].tool_call_id
        assert (trajectory.extra or {})["cause"] == "gone"


async def test_messages_come_back_as_they_were(tmp_path):
    await sweep_into(tmp_path, config(), run_one=by_seed)
    with SweepReader(tmp_path) as reader, SweepTrajectories(tmp_path) as stored:
        for sample in reader.samples():
            trajectory = stored.read(sample.row.trajectory_id)
            (first, *_) = to_messages(trajectory)
            assert first["content"] == reader.trajectory(sample.sample)["messages"][0]["content"]
