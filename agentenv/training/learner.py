"""A model and its optimizer, learning from batches of groups."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from agentenv.training.loss import NO_SUMS, Clip, LossSums, grpo_loss
from agentenv.training.tensors import MicroBatch, micro_batches, token_logprobs

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from agentenv.training.rows import Row


@dataclass(frozen=True, slots=True)
class LearnerSettings:
    """How a batch changes the weights."""

    learning_rate: float = 2e-4
    """Of AdamW."""
    clip: Clip = field(default_factory=Clip)
    passes: int = 1
    """Steps of the optimizer on each batch, all of it each time (Shao et al., 2024, DeepSeekMath, arXiv:2402.03300,
    algorithm 1, GRPO iterations). The clip keeps the later ones near the weights that sampled."""
    max_grad_norm: float = 1.0
    """The gradient is scaled down to this norm where it is longer."""
    micro_batch_tokens: int = 4_096
    """Tokens of one forward pass, padding included."""
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.99)


@dataclass(frozen=True, slots=True)
class StepStats:
    """What one step saw, in its first pass but where said. Means and shares are over the trained tokens of the rows
    with an advantage; 0 without any.
    """

    rows: int
    """Rows with an advantage."""
    trained_tokens: int
    """In those rows."""
    loss: float
    grad_norm: float
    """Before it was scaled down."""
    clipped_share: float
    """In the last pass."""
    mean_ratio: float
    mean_abs_log_ratio: float
    """Grows with the age of the groups; near 0 where the weights are those that sampled."""
    max_abs_log_ratio: float
    seconds: float


@dataclass(frozen=True, slots=True)
class _Pass:
    """What one step of the optimizer saw."""

    loss: float
    grad_norm: float
    sums: LossSums


class Learner:
    """Owns the weights. Not thread-safe: one step at a time, from any thread."""

    def __init__(self, model: Any, settings: LearnerSettings | None = None) -> None:
        self.model = model.train()
        self.settings = settings or LearnerSettings()
        self.optimizer = torch.optim.AdamW(
            model.parameters(),
            lr=self.settings.learning_rate,
            betas=self.settings.betas,
            weight_decay=self.settings.weight_decay,
        )

    def learn(self, rows: Sequence[Row], *, rate: float = 1.0) -> StepStats:
        """Learn from the rows of one batch, at `rate` times the learning rate.

        Rows without an advantage count in the average and are not computed: a batch that has little to teach changes
        little. One that has nothing to teach changes nothing.
        Raises `RuntimeError`, with the weights as the pass before left them, when the gradient is not finite.
        """
        started = time.perf_counter()
        total = sum(int(row.trained.sum()) for row in rows)
        teaching = [row for row in rows if row.teaches]
        passes = [self._pass(teaching, total, rate) for _ in range(self.settings.passes)]
        return _stats(passes, rows=len(teaching), seconds=time.perf_counter() - started)

    def compare(self, rows: Iterable[Row]) -> LossSums:
        """How far the log-probs of the rows are from those the present weights give; learns nothing."""
        sums = NO_SUMS
        with torch.no_grad():
            for batch in micro_batches(rows, self.settings.micro_batch_tokens):
                sums += self._loss(batch, 1)[1]
        return sums

    def weights(self) -> dict[str, Any]:
        """A copy of the weights as they are."""
        return {name: value.detach().clone() for name, value in self.model.state_dict().items()}

    def _pass(self, rows: Sequence[Row], total: int, rate: float) -> _Pass:
        """One step of the optimizer."""
        if not rows:
            return _Pass(0.0, 0.0, NO_SUMS)
        self.optimizer.zero_grad()
        loss, sums = 0.0, NO_SUMS
        for batch in micro_batches(rows, self.settings.micro_batch_tokens):
            part, seen = self._loss(batch, total)
            part.backward()
            loss, sums = loss + float(part.detach()), sums + seen
        return _Pass(loss, self._update(rate), sums)

    def _loss(self, batch: MicroBatch, total: int) -> tuple[Any, LossSums]:
        return grpo_loss(
            token_logprobs(self.model, batch),
            batch.inference_logprobs,
            batch.advantages,
            batch.trained,
            clip=self.settings.clip,
            total_tokens=total,
        )

    def _update(self, rate: float) -> float:
        for group in self.optimizer.param_groups:
            group["lr"] = rate * self.settings.learning_rate
        norm = torch.nn.utils.clip_grad_norm_(
            self.model.parameters(), self.settings.max_grad_norm, error_if_nonfinite=True
        )
        self.optimizer.step()
        return float(norm)


def _stats(passes: Sequence[_Pass], *, rows: int, seconds: float) -> StepStats:
    first, last = passes[0], passes[-1]
    tokens = first.sums.tokens or 1
    return StepStats(
        rows=rows,
        trained_tokens=first.sums.tokens,
        loss=first.loss,
        grad_norm=first.grad_norm,
        clipped_share=last.sums.clipped / tokens,
        mean_ratio=first.sums.ratio / tokens,
        mean_abs_log_ratio=first.sums.abs_log_ratio / tokens,
        max_abs_log_ratio=first.sums.max_abs_log_ratio,
        seconds=seconds,
    )
