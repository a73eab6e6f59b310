"""The tokens of a trajectory beside it: packed for storage, and put into its steps.

In the format each step holds its whole prompt, so a trajectory of n replies holds its first tokens n times. Packed,
every token is there once, as four bytes, and every log-prob that was sampled as eight; both exactly.
"""

from __future__ import annotations

import itertools
import json
import struct
from dataclasses import astuple, dataclass, replace
from typing import TYPE_CHECKING, Any

import zstandard

from agentenv.tokens.base import IGNORE_TOKEN, MASKED_LOGPROB, TokenSequence, Turn

if TYPE_CHECKING:
    from collections.abc import Sequence

    from agentenv.atif.models import Step, Trajectory

_LENGTH = struct.Struct("<I")
_MAX_UNPACKED_BYTES = 2_000_000_000


@dataclass(frozen=True, slots=True)
class SampledReply:
    """Where one reply's tokens are."""

    sequence: int
    """From 1."""
    tokens: TokenSequence
    turn: Turn


def replies_of(sequences: Sequence[TokenSequence]) -> dict[int, SampledReply]:
    """The replies that have tokens, by their number in the trajectory."""
    found: dict[int, SampledReply] = {}
    for place, sequence in enumerate(sequences, 1):
        turns = sequence.turns or _turns_by_mask(sequence, first=len(found) + 1)
        found |= {turn.number: SampledReply(place, sequence, turn) for turn in turns}
    return found


def attach_tokens(trajectory: Trajectory, sequences: Sequence[TokenSequence]) -> Trajectory:
    """The trajectory with the ids and log-probs of its replies: the n-th agent step gets those of the n-th reply."""
    replies = replies_of(sequences)
    numbers = itertools.count(1)
    steps = tuple(
        _with_ids(step, replies.get(next(numbers))) if step.source == "agent" else step
        for step in trajectory.steps
    )
    return trajectory.model_copy(update={"steps": steps})


def pack_sequences(sequences: Sequence[TokenSequence]) -> bytes:
    """Sequences as bytes, with what `replies_of` says of them."""
    by_place: dict[int, list[Turn]] = {}
    for reply in replies_of(sequences).values():
        by_place.setdefault(reply.sequence, []).append(reply.turn)
    head = [
        {"tokens": len(sequence.tokens), "turns": [astuple(t) for t in by_place.get(place, ())]}
        for place, sequence in enumerate(sequences, 1)
    ]
    ids = [_packed("i", sequence.tokens) for sequence in sequences]
    logprobs = [
        _packed("d", sequence.logprobs[turn.start : turn.end])
        for place, sequence in enumerate(sequences, 1)
        for turn in by_place.get(place, ())
    ]
    text = json.dumps(head).encode()
    packed = b"".join([_LENGTH.pack(len(text)), text, *ids, *logprobs])
    return zstandard.compress(packed, 3)


def unpack_sequences(packed: bytes) -> list[TokenSequence]:
    """What `pack_sequences` packed: tokens, masks, log-probs and turns. Raises `ValueError` for other bytes."""
    try:
        data = zstandard.decompress(packed, max_output_size=_MAX_UNPACKED_BYTES)
        (length,) = _LENGTH.unpack_from(data)
        head = json.loads(data[_LENGTH.size : _LENGTH.size + length])
        return _unpacked(head, memoryview(data)[_LENGTH.size + length :])
    except (zstandard.ZstdError, struct.error, KeyError, TypeError) as error:
        raise ValueError(f"these are no packed sequences: {error}") from error


def _packed(kind: str, numbers: Sequence[float]) -> bytes:
    return struct.pack(f"<{len(numbers)}{kind}", *numbers)


def _unpacked(head: list[dict[str, Any]], body: memoryview) -> list[TokenSequence]:
    count = sum(entry["tokens"] for entry in head)
    ids = list(struct.unpack_from(f"<{count}i", body))
    sampled = body[4 * count :]
    logprobs = struct.unpack(f"<{len(sampled) // 8}d", sampled)
    sequences: list[TokenSequence] = []
    token_at = logprob_at = 0
    for entry in head:
        tokens = ids[token_at : token_at + entry["tokens"]]
        token_at += entry["tokens"]
        masks, values = [IGNORE_TOKEN] * len(tokens), [MASKED_LOGPROB] * len(tokens)
        turns = tuple(Turn(*turn) for turn in entry["turns"])
        for turn in turns:
            count = turn.end - turn.start
            masks[turn.start : turn.end] = tokens[turn.start : turn.end]
            values[turn.start : turn.end] = logprobs[logprob_at : logprob_at + count]
            logprob_at += count
        sequences.append(TokenSequence(tokens, masks, values, turns=turns))
    return sequences


def _with_ids(step: Step, reply: SampledReply | None) -> Step:
    if reply is None or step.metrics is None or reply.turn.end == reply.turn.start:
        return step
    turn, sequence = reply.turn, reply.tokens
    ids = {
        "prompt_token_ids": tuple(sequence.tokens[: turn.start]),
        "completion_token_ids": tuple(sequence.tokens[turn.start : turn.end]),
        "logprobs": tuple(sequence.logprobs[turn.start : turn.end]),
    }
    return step.model_copy(update={"metrics": step.metrics.model_copy(update=ids)})


def _turns_by_mask(sequence: TokenSequence, *, first: int) -> list[Turn]:
    """The replies of a sequence whose maker did not say: each unbroken run of sampled tokens is one."""
    turns: list[Turn] = []
    start = 0
    for masked, run in itertools.groupby(sequence.masks, key=lambda mask: mask == IGNORE_TOKEN):
        end = start + sum(1 for _ in run)
        if not masked:
            turns.append(Turn(first + len(turns), start, end))
        start = end
    versions = sequence.policy_versions
    if len(versions) == 1:
        turns = [replace(turn, policy_version=versions[0]) for turn in turns]
    return turns
