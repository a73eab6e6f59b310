"""Rows as padded tensors. The shift by one is here and nowhere else."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import takewhile
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from agentenv.policy.transformers_cache import cache_keyword, prefix_cache

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from agentenv.training.rows import Row


@dataclass(frozen=True, slots=True, eq=False)
class MicroBatch:
    """Rows of one forward pass, without the `prefix` of tokens that all of them begin with.

    All tensors but the first have the shape (rows, positions); rows are padded on the right. At each position stand
    the token the model reads there, and what is known of the token that comes next, which is the one it predicts:
    a row's last token is read by nobody, and its first is predicted by nobody.
    """

    prefix: Any
    """Token ids, of shape (length,)."""
    inputs: Any
    """Token ids; 0 in the padding."""
    targets: Any
    """The ids of the next tokens; 0 in the padding."""
    trained: Any
    """Whether the next token is trained; False in the padding."""
    inference_logprobs: Any
    """The engine's log-probs of the next tokens; 0 where they are not trained."""
    advantages: Any
    """Advantages of the next tokens; 0 where they are not trained."""
    temperatures: Any
    """What each row was sampled at, of shape (rows, 1)."""

    @property
    def trained_tokens(self) -> int:
        """How many tokens are trained."""
        return int(self.trained.sum())


def micro_batches(rows: Iterable[Row], max_tokens: int) -> Iterator[MicroBatch]:
    """The rows in passes of at most `max_tokens` tokens, padding included, but at least one row; longest first."""
    chunk: list[Row] = []
    for row in sorted(rows, key=lambda row: -len(row.tokens)):
        if chunk and (len(chunk) + 1) * len(chunk[0].tokens) > max_tokens:
            yield micro_batch(chunk)
            chunk = []
        chunk.append(row)
    if chunk:
        yield micro_batch(chunk)


def micro_batch(rows: Sequence[Row]) -> MicroBatch:
    """The rows as tensors. There must be one, and each must have a trained token."""
    cut = _shared_prefix(rows)
    width = max(_last_trained(row) for row in rows) - cut
    padded = _Padded(len(rows), width)
    for place, row in enumerate(rows):
        padded.put(place, row, cut)
    return MicroBatch(
        prefix=torch.from_numpy(np.array(rows[0].tokens[:cut])),
        temperatures=torch.tensor([[row.temperature] for row in rows], dtype=torch.float32),
        **{name: torch.from_numpy(array) for name, array in padded.arrays.items()},
    )


def token_logprobs(model: Any, batch: MicroBatch) -> Any:
    """The model's log-probs of the targets, of the batch's shape, in nats; 0 where they are not trained.

    As the engine reports them: of the softmax of the logits over the temperature. Gradients flow.
    """
    past = {}
    if len(batch.prefix):
        past[cache_keyword(model)] = prefix_cache(model, batch.prefix, len(batch.inputs))
    logits = model(input_ids=batch.inputs, **past).logits
    chosen = (logits.float() / batch.temperatures[..., None])[batch.trained]
    targets = batch.targets[batch.trained][:, None]
    found = torch.log_softmax(chosen, dim=-1).gather(-1, targets)[:, 0]
    return torch.zeros(batch.targets.shape).masked_scatter(batch.trained, found)


def common_prefix_length(sequences: Sequence[Sequence[Any]]) -> int:
    """How many elements all sequences begin with."""
    columns = zip(*sequences, strict=False)
    return sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, columns))


class _Padded:
    """The arrays of a micro-batch being filled."""

    def __init__(self, rows: int, width: int) -> None:
        shape = (rows, width)
        self.arrays: dict[str, np.ndarray[Any, Any]] = {
            "inputs": np.zeros(shape, dtype=np.int64),
            "targets": np.zeros(shape, dtype=np.int64),
            "trained": np.zeros(shape, dtype=np.bool_),
            "inference_logprobs": np.zeros(shape, dtype=np.float32),
            "advantages": np.zeros(shape, dtype=np.float32),
        }

    def put(self, place: int, row: Row, cut: int) -> None:
        end = _last_trained(row)
        trained = row.trained[cut + 1 : end + 1]
        following = {
            "targets": row.tokens[cut + 1 : end + 1],
            "trained": trained,
            "inference_logprobs": np.where(trained, row.inference_logprobs[cut + 1 : end + 1], 0.0),
            "advantages": np.where(trained, row.advantages[cut + 1 : end + 1], 0.0),
        }
        for name, values in {"inputs": row.tokens[cut:end], **following}.items():
            self.arrays[name][place, : end - cut] = values


def _shared_prefix(rows: Sequence[Row]) -> int:
    """Length of what all rows begin with, short of the token that predicts the first trained one."""
    longest = min(row.first_trained for row in rows) - 1
    return common_prefix_length([row.tokens[:longest].tolist() for row in rows])


def _last_trained(row: Row) -> int:
    """Position of the last trained token: what comes after it teaches nothing."""
    return int(np.flatnonzero(row.trained)[-1])
