"""How an environment's rollouts become items and groups."""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from agentenv._kept_setups import full_key
from agentenv.control.over_provision import MemberChoice
from agentenv.group import (
    GroupContext,
    MemberContext,
    attempt_until_trainable,
    build_group,
    current_group,
    current_member,
    rollout_seed,
    to_item,
)
from agentenv.rollout import cancelled_record, finish

if TYPE_CHECKING:
    from agentenv._shared_setup import SharedSetup
    from agentenv.env import AgentEnv
    from agentenv.rollout import RolloutRecord
    from agentenv.task import Task
    from agentenv.types import Item, ScoredDataGroup, ScoredDataItem

logger = logging.getLogger(__name__)
_group_counter = itertools.count()


async def collect_member(
    env: AgentEnv[Any], item: Item
) -> tuple[ScoredDataItem | None, list[Item]]:
    """One scored trajectory of the environment, or (None, [item]) when none can be had."""
    env.runtime.require_tokens()
    member = current_member.get() or _group().new_member()
    drawn_before = member.drawn

    async def attempt(redrawn: int) -> RolloutRecord:
        member.drawn = drawn_before + redrawn + 1
        seed = rollout_seed(
            env.config.seed, member.group_index, member.member, drawn_before + redrawn
        )
        record = await _run_counted(env, env.task_for(item, seed), _workspace_for(item, member))
        member.records.append(record)
        env.runtime.on_rollout(record)
        return record

    record = await attempt_until_trainable(attempt, limit=env.config.policy_retry_limit)
    scored = to_item(record, include_messages=env.config.include_messages)
    return (scored, []) if scored is not None else (None, [item])


def _group() -> GroupContext:
    return current_group.get() or GroupContext(next(_group_counter))


def _workspace_for(item: Item, member: MemberContext) -> SharedSetup | None:
    """The group's set-up, if it was made for this very item: an overridden `collect_trajectory` may ask for others."""
    workspace = member.workspace
    return workspace if workspace is not None and workspace.item is item else None


async def _run_counted(
    env: AgentEnv[Any], task: Task, workspace: SharedSetup | None
) -> RolloutRecord:
    """One rollout, which is counted also when it is withdrawn."""
    trajectory_id = str(uuid4())
    try:
        return await env.runtime.run(
            task, env.verifier(), trajectory_id=trajectory_id, workspace=workspace
        )
    except asyncio.CancelledError:
        env.runtime.on_rollout(cancelled_record(trajectory_id))
        raise


async def collect_group(
    env: AgentEnv[Any], item: Item
) -> tuple[ScoredDataGroup | None, list[Item]]:
    """A complete group, or (None, [item]) when a member cannot be had or the group's deadline passes.

    It starts `over_provision.extra` members more than it needs; once those it keeps have ended, or too many were lost,
    the others are cancelled, and their slots are free when this returns. It does not start while the policy is paused.
    """
    group = _group()
    await env.runtime.gate.wait()
    choice = MemberChoice(env.config.over_provision, env.config.group_size)
    members = [group.new_member() for _ in range(choice.started)]
    workspace = env.runtime.shared_setup(item, env.verifier(), full_key(env, item))
    for member in members:
        member.workspace = workspace
    try:
        items = await _gather_members(env, item, members, choice)
    finally:
        if workspace is not None:
            await finish(workspace.close())
    if items is None:
        return None, [item]
    return build_group(items, temperature=env.build_agent_config(item).temperature), []


async def _gather_members(
    env: AgentEnv[Any], item: Item, members: list[MemberContext], choice: MemberChoice
) -> list[ScoredDataItem] | None:
    """The items of the members that `choice` keeps, in the members' order; None when the group cannot be completed."""

    async def run(member: MemberContext) -> ScoredDataItem | None:
        current_member.set(member)
        scored, _ = await env.collect_trajectory(item)
        return scored

    tasks = [asyncio.create_task(run(member)) for member in members]
    try:
        async with env.runtime.gate.timeout(env.config.group_timeout_s) as deadline:
            return await _chosen(tasks, choice)
    except TimeoutError:
        if not deadline.expired():
            raise
        logger.warning("group %d did not end within group_timeout_s", members[0].group_index)
        return None
    finally:
        await finish(_cancel(tasks))


async def _chosen(
    tasks: list[asyncio.Task[ScoredDataItem | None]], choice: MemberChoice
) -> list[ScoredDataItem] | None:
    """Wait until `choice` is made. Raises what a member raises."""
    started = time.monotonic()
    numbers = {task: number for number, task in enumerate(tasks)}
    waiting = set(tasks)
    while True:
        now = time.monotonic() - started
        kept = choice.kept(now)
        if kept is not None:
            return [scored for n in kept if (scored := tasks[n].result()) is not None]
        if choice.hopeless:
            return None
        done, waiting = await asyncio.wait(
            waiting, timeout=choice.ask_again_in(now), return_when=asyncio.FIRST_COMPLETED
        )
        at_s = time.monotonic() - started
        for task in sorted(done, key=numbers.__getitem__):
            choice.ended(numbers[task], usable=task.result() is not None, at_s=at_s)


async def _cancel(tasks: list[asyncio.Task[Any]]) -> None:
    """Cancel what still runs and wait until it has let go of its slots."""
    for task in tasks:
        task.cancel()
    pending = [task for task in tasks if not task.done()]
    if pending:
        await asyncio.wait(pending)
    for task in tasks:
        if not task.cancelled():
            task.exception()  # seen; the first one is raised by the caller
