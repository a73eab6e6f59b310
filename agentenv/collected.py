"""What collecting groups deals in, as data: a finished group, one under way, and how collecting is bounded."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol
from uuid import uuid4

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
    """The trainer's step whose weights sampled the oldest token, see `oldest_version`."""
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


class ItemSource(Protocol):
    """Where a collector's items come from."""

    async def next_item(self) -> Item | None:
        """The next one; None where there is none, now or for ever."""
        ...

    def finished(self, group: CollectedGroup) -> None:
        """A group is complete, also one that a filter drops afterwards. Called on the event loop; returns at once."""
        ...


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
    keep_records: bool = False
    """Make each group's line of `groups.jsonl`."""


def oldest_version(context: GroupContext, started_with: int | None) -> int | None:
    """The step of the oldest weights that sampled a part of a group: what its engine told of every sequence, and
    `started_with`, the trainer's step when the group was started, where an engine told nothing or no number.
    """
    versions: list[int | None] = []
    for member in context.members:
        result = member.records[-1].result if member.records else None
        for sequence in result.sequences if result is not None else ():
            told = [int(name) for name in sequence.policy_versions if name.isdecimal()]
            whole = bool(told) and len(told) == len(sequence.policy_versions)
            versions.append(min(told) if whole else started_with)
    known = [version for version in versions if version is not None]
    return min(known) if known and len(known) == len(versions) else started_with
