"""The compact binary form of groups: on the wire, and in the server's database.

A message (`application/vnd.agentenv.groups`), all integers little-endian:

    b"AEG1"  u32 length, JSON object (of a batch: batch_id and step)  u32 number of groups
    then for each group:  u32 length of its head  u32 length of its body  head  body

A head is a JSON object with `env_id`, `policy_version` and `group_id`, each where known. A body is a zstd frame of

    u8 version  u8 mask form  u8 log-prob form  u8 flags  u32 rows n  u32 tokens t  10 x u32 length of the extras
    n x f64 scores  n x u32 lengths  t x i32 tokens  masks  log-probs  [t x f32 ref]  [t x f64 advantages]  extras

Masks: one bit a position where each mask is the token or -100, else t x i32. Log-probs: f32 of the trained positions
where all others hold 1.0, else t x f32. Nothing is lost but the digits of log-probs beyond float32.
"""

from __future__ import annotations

import struct
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import orjson
import zstandard

from agentenv.api.group import EXTRA_KEYS, MASKED_LOGPROB, UNTRAINED, WireGroup

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

CONTENT_TYPE = "application/vnd.agentenv.groups"
HEAD_KEYS = ("env_id", "policy_version", "group_id")
"""What of a packed group is outside of its body."""
DEFAULT_MAX_BODY_BYTES = 1 << 30

_MAGIC = b"AEG1"
_VERSION = 1
_HEADER = struct.Struct(f"<BBBBII{len(EXTRA_KEYS)}I")
_LENGTH = struct.Struct("<I")
_LENGTHS = struct.Struct("<II")
_MASK_BITS, _MASK_VALUES = 0, 1
_NO_LOGPROBS, _LOGPROBS_OF_TRAINED, _LOGPROBS_OF_ALL = 0, 1, 2
_HAS_REF, _HAS_ADVANTAGES = 1, 2
_LEVEL, _SHORT_LEVEL = 1, -1
_SHORT_BYTES = 262_144
"""Up to so much, unpacked, the server reads a group while its sender waits: level -1 takes half of level 1's time to
unpack text's tokens, a ninth where they are random, and has up to a fifth more bytes."""


class CodecError(ValueError):
    """Bytes that are no groups in the binary form."""


@dataclass(frozen=True, slots=True)
class PackedGroup:
    """A group in its compressed form, with what a server needs to know without unpacking it."""

    body: bytes
    rows: int
    env_id: int | None = None
    policy_version: int | None = None
    group_id: str | None = None


# ---- one group ----


def pack(group: WireGroup) -> PackedGroup:
    """Compress a group. About 1.5 ms for 8 rows of 16k tokens, most of it without the interpreter's lock."""
    raw = b"".join(_sections(group))
    level = _SHORT_LEVEL if len(raw) <= _SHORT_BYTES else _LEVEL
    body = zstandard.ZstdCompressor(level=level).compress(raw)
    return PackedGroup(body, group.rows, group.env_id, group.policy_version, group.group_id)


def _sections(group: WireGroup) -> list[bytes]:
    trained = group.masks != UNTRAINED
    plain = bool(np.array_equal(group.masks[trained], group.tokens[trained]))
    form, logprobs = _logprob_section(group, trained)
    flags = _HAS_REF * (group.ref_logprobs is not None)
    flags |= _HAS_ADVANTAGES * (group.advantages is not None)
    extras = [group.extras.get(key, b"") for key in EXTRA_KEYS]
    header = _HEADER.pack(
        _VERSION,
        _MASK_BITS if plain else _MASK_VALUES,
        form,
        flags,
        group.rows,
        len(group.tokens),
        *map(len, extras),
    )
    masks = np.packbits(trained) if plain else group.masks
    arrays: list[np.ndarray] = [group.scores, group.lengths, group.tokens, masks, logprobs]
    arrays += [extra for extra in (group.ref_logprobs, group.advantages) if extra is not None]
    return [header, *(array.tobytes() for array in arrays), *extras]


def _logprob_section(group: WireGroup, trained: np.ndarray) -> tuple[int, np.ndarray]:
    logprobs = group.inference_logprobs
    if logprobs is None:
        return _NO_LOGPROBS, np.empty(0, np.float32)
    if bool(np.all(logprobs[~trained] == MASKED_LOGPROB)):
        return _LOGPROBS_OF_TRAINED, logprobs[trained]
    return _LOGPROBS_OF_ALL, logprobs


@dataclass(frozen=True, slots=True, eq=False)
class OpenBody:
    """A packed group's arrays as they lie in its body, read-only views; `group` spreads them out."""

    packed: PackedGroup
    lengths: np.ndarray
    tokens: np.ndarray
    scores: np.ndarray
    trained: np.ndarray
    """Which positions are trained on."""
    masks: np.ndarray | None
    """None where each mask is the token or -100."""
    inference_logprobs: np.ndarray | None
    """Of the trained positions alone with `trained_logprobs`, else of all."""
    trained_logprobs: bool
    ref_logprobs: np.ndarray | None
    advantages: np.ndarray | None
    extras: Mapping[str, bytes]

    @property
    def rows(self) -> int:
        """How many trajectories the group has."""
        return len(self.lengths)

    @property
    def policy_version(self) -> int | None:
        """As in `WireGroup`."""
        return self.packed.policy_version

    @property
    def group_id(self) -> str | None:
        """As in `WireGroup`."""
        return self.packed.group_id

    def group(self) -> WireGroup:
        """One value for each token, in every array."""
        masks, logprobs = self.masks, self.inference_logprobs
        if masks is None:
            masks = np.where(self.trained, self.tokens, np.int32(UNTRAINED))
        if logprobs is not None and self.trained_logprobs:
            logprobs = np.full(len(self.trained), MASKED_LOGPROB, np.float32)
            logprobs[self.trained] = self.inference_logprobs
        return WireGroup(
            lengths=self.lengths,
            tokens=self.tokens,
            masks=masks,
            scores=self.scores,
            inference_logprobs=logprobs,
            ref_logprobs=self.ref_logprobs,
            advantages=self.advantages,
            extras=self.extras,
            env_id=self.packed.env_id,
            policy_version=self.policy_version,
            group_id=self.group_id,
        )


def unpack(packed: PackedGroup, *, max_bytes: int = DEFAULT_MAX_BODY_BYTES) -> WireGroup:
    """The arrays of a packed group. Raises `CodecError`."""
    return open_body(packed, max_bytes=max_bytes).group()


def open_body(packed: PackedGroup, *, max_bytes: int = DEFAULT_MAX_BODY_BYTES) -> OpenBody:
    """What a body holds, where it lies. Raises `CodecError`."""
    raw = _inflate(packed.body, max_bytes)
    if len(raw) < _HEADER.size:
        raise CodecError(f"a body of {len(raw)} bytes is shorter than its header")
    version, masks, logprobs, flags, rows, count, *extras = _HEADER.unpack_from(raw)
    if version != _VERSION or masks > _MASK_VALUES or logprobs > _LOGPROBS_OF_ALL or flags > 3:
        raise CodecError(f"unknown form of a group (version {version}); this side knows {_VERSION}")
    reader = _Reader(raw, _HEADER.size)
    scores, lengths = reader.array(np.float64, rows), reader.array(np.int32, rows)
    tokens = reader.array(np.int32, count)
    if rows and (int(lengths.min()) < 0 or int(lengths.sum(dtype=np.int64)) != count):
        raise CodecError(f"the lengths of the rows do not sum to {count} tokens")
    values, trained = _read_masks(reader, masks, count)
    return OpenBody(
        packed,
        lengths=lengths,
        tokens=tokens,
        scores=scores,
        trained=trained,
        masks=values,
        inference_logprobs=_read_logprobs(reader, logprobs, trained),
        trained_logprobs=logprobs == _LOGPROBS_OF_TRAINED,
        ref_logprobs=reader.array(np.float32, count) if flags & _HAS_REF else None,
        advantages=reader.array(np.float64, count) if flags & _HAS_ADVANTAGES else None,
        extras=reader.extras(extras),
    )


def unpacked_size(body: bytes) -> int:
    """How long a body is once unpacked, as it says itself. Raises `CodecError`."""
    try:
        size = zstandard.get_frame_parameters(body).content_size
    except zstandard.ZstdError as error:
        raise CodecError(f"a body is no zstd frame: {error}") from None
    if size in (zstandard.CONTENTSIZE_UNKNOWN, zstandard.CONTENTSIZE_ERROR):
        raise CodecError("a body must be one zstd frame that states its size")
    return int(size)


def _inflate(body: bytes, max_bytes: int) -> bytes:
    if (size := unpacked_size(body)) > max_bytes:
        raise CodecError(f"a group of {size} bytes unpacked; at most {max_bytes} are read")
    try:
        return _kept.decompressor.decompress(body, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise CodecError(f"a body is no zstd frame: {error}") from None


class _Kept(threading.local):
    """A decompressor for each thread: making one takes as long as to unpack a short group."""

    def __init__(self) -> None:
        self.decompressor = zstandard.ZstdDecompressor()


_kept = _Kept()


def _read_masks(reader: _Reader, form: int, count: int) -> tuple[np.ndarray | None, np.ndarray]:
    if form == _MASK_VALUES:
        masks = reader.array(np.int32, count)
        return masks, masks != UNTRAINED
    bits = reader.array(np.uint8, (count + 7) // 8)
    return None, np.unpackbits(bits, count=count).view(bool)


def _read_logprobs(reader: _Reader, form: int, trained: np.ndarray) -> np.ndarray | None:
    if form == _NO_LOGPROBS:
        return None
    every = form == _LOGPROBS_OF_ALL
    count = len(trained) if every else int(np.count_nonzero(trained))
    logprobs: np.ndarray = reader.array(np.float32, count)
    return logprobs


class _Reader:
    """Takes sections off the front of a body, and refuses to read past its end."""

    def __init__(self, raw: bytes, offset: int) -> None:
        self._raw = raw
        self._offset = offset

    def array(self, dtype: Any, count: int) -> Any:
        start, size = self._advance(np.dtype(dtype).itemsize * count)
        return np.frombuffer(self._raw, dtype, count, start) if size else np.empty(0, dtype)

    def extras(self, sizes: Sequence[int]) -> dict[str, bytes]:
        found = {}
        for key, size in zip(EXTRA_KEYS, sizes, strict=True):
            start, _ = self._advance(size)
            if size:
                found[key] = self._raw[start : start + size]
        if self._offset != len(self._raw):
            raise CodecError(f"{len(self._raw) - self._offset} bytes too many at a body's end")
        return found

    def _advance(self, size: int) -> tuple[int, int]:
        start = self._offset
        if start + size > len(self._raw):
            raise CodecError(f"a body ends after {len(self._raw)} bytes, in the middle of a field")
        self._offset = start + size
        return start, size


# ---- messages ----


def message_start(about: Mapping[str, Any], count: int) -> bytes:
    """What a message begins with; `frame` makes each of the `count` groups that follow."""
    text = orjson.dumps(about)
    return b"".join((_MAGIC, _LENGTH.pack(len(text)), text, _LENGTH.pack(count)))


def frame(group: PackedGroup) -> bytes:
    """One group of a message."""
    known = {key: value for key in HEAD_KEYS if (value := getattr(group, key)) is not None}
    text = orjson.dumps(known)
    return b"".join((_LENGTHS.pack(len(text), len(group.body)), text, group.body))


def encode_message(groups: Iterable[PackedGroup], about: Mapping[str, Any] | None = None) -> bytes:
    """A whole message."""
    frames = [frame(group) for group in groups]
    return b"".join((message_start(about or {}, len(frames)), *frames))


def decode_message(data: bytes) -> tuple[dict[str, Any], list[tuple[dict[str, Any], bytes]]]:
    """A message's own JSON, and head and body of each group. Raises `CodecError`; looks into no body."""
    if data[:4] != _MAGIC:
        raise CodecError(f"a message begins with {_MAGIC!r}, this one with {data[:4]!r}")
    about, offset = _json_at(data, 4)
    (count,), offset = _take(_LENGTH, data, offset)
    if count > len(data) // _LENGTHS.size:
        raise CodecError(f"{count} groups do not fit {len(data)} bytes")
    groups = []
    for _ in range(count):
        (head_size, size), offset = _take(_LENGTHS, data, offset)
        head, end = _object(data, offset, head_size), offset + head_size + size
        if end > len(data):
            raise CodecError("the message ends in the middle of a group")
        groups.append((head, data[offset + head_size : end]))
        offset = end
    if offset != len(data):
        raise CodecError(f"{len(data) - offset} bytes too many at the message's end")
    return about, groups


def packed_group(head: Mapping[str, Any], body: bytes, rows: int = 0) -> PackedGroup:
    """A packed group with the head it came with."""
    return PackedGroup(
        body, rows, head.get("env_id"), head.get("policy_version"), head.get("group_id")
    )


def _json_at(data: bytes, offset: int) -> tuple[dict[str, Any], int]:
    (size,), offset = _take(_LENGTH, data, offset)
    return _object(data, offset, size), offset + size


def _object(data: bytes, offset: int, size: int) -> dict[str, Any]:
    if offset + size > len(data):
        raise CodecError("the message ends in the middle of a head")
    try:
        value = orjson.loads(data[offset : offset + size])
    except orjson.JSONDecodeError as error:
        raise CodecError(f"a head is no JSON: {error}") from None
    if not isinstance(value, dict):
        raise CodecError("a head is no JSON object")
    return value


def _take(form: struct.Struct, data: bytes, offset: int) -> tuple[tuple[int, ...], int]:
    if offset + form.size > len(data):
        raise CodecError("the message ends in the middle of a length")
    return form.unpack_from(data, offset), offset + form.size
