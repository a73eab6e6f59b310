"""What a reply cost: as its provider says, else by the price list that comes with the library. Nothing is fetched."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic_ai.messages import ModelResponse


def cost_of(response: ModelResponse, *, known: bool) -> float | None:
    """US dollars, or None where nobody knows: no usage was told, or the model is in no price list.

    `known` False: the server is nobody's in the list, so only what it says itself counts.
    """
    told = (response.provider_details or {}).get("cost")
    if (
        isinstance(told, int | float)
        and not isinstance(told, bool)
        and math.isfinite(told)
        and told >= 0
    ):
        return float(told)
    if not known:
        return None
    try:
        return float(response.cost().total_price)
    except (LookupError, ValueError, AssertionError):
        return None
