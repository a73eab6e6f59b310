"""The bundled task directories: their solutions solve them, doing nothing does not, and groups can be trained on."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from agentenv import ConfigError, Tool, tool
from agentenv.config import AgentEnvConfig
from agentenv.rollout import RolloutRecord
from agentenv.tasks import (
    RunOptions,
    TaskResult,
    discover_tasks,
    load_task,
    nop_agent,
    oracle_agent,
    run_task,
)
from agentenv.testing import FakePolicy, FakeRequest
from agentenv.testing.tokenizers import tiny_tokenizer
from agentenv.tokens.renderer import load_renderer
from agentenv_backends.config import parse_backend_config
from agentenv_environments.task_set.environment import BUNDLED, TaskSet, TaskSetConfig
from tests.agentenv.tasks.task_dirs import LOCAL, write_task
from tests.docker_engine import IMAGE, backend_param
from tests.emulators.nomad.server import running_nomad

TASKS = [path.name for path in discover_tasks(BUNDLED)]
TOKENIZER = tiny_tokenizer("qwen3")
END_IDS = [int(TOKENIZER.convert_tokens_to_ids("<|im_end|>"))]


LOCAL_SLOTS = pytest.param({"type": "local", "slots": 8}, id="local", marks=pytest.mark.sandbox)
CONTAINERS = pytest.param(
    {"type": "docker", "max_hosts": 3, "image": IMAGE, "pull": "never"},
    id="docker",
    marks=pytest.mark.docker,
)
SANDBOXES = pytest.param({"type": "modal", "max_hosts": 3}, id="modal", marks=pytest.mark.sandbox)
NODES = pytest.param(
    {"type": "nomad", "max_hosts": 3, "driver": "raw_exec"}, id="nomad", marks=pytest.mark.sandbox
)
CONTAINERS_OF_NODES = pytest.param(
    {"type": "nomad", "max_hosts": 3, "image": IMAGE}, id="nomad-docker", marks=pytest.mark.docker
)


@pytest.fixture
def settings(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Settings of each backend, after what it needs is there."""
    if "image" in request.param:
        request.getfixturevalue("docker_engine")
    return backend_param(request)


@pytest.fixture
async def backend(settings: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
    """The same with the address of its cluster, if it has one."""
    if settings["type"] != "nomad":
        yield settings
        return
    images = (settings.get("image", ""),)
    async with running_nomad(nodes=1, images=images, has_engine="image" in settings) as nomad:
        yield {**settings, "address": nomad.url}


def test_there_is_a_task_of_each_kind():
    tasks = [load_task(path) for path in discover_tasks(BUNDLED)]
    assert len(tasks) >= 4
    assert {task.profile.value for task in tasks} == {"harbor", "agent_runner"}
    assert {task.is_multi_step for task in tasks} == {True, False}
    assert {task.steps[0].verifier.mode for task in tasks} == {"shared", "separate"}
    assert [task.warnings for task in tasks] == [()] * len(tasks)


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings", [LOCAL_SLOTS, CONTAINERS, SANDBOXES, NODES, CONTAINERS_OF_NODES], indirect=True
)
async def test_the_oracle_scores_one_on_every_task_and_doing_nothing_scores_nothing(
    tmp_path: Path, backend: dict[str, Any]
) -> None:
    own = {
        key: value for key, value in backend.items() if key not in ("type", "slots", "max_hosts")
    }
    turn = asyncio.Semaphore(2)

    async def result_of(name: str, agent: str) -> TaskResult:
        async with turn:
            return await run_task(
                Path(BUNDLED) / name,
                agent={"oracle": oracle_agent, "nop": nop_agent}[agent](),
                provider=backend["type"],
                output_dir=tmp_path,
                options=RunOptions(backend=own),
            )

    pairs = [(name, agent) for name in TASKS for agent in ("oracle", "nop")]
    results = await asyncio.gather(*(result_of(*pair) for pair in pairs))
    assert [result.error for result in results] == [None] * len(results)
    assert {pair: result.reward for pair, result in zip(pairs, results, strict=True)} == {
        (name, agent): float(agent == "oracle") for name, agent in pairs
    }


def solution_of(*parts: str) -> str:
    lines = Path(BUNDLED, *parts).read_text().splitlines()
    return "\n".join(["export ROUTE=/b", *(line for line in lines if not line.startswith("#!"))])


SOLUTIONS = {
    "Write a script": solution_of("sum-script", "solution", "solve.sh"),
    "Count the words": solution_of("word-count", "solution", "solve.sh"),
    "holds payments": solution_of("ledger", "steps", "open", "solution", "solve.sh"),
    "was taken back": solution_of("ledger", "steps", "close", "solution", "solve.sh"),
    "requests.log": solution_of("report", "solution", "solve.sh"),
}
"""By words of the instruction that it answers."""


def solve_by_seed(request: FakeRequest) -> str:
    """Solve the task in an odd rollout, and give up in others."""
    prompt = TOKENIZER.decode(list(request.prompt_ids))
    if request.turn or not (request.seed or 0) % 2:
        return "Done."
    command = next(solution for words, solution in SOLUTIONS.items() if words in prompt)
    call = json.dumps({"name": "terminal", "arguments": {"command": command}})
    return f"<tool_call>\n{call}\n</tool_call>"


def environment(
    backend: dict[str, Any],
    env_class: type[TaskSet] = TaskSet,
    script: Callable[[FakeRequest], str] = solve_by_seed,
    **settings: Any,
) -> tuple[TaskSet, list[RolloutRecord]]:
    """The environment over a scripted policy, and the records it makes."""
    config, servers = TaskSet.config_init()
    changes = {"backend": parse_backend_config(backend), "max_token_length": 4000, **settings}
    env = env_class(config.model_copy(update=changes), servers)
    env.runtime = env.task_runtime(
        policy=FakePolicy(script, tokenizer=TOKENIZER, end_ids=END_IDS),
        renderer=load_renderer(TOKENIZER, "qwen3"),
        served_tools=env.build_server_tools(),
    )
    records: list[RolloutRecord] = []
    env.runtime.on_rollout = records.append
    return env, records


@pytest.mark.slow
@pytest.mark.parametrize("settings", [LOCAL_SLOTS, CONTAINERS, SANDBOXES], indirect=True)
async def test_groups_are_collected_from_tasks_that_each_want_another_sandbox(
    backend: dict[str, Any],
) -> None:
    env, records = environment(backend, group_size=3)
    await env.setup()
    try:
        items = [await env.get_next_item() for _ in TASKS]
        groups = [(await env.collect_trajectories(item))[0] for item in items]
        assert (await env.get_next_item())["id"] == items[0]["id"]
    finally:
        await env.shutdown()
    assert [Path(item["path"]).name for item in items] == TASKS
    assert [record.cause for record in records] == [None] * (3 * len(TASKS))
    assert all(group is not None for group in groups)
    seen = {record.score_metadata["task"]: set[float | None]() for record in records}
    for record in records:
        solved = record.result is not None and record.result.total_tool_calls > 0
        assert (record.reward == 0.0) is not solved
        seen[record.score_metadata["task"]].add(record.reward)
    assert any(len(rewards) > 1 for rewards in seen.values())


@tool
async def oracle(question: str) -> str:
    """Ask the oracle."""
    return f"nobody knows {question}"


class AskingTaskSet(TaskSet):
    """Whose agents have a tool outside of their sandboxes."""

    def build_server_tools(self) -> Sequence[Tool[Any]]:
        return (oracle,)


def ask_the_oracle(request: FakeRequest) -> str:
    call = json.dumps({"name": "oracle", "arguments": {"question": "why"}})
    return "Done." if request.turn else f"<tool_call>\n{call}\n</tool_call>"


@pytest.mark.sandbox
async def test_tools_outside_of_the_sandbox_are_there_for_every_task() -> None:
    env, records = environment(
        {"type": "local"}, AskingTaskSet, ask_the_oracle, group_size=1, tool_server_url="inprocess"
    )
    await env.setup()
    try:
        for _ in range(2):
            await env.collect_trajectories(await env.get_next_item())
    finally:
        await env.shutdown()
    results = [step.tool_results for record in records for step in record.result.steps]  # type: ignore[union-attr]
    assert [result[0].output for result in results if result] == ["nobody knows why"] * len(records)


@pytest.mark.sandbox
async def test_tasks_that_cannot_run_are_refused_at_start_or_left_out(tmp_path: Path) -> None:
    write_task(tmp_path / "fine", LOCAL)
    write_task(tmp_path / "broken", "a = ")
    write_task(tmp_path / "elsewhere", LOCAL.replace("host_image = true", "host_image = false"))
    local = {"type": "local"}
    env, _ = environment(local, tasks_dir=tmp_path)
    with pytest.raises(ConfigError, match=r"(?s)broken.*elsewhere.*skip_unsupported_tasks"):
        await env.setup()
    env, _ = environment(local, tasks_dir=tmp_path, skip_unsupported_tasks=True)
    await env.setup()
    try:
        assert [(await env.get_next_item())["id"] for _ in range(2)] == ["fine", "fine"]
    finally:
        await env.shutdown()


async def test_a_folder_without_tasks_is_refused(tmp_path: Path) -> None:
    env, _ = environment({"type": "local"}, tasks_dir=tmp_path)
    with pytest.raises(ConfigError, match="no task below it"):
        await env.setup()


def test_a_shared_set_up_is_refused():
    with pytest.raises(ValueError, match="share_workspace_setup"):
        TaskSetConfig(share_workspace_setup=True)
    assert AgentEnvConfig(share_workspace_setup=True).share_workspace_setup
