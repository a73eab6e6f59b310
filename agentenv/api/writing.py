"""Groups as JSON, in the pieces they are sent in. Runs in threads.

Row by row, so that the interpreter's lock is given up every fraction of a millisecond and other requests are answered.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import orjson

from agentenv.api.codec import PackedGroup, unpack
from agentenv.api.group import EXTRA_KEYS, WireGroup, split_rows

if TYPE_CHECKING:
    from collections.abc import Iterator

KEYS = (
    "tokens",
    "masks",
    "scores",
    "advantages",
    "ref_logprobs",
    "messages",
    "generation_params",
    "inference_logprobs",
    "overrides",
    "group_overrides",
    "images",
    "env_id",
    "distill_token_ids",
    "distill_logprobs",
)
"""The keys of a group on the wire, all of which a trainer may count on."""


def group_json(packed: PackedGroup) -> bytes:
    """A group as JSON: the fourteen keys, null where absent; then `policy_version` where it is known."""
    return b"".join(json_pieces(unpack(packed)))


def json_pieces(group: WireGroup) -> Iterator[bytes]:
    """See `group_json`."""
    separator = b"{"
    for key in KEYS:
        yield separator + b'"' + key.encode() + b'":'
        yield from _value(group, key)
        separator = b","
    if group.policy_version is not None:
        yield b',"policy_version":%d' % group.policy_version
    yield b"}"


def _value(group: WireGroup, key: str) -> Iterator[bytes]:
    if key in EXTRA_KEYS and key in group.extras:
        yield group.extras[key]
    elif key == "env_id":
        yield orjson.dumps(group.env_id)
    elif key == "scores":
        yield _dumps(group.scores)
    elif (flat := getattr(group, key, None)) is not None:
        yield b"["
        for number, row in enumerate(split_rows(group, flat)):
            if number:
                yield b","
            yield _dumps(row)
        yield b"]"
    else:
        yield b"null"


def _dumps(row: Any) -> bytes:
    return orjson.dumps(row, option=orjson.OPT_SERIALIZE_NUMPY)
