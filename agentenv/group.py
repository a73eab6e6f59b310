"""From rollouts to a group: attempts, backfill, and the rows a trainer reads."""

from __future__ import annotations

import asyncio
import hashlib
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

from agentenv.outcomes import Outcome
from agentenv.run.jsonl import json_plain
from agentenv.types import ScoredDataGroup, ScoredDataItem, SequenceData
from agentenv_tools.schema import ToolResult

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Sequence

    from agentenv._shared_setup import SharedSetup
    from agentenv.rollout import RolloutRecord
    from agentenv.tokens.base import TokenSequence


@dataclass(slots=True)
class MemberContext:
    """Which member of which group the current task works for, and what it has left so far."""

    group_index: int
    member: int
    records: list[RolloutRecord] = field(default_factory=list)
    """Every attempt at this member, in order. A group is built of the last ones."""
    drawn: int = 0
    """How many different seeds it has used."""
    workspace: SharedSetup | None = None
    """The group's set-up, where its members share one."""


@dataclass(slots=True)
class GroupContext:
    """One group under way. `members` are numbered in the order they were asked for."""

    index: int
    members: list[MemberContext] = field(default_factory=list)

    def new_member(self) -> MemberContext:
        """One more member, numbered in order."""
        self.members.append(MemberContext(self.index, len(self.members)))
        return self.members[-1]


current_group: ContextVar[GroupContext | None] = ContextVar("current_group", default=None)
"""Set by whoever collects a group and wants its index kept and its members' records."""

current_member: ContextVar[MemberContext | None] = ContextVar("current_member", default=None)
"""Set for each member's task, so that records reach the group even through an overridden `collect_trajectory`."""


def rollout_seed(seed: int | None, group_index: int, member: int, redrawn: int) -> int | None:
    """The seed of one rollout. A retry after an infrastructure failure keeps it, so that it changes no reward.

    `redrawn` counts attempts that are drawn anew on purpose (after a failed verification).
    """
    if seed is None:
        return None
    text = f"{seed}:{group_index}:{member}:{redrawn}"
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest())


async def attempt_until_trainable(
    attempt: Callable[[int], Awaitable[RolloutRecord]], *, limit: int, retry_delay_s: float = 0.2
) -> RolloutRecord:
    """Run rollouts until one may be trained on, at most `limit` times; the last record otherwise.

    `attempt(redrawn)` runs one. Infrastructure failures are repeated as they were, after a growing pause; anything
    else that left nothing to train on is drawn anew.
    """
    redrawn = 0
    for number in range(1, limit + 1):
        record = await attempt(redrawn)
        if record.trainable or number == limit:
            return record
        if record.outcome.retryable:
            await asyncio.sleep(retry_delay_s * 2 ** (number - 1))
        else:
            redrawn += 1
    raise AssertionError("limit is at least 1")


def to_item(record: RolloutRecord, *, include_messages: bool) -> ScoredDataItem | None:
    """The record as a scored item; None when it may not be trained on."""
    if not record.trainable or record.result is None or not record.result.sequences:
        return None
    *earlier, last = record.result.sequences
    reward = record.reward if record.reward is not None else 0.0
    item = ScoredDataItem(
        tokens=last.tokens, masks=last.masks, scores=reward, inference_logprobs=last.logprobs
    )
    if earlier:
        item["earlier_sequences"] = [_sequence(sequence) for sequence in earlier]
    metadata = json_plain({**last.metadata, **record.score_metadata})
    if metadata:
        item["overrides"] = {"managed_metadata": metadata}
    if include_messages:
        item["messages"] = _messages(record)
    return item


def _sequence(sequence: TokenSequence) -> SequenceData:
    return SequenceData(
        tokens=sequence.tokens, masks=sequence.masks, inference_logprobs=sequence.logprobs
    )


def _messages(record: RolloutRecord) -> list[dict[str, Any]]:
    """The conversation; a failure ends with a tool response that says so, a success with the verifier's messages."""
    assert record.result is not None
    messages = list(record.result.messages)
    if record.outcome is Outcome.AGENT_FAILED:
        messages.append(
            {"role": "user", "content": ToolResult(success=False, error=record.cause).to_xml()}
        )
        return messages
    extra = record.score_metadata.get("verification_messages") or []
    return messages + [{"role": m["role"], "content": m["content"]} for m in extra]


def build_group(
    items: Sequence[ScoredDataItem], *, temperature: float | None = None
) -> ScoredDataGroup:
    """Items as one group with all fourteen keys. A trajectory of several sequences gives several rows.

    Log-probs and messages are there for all rows or for none, so that rows never slip against each other.
    `temperature` is what the rows were sampled at: trainers read it in `generation_params`, and take 1 if it is not
    there.
    """
    rows = [row for item in items for row in _rows(item)]
    with_logprobs = all("inference_logprobs" in row for row in rows)
    with_messages = bool(rows) and all(row.get("messages") is not None for row in rows)
    return ScoredDataGroup(
        tokens=[row["tokens"] for row in rows],
        masks=[row["masks"] for row in rows],
        scores=[row["scores"] for row in rows],
        advantages=_all_or_empty(rows, "advantages"),
        ref_logprobs=_all_or_empty(rows, "ref_logprobs"),
        messages=[row["messages"] or [] for row in rows] if with_messages else None,
        generation_params=None if temperature is None else {"temperature": temperature},
        inference_logprobs=[row["inference_logprobs"] for row in rows] if with_logprobs else None,
        overrides=[row.get("overrides") or {} for row in rows],
        group_overrides={} if len(rows) == len(items) else {"group_size": len(rows)},
        images=[],
        env_id=None,
        distill_token_ids=None,
        distill_logprobs=None,
    )


def last_sequences(group: ScoredDataGroup, members: Iterable[MemberContext]) -> ScoredDataGroup:
    """The group with one row for each trajectory, its last sequence: for servers that make batches of groups by size.

    Rows are known as earlier sequences by being the very same lists, so what an environment made itself stays.
    `group_overrides["sequences_left_out"]` says how many are gone; the group itself comes back when none is.
    """
    records = [record for member in members for record in member.records]
    results = [record.result for record in records if record.result is not None]
    earlier = {id(sequence.tokens) for result in results for sequence in result.sequences[:-1]}
    rows = len(group["tokens"])
    kept = [row for row, tokens in enumerate(group["tokens"]) if id(tokens) not in earlier]
    if len(kept) == rows:
        return group
    trimmed: dict[str, Any] = {
        key: [value[row] for row in kept]
        if isinstance(value, list) and len(value) == rows
        else value
        for key, value in group.items()
    }
    overrides = {**(group.get("group_overrides") or {}), "sequences_left_out": rows - len(kept)}
    overrides.pop("group_size", None)
    return cast("ScoredDataGroup", {**trimmed, "group_overrides": overrides})


def _rows(item: ScoredDataItem) -> list[ScoredDataItem]:
    rows = [item]
    for sequence in reversed(item.get("earlier_sequences", [])):
        rows.insert(0, {**item, **sequence})
    return rows


def _all_or_empty(rows: Sequence[ScoredDataItem], key: str) -> list[Any]:
    values = [row.get(key) for row in rows]
    return values if rows and all(value is not None for value in values) else []
