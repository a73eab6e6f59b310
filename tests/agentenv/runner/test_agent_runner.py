import asyncio
import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import agentenv
from agentenv import AgentRunner, ParallelRunner, discover_tasks
from agentenv.atif import errors, read_trajectory, validate
from agentenv.control.pause import PauseGate
from agentenv.errors import ConfigError, PolicyAccessError, PolicyError
from agentenv.runner import BatchResult, RunResult, TaskResult
from agentenv.runner.parallel import batch_result
from agentenv.tasks import TaskFormatError
from agentenv.testing import FakePolicy
from tests.agentenv.runner.solving import FIX, SOLVE, TASK, WRITE, chat
from tests.agentenv.tasks.task_dirs import write_task


def parameters(function: Callable[..., Any]) -> dict[str, object]:
    signature = inspect.signature(function)
    return {
        name: parameter.default
        for name, parameter in signature.parameters.items()
        if parameter.kind is parameter.POSITIONAL_OR_KEYWORD and name != "self"
    }


def test_the_signatures_and_defaults_are_the_documented_ones():
    model = "gemini/gemini-2.5-computer-use-preview-10-2025"
    empty = inspect.Parameter.empty
    assert parameters(AgentRunner.__init__) == {
        "task_path": empty, "model": model, "provider": "docker", "output_dir": "output", "watch": False,
    }  # fmt: skip
    assert parameters(ParallelRunner.__init__) == {
        "task_paths": empty, "n_concurrent": 2, "model": model, "provider": "docker", "output_dir": "output",
        "quiet": False, "on_complete": None,
    }  # fmt: skip
    assert parameters(discover_tasks) == {"directory": empty, "pattern": "**/task.toml"}
    assert list(RunResult.__slots__)[:6] == [
        "success",
        "reward",
        "duration",
        "trajectory",
        "error",
        "output_dir",
    ]
    assert list(BatchResult.__slots__)[:6] == [
        "total_tasks",
        "passed",
        "failed",
        "mean_reward",
        "duration",
        "tasks",
    ]


def test_they_are_names_of_the_package_that_are_imported_when_used():
    assert agentenv.AgentRunner is AgentRunner
    with pytest.raises(AttributeError, match="no attribute 'AgentWalker'"):
        agentenv.AgentWalker  # noqa: B018


@pytest.mark.parametrize("provider", ["daytona", ""])
def test_a_provider_that_is_not_offered_is_refused_with_those_that_are(provider: str):
    for runner in (AgentRunner, ParallelRunner):
        with pytest.raises(ConfigError, match="docker, local, nomad, modal"):
            runner("x", provider=provider)


async def test_a_directory_that_is_no_task_is_refused(tmp_path: Path):
    with pytest.raises(TaskFormatError, match=r"task\.toml"):
        await AgentRunner(tmp_path, policy=chat("x")).run()


async def test_a_task_with_a_desktop_is_refused(tmp_path: Path):
    toml = TASK.replace("[environment]\n", "[environment]\ngui = true\n")
    task = write_task(tmp_path / "t", toml)
    with pytest.raises(ConfigError, match="wants a desktop"):
        await AgentRunner(task, provider="local", policy=chat("x"), output_dir=tmp_path / "o").run()


async def test_a_missing_key_is_told_before_a_sandbox_starts(tmp_path: Path, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="OPENAI_API_KEY"):
        await AgentRunner(write_task(tmp_path / "t", TASK), model="gpt-4o", provider="local").run()
    assert not Path("output").exists()


# ---- in sandboxes


@pytest.mark.sandbox
async def test_a_task_that_is_solved_is_a_success_with_everything_in_its_folder(tmp_path: Path):
    task = write_task(tmp_path / "fortytwo", TASK)
    result = await AgentRunner(
        task, provider="local", output_dir=tmp_path / "out", policy=chat(SOLVE, "Done.")
    ).run()
    assert (result.success, result.reward, result.error) == (True, 1.0, None)
    (item,) = result.trajectory
    assert item.tool_name == "bash"
    assert item.tool_input == {"command": "cp given.txt answer.txt && echo copied"}
    assert item.tool_output == "copied\n"
    assert result.output_dir.parent == tmp_path / "out"
    assert result.output_dir.name.startswith("fortytwo_")
    trajectory = read_trajectory(result.output_dir, strict=True)
    assert (
        errors(validate(trajectory.to_json(), strict=True, base_dir=result.output_dir / "agent"))
        == []
    )
    assert (trajectory.extra or {})["reward"] == 1.0
    assert trajectory.agent.tool_definitions is not None
    saved = json.loads((result.output_dir / "result.json").read_text())
    assert saved["trajectory"] == [
        {
            "tool_name": item.tool_name,
            "tool_input": item.tool_input,
            "tool_output": item.tool_output,
        }
    ]


@pytest.mark.sandbox
async def test_the_editor_makes_and_changes_files_and_a_wrong_answer_is_no_error(tmp_path: Path):
    task = write_task(tmp_path / "t", TASK)

    async def run(*replies: str) -> RunResult:
        policy = chat(*replies)
        return await AgentRunner(task, provider="local", output_dir=tmp_path, policy=policy).run()

    wrong = await run(WRITE, "Done.")
    assert (wrong.success, wrong.reward, wrong.error, wrong.counts) == (False, 0.0, None, True)
    right = await run(WRITE, FIX, "Done.")
    assert right.success
    assert [item.tool_name for item in right.trajectory] == ["editor", "editor"]


@pytest.mark.sandbox
@pytest.mark.parametrize("error", [PolicyAccessError, PolicyError])
async def test_a_model_that_fails_is_an_error_that_does_not_count_as_wrong(
    error: type[PolicyError], tmp_path: Path
):
    policy = FakePolicy([error("the key is refused")], returns_tokens=False)
    task = write_task(tmp_path / "t", TASK)
    result = await AgentRunner(task, provider="local", output_dir=tmp_path, policy=policy).run()
    assert not result.success
    assert "the key is refused" in (result.error or "")
    assert not result.counts
    assert read_trajectory(result.output_dir).steps


@pytest.mark.sandbox
async def test_a_batch_counts_what_passed_what_failed_and_what_says_nothing(tmp_path: Path):
    tasks = tmp_path / "tasks"
    write_task(tasks / "easy", TASK)
    write_task(tasks / "hard", TASK, tests="#!/bin/sh\necho 0.5 > /logs/verifier/reward.txt\n")
    seen: list[TaskResult] = []

    def complete(result: TaskResult) -> None:
        seen.append(result)
        raise RuntimeError("a callback of one's own")

    batch = await ParallelRunner(
        [*discover_tasks(tasks), tasks / "gone"],
        provider="local",
        output_dir=tmp_path / "out",
        on_complete=complete,
        policy=chat(SOLVE, "Done."),
    ).run()
    assert (batch.total_tasks, batch.passed, batch.failed, batch.not_counted) == (3, 1, 1, 1)
    assert batch.mean_reward == 0.75
    assert [task.task_path.name for task in batch.tasks] == ["easy", "hard", "gone"]
    assert "TaskFormatError" in (batch.tasks[2].error or "")
    assert len(seen) == 3
    folder = batch.tasks[0].output_dir
    assert folder is not None
    assert folder.parent == batch.output_dir
    assert folder.parent.name.startswith("batch_")
    for task in batch.tasks[:2]:
        assert task.output_dir is not None
        trajectory = read_trajectory(task.output_dir, strict=True)
        assert errors(validate(trajectory.to_json(), strict=True)) == []


def test_a_batch_of_nothing_is_all_zeros(tmp_path: Path):
    batch = batch_result([], 0.0, tmp_path)
    assert (batch.total_tasks, batch.passed, batch.failed, batch.mean_reward) == (0, 0, 0, 0.0)


@pytest.mark.parametrize("numbers", [{"n_concurrent": 0}, {"n_attempts": 0}])
def test_numbers_below_one_are_refused(numbers: dict[str, Any]):
    with pytest.raises(ValueError, match="at least 1"):
        ParallelRunner([], **numbers)


@pytest.mark.sandbox
async def test_a_closed_gate_holds_the_model_and_costs_no_time(tmp_path: Path):
    gate = PauseGate()
    gate.pause()
    policy = chat(SOLVE, "Done.")
    task = write_task(tmp_path / "t", TASK)
    running = asyncio.create_task(
        AgentRunner(task, provider="local", output_dir=tmp_path, policy=policy, gate=gate).run()
    )
    async with asyncio.timeout(60):
        while not list(tmp_path.glob("t_*/trial.log")) and not list(
            tmp_path.glob("t_*/config.json")
        ):
            await asyncio.sleep(0.02)
    assert not policy.requests
    gate.resume()
    assert (await running).success


@pytest.mark.sandbox
async def test_cancelling_a_batch_ends_what_is_under_way(tmp_path: Path):
    policy = FakePolicy([SOLVE, "Done."], returns_tokens=False, latency_s=3600)
    task = write_task(tmp_path / "t", TASK)
    running = asyncio.create_task(
        ParallelRunner(
            [task, task], provider="local", output_dir=tmp_path / "out", policy=policy
        ).run()
    )
    async with asyncio.timeout(120):
        while policy.in_use < 2:
            await asyncio.sleep(0.02)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
    assert policy.in_use == 0
