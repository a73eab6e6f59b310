"""The batch of an in-process policy: rows of different trajectories in one forward pass.

Rows join between any two steps and leave when they are done, so nobody waits for a batch to fill or
to finish. Prompts are padded on the left; positions are counted without the padding and the padding
is masked, so a row's logits depend on its own tokens alone, floating-point noise aside.

Each row draws from a random stream of its own: the number for a position depends on the row's seed
and the position only, and is turned into a token by the inverse of the cumulative distribution. So
what is sampled for a given seed does not depend on which rows happen to share the batch.
"""

from __future__ import annotations

import inspect
import secrets
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers import DynamicCache

from agentenv.errors import PolicyError
from agentenv.policy.transformers_cache import cache_keyword, cache_of, keys_and_values

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from agentenv.policy.base import SamplingParams

MAX_PREFILL_TOKENS = 16_384
"""Prompts that arrive together are read in passes of at most this many tokens, padding included."""


@dataclass(slots=True, eq=False)
class Row:
    """One completion in the making."""

    prompt: tuple[int, ...]
    params: SamplingParams
    stop_ids: frozenset[int]
    budget: int
    """Tokens it may sample: its own limit, or what the context leaves if that is less."""
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    finish_reason: str | None = None
    cancelled: bool = False
    """Set from another thread; the row leaves the batch before the next step."""
    error: PolicyError | None = None
    uniforms: Iterator[float] = field(init=False)

    def __post_init__(self) -> None:
        seed = secrets.randbits(63) if self.params.seed is None else self.params.seed
        self.uniforms = uniforms(seed)

    @property
    def is_done(self) -> bool:
        """Whether nothing more is to be sampled for it."""
        return self.cancelled or self.error is not None or self.finish_reason is not None

    def take(self, token: int, logprob: float) -> None:
        """Append what was sampled, and note why the row ends if it does."""
        if logprob != logprob:  # noqa: PLR0124 - NaN
            self.error = PolicyError("the model's logits are not numbers; are its weights sound?")
            return
        self.ids.append(token)
        self.logprobs.append(min(0.0, logprob))
        if token in self.stop_ids:
            self.finish_reason = "stop"
        elif len(self.ids) >= self.budget:
            self.finish_reason = "length"


def uniforms(seed: int) -> Iterator[float]:
    """Numbers in [0, 1): the n-th depends on `seed` and n only (Philox, a counter-based
    generator).
    """
    generator = np.random.Generator(np.random.Philox(key=seed % 2**64))
    while True:
        yield from generator.random(64).tolist()


class RunningBatch:
    """Rows with their keys and values. Not thread-safe: one worker owns it."""

    def __init__(self, model: Any) -> None:
        self.rows: list[Row] = []
        self._model = model
        self._device = next(model.parameters()).device
        self._cache: Any = None
        self._cache_keyword = cache_keyword(model)
        self._mask: Any = None
        takes = inspect.signature(model.forward).parameters
        self._last_only = {"logits_to_keep": 1} if "logits_to_keep" in takes else {}

    def admit(self, rows: Sequence[Row]) -> None:
        """Read the rows' prompts and sample the first token of each."""
        for chunk in _chunks(sorted(rows, key=lambda row: len(row.prompt))):
            cache, mask, logits = self._prefill(chunk)
            sample_into(chunk, logits)
            self._join(chunk, cache, mask)

    def step(self) -> None:
        """Sample one more token for each row. None of them may be done, and there must be one."""
        sample_into(self.rows, self._decode())

    def leave(self) -> list[Row]:
        """Take out and return the rows that are done."""
        finished = [row for row in self.rows if row.is_done]
        if not finished:
            return []
        keep = [place for place, row in enumerate(self.rows) if not row.is_done]
        if not keep:
            return self.clear()
        self.rows = [self.rows[place] for place in keep]
        chosen = torch.tensor(keep, device=self._device)
        mask = self._mask.index_select(0, chosen)
        first = int(mask.argmax(-1).min())  # columns before it are padding in every row that stays
        self._mask = mask[:, first:]
        self._cache = cache_of(
            part.index_select(0, chosen)[:, :, first:] for part in keys_and_values(self._cache)
        )
        return finished

    def clear(self) -> list[Row]:
        """Have every row leave at once."""
        rows, self.rows = self.rows, []
        self._cache = self._mask = None
        return rows

    def _prefill(self, rows: Sequence[Row]) -> tuple[Any, Any, Any]:
        """Cache, mask and last logits of the rows. A prompt they share, as a group does, is read
        once.
        """
        prompts = list(dict.fromkeys(row.prompt for row in rows))
        ids, mask = (part.to(self._device) for part in _left_padded(prompts))
        cache = DynamicCache()
        logits = self._forward(ids, mask, (mask.cumsum(-1) - 1).clamp(min=0), cache)
        if len(prompts) == len(rows):
            return cache, mask, logits
        places = {prompt: place for place, prompt in enumerate(prompts)}
        chosen = torch.tensor([places[row.prompt] for row in rows], device=self._device)
        shared = cache_of(part.index_select(0, chosen) for part in keys_and_values(cache))
        return shared, mask.index_select(0, chosen), logits.index_select(0, chosen)

    def _decode(self) -> Any:
        ids = torch.tensor([[row.ids[-1]] for row in self.rows], device=self._device)
        positions = self._mask.sum(-1, keepdim=True)
        self._mask = torch.cat([self._mask, torch.ones_like(ids)], dim=1)
        return self._forward(ids, self._mask, positions, self._cache)

    def _forward(self, ids: Any, mask: Any, positions: Any, cache: Any) -> Any:
        output = self._model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            use_cache=True,
            **{self._cache_keyword: cache},
            **self._last_only,
        )
        return output.logits[:, -1]

    def _join(self, rows: Sequence[Row], cache: Any, mask: Any) -> None:
        if self.rows:
            length = max(mask.shape[1], self._mask.shape[1])
            pairs = zip(keys_and_values(self._cache), keys_and_values(cache), strict=True)
            self._cache = cache_of(
                torch.cat([_pad_left(ours, length, 2), _pad_left(theirs, length, 2)])
                for ours, theirs in pairs
            )
            mask = torch.cat([_pad_left(self._mask, length, 1), _pad_left(mask, length, 1)])
        else:
            self._cache = cache
        self._mask = mask
        self.rows.extend(rows)


def sample_into(rows: Sequence[Row], logits: Any) -> None:
    """Sample one token for each row from its line of `logits`, of shape (rows, vocabulary)."""
    temperatures = [row.params.temperature for row in rows]
    top_ps = [row.params.top_p for row in rows]
    draws = [next(row.uniforms) for row in rows]
    ids, logprobs = sample(logits, temperatures, top_ps, draws)
    for row, token, logprob in zip(rows, ids, logprobs, strict=True):
        row.take(token, logprob)


def sample(
    logits: Any, temperatures: Sequence[float], top_ps: Sequence[float], draws: Sequence[float]
) -> tuple[list[int], list[float]]:
    """A token id per line of `logits`, and its log-prob in the distribution it was drawn from.

    That distribution is the softmax of the logits over the temperature, cut to the smallest set of
    tokens that holds `top_p` of it and made to sum to 1 again; at temperature 1 and top_p 1 it is
    the model's own. At temperature 0 the likeliest token is taken, and its log-prob is the one at
    temperature 1.
    """
    device = logits.device
    heat = torch.tensor(temperatures, dtype=torch.float32, device=device)[:, None]
    greedy = heat == 0
    logprobs = torch.log_softmax(logits.float() / heat.masked_fill(greedy, 1.0), dim=-1)
    if min(top_ps) < 1:
        logprobs = _nucleus(logprobs, torch.tensor(top_ps, device=device)[:, None], exempt=greedy)
    mass = logprobs.double().exp().cumsum(-1)
    point = torch.tensor(draws, dtype=torch.float64, device=device)[:, None] * mass[:, -1:]
    drawn = torch.searchsorted(mass, point, right=True).clamp(max=mass.shape[-1] - 1)
    ids = torch.where(greedy, logprobs.argmax(-1, keepdim=True), drawn)
    return ids[:, 0].tolist(), logprobs.gather(-1, ids)[:, 0].tolist()


def _nucleus(logprobs: Any, top_p: Any, *, exempt: Any) -> Any:
    ordered, order = logprobs.sort(dim=-1, descending=True)
    mass = ordered.double().exp().cumsum(-1)
    before = mass - ordered.double().exp()
    cut = (before >= top_p) & (top_p < 1) & ~exempt
    cut[:, 0] = False
    inside = logprobs.masked_fill(torch.zeros_like(cut).scatter(-1, order, cut), float("-inf"))
    return torch.log_softmax(inside, dim=-1)


def _chunks(rows: Sequence[Row]) -> Iterator[list[Row]]:
    """Rows in order of length, so many at a time as `MAX_PREFILL_TOKENS` allows, at least one."""
    chunk: list[Row] = []
    for row in rows:
        if chunk and (len(chunk) + 1) * len(row.prompt) > MAX_PREFILL_TOKENS:
            yield chunk
            chunk = []
        chunk.append(row)
    if chunk:
        yield chunk


def _left_padded(prompts: Sequence[Sequence[int]]) -> tuple[Any, Any]:
    """Ids and mask of shape (prompts, longest), each prompt at the right end of its line."""
    length = max(map(len, prompts))
    ids = torch.zeros((len(prompts), length), dtype=torch.long)
    mask = torch.zeros_like(ids)
    for place, prompt in enumerate(prompts):
        ids[place, length - len(prompt) :] = torch.tensor(prompt)
        mask[place, length - len(prompt) :] = 1
    return ids, mask


def _pad_left(tensor: Any, length: int, dim: int) -> Any:
    missing = length - tensor.shape[dim]
    if not missing:
        return tensor
    shape = list(tensor.shape)
    shape[dim] = missing
    return torch.cat([tensor.new_zeros(shape), tensor], dim=dim)
