"""One attempt at one group, and why it came to nothing."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from agentenv.collected import CollectedGroup, version_of
from agentenv.group import last_sequences
from agentenv.records import group_record

if TYPE_CHECKING:
    from agentenv._work import Work
    from agentenv.collected import CollectorSettings
    from agentenv.env import AgentEnv
    from agentenv.group import GroupContext
    from agentenv.types import Item


async def attempt_group(
    env: AgentEnv[Any], work: Work, context: GroupContext, settings: CollectorSettings
) -> tuple[CollectedGroup | None, list[Item]]:
    """The item's group, or None and what should be tried again. Raises what the environment's own code raises."""
    group, backlog = await env.collect_trajectories(work.item)
    if group is None:
        return None, backlog
    group = await env.postprocess_histories(group)
    _check_group(group)
    if settings.one_row_each:
        group = last_sequences(group, context.members)
    seconds = time.monotonic() - work.started_at
    record = None
    if settings.keep_records:
        preview = env.build_task(work.item)
        record = group_record(work.index, work.item, preview, group, context.members, seconds)
    collected = CollectedGroup(
        index=work.index,
        item=work.item,
        group=group,
        context=context,
        policy_version=version_of(context, work.policy_version),
        duration_s=seconds,
        record=record,
    )
    return collected, backlog


def last_cause(context: GroupContext) -> str:
    """What made the group fail, as far as its rollouts tell."""
    causes = [
        record.cause for member in context.members for record in member.records if record.cause
    ]
    return causes[-1] if causes else "no trajectory could be trained on"


def _check_group(group: object) -> None:
    if not isinstance(group, dict) or not {"tokens", "masks", "scores"} <= group.keys():
        raise TypeError(
            f"a group must be a dict with tokens, masks and scores, not a {type(group).__name__}"
        )
