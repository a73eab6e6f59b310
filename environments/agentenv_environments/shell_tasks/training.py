"""How the tiny policy is trained: batches, the loss on what the policy writes, and the two phases."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

import torch

from agentenv.policy.transformers_cache import cache_keyword, prefix_cache
from agentenv.tokens.base import IGNORE_TOKEN
from agentenv.training.tensors import common_prefix_length

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

Row = tuple[list[int], list[int]]
"""Tokens and labels, of equal length. A label is the token where the policy writes it, else -100."""
Batch = list[Row]

_START_TOKENS = 3
"""How much of the prefix is kept where the prompt is left out: the start of the user's turn."""
_LEARNED_LOSS = 0.25
"""Mean loss at which drills end."""
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
    """Lengths of the phases in steps, and the learning rate at its highest."""

    drill_steps: int
    """At most: drills end when copying is learned."""
    bare_steps: int
    steps: int
    batch_size: int
    learning_rate: float
    warmup_steps: int

    def warm(self, step: int) -> float:
        """Factor of the learning rate in the drills: up from 0, then 1."""
        return min(1.0, (step + 1) / self.warmup_steps)

    def cosine(self, step: int) -> float:
        """Factor of the learning rate after the drills: from 1 to 0.02 along a half cosine."""
        return 0.51 + 0.49 * math.cos(math.pi * step / (self.bare_steps + self.steps))


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
    fit = _Fit(model, schedule.learning_rate)
    start = data.prefix[-_START_TOKENS:]
    mean = math.inf
    for step, batch in enumerate(islice(_drills(data.rows, dice), schedule.drill_steps)):
        loss = fit.step(start, batch, schedule.warm(step))
        report("copying drills", loss)
        mean = loss if step == 0 else 0.9 * mean + 0.1 * loss
        if mean < _LEARNED_LOSS:
            break
    batches = _batches(data.rows, schedule.batch_size, dice)
    for step, batch in enumerate(islice(batches, schedule.bare_steps + schedule.steps)):
        bare = step < schedule.bare_steps
        loss = fit.step(start if bare else data.prefix, batch, schedule.cosine(step))
        report("demonstrations", loss)


class _Fit:
    """A model and its optimizer."""

    def __init__(self, model: Any, learning_rate: float) -> None:
        self._model = model
        self._learning_rate = learning_rate
        self._optimizer = torch.optim.AdamW(
            model.parameters(), lr=learning_rate, betas=(0.9, 0.98), weight_decay=0.01
        )

    def step(self, prefix: list[int], batch: Batch, factor: float) -> float:
        """Learn from one batch at `factor` times the learning rate; returns the loss before it."""
        for group in self._optimizer.param_groups:
            group["lr"] = self._learning_rate * factor
        loss = _loss(self._model, prefix, batch)
        self._optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self._model.parameters(), 1.0)
        self._optimizer.step()
        return float(loss.detach())


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
    cache = prefix_cache(model.model, torch.tensor(prefix), len(batch))
    hidden = model.model(tokens, **{cache_keyword(model.model): cache}).last_hidden_state
    learned = labels[:, 1:] != IGNORE_TOKEN
    logits = model.lm_head(hidden[:, :-1][learned])
    return torch.nn.functional.cross_entropy(logits, labels[:, 1:][learned])
