"""Rollout records as lines of a run directory."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from agentenv.run.record import (
    GroupRecord,
    SequenceRecord,
    StepRecord,
    ToolCallRecord,
    TrajectoryRecord,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    from agentenv.group import MemberContext
    from agentenv.rollout import RolloutRecord
    from agentenv.types import AgentStep, Item, ScoredDataGroup

_PREVIEW_CHARS = 240


def group_record(
    index: int,
    item: Item,
    preview: str,
    group: ScoredDataGroup,
    members: Iterable[MemberContext],
    duration_s: float,
) -> GroupRecord:
    """One line of `groups.jsonl`. Rows of the group are numbered through the members in order."""
    trajectories: list[TrajectoryRecord] = []
    row = 0
    for member in members:
        for attempt, record in enumerate(member.records, 1):
            final = attempt == len(member.records)
            trajectories.append(_trajectory(record, attempt, row if final else None))
        last = member.records[-1].result if member.records else None
        row += len(last.sequences) if last else 0
    return GroupRecord(
        group_id=f"{index:06d}",
        item_id=_item_id(item),
        item_preview=" ".join(preview.split())[:_PREVIEW_CHARS],
        group=group,
        trajectories=tuple(trajectories),
        duration_s=duration_s,
    )


def _item_id(item: Item) -> str | None:
    value = (
        item.get("id")
        if isinstance(item, dict)
        else getattr(item, "id", getattr(item, "task_id", None))
    )
    return None if value is None else str(value)


def _trajectory(record: RolloutRecord, attempt: int, first_row: int | None) -> TrajectoryRecord:
    result = record.result
    base = TrajectoryRecord(
        trajectory_id=record.trajectory_id,
        outcome=record.outcome.value,
        stop_reason=record.stop_reason.value,
        score=record.reward,
        cause=record.cause,
        attempt=attempt,
        score_metadata=_json_plain(record.score_metadata),
        duration_s=record.duration_s,
    )
    if result is None:
        return base
    return TrajectoryRecord(
        **{name: getattr(base, name) for name in _BASE_FIELDS},
        final_response=result.final_response,
        messages=result.messages,
        steps=tuple(_step(step) for step in result.steps),
        sequences=() if first_row is None else _sequences(result.sequences, first_row),
        sampled_tokens=result.total_tokens,
        timings={
            "generation": sum(step.generation_s for step in result.steps),
            "tools": sum(step.tools_s for step in result.steps),
        },
    )


_BASE_FIELDS = (
    "trajectory_id",
    "outcome",
    "stop_reason",
    "score",
    "cause",
    "attempt",
    "score_metadata",
    "duration_s",
)


def _sequences(sequences: Iterable[Any], first_row: int) -> tuple[SequenceRecord, ...]:
    return tuple(
        SequenceRecord(
            row=first_row + number,
            policy_versions=sequence.policy_versions,
            metadata=_json_plain(sequence.metadata),
        )
        for number, sequence in enumerate(sequences)
    )


def _step(step: AgentStep) -> StepRecord:
    results = [*step.tool_results, *[None] * (len(step.tool_calls) - len(step.tool_results))]
    calls = [
        ToolCallRecord(
            name=call.name,
            arguments=call.arguments,
            call_id=call.uniq_id,
            raw_text=call.raw_text,
            success=result.success if result else False,
            output=result.output if result else "",
            error=result.error if result else "not run: the rollout's time was over",
            metadata=_json_plain(result.metadata) if result else {},
        )
        for call, result in zip(step.tool_calls, results, strict=True)
    ]
    return StepRecord(
        step_number=step.step_number,
        assistant_text=step.assistant_message,
        tool_calls=tuple(calls),
        generation_s=step.generation_s,
        tools_s=step.tools_s,
    )


def _json_plain(value: Any) -> Any:
    """What an environment put into metadata, as plain JSON; what JSON has no word for becomes text."""
    return json.loads(json.dumps(value, default=str, allow_nan=True), parse_constant=str)
