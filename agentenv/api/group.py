"""A scored group as the trajectory server keeps it: flat arrays, and JSON for what is no number.

A `ScoredDataGroup` of 8 rows of 16k tokens is four hundred thousand Python objects; this form is five arrays.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import orjson
from numpy.typing import NDArray

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from agentenv.types import ScoredDataGroup

Ints = NDArray[np.int32]
Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]

UNTRAINED = -100
"""What a mask holds at a position that is not trained on. Elsewhere it holds the token itself."""
MASKED_LOGPROB = 1.0
"""What `inference_logprobs` holds at a position that was not sampled: no log-prob is over 0."""
OPTIONAL_ARRAYS: dict[str, Any] = {
    "inference_logprobs": np.float32,
    "ref_logprobs": np.float32,
    "advantages": np.float64,
}
"""What a group may have a number of for each token, and how exactly it is kept."""
JSON_KEYS = (
    "messages",
    "generation_params",
    "overrides",
    "group_overrides",
    "images",
    "distill_token_ids",
    "distill_logprobs",
)
EXTRA_KEYS = (*JSON_KEYS, "advantages", "ref_logprobs", "inference_logprobs")
"""What may travel as JSON. The last three only where they are no rows of numbers aligned with the tokens: an
environment that has none may send `[]`, and gets `[]` back."""


class GroupError(ValueError):
    """A group that cannot be trained on. `where` leads to the value, as in `("tokens", 3, 17)`."""

    def __init__(self, where: tuple[str | int, ...], reason: str) -> None:
        key, *places = where
        super().__init__(f"{key}{''.join(f'[{place}]' for place in places)}: {reason}")
        self.where = where
        self.reason = reason


@dataclass(frozen=True, slots=True, eq=False)
class WireGroup:
    """One group. The arrays hold the rows one after the other; `lengths` says where each ends.

    `inference_logprobs` and `ref_logprobs` are kept as float32, `scores` and `advantages` as float64. `extras` maps
    keys of `EXTRA_KEYS` to JSON. Compared by identity; not checked, see `agentenv.api.checks`.
    """

    lengths: Ints
    """Tokens of each row."""
    tokens: Ints
    masks: Ints
    scores: Doubles
    inference_logprobs: Floats | None = None
    ref_logprobs: Floats | None = None
    advantages: Doubles | None = None
    extras: Mapping[str, bytes] = field(default_factory=dict)
    env_id: int | None = None
    policy_version: int | None = None
    """The trainer's step whose weights sampled the group's oldest token."""
    group_id: str | None = None
    """Chosen by the sender: a group sent twice under one id is stored once."""

    @property
    def rows(self) -> int:
        """How many trajectories the group has."""
        return len(self.lengths)

    @property
    def ends(self) -> NDArray[np.int64]:
        """Where each row ends in the flat arrays."""
        return np.cumsum(self.lengths, dtype=np.int64)


def wire_group(
    group: ScoredDataGroup | Mapping[str, Any],
    *,
    policy_version: int | None = None,
    group_id: str | None = None,
) -> WireGroup:
    """The arrays of a group of lists. Keys that are missing count as None.

    Raises `GroupError` for a value that is no number, or a row of another length than its tokens.
    """
    given = cast("Mapping[str, Any]", group)
    lengths = np.array([len(row) for row in given["tokens"]], np.int32)
    extras = {
        key: orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY)
        for key in JSON_KEYS
        if (value := given.get(key)) is not None
    }
    arrays, empty = optional_arrays(given, lengths, flat_rows)
    scores = np.asarray(given["scores"], np.float64)
    if scores.shape != (len(lengths),):
        raise GroupError(
            ("scores",), f"has {scores.shape} values, but tokens has {len(lengths)} rows"
        )
    version = given.get("policy_version") if policy_version is None else policy_version
    return WireGroup(
        lengths=lengths,
        tokens=flat_rows("tokens", given["tokens"], lengths, np.int32),
        masks=flat_rows("masks", given["masks"], lengths, np.int32),
        scores=scores,
        extras=extras | empty,
        env_id=given.get("env_id"),
        policy_version=version,
        group_id=given.get("group_id") if group_id is None else group_id,
        **arrays,
    )


def optional_arrays(
    given: Mapping[str, Any],
    lengths: Ints,
    flatten: Callable[[str, Any, Ints, Any], NDArray[Any]],
) -> tuple[dict[str, Any], dict[str, bytes]]:
    """The arrays a group may have, by `flatten`; and as JSON those that are there and empty."""
    arrays, empty = {}, {}
    for key, dtype in OPTIONAL_ARRAYS.items():
        rows = given.get(key)
        if rows is not None and len(rows) == 0:
            empty[key] = b"[]"
        elif rows is not None:
            arrays[key] = flatten(key, rows, lengths, dtype)
    return arrays, empty


def flat_rows(key: str, rows: Sequence[Any], lengths: Ints, dtype: Any) -> NDArray[Any]:
    """Rows as one array. Raises `GroupError` where they do not have the lengths of the rows of tokens."""
    if len(rows) != len(lengths):
        raise GroupError((key,), f"has {len(rows)} rows, but tokens has {len(lengths)}")
    for number, (row, length) in enumerate(zip(rows, lengths.tolist(), strict=True)):
        if len(row) != length:
            raise GroupError(
                (key, number), f"has {len(row)} values, but tokens[{number}] has {length}"
            )
    try:
        parts = [np.asarray(row, dtype) for row in rows]
        return np.concatenate(parts) if parts else np.empty(0, dtype)
    except (OverflowError, TypeError, ValueError) as error:
        raise GroupError((key,), f"not all values fit {np.dtype(dtype)}: {error}") from None


def scored_group(group: WireGroup) -> ScoredDataGroup:
    """The lists of a group, always with all fourteen keys. Slow for long groups: take the arrays where you can."""
    out: dict[str, Any] = {"scores": group.scores.tolist(), "env_id": group.env_id}
    for key in ("tokens", "masks", "advantages", "ref_logprobs", "inference_logprobs"):
        flat = getattr(group, key)
        out[key] = None if flat is None else [row.tolist() for row in split_rows(group, flat)]
    for key in EXTRA_KEYS:
        text = group.extras.get(key)
        if text is not None:
            out[key] = orjson.loads(text)
        else:
            out.setdefault(key, None)
    return cast("ScoredDataGroup", out)


def split_rows(group: WireGroup, flat: NDArray[Any]) -> list[NDArray[Any]]:
    """One of the group's flat arrays, a view for each row."""
    return np.split(flat, group.ends[:-1])
