"""What a group must satisfy to be trained on.

Lenient where environments in the wild differ and a trainer does not mind: a mask may hold any token id where the
position is trained (some send 1), optional keys may be `[]`, and conversations need not be one a row.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from agentenv.api.group import JSON_KEYS, OPTIONAL_ARRAYS, UNTRAINED, GroupError, WireGroup

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from agentenv.api.codec import OpenBody

MAX_NAME_CHARS = 128
_MAX_ID = 2**31 - 1


class GroupExtras(BaseModel):
    """The part of a group that is no array. Coerces as the protocol's own server does: `"2"` and `2.0` are 2."""

    model_config = ConfigDict(extra="ignore")

    messages: list[list[dict[str, Any]]] | None = None
    generation_params: dict[str, Any] | None = None
    overrides: list[dict[str, Any]] | None = None
    group_overrides: dict[str, Any] | None = None
    images: Any = None
    env_id: int | None = Field(default=None, ge=-_MAX_ID, le=_MAX_ID)
    distill_token_ids: list[list[list[int]]] | None = None
    distill_logprobs: list[list[list[float]]] | None = None
    policy_version: int | None = None
    group_id: str | None = None

    @field_validator("messages")
    @classmethod
    def _complete(
        cls, conversations: list[list[dict[str, Any]]] | None
    ) -> list[list[dict[str, Any]]] | None:
        for conversation in conversations or ():
            for message in conversation:
                if "role" not in message or "content" not in message:
                    raise ValueError("Message must have 'role' and 'content' fields")
        return conversations

    def to_json(self) -> dict[str, bytes]:
        """Each key that is there, as JSON. Raises `GroupError` for what JSON cannot carry."""
        found = {}
        for key in JSON_KEYS:
            if (value := getattr(self, key)) is not None:
                found[key] = _dumps(key, value)
        return found


def _dumps(key: str, value: Any) -> bytes:
    try:
        return orjson.dumps(value)
    except (TypeError, RecursionError) as error:  # integers over 64 bits, nesting over 254 levels
        raise GroupError((key,), f"cannot be kept as JSON: {error}") from None


def is_name(text: str) -> bool:
    """Whether a text may be a consumer's name or a group's id."""
    return 0 < len(text) <= MAX_NAME_CHARS and text.isprintable()


def check_group(group: WireGroup, *, misaligned_advantages: bool = False) -> None:
    """Raises `GroupError` for a group that would spoil a batch, naming the first value that does.

    `misaligned_advantages` lets advantages be that are no row of numbers a row of tokens.
    """
    if group.rows == 0:
        raise GroupError(("tokens",), "a group needs at least one row")
    if (empty := np.flatnonzero(group.lengths == 0)).size:
        raise GroupError(("tokens", int(empty[0])), "has no tokens")
    _same("masks", len(group.masks), len(group.tokens), "tokens")
    _same("scores", len(group.scores), group.rows, "rows in tokens")
    _bounded(group, "tokens", group.tokens < 0, f"must be a token id from 0 to {_MAX_ID}")
    wrong = (group.masks < 0) & (group.masks != UNTRAINED)
    _bounded(group, "masks", wrong, f"must be {UNTRAINED} or a token id")
    if (bad := np.flatnonzero(~np.isfinite(group.scores))).size:
        raise GroupError(("scores", int(bad[0])), f"is {group.scores[bad[0]]}, no finite number")
    for key in OPTIONAL_ARRAYS:
        if (flat := getattr(group, key)) is not None:
            _same(key, len(flat), len(group.tokens), "tokens")
            _bounded(group, key, ~np.isfinite(flat), "must be a finite number")
    _check_extras(group, misaligned_advantages=misaligned_advantages)


def check_packed(body: OpenBody, *, misaligned_advantages: bool = False) -> None:
    """As `check_group`, of a group that came packed. Spreads it out only to say what is wrong with it."""
    _check_json(body.extras)
    if _plainly_right(body):
        _check_extras(body, misaligned_advantages=misaligned_advantages)
    else:
        check_group(body.group(), misaligned_advantages=misaligned_advantages)


def _plainly_right(body: OpenBody) -> bool:
    numbers = [body.scores, body.inference_logprobs, body.ref_logprobs, body.advantages]
    return bool(
        body.masks is None
        and body.rows
        and body.lengths.min() > 0
        and body.tokens.min() >= 0
        and all(np.isfinite(flat).all() for flat in numbers if flat is not None)
    )


def _check_extras(group: WireGroup | OpenBody, *, misaligned_advantages: bool) -> None:
    if (version := group.policy_version) is not None and not 0 <= version <= 2**53:
        raise GroupError(("policy_version",), f"is {version}; must be a step, 0 or more")
    if group.group_id is not None and not is_name(group.group_id):
        raise GroupError(("group_id",), f"must be 1 to {MAX_NAME_CHARS} printable characters")
    if (overrides := group.extras.get("overrides", b"[]")) != b"[]":
        found = len(orjson.loads(overrides))
        _same("overrides", found, group.rows, "rows in tokens")
    for key in OPTIONAL_ARRAYS:
        lenient = key == "advantages" and (misaligned_advantages or _all_sft(group))
        empty = getattr(group, key) is None and group.extras.get(key, b"[]") == b"[]"
        aligned = getattr(group, key) is not None and key not in group.extras
        if not empty and not aligned and not lenient:
            raise GroupError((key,), "must have as many rows as tokens, each as long")


def _all_sft(group: WireGroup | OpenBody) -> bool:
    """Rows for supervised training have no use for advantages."""
    overrides = orjson.loads(group.extras.get("overrides", b"[]"))
    return bool(overrides) and all(row.get("sft") is True for row in overrides)


def _same(key: str, found: int, expected: int, of: str) -> None:
    if found != expected:
        raise GroupError((key,), f"has {found} values, but there are {expected} {of}")


def _bounded(group: WireGroup, key: str, wrong: NDArray[np.bool_], rule: str) -> None:
    if not wrong.any():
        return
    index = int(np.argmax(wrong))
    row = int(np.searchsorted(group.ends, index, side="right"))
    start = int(group.ends[row] - group.lengths[row])
    value = getattr(group, key)[index]
    raise GroupError((key, row, index - start), f"is {value}; {rule}")


def _check_json(extras: Mapping[str, bytes]) -> None:
    for key, text in extras.items():
        try:
            value = orjson.loads(text)
        except orjson.JSONDecodeError as error:
            raise GroupError((key,), f"is no JSON: {error}") from None
        if key in JSON_KEYS:
            try:
                GroupExtras.model_validate({key: value})
            except ValidationError as error:
                problem = error.errors(include_url=False)[0]
                raise GroupError(problem["loc"], problem["msg"]) from None
