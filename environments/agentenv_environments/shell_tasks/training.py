"""How the tiny policy is trained: batches, the loss on what the policy writes, and the two phases."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from itertools import islice, takewhile
from typing import TYPE_CHECKING, Any

import torch
from transformers import DynamicCache

from agentenv.tokens.base import IGNORE_TOKEN

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

Row = tuple[list[int], list[int]]
"""Tokens and labels, of equal length. A label is the token where the policy writes it, else -100."""
Batch = list[Row]

_START_TOKENS = 3
"""How much of the prefix is kept where the prompt is left out: the start of the user's turn."""
_DRILL_ROWS = 64
_DRILL_LENGTHS = (6, 24)


@dataclass(frozen=True, slots=True)
class Dataset:
    """Rows, without the `prefix` of tokens that they all begin with."""

    prefix: list[int]
    rows: list[Row]

    @classmethod
    def of(cls, rows: Sequence[Row]) -> Dataset:
        """Take the common prefix off."""
        cut = common_prefix_length([tokens for tokens, _ in rows])
        return cls(rows[0][0][:cut], [(tokens[cut:], labels[cut:]) for tokens, labels in rows])


@dataclass(frozen=True, slots=True)
class Schedule:
    """Lengths in steps, and the learning rate: up from 0, then down to 2 % along a half cosine."""

    drill_steps: int
    bare_steps: int
    steps: int
    batch_size: int
    learning_rate: float
    warmup_steps: int

    @property
    def total_steps(self) -> int:
        """All phases together."""
        return self.drill_steps + self.bare_steps + self.steps

    def factor(self, step: int) -> float:
        """What the learning rate is multiplied by."""
        warm = min(1.0, (step + 1) / self.warmup_steps)
        return warm * (0.51 + 0.49 * math.cos(math.pi * step / self.total_steps))


def train(
    model: Any, data: Dataset, schedule: Schedule, seed: int, report: Callable[[str, float], None]
) -> None:
    """Train in place, in three phases. `report(phase, loss)` is called after each step.

    Nearly all there is to learn is copying names. Attention heads that copy form within a few hundred
    steps of drills; from demonstrations alone they take many times as long. Then come demonstrations
    without the long prompt that is the same for all, which would only dilute attention and cost
    time, and at last demonstrations as they are.
    """
    dice = random.Random(seed)  # noqa: S311 - order of the data
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=schedule.learning_rate, betas=(0.9, 0.98), weight_decay=0.01
    )
    rate = torch.optim.lr_scheduler.LambdaLR(optimizer, schedule.factor)
    for phase, prefix, batch in _phases(data, schedule, dice):
        loss = _loss(model, prefix, batch)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        rate.step()
        report(phase, loss.item())


def common_prefix_length(sequences: Sequence[Sequence[Any]]) -> int:
    """How many elements all sequences begin with."""
    columns = zip(*sequences, strict=False)
    return sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, columns))


def _phases(
    data: Dataset, schedule: Schedule, dice: random.Random
) -> Iterator[tuple[str, list[int], Batch]]:
    start = data.prefix[-_START_TOKENS:]
    batches = _batches(data.rows, schedule.batch_size, dice)
    for batch in islice(_drills(data.rows, dice), schedule.drill_steps):
        yield "copying drills", start, batch
    for batch in islice(batches, schedule.bare_steps):
        yield "demonstrations without prompt", start, batch
    for batch in islice(batches, schedule.steps):
        yield "demonstrations", data.prefix, batch


def _drills(rows: Iterable[Row], dice: random.Random) -> Iterator[Batch]:
    """Batches of random tokens said twice, of which the second time is learned."""
    written = sorted({label for _, labels in rows for label in labels if label != IGNORE_TOKEN})
    while True:
        length = dice.randint(*_DRILL_LENGTHS)
        drawn = [dice.choices(written, k=length) for _ in range(_DRILL_ROWS)]
        yield [(tokens + tokens, [IGNORE_TOKEN] * length + tokens) for tokens in drawn]


def _batches(rows: list[Row], size: int, dice: random.Random) -> Iterator[Batch]:
    """Batches of rows of about equal length, for ever; each pass takes a row at most once."""
    size = min(size, len(rows))
    pool = min(16 * size, len(rows) // size * size)
    while True:
        order = dice.sample(rows, len(rows))
        for start in range(0, len(order) - pool + 1, pool):
            ranked = sorted(order[start : start + pool], key=lambda row: len(row[0]))
            batches = [ranked[at : at + size] for at in range(0, pool, size)]
            yield from dice.sample(batches, len(batches))


def _loss(model: Any, prefix: list[int], batch: Batch) -> Any:
    """Mean cross-entropy of what is learned. The prefix is computed once for the whole batch."""
    width = max(len(tokens) for tokens, _ in batch)
    tokens = torch.tensor([row + [0] * (width - len(row)) for row, _ in batch])
    labels = torch.tensor([row + [IGNORE_TOKEN] * (width - len(row)) for _, row in batch])
    cache = _prefix_cache(model, prefix, len(batch))
    hidden = model.model(tokens, past_key_values=cache).last_hidden_state
    learned = labels[:, 1:] != IGNORE_TOKEN
    logits = model.lm_head(hidden[:, :-1][learned])
    return torch.nn.functional.cross_entropy(logits, labels[:, 1:][learned])


def _prefix_cache(model: Any, prefix: list[int], rows: int) -> Any:
    """Keys and values of the prefix for every row of a batch. Gradients flow through it."""
    computed = model.model(torch.tensor([prefix]), use_cache=True).past_key_values
    cache = DynamicCache()
    for index, layer in enumerate(computed.layers):
        keys, values = (part.expand(rows, -1, -1, -1) for part in (layer.keys, layer.values))
        cache.update(keys, values, index)
    return cache
