"""GRPO's loss as a pure function of tensors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True, slots=True)
class Clip:
    """How far the importance ratio may be from 1 before a token stops pulling further away."""

    low: float = 0.2
    high: float = 0.2


@dataclass(frozen=True, slots=True)
class LossSums:
    """Sums over the trained tokens of a micro-batch, to be added up over a batch."""

    tokens: int
    clipped: int
    """Tokens whose gradient the clip took away."""
    ratio: float
    """Sum of the importance ratios."""
    abs_log_ratio: float
    """Sum of |log ratio|: 0, but for rounding, where the weights are those that sampled."""
    max_abs_log_ratio: float

    def __add__(self, other: LossSums) -> LossSums:
        return LossSums(
            self.tokens + other.tokens,
            self.clipped + other.clipped,
            self.ratio + other.ratio,
            self.abs_log_ratio + other.abs_log_ratio,
            max(self.max_abs_log_ratio, other.max_abs_log_ratio),
        )


NO_SUMS = LossSums(0, 0, 0.0, 0.0, 0.0)


def grpo_loss(
    logprobs: Any,
    inference_logprobs: Any,
    advantages: Any,
    trained: Any,
    *,
    clip: Clip,
    total_tokens: int,
) -> tuple[Any, LossSums]:
    """The clipped surrogate of GRPO, averaged over the trained tokens of the whole batch, and what it saw.

        ratio_t = exp(logprobs_t - inference_logprobs_t)
        loss    = - sum_t min(ratio_t A_t, clamp(ratio_t, 1 - low, 1 + high) A_t) / total_tokens

    All four tensors have one shape, (rows, positions), and the same position means the same predicted token; log-probs
    are natural logarithms. `trained` is boolean: positions where it is False add nothing and get no gradient, whatever
    the other tensors hold there. `total_tokens` counts the trained tokens of the whole batch, so that the losses of its
    micro-batches add up to the loss of the batch. Only `logprobs` gets a gradient.

    The surrogate is that of Shao et al., 2024 (DeepSeekMath, arXiv:2402.03300, equation 3), without the penalty on the
    distance to a reference policy. That each token counts the same, however long its row is, and that the clip has two
    bounds are from Yu et al., 2025 (DAPO, arXiv:2503.14476, sections 3.3 and 3.1). The ratio is to the policy that
    sampled, and so corrects for groups that are some steps old.
    """
    new, old, weight = logprobs[trained], inference_logprobs[trained], advantages[trained]
    log_ratio = new - old
    ratio = log_ratio.exp()
    plain = ratio * weight
    bounded = ratio.clamp(1 - clip.low, 1 + clip.high) * weight
    loss = -torch.minimum(plain, bounded).sum() / max(1, total_tokens)
    with torch.no_grad():
        size = log_ratio.abs()
        sums = LossSums(
            tokens=size.numel(),
            clipped=int((bounded < plain).sum()),
            ratio=float(ratio.sum()),
            abs_log_ratio=float(size.sum()),
            max_abs_log_ratio=float(size.max()) if size.numel() else 0.0,
        )
    return loss, sums
