"""A trainer that knows nothing but the protocol: register, ask for batches until there are enough."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import httpx

from tests.interop.api import TRAINER

if TYPE_CHECKING:
    from collections.abc import Callable

_POLL_S = 0.05
Groups = list[dict[str, Any]]


async def registered(http: httpx.AsyncClient, batch_size: int) -> None:
    """Tell the server what is wanted."""
    registration = TRAINER | {"batch_size": batch_size, "max_token_len": 4096}
    (await http.post("/register", json=registration)).raise_for_status()


async def take(
    http: httpx.AsyncClient, batches: int, check: Callable[[], None], *, within_s: float = 90.0
) -> list[Groups]:
    """So many batches. `check` is called while there is none, and raises when none will come."""
    taken: list[Groups] = []
    async with asyncio.timeout(within_s):
        while len(taken) < batches:
            batch = (await http.get("/batch")).raise_for_status().json()["batch"]
            if batch is not None:
                taken.append(batch)
                continue
            check()
            await asyncio.sleep(_POLL_S)
    return taken


def trainer_client(url: str) -> httpx.AsyncClient:
    """Its connection."""
    return httpx.AsyncClient(base_url=url, timeout=30, trust_env=False)
