"""Rows of a group as a trainer wants them that tells a prompt from a completion. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from agentenv.errors import SinkError
from agentenv.tokens.base import IGNORE_TOKEN

if TYPE_CHECKING:
    from collections.abc import Sequence

    from agentenv.types import ScoredDataGroup


@dataclass(frozen=True, slots=True)
class CompletionRow:
    """One trajectory. The last three lists have equal length; `prompt_ids + completion_ids` is the whole sequence."""

    prompt_ids: list[int]
    """What came before the first sampled token."""
    completion_ids: list[int]
    """From the first sampled token to the last: what the policy sampled, and what tools answered in between."""
    sampled: list[int]
    """1 where the policy sampled the token, 0 where it is context."""
    logprobs: list[float]
    """The engine's value where sampled, 0.0 elsewhere."""
    reward: float | None
    """None: there is none, and nothing of the row may be trained on."""


def completion_row(
    tokens: Sequence[int], masks: Sequence[int], logprobs: Sequence[float], reward: float
) -> CompletionRow:
    """A sequence taken apart. Raises `SinkError` when nothing in it was sampled, or everything."""
    sampled = [int(mask != IGNORE_TOKEN) for mask in masks]
    first = sampled.index(1) if 1 in sampled else 0
    if first == 0:
        raise SinkError(
            f"a sequence of {len(tokens)} tokens has no "
            f"{'prompt' if 1 in sampled else 'sampled token'}: it cannot be taken apart"
        )
    return CompletionRow(
        prompt_ids=list(tokens[:first]),
        completion_ids=list(tokens[first:]),
        sampled=sampled[first:],
        logprobs=[
            value if mine else 0.0
            for value, mine in zip(logprobs[first:], sampled[first:], strict=True)
        ],
        reward=reward,
    )


def hole(token: int) -> CompletionRow:
    """A row that stands for a trajectory that could not be had: one token, untrained, without reward."""
    return CompletionRow([token], [token], [0], [0.0], None)


def completion_rows(group: ScoredDataGroup, trajectories: int) -> list[CompletionRow]:
    """One row per trajectory. A row whose `set_advantage_to_zero` is on keeps its reward and trains no token.

    Raises `SinkError` for what such a trainer cannot honour: a trajectory of several sequences, advantages or
    distillation targets of the group's own, missing log-probs.
    """
    logprobs = group["inference_logprobs"]
    if len(group["tokens"]) != trajectories:
        raise SinkError(
            f"a group of {trajectories} trajectories has {len(group['tokens'])} rows: a history was rewritten on the "
            f"way (as where a model family drops its thinking), and this trainer takes one sequence per trajectory"
        )
    if not logprobs:
        raise SinkError("a group has no inference_logprobs: the policy must return them")
    for key in ("advantages", "distill_token_ids", "distill_logprobs"):
        if group.get(key):
            raise SinkError(
                f"a group brings {key} of its own, which this trainer would ignore: it computes its advantages itself"
            )
    rows = [
        completion_row(*row)
        for row in zip(group["tokens"], group["masks"], logprobs, group["scores"], strict=True)
    ]
    overrides = group["overrides"] or [{}] * len(rows)
    return [_honour(row, found) for row, found in zip(rows, overrides, strict=True)]


def _honour(row: CompletionRow, overrides: dict[str, object]) -> CompletionRow:
    if not overrides.get("set_advantage_to_zero"):
        return row
    return CompletionRow(
        row.prompt_ids, row.completion_ids, [0] * len(row.sampled), row.logprobs, row.reward
    )
