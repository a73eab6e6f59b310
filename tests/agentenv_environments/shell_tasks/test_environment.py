import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest
from transformers import AutoTokenizer

from agentenv.outcomes import Outcome
from agentenv.rollout import RolloutRecord
from agentenv.runtime import EnvRuntime
from agentenv.testing import FakePolicy
from agentenv_environments.shell_tasks.demonstrations import demonstrate, replies
from agentenv_environments.shell_tasks.environment import ShellTasks
from agentenv_environments.shell_tasks.tasks import DONE, FAMILIES, Plan, Task, make_task

TASKS = [make_task("held_out", index) for index in range(len(FAMILIES))]
WRONG = Plan(("echo wrong > wrong.txt",))


@asynccontextmanager
async def environment(script: Mapping[str, list[str]]) -> AsyncIterator[ShellTasks]:
    """ShellTasks with a policy that writes `script[trajectory_id]`, one reply per turn."""
    config, servers = ShellTasks.config_init()
    config = config.model_copy(update={"split": "held_out"})
    tokenizer = AutoTokenizer.from_pretrained(config.tokenizer_name)
    policy = FakePolicy(
        lambda request: script[request.trajectory_id][request.turn],
        tokenizer=tokenizer,
        end_ids=[tokenizer.eos_token_id],
    )
    env = ShellTasks(config, servers)
    env.runtime = EnvRuntime(config, servers, env.tools, policy=policy)
    await env.setup()
    try:
        yield env
    finally:
        await env.shutdown()


async def records_of(scripts: Sequence[tuple[Task, list[str]]]) -> list[RolloutRecord]:
    """The record of each task's rollout, in real sandboxes. `scripts` are pairs of task and replies."""
    keyed = {f"{task.id}/{number}": (task, said) for number, (task, said) in enumerate(scripts)}
    async with environment({key: said for key, (_, said) in keyed.items()}) as env:
        runs = (
            env.runtime.run(env.task_for(task), env.verifier(), trajectory_id=key)
            for key, (task, _) in keyed.items()
        )
        return await asyncio.gather(*runs)


def carried_out(task: Task, plan: Plan) -> list[str]:
    return replies(plan.commands, demonstrate(task, plan).answer)


def described(
    scripts: Sequence[tuple[Task, list[str]]], records: Sequence[RolloutRecord]
) -> dict[tuple[str, tuple[str, ...]], float | None]:
    return {
        (task.family, tuple(said)): record.reward
        for (task, said), record in zip(scripts, records, strict=True)
    }


@pytest.mark.sandbox
async def test_the_solution_of_every_family_scores_one():
    scripts = [(task, carried_out(task, task.solution)) for task in TASKS]

    records = await records_of(scripts)

    assert {record.outcome for record in records} == {Outcome.SCORED}
    assert [record.score_metadata["wrong"] for record in records] == [[]] * len(TASKS)
    assert set(described(scripts, records).values()) == {1.0}


@pytest.mark.sandbox
async def test_demonstrations_show_what_a_sandbox_shows():
    plans = [(task, plan) for task in TASKS for plan in (task.solution, *task.slips)]
    shown = [demonstrate(task, plan) for task, plan in plans]

    records = await records_of([(task, carried_out(task, plan)) for task, plan in plans])

    for made, record in zip(shown, records, strict=True):
        assert record.result is not None
        seen = [result for step in record.result.steps for result in step.tool_results]
        assert tuple(replace(result, uniq_id=None) for result in seen) == made.results


@pytest.mark.sandbox
async def test_a_slip_scores_nothing():
    scripts = [(task, carried_out(task, slip)) for task in TASKS for slip in task.slips]

    records = await records_of(scripts)

    assert {key for key, reward in described(scripts, records).items() if reward != 0.0} == set()


@pytest.mark.sandbox
@pytest.mark.parametrize(
    "cheat",
    [
        lambda task: replies((), ""),
        lambda task: replies((), task.answer or DONE),
        lambda task: replies(WRONG.commands, task.answer or DONE),
    ],
    ids=["does nothing", "claims to be done", "does something else"],
)
async def test_whoever_does_not_do_the_work_scores_nothing(cheat):
    scripts = [(task, cheat(task)) for task in TASKS]

    records = await records_of(scripts)

    assert {record.reward for record in records} == {0.0}


@pytest.mark.sandbox
async def test_a_process_left_behind_cannot_change_what_is_judged():
    task = TASKS[0]
    (command,) = task.solution.commands
    (name,) = task.after.files
    spoil = f"{command}; (sleep 0.2; echo spoiled > {name}) >/dev/null 2>&1 &"

    (record,) = await records_of([(task, replies([spoil], DONE))])

    assert record.reward == 1.0


@pytest.mark.sandbox
async def test_what_is_wrong_is_in_the_metadata():
    task = TASKS[0]
    (name,) = task.after.files

    (record,) = await records_of([(task, replies(WRONG.commands, DONE))])

    assert record.score_metadata == {
        "family": task.family,
        "wrong": [f"{name!r} is missing", "'wrong.txt' should not be there"],
    }


async def test_items_follow_each_other_from_the_first_task():
    config, servers = ShellTasks.config_init()
    env = ShellTasks(config.model_copy(update={"first_task": 7, "split": "train"}), servers)
    await env.setup_agent_env()

    assert [await env.get_next_item(), await env.get_next_item()] == [
        make_task("train", 7),
        make_task("train", 8),
    ]
