"""What collecting groups deals in, as data: a finished group, one under way, and how collecting is bounded."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from uuid import uuid4

from agentenv.control.staleness import oldest_version

if TYPE_CHECKING:
    from agentenv.group import GroupContext
    from agentenv.run.record import GroupRecord
    from agentenv.types import Item, ScoredDataGroup

ITEM_ATTEMPTS = 3
"""Times an item is tried as a group before it is dropped."""


@dataclass(frozen=True, slots=True)
class CollectedGroup:
    """A complete group, and how it came about."""

    index: int
    """Of its item, in the order the dataset gave them. A group that is tried again keeps it."""
    item: Item
    group: ScoredDataGroup
    context: GroupContext
    """Its members with every rollout's record."""
    policy_version: int | None
    """The trainer's step whose weights sampled the oldest token, see `version_of`."""
    duration_s: float
    record: GroupRecord | None = None
    """Its line of `groups.jsonl`, where the collector was asked for records."""
    group_id: str = field(default_factory=lambda: uuid4().hex)
    """Unique, also among processes: a server that knows it stores the group once."""


@dataclass(frozen=True, slots=True)
class GroupUnderWay:
    """A group that is being collected, at one moment."""

    index: int
    item: Item
    policy_version: int | None
    """The trainer's step when it was started."""
    started_at: float
    """On the clock of `time.monotonic`."""


@dataclass(frozen=True, slots=True)
class CollectorSettings:
    """How collecting is bounded."""

    workers: int = 8
    """Groups under way, and finished ones nobody has taken yet, together at most."""
    total: int | None = None
    """Groups to collect; None: until the dataset ends."""
    worker_timeout_s: float | None = None
    """Seconds after which a group is cancelled and its item tried again; None: never."""
    item_attempts: int = ITEM_ATTEMPTS
    """Times an item is tried before it is dropped. Being withdrawn does not count."""
    ends_with_dataset: bool = True
    """False: a dataset that has no item now is asked again later."""
    failures_in_a_row: int | None = None
    """So many groups that fail in a row end the collection; None: it goes on, more and more slowly."""
    first_index: int = 0
    """The index of the first item."""
    keep_records: bool = False
    """Make each group's line of `groups.jsonl`."""


def version_of(context: GroupContext, started_with: int | None) -> int | None:
    """The step of the oldest weights that sampled a part of a group: what its engine told of every sequence, and
    `started_with`, the trainer's step when the group was started, where an engine told nothing or no number.
    """
    versions: list[int | None] = []
    for member in context.members:
        result = member.records[-1].result if member.records else None
        for sequence in result.sequences if result is not None else ():
            told = oldest_version(sequence.policy_versions)
            versions.append(started_with if told is None else told)
    return oldest_version(versions) if versions else started_with
