"""Keys and values of a Transformers model as plain tensors, and under the name its forward pass takes them by."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

from transformers import DynamicCache

if TYPE_CHECKING:
    from collections.abc import Iterable


def cache_keyword(model: Any) -> str:
    """The argument of `model.forward` for keys and values: `cache` in newer versions of the library."""
    takes = inspect.signature(type(model).forward).parameters
    return "cache" if "cache" in takes else "past_key_values"


def keys_and_values(cache: Any) -> list[Any]:
    """Keys and values by turns, layer by layer, each of shape (rows, heads, length, width)."""
    return [part for layer in cache.layers for part in (layer.keys, layer.values)]


def cache_of(parts: Iterable[Any]) -> Any:
    """The reverse of `keys_and_values`."""
    cache = DynamicCache()
    parts = iter(parts)
    for layer, (keys, values) in enumerate(zip(parts, parts, strict=True)):
        cache.update(keys, values, layer)
    return cache


def prefix_cache(model: Any, prefix: Any, rows: int) -> Any:
    """Keys and values of `prefix`, a line of token ids that `rows` rows begin with, computed once for all of them.

    Gradients flow through it.
    """
    cache = DynamicCache()
    model(input_ids=prefix[None], use_cache=True, **{cache_keyword(model): cache})
    return cache_of(part.expand(rows, -1, -1, -1) for part in keys_and_values(cache))
