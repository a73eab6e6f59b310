"""Rollout records as lines of a run directory."""

from __future__ import annotations

from dataclasses import asdict, astuple, replace
from typing import TYPE_CHECKING, Any

from agentenv.run.casts import CastFile, cast_path
from agentenv.run.jsonl import json_plain
from agentenv.run.record import (
    GroupRecord,
    SequenceRecord,
    StepRecord,
    ToolCallRecord,
    TrajectoryRecord,
)
from agentenv.task import item_id
from agentenv.tokens.messages import to_chat_messages

if TYPE_CHECKING:
    from collections.abc import Iterable

    from agentenv.group import MemberContext
    from agentenv.rollout import RolloutRecord
    from agentenv.tokens.base import TokenSequence
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
    """One line of `groups.jsonl`. A trajectory's sequences name the rows of the group they became.

    Rows are found by their tokens, not counted: an environment may leave out, reorder or replace rows.
    """
    members = list(members)
    rows = _Rows(group["tokens"], [record for member in members for record in member.records])
    group_id = _group_id(index)
    trajectories = [
        _trajectory(record, attempt, rows, tuple(cast.path for cast in _casts(group_id, record)))
        for member in members
        for attempt, record in enumerate(member.records, 1)
    ]
    return GroupRecord(
        group_id=group_id,
        item_id=item_id(item),
        item_preview=" ".join(preview.split())[:_PREVIEW_CHARS],
        group=group,
        trajectories=tuple(trajectories),
        duration_s=duration_s,
    )


def sample_record(record: RolloutRecord, attempt: int, *, keep_tokens: bool) -> TrajectoryRecord:
    """One rollout by itself. Its sequences, where they are kept, hold their own lists."""
    rows = _Rows([], []) if keep_tokens else None
    casts = tuple(recording.session for recording in record.recordings)
    return _trajectory(record, attempt, rows, casts)


def group_casts(index: int, members: Iterable[MemberContext]) -> list[CastFile]:
    """The casts that `group_record` names."""
    records = [record for member in members for record in member.records]
    return [cast for record in records for cast in _casts(_group_id(index), record)]


def _group_id(index: int) -> str:
    return f"{index:06d}"


def _casts(group_id: str, record: RolloutRecord) -> list[CastFile]:
    return [
        CastFile(cast_path(group_id, record.trajectory_id, recording.session), recording)
        for recording in record.recordings
    ]


class _Rows:
    """The rows of a group, each to be claimed by at most one sequence."""

    def __init__(self, tokens: list[list[int]], records: Iterable[RolloutRecord]) -> None:
        results = [record.result for record in records if record.result is not None]
        ours = {id(sequence.tokens) for result in results for sequence in result.sequences}
        self._copied = not any(id(row) in ours for row in tokens)
        self._left: dict[int | None, list[int]] = dict(enumerate(tokens))

    def claim(self, sequence: TokenSequence) -> int | None:
        """The row that `sequence` became, or None: the very same list; an equal one if rows were copied."""
        tokens = sequence.tokens
        same = [row for row, held in self._left.items() if held is tokens]
        row = next(iter(same), None)
        if row is None and self._copied:
            row = next((row for row, held in self._left.items() if held == tokens), None)
        self._left.pop(row, None)
        return row


def _trajectory(
    record: RolloutRecord, attempt: int, rows: _Rows | None, casts: tuple[str, ...]
) -> TrajectoryRecord:
    result = record.result
    base = TrajectoryRecord(
        trajectory_id=record.trajectory_id,
        outcome=record.outcome.value,
        stop_reason=record.stop_reason.value,
        score=record.reward,
        cause=record.cause,
        attempt=attempt,
        score_metadata=json_plain(record.score_metadata),
        duration_s=record.duration_s,
        casts=casts,
    )
    if result is None:
        return replace(base, messages=tuple(to_chat_messages(record.unfinished)))
    return TrajectoryRecord(
        **{name: getattr(base, name) for name in _BASE_FIELDS},
        final_response=result.final_response,
        messages=tuple(map(_text_only, result.messages)),
        steps=tuple(_step(step) for step in result.steps),
        sequences=() if rows is None else _sequences(record, rows),
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
    "casts",
)


def _sequences(record: RolloutRecord, rows: _Rows) -> tuple[SequenceRecord, ...]:
    """Those of a record that may be trained on. One that is no row of the group keeps its own lists."""
    if not record.trainable or record.result is None:
        return ()
    return tuple(_sequence(sequence, rows.claim(sequence)) for sequence in record.result.sequences)


def _sequence(sequence: TokenSequence, row: int | None) -> SequenceRecord:
    own = row is None
    return SequenceRecord(
        row=row,
        tokens=sequence.tokens if own else [],
        masks=sequence.masks if own else [],
        logprobs=sequence.logprobs if own else [],
        policy_versions=sequence.policy_versions,
        metadata=json_plain(sequence.metadata),
        turns=tuple(map(astuple, sequence.turns)) if own else (),
    )


def _text_only(message: dict[str, Any]) -> dict[str, Any]:
    """A message without its images, which the steps hold: they are large, and stored once."""
    content = message.get("content")
    if not isinstance(content, list):
        return message
    texts = [part["text"] for part in content if part.get("type") == "text"]
    return {**message, "content": "\n".join(texts)}


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
            metadata=json_plain(result.metadata) if result else {},
            images=tuple(image.to_payload() for image in result.images) if result else (),
        )
        for call, result in zip(step.tool_calls, results, strict=True)
    ]
    return StepRecord(
        step_number=step.step_number,
        assistant_text=step.assistant_message,
        tool_calls=tuple(calls),
        generation_s=step.generation_s,
        tools_s=step.tools_s,
        reasoning=_reasoning_elsewhere(step),
        usage=None if step.usage is None else asdict(step.usage),
        started_at=step.started_at,
    )


def _reasoning_elsewhere(step: AgentStep) -> str | None:
    """What a step's text does not hold of what the policy thought."""
    return (
        step.reasoning if step.reasoning and step.reasoning not in step.assistant_message else None
    )
