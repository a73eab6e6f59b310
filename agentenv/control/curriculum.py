"""Which item to work on next, from how past ones were scored.

A curriculum knows items by a key: the item's id, or a name that many items share (a family, a level), which is what an
endless dataset needs, whose items never come back. A pool holds a few items and asks the curriculum for one of them.
"""

from __future__ import annotations

import random
from collections import Counter, OrderedDict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field

from agentenv.errors import ConfigError
from agentenv.naming import load_attribute
from agentenv.task import item_id

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from agentenv.types import Item


class Curriculum(Protocol):
    """A rule that chooses among waiting items. Its state is bounded and JSON-plain."""

    def choose(self, keys: Sequence[str | None]) -> int:
        """The index of the next item among the keys of those waiting, in the order they came. There is at least one."""
        ...

    def record(self, key: str | None, scores: Sequence[float]) -> None:
        """Take in the scores of a finished group, whether or not it was sent."""
        ...

    def state(self) -> dict[str, Any]:
        """What `restore` needs to go on as if nothing had happened."""
        ...

    def restore(self, state: dict[str, Any]) -> None:
        """Take over a `state`. Raises `ConfigError` for one that is none of its own."""
        ...


class InOrder:
    """Items as the dataset gives them. Remembers nothing."""

    def choose(self, keys: Sequence[str | None]) -> int:
        """The one that came first."""
        del keys
        return 0

    def record(self, key: str | None, scores: Sequence[float]) -> None:
        """Does nothing."""

    def state(self) -> dict[str, Any]:
        """Empty."""
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        """Does nothing."""


class CurriculumConfig(BaseModel):
    """Which curriculum, and how it chooses. By default items are taken as they come, as with Atropos."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    type: Literal["in_order", "by_success"] = "in_order"
    """`in_order`, or `by_success`: items whose groups will probably have differing scores come first."""
    lookahead: int = Field(default=16, ge=1, le=10_000)
    """For `by_success`: items held to choose from."""
    max_passes: int = Field(default=8, ge=1)
    """For `by_success`: an item not chosen this many times is skipped, and counted."""
    solved_score: float = 1.0
    """For `by_success`: a trajectory with at least this score succeeded."""
    floor: float = Field(default=0.05, gt=0, le=1)
    """For `by_success`: the least weight of an item, so that none is given up for good."""
    decay: float = Field(default=0.8, gt=0, le=1)
    """For `by_success`: what past counts of a key are multiplied by for each new group of it; the policy changes."""
    max_keys: int = Field(default=10_000, ge=1)
    """For `by_success`: keys remembered; the one recorded longest ago is forgotten first."""
    key: str | None = None
    """`package.module:name` of a function from item to key (text or None); null: the item's own id."""

    def build(self, *, group_size: int, seed: int | None) -> Curriculum:
        """The curriculum of this config, without memories."""
        if self.type == "in_order":
            return InOrder()
        return BySuccess(self, group_size=group_size, seed=seed or 0)

    def key_of(self) -> Callable[[Item], str | None]:
        """The function from an item to its key. Raises `ConfigError` when there is none at that path."""
        if self.key is None:
            return item_id
        found: Callable[[Item], str | None] = load_attribute(
            f"curriculum key {self.key!r}", self.key
        )
        if not callable(found):
            raise ConfigError(
                f"curriculum key {self.key!r} is a {type(found).__name__}, no function"
            )
        return found


class BySuccess:
    """Prefers items whose groups will probably have both successes and failures.

    A key's success rate p is estimated from decayed counts with one imagined success and one imagined failure, so a key
    never seen has 1/2. Its weight is the probability that g independent trajectories do not all end alike,
    1 - p^g - (1 - p)^g, relative to that at 1/2, and at least `floor`. One item is drawn by these weights.

    The same calls in the same order choose the same items: each draw is a function of the seed, how many draws there
    were, and the weights. Several groups under way end in an order that differs from run to run, and so may the draws.
    """

    def __init__(self, config: CurriculumConfig, *, group_size: int, seed: int) -> None:
        self._config = config
        self._group_size = group_size
        self._seed = seed
        self._draws = 0
        self._counts: OrderedDict[str, tuple[float, float]] = OrderedDict()
        """Successes and trajectories of each key, decayed; the key recorded last is last."""

    def choose(self, keys: Sequence[str | None]) -> int:
        """One of them, drawn by weight."""
        draw = random.Random(f"{self._seed}:{self._draws}")  # noqa: S311 - no secret depends on it
        self._draws += 1
        return draw.choices(range(len(keys)), weights=[self.weight(key) for key in keys])[0]

    def weight(self, key: str | None) -> float:
        """What an item of this key weighs in a draw, between `floor` and 1."""
        mixed = _probability_mixed(self.success_rate(key), self._group_size)
        best = _probability_mixed(0.5, self._group_size)
        return max(self._config.floor, mixed / best if best > 0 else 1.0)

    def success_rate(self, key: str | None) -> float:
        """The estimated share of successes of this key; 1/2 for one never recorded, or forgotten, or None."""
        successes, trajectories = self._counts.get(key, (0.0, 0.0)) if key is not None else (0, 0)
        return (successes + 1.0) / (trajectories + 2.0)

    def record(self, key: str | None, scores: Sequence[float]) -> None:
        """Count successes and trajectories. Items without a key leave no trace."""
        if key is None or not scores:
            return
        successes, trajectories = self._counts.pop(key, (0.0, 0.0))
        won = sum(score >= self._config.solved_score for score in scores)
        decay = self._config.decay
        self._counts[key] = (successes * decay + won, trajectories * decay + len(scores))
        while len(self._counts) > self._config.max_keys:
            self._counts.popitem(last=False)

    def state(self) -> dict[str, Any]:
        """Draws and counts."""
        return {
            "draws": self._draws,
            "counts": [[key, *held] for key, held in self._counts.items()],
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Take over draws and counts; of too many keys, the last."""
        try:
            draws = int(state["draws"])
            counts = OrderedDict((str(k), (float(s), float(n))) for k, s, n in state["counts"])
        except (KeyError, TypeError, ValueError) as error:
            raise ConfigError(
                f"this is no state of the curriculum by_success: {error!r}"
            ) from error
        while len(counts) > self._config.max_keys:
            counts.popitem(last=False)
        self._draws, self._counts = draws, counts


@dataclass(slots=True)
class _Waiting:
    item: Item
    key: str | None
    passes: int = 0


@dataclass(slots=True)
class ItemPool:
    """Takes items from a dataset and hands out the one its curriculum chooses. For one caller at a time.

    It holds up to `lookahead` items. One that was passed over `max_passes` times is skipped, so that items which are
    never chosen cannot fill the pool. When the dataset ends, those left are handed out. With `lookahead` 1 it is the
    dataset itself.
    """

    fetch: Callable[[], Awaitable[Item | None]]
    """The dataset's next item, or None."""
    curriculum: Curriculum = field(default_factory=InOrder)
    lookahead: int = 1
    max_passes: int = 8
    key_of: Callable[[Item], str | None] = item_id
    skipped: Counter[str] = field(default_factory=Counter)
    """How often items of each key were skipped. Holds a thousand keys; the others count as `others`."""
    _waiting: list[_Waiting] = field(default_factory=list)

    @classmethod
    def from_config(
        cls,
        config: CurriculumConfig,
        fetch: Callable[[], Awaitable[Item | None]],
        *,
        group_size: int,
        seed: int | None,
    ) -> ItemPool:
        """The pool that a config describes."""
        return cls(
            fetch,
            config.build(group_size=group_size, seed=seed),
            lookahead=1 if config.type == "in_order" else config.lookahead,
            max_passes=config.max_passes,
            key_of=config.key_of(),
        )

    @property
    def held(self) -> tuple[Item, ...]:
        """Items that were fetched and not handed out. A checkpoint of the dataset's position has passed them."""
        return tuple(waiting.item for waiting in self._waiting)

    async def next(self) -> Item | None:
        """The next item to work on; None when the dataset has none now and none is held."""
        while len(self._waiting) < self.lookahead and (item := await self.fetch()) is not None:
            self._waiting.append(_Waiting(item, self.key_of(item)))
        if not self._waiting:
            return None
        chosen = self._waiting.pop(self.curriculum.choose([held.key for held in self._waiting]))
        if self.lookahead > 1:
            self._let_go()
        return chosen.item

    def record(self, item: Item, scores: Sequence[float]) -> None:
        """Tell the curriculum how an item's group was scored."""
        self.curriculum.record(self.key_of(item), scores)

    def _let_go(self) -> None:
        for held in self._waiting:
            held.passes += 1
        for held in self._waiting:
            if held.passes >= self.max_passes:
                name = str(held.key)
                known = name in self.skipped or len(self.skipped) < 1000
                self.skipped[name if known else "others"] += 1
        self._waiting = [held for held in self._waiting if held.passes < self.max_passes]


def _probability_mixed(p: float, group_size: int) -> float:
    """Of g independent trajectories that each succeed with probability p: that they do not all end alike."""
    return 1.0 - p**group_size - (1.0 - p) ** group_size
