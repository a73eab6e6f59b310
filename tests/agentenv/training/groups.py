"""Groups and policies small enough to be read in a test."""

from __future__ import annotations

from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from agentenv.group import build_group
from agentenv.types import ScoredDataGroup, ScoredDataItem

VOCABULARY = 24


def tiny_model(seed: int = 0, **options: Any) -> Any:
    """Two layers, 32 wide, with random weights."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        **{
            "vocab_size": VOCABULARY,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "max_position_embeddings": 128,
            "bos_token_id": None,
            "eos_token_id": None,
            "initializer_range": 0.2,
        }
        | options
    )
    return LlamaForCausalLM(config).eval()


def item(
    tokens: list[int], sampled: list[int], logprobs: list[float], score: float
) -> ScoredDataItem:
    """A trajectory whose tokens at the positions `sampled` were sampled with `logprobs`."""
    by_place = dict(zip(sampled, logprobs, strict=True))
    return ScoredDataItem(
        tokens=tokens,
        masks=[tokens[at] if at in by_place else -100 for at in range(len(tokens))],
        scores=score,
        inference_logprobs=[by_place.get(at, 1.0) for at in range(len(tokens))],
    )


def two_rows(**fields: Any) -> ScoredDataGroup:
    """Two trajectories of different length, each with an answer of a tool between two sampled parts."""
    group = build_group(
        [
            item([1, 2, 3, 4, 5, 6, 7], [2, 3, 6], [-0.1, -0.2, -0.3], 1.0),
            item([1, 2, 8, 9, 10], [2, 4], [-0.4, -0.5], 0.0),
        ]
    )
    return {**group, **fields}  # type: ignore[typeddict-item]


def plain_logprobs(model: Any, tokens: list[int], temperature: float = 1.0) -> list[float]:
    """The log-prob of each token after those before it, by one pass without padding; nothing for the first."""
    with torch.no_grad():
        logits = model(torch.tensor([tokens])).logits[0, :-1] / temperature
    return [
        float("nan"),
        *torch.log_softmax(logits, -1)[range(len(tokens) - 1), tokens[1:]].tolist(),
    ]
