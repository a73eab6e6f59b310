"""Reading groups from requests. Nothing here touches the server's state: `read_groups` runs in threads.

What takes about a millisecond is read by `read_at_once` on the event loop instead: simdjson keeps the interpreter's
lock, so that a thread would gain nothing, and handing over to it costs more than the reading.

JSON goes the fast way where its numbers are plain: simdjson turns a row into an array without a Python object for each
number (8 rows of 16k tokens in 5 ms; orjson and numpy take 18). Everything else goes the slow way, through pydantic,
which coerces as the protocol's own server does and words the refusals.
"""

from __future__ import annotations

import json
import math
import threading
import zlib
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import orjson
import simdjson
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from agentenv.api.checks import GroupExtras, check_group, check_packed
from agentenv.api.codec import (
    HEAD_KEYS,
    CodecError,
    PackedGroup,
    decode_message,
    open_body,
    pack,
    packed_group,
    unpacked_size,
)
from agentenv.api.group import (
    JSON_KEYS,
    OPTIONAL_ARRAYS,
    GroupError,
    WireGroup,
    flat_rows,
    optional_arrays,
)

if TYPE_CHECKING:
    from collections.abc import Callable

_OTHER_KEYS = tuple(GroupExtras.model_fields)
_ROW_KEYS = frozenset({"tokens", "masks", *OPTIONAL_ARRAYS})
_EXTRA_KEYS = frozenset(JSON_KEYS)
_GZIP = 16 + zlib.MAX_WBITS
_MAX_DETAIL = 20
_MAX_MEMBERS = 256
"""Of a gzip body. Each costs a copy of what follows it."""

_AT_ONCE_BYTES = 1_000_000
"""Of a body that is read on the event loop."""
_AT_ONCE_UNPACKED = 262_144
"""Of a binary body, unpacked: zstd does not keep the interpreter's lock, and a thread is worth it sooner."""
_AT_ONCE_ITEMS = 1_024
"""Groups, or keys, or rows in it: each takes the interpreter some microseconds."""
_AT_ONCE_EXTRAS = 65_536
"""Bytes of JSON beside the arrays, which are slow to check."""


class InvalidBodyError(Exception):
    """A body that is refused. `detail` is what the caller reads, in the protocol's form."""

    def __init__(self, detail: list[dict[str, Any]]) -> None:
        super().__init__(detail[0]["msg"] if detail else "invalid")
        self.detail = detail

    @classmethod
    def of(cls, kind: str, where: tuple[str | int, ...], message: str) -> InvalidBodyError:
        """With one problem."""
        return cls([{"type": kind, "loc": ["body", *where], "msg": message}])

    @classmethod
    def of_pydantic(cls, error: ValidationError) -> InvalidBodyError:
        """With the first problems pydantic found."""
        problems = error.errors(include_url=False, include_context=False, include_input=False)
        shown = problems[:_MAX_DETAIL]
        return cls(
            [{"type": p["type"], "loc": ["body", *p["loc"]], "msg": p["msg"]} for p in shown]
        )


class _HeavyError(ValueError):
    """Too much for the event loop."""


class InvalidGzipError(Exception):
    """A body that claims to be gzip and is not, or unpacks to more than is read."""


@dataclass(frozen=True, slots=True)
class ReadLimits:
    """What one request may carry."""

    max_inflated_bytes: int = 1 << 30
    misaligned_advantages: bool = False
    """Accept advantages that have not one number a token."""


class _Slow(BaseModel):
    """The arrays of a group, as the protocol's own server reads them, but for NaN and infinities."""

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)

    tokens: list[list[int]]
    masks: list[list[int]]
    scores: list[float]
    advantages: list[list[float]] | None = None
    ref_logprobs: list[list[float]] | None = None
    inference_logprobs: list[list[float]] | None = None


class _SlowGroup(_Slow, GroupExtras):
    """A whole group."""


_ONE = TypeAdapter(_SlowGroup)
_MANY = TypeAdapter(list[_SlowGroup])


def inflate(data: bytes, max_bytes: int) -> bytes:
    """A gzip body, of one or more members. Raises `InvalidGzipError`."""
    parts, left = [], max_bytes
    while data:
        member = zlib.decompressobj(_GZIP)
        try:
            part = member.decompress(data, left + 1)
        except zlib.error as error:
            raise InvalidGzipError(f"Invalid gzip payload: {error}") from None
        left -= len(part)
        if left < 0:
            raise InvalidGzipError(f"the body unpacks to more than {max_bytes} bytes")
        if not member.eof:
            raise InvalidGzipError("Invalid gzip payload: it ends too early")
        parts.append(part)
        if len(parts) > _MAX_MEMBERS:
            raise InvalidGzipError(f"the body has more than {_MAX_MEMBERS} gzip members")
        data = member.unused_data.lstrip(b"\0")
    return parts[0] if len(parts) == 1 else b"".join(parts)


def read_groups(data: bytes, limits: ReadLimits, *, many: bool, binary: bool) -> list[PackedGroup]:
    """The groups of a body, checked; one of them unless `many`. Raises `InvalidBodyError`."""
    if not binary:
        return read_json(data, limits, many=many)
    groups = read_message(data, limits)
    if not many and len(groups) != 1:
        raise InvalidBodyError.of("value_error", (), f"{len(groups)} groups; send one")
    return groups


def read_at_once(
    data: bytes, limits: ReadLimits, *, many: bool, binary: bool
) -> list[PackedGroup] | None:
    """As `read_groups`, where it takes about a millisecond. None: it is long, unusual or wrong, use a thread."""
    if len(data) > _AT_ONCE_BYTES:
        return None
    try:
        if binary:
            return _light_message(data, limits, many=many)
        document = _kept.parser.parse(data)
        _check_light(document)
        return _fast_groups(document, limits, many=many)
    except (*_UNUSUAL, InvalidBodyError):
        return None


def read_message(data: bytes, limits: ReadLimits) -> list[PackedGroup]:
    """The groups of a binary message, checked; their bodies stay as they came. Raises `InvalidBodyError`."""
    try:
        _, frames = decode_message(data)
    except CodecError as error:
        raise InvalidBodyError.of("binary_invalid", (), str(error)) from None
    many = len(frames) != 1
    return [
        _checked(partial(_read_frame, head, body, limits), number if many else None)
        for number, (head, body) in enumerate(frames)
    ]


def _read_frame(
    head: dict[str, Any], body: bytes, limits: ReadLimits, max_extras: float = math.inf
) -> PackedGroup:
    known = GroupExtras.model_validate({key: head.get(key) for key in HEAD_KEYS})
    head = {key: getattr(known, key) for key in HEAD_KEYS}
    try:
        opened = open_body(packed_group(head, body), max_bytes=limits.max_inflated_bytes)
    except CodecError as error:
        raise InvalidBodyError.of("binary_invalid", (), str(error)) from None
    if sum(map(len, opened.extras.values())) > max_extras:
        raise _HeavyError
    check_packed(opened, misaligned_advantages=limits.misaligned_advantages)
    return packed_group(head, body, opened.rows)


def _light_message(data: bytes, limits: ReadLimits, *, many: bool) -> list[PackedGroup]:
    _, frames = decode_message(data)
    sizes = [unpacked_size(body) for _, body in frames[: _AT_ONCE_ITEMS + 1]]
    if (
        len(sizes) > _AT_ONCE_ITEMS
        or sum(sizes) > _AT_ONCE_UNPACKED
        or (len(sizes) != 1 and not many)
    ):
        raise _HeavyError
    left = _AT_ONCE_EXTRAS // max(1, len(frames))
    return [_read_frame(head, body, limits, left) for head, body in frames]


def read_json(data: bytes, limits: ReadLimits, *, many: bool) -> list[PackedGroup]:
    """The groups of a JSON body: one object, or a list of them. Raises `InvalidBodyError`."""
    try:
        document = simdjson.Parser().parse(data)
        groups = _fast_groups(document, limits, many=many)
    except _UNUSUAL:
        groups = None  # unusual, or wrong: the slow way tells which
    return groups if groups is not None else _read_slowly(data, limits, many=many)


# ---- the fast way ----

_UNUSUAL = (ValueError, TypeError, KeyError, RuntimeError, OverflowError, AttributeError)
"""What the fast way raises for a body that it does not read."""


class _Kept(threading.local):
    """A parser for short bodies: a new one for each would have the system make and take its memory each time."""

    def __init__(self) -> None:
        self.parser = simdjson.Parser()


_kept = _Kept()


def _check_light(document: Any) -> None:
    many = isinstance(document, simdjson.Array)
    items = len(document)
    if items > _AT_ONCE_ITEMS:
        raise _HeavyError
    extras = 0
    for entry in document if many else (document,):
        items += len(entry)
        if items > _AT_ONCE_ITEMS:
            raise _HeavyError
        keys = set(entry.keys())
        items += sum(len(entry[key] or ()) for key in keys & _ROW_KEYS)
        extras += sum(len(getattr(entry[key], "mini", "")) for key in keys & _EXTRA_KEYS)
    if items > _AT_ONCE_ITEMS or extras > _AT_ONCE_EXTRAS:
        raise _HeavyError


def _fast_groups(document: Any, limits: ReadLimits, *, many: bool) -> list[PackedGroup] | None:
    entries = list(document) if many and isinstance(document, simdjson.Array) else [document]
    if many is not isinstance(document, simdjson.Array):
        return None
    if not all(isinstance(entry, simdjson.Object) for entry in entries):
        return None
    return [_pack_checked(_fast_group(entry), limits) for entry in entries]


def _fast_group(entry: Any) -> WireGroup:
    """Raises `ValueError` or the like for anything but plain numbers where numbers belong."""
    keys = set(entry.keys())
    given = {key: _plain(entry[key]) for key in _OTHER_KEYS if key in keys}
    extras = GroupExtras.model_validate(given)
    rows = [_row(row, "i", np.int64) for row in entry["tokens"]]
    lengths = np.array([len(row) for row in rows], np.int32)
    tokens = _flat("tokens", rows, lengths, np.int32)
    masks = _flat("masks", [_row(row, "i", np.int64) for row in entry["masks"]], lengths, np.int32)
    optional = {key: entry[key] for key in OPTIONAL_ARRAYS if key in keys}
    arrays, empty = optional_arrays(optional, lengths, _flat_doubles)
    return WireGroup(
        lengths=lengths,
        tokens=tokens,
        masks=masks,
        scores=_row(entry["scores"], "d", np.float64),
        extras=extras.to_json() | empty,
        env_id=extras.env_id,
        policy_version=extras.policy_version,
        group_id=extras.group_id,
        **arrays,
    )


def _plain(value: Any) -> Any:
    if isinstance(value, simdjson.Array):
        return value.as_list()
    return value.as_dict() if isinstance(value, simdjson.Object) else value


def _row(row: Any, of_type: str, dtype: Any) -> np.ndarray:
    """One row of numbers. simdjson flattens what is nested, so that a nested row must be told apart."""
    size = len(row)
    if size and any(isinstance(row[at], simdjson.Array | simdjson.Object) for at in (0, size - 1)):
        raise ValueError("nested")
    numbers: np.ndarray = (
        np.frombuffer(row.as_buffer(of_type=of_type), dtype) if size else np.empty(0, dtype)
    )
    if len(numbers) != size:
        raise ValueError("nested")
    return numbers


def _flat(key: str, rows: list[np.ndarray], lengths: Any, dtype: Any) -> Any:
    """Rows that are wrong go the slow way too: it says what is wrong."""
    flat = flat_rows(key, rows, lengths, rows[0].dtype if rows else dtype)
    if dtype is np.int32 and flat.size and not -(2**31) <= flat.min() <= flat.max() < 2**31:
        raise OverflowError(key)
    with np.errstate(over="ignore"):  # an infinity is refused by the checks
        return flat.astype(dtype, copy=False)


def _flat_doubles(key: str, rows: Any, lengths: Any, dtype: Any) -> Any:
    return _flat(key, [_row(row, "d", np.float64) for row in rows], lengths, dtype)


# ---- the slow way ----


def _read_slowly(data: bytes, limits: ReadLimits, *, many: bool) -> list[PackedGroup]:
    value = _parse(data)
    adapter: TypeAdapter[Any] = _MANY if many else _ONE
    try:
        found = adapter.validate_python(value)
    except ValidationError as error:
        raise InvalidBodyError.of_pydantic(error) from None
    except RecursionError:
        raise InvalidBodyError.of("json_invalid", (), "nested too deeply") from None
    groups = found if many else [found]
    return [
        _checked(partial(_slow_packed, group, limits), number if many else None)
        for number, group in enumerate(groups)
    ]


def _slow_packed(group: _SlowGroup, limits: ReadLimits) -> PackedGroup:
    return _pack_checked(_slow_group(group), limits)


def _parse(data: bytes) -> Any:
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError as error:
        reason = str(error)
    try:
        return json.loads(data)  # knows NaN, so that the refusal can say where it is
    except RecursionError:
        raise InvalidBodyError.of("json_invalid", (), "nested too deeply") from None
    except ValueError:
        raise InvalidBodyError.of("json_invalid", (), f"JSON decode error: {reason}") from None


def _slow_group(group: _SlowGroup) -> WireGroup:
    lengths = np.array([len(row) for row in group.tokens], np.int32)
    tokens = _integers("tokens", group.tokens, lengths)
    masks = _integers("masks", group.masks, lengths)
    extras = group.to_json()
    optional = {key: getattr(group, key) for key in OPTIONAL_ARRAYS}
    if optional["advantages"] and not _aligned(optional["advantages"], lengths):
        # `check_group` knows whether it matters
        extras["advantages"] = orjson.dumps(optional.pop("advantages"))
    arrays, empty = optional_arrays(optional, lengths, _flat_lists)
    return WireGroup(
        lengths=lengths,
        tokens=tokens,
        masks=masks,
        scores=np.array(group.scores, np.float64),
        extras=extras | empty,
        env_id=group.env_id,
        policy_version=group.policy_version,
        group_id=group.group_id,
        **arrays,
    )


def _flat_lists(key: str, rows: list[list[float]], lengths: Any, dtype: Any) -> Any:
    return _flat(key, [np.array(row, np.float64) for row in rows], lengths, dtype)


def _aligned(rows: list[list[float]], lengths: Any) -> bool:
    return bool([len(row) for row in rows] == lengths.tolist())


def _integers(key: str, rows: list[list[int]], lengths: Any) -> Any:
    for number, row in enumerate(rows):
        for position, value in enumerate(row):
            if not -(2**31) <= value < 2**31:
                raise GroupError((key, number, position), f"is {value}; must be below {2**31}")
    return flat_rows(key, rows, lengths, np.int32)


# ---- both ----


def _pack_checked(group: WireGroup, limits: ReadLimits) -> PackedGroup:
    check_group(group, misaligned_advantages=limits.misaligned_advantages)
    return pack(group)


def _checked(read: Callable[[], PackedGroup], number: int | None) -> PackedGroup:
    """Run `read`; its refusals say which group of the request they are about."""
    prefix = () if number is None else (number,)
    try:
        return read()
    except GroupError as error:
        raise InvalidBodyError.of("value_error", (*prefix, *error.where), str(error)) from None
    except ValidationError as error:
        refused = InvalidBodyError.of_pydantic(error)
        raise InvalidBodyError(
            [{**p, "loc": ["body", *prefix, *p["loc"][1:]]} for p in refused.detail]
        ) from None
