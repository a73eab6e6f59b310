"""What environments were promised and trainers were given, so that nothing can be lost or doubled unseen."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping


def marked_group(mark: int, env_id: int | None, rows: int) -> dict[str, Any]:
    """A group that tells by its first token which one it is; its sender's name for it is the same each time."""
    tokens = [[mark, 1 + row, 2, 3] for row in range(rows)]
    return {
        "tokens": tokens,
        "masks": [[-100, *row[1:]] for row in tokens],
        "scores": [float(row) for row in range(rows)],
        "inference_logprobs": [[1.0, -0.5, -0.25, -0.125]] * rows,
        "env_id": env_id,
        "group_id": f"group-{mark}",
    }


def marks_of(groups: Iterable[Mapping[str, Any]]) -> list[int]:
    """Which groups these are."""
    return [int(group["tokens"][0][0]) for group in groups]


class Ledger:
    """Groups by mark, batches by id."""

    def __init__(self) -> None:
        self.promised: set[int] = set()
        """Groups whose sender was told that they are received."""
        self.done: dict[Any, list[int]] = {}
        """Batches whose trainer was told that they are its own for good."""
        self.redelivered = 0
        self._seen: dict[Any, list[int]] = {}

    @property
    def progress(self) -> int:
        """Groups promised and groups trained on, together."""
        return len(self.promised) + sum(map(len, self.done.values()))

    def saw(self, batch_id: Any, marks: list[int]) -> None:
        """A trainer has a batch before it. Raises `AssertionError` when the same id once had other groups."""
        if batch_id in self._seen:
            self.redelivered += 1
        assert self._seen.setdefault(batch_id, marks) == marks, f"batch {batch_id} has changed"
        assert batch_id not in self.done, f"batch {batch_id} was acknowledged and came again"

    def acknowledged(self, batch_id: Any) -> None:
        """A trainer has been told that the batch is done."""
        self.done[batch_id] = self._seen[batch_id]

    def check(self, groups: int) -> None:
        """Each of the groups was promised, and trained on exactly once."""
        trained = Counter(mark for marks in self.done.values() for mark in marks)
        wanted = set(range(groups))
        assert self.promised == wanted
        assert not (lost := wanted - trained.keys()), f"lost: {sorted(lost)}"
        assert not (twice := {mark for mark, times in trained.items() if times > 1}), twice
        assert trained.keys() == wanted
