"""Groups as a trainer gets them, checked and turned into rows with an advantage for each token."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from agentenv.errors import AgentEnvError
from agentenv.tokens.base import IGNORE_TOKEN

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

MIN_SCORE_STD = 1e-8
"""Floor of the standard deviation that scores are divided by."""


class TrainingDataError(AgentEnvError, ValueError):
    """A group that cannot be trained on as it is; the message names the row, the position and the value."""


@dataclass(frozen=True, slots=True, eq=False)
class Row:
    """One sequence to learn from. The four arrays have equal length, one element for each token."""

    tokens: np.ndarray[Any, np.dtype[np.int64]]
    trained: np.ndarray[Any, np.dtype[np.bool_]]
    """Where the policy sampled, and is to learn. May be False in between, as for what tools answered."""
    inference_logprobs: np.ndarray[Any, np.dtype[np.float64]]
    """The engine's log-prob of the token, in nats. Means nothing where not trained."""
    advantages: np.ndarray[Any, np.dtype[np.float64]]
    temperature: float
    """What it was sampled at: the logits are divided by it before log-probs are compared."""

    @property
    def teaches(self) -> bool:
        """Whether any trained token has an advantage: else it has no gradient, and need not be computed."""
        return bool(self.advantages[self.trained].any())

    @property
    def first_trained(self) -> int:
        """Position of the first trained token."""
        return int(self.trained.argmax())


def score_advantages(scores: Sequence[float]) -> np.ndarray[Any, np.dtype[np.float64]]:
    """One advantage for each score of a group: `(score - mean) / max(std, 1e-8)`, with the population's std.

    Shao et al., 2024 (DeepSeekMath, arXiv:2402.03300, section 4.1.2, outcome supervision). Equal scores give zeros.
    """
    values = np.asarray(scores, dtype=np.float64)
    if not np.isfinite(values).all():
        raise TrainingDataError(f"scores must be finite numbers, not {values.tolist()}")
    return np.asarray((values - values.mean()) / max(float(values.std()), MIN_SCORE_STD))


def group_rows(group: Mapping[str, Any]) -> list[Row]:
    """The rows of one group, in order; those without a trained token are left out.

    Advantages are the group's own where it has any, token by token, else `score_advantages`;
    `overrides[i].set_advantage_to_zero` makes those of row i zero. Raises `TrainingDataError` for anything that would
    slip against something else: unequal lengths, no log-probs, a trained token with a log-prob that is none.
    """
    rows = len(group["tokens"])
    for name in ("masks", "scores", "inference_logprobs"):
        _check_length(name, group.get(name), rows)
    advantages = _advantages(group, rows)
    overrides = group.get("overrides") or [{}] * rows
    _check_length("overrides", overrides, rows)
    made = [_row(group, index, advantages[index], overrides[index] or {}) for index in range(rows)]
    return [row for row in made if row is not None]


def _advantages(group: Mapping[str, Any], rows: int) -> list[Any]:
    given = group.get("advantages")
    if given is not None and len(given):
        _check_length("advantages", given, rows)
        return list(given)
    return list(score_advantages(group["scores"]))


def _row(
    group: Mapping[str, Any], index: int, advantage: Any, overrides: Mapping[str, Any]
) -> Row | None:
    tokens = np.asarray(group["tokens"][index], dtype=np.int64)
    masks = np.asarray(group["masks"][index], dtype=np.int64)
    logprobs = np.asarray(group["inference_logprobs"][index], dtype=np.float64)
    if not len(tokens) == len(masks) == len(logprobs):
        raise TrainingDataError(
            f"row {index} has {len(tokens)} tokens, {len(masks)} masks and {len(logprobs)} log-probs"
        )
    trained = masks != IGNORE_TOKEN
    _check_trained(index, tokens, masks, logprobs)
    each = np.broadcast_to(
        np.asarray(advantage, dtype=np.float64), _shape(index, advantage, tokens)
    )
    if overrides.get("set_advantage_to_zero"):
        each = np.zeros_like(each)
    if not trained.any():
        return None
    return Row(tokens, trained, logprobs, each, _temperature(group, overrides))


def _shape(index: int, advantage: Any, tokens: Any) -> tuple[int]:
    if np.ndim(advantage) and len(advantage) != len(tokens):
        raise TrainingDataError(
            f"row {index} has {len(tokens)} tokens and {len(advantage)} advantages"
        )
    return (len(tokens),)


def _check_trained(index: int, tokens: Any, masks: Any, logprobs: Any) -> None:
    """Refuse what shows that tokens, masks and log-probs have slipped against each other."""
    trained = masks != IGNORE_TOKEN
    if trained[:1].any():
        raise TrainingDataError(f"row {index}: the first token is trained, and nothing predicts it")
    for place in np.flatnonzero(trained & (masks != tokens))[:1]:
        raise TrainingDataError(
            f"row {index}: the mask at {place} is {masks[place]}, neither -100 nor the token {tokens[place]}"
        )
    sound = np.isfinite(logprobs) & (logprobs <= 0)
    for place in np.flatnonzero(trained & ~sound)[:1]:
        raise TrainingDataError(
            f"row {index}: the trained token at {place} has log-prob {logprobs[place]}, which no engine can have given "
            "it: are log-probs or masks shifted?"
        )


def _temperature(group: Mapping[str, Any], overrides: Mapping[str, Any]) -> float:
    """From `overrides`, else `generation_params`, else `group_overrides`, else 1. Greedy sampling reports the log-probs
    of temperature 1.
    """
    places = (overrides, group.get("generation_params"), group.get("group_overrides"))
    found = next((place["temperature"] for place in places if place and "temperature" in place), 1)
    value = 1.0 if found is None else float(found)
    if not (math.isfinite(value) and value >= 0):
        raise TrainingDataError(f"temperature {found!r} is no temperature")
    return value or 1.0


def _check_length(name: str, values: Any, rows: int) -> None:
    if values is None:
        raise TrainingDataError(f"the group has no {name}: without them it cannot be trained on")
    if len(values) != rows:
        raise TrainingDataError(f"the group has {rows} rows of tokens and {len(values)} of {name}")
