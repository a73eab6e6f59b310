"""The trajectory server as the training loop sees it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import orjson

from agentenv.errors import ApiRefusedError
from agentenv.training.trainer import BatchLostError

if TYPE_CHECKING:
    from agentenv.api.client import TrainerClient
    from agentenv.api.group import WireGroup


_UNKNOWN, _LOST = 404, 409


@dataclass(frozen=True, slots=True)
class WireBatch:
    """A batch, its groups as dicts of arrays."""

    batch_id: int | None
    step: int | None
    groups: list[dict[str, Any]]


class WireSource:
    """A `BatchSource` over the wire protocol."""

    def __init__(self, client: TrainerClient) -> None:
        self._client = client

    async def batch(self) -> WireBatch | None:
        """See `BatchSource.batch`. Raises `ApiError`."""
        found = await self._client.batch()
        if found is None:
            return None
        groups = await asyncio.to_thread(lambda: [group_arrays(group) for group in found.groups])
        return WireBatch(found.batch_id, found.step, groups)

    async def acknowledge(self, batch_id: int) -> None:
        """See `BatchSource.acknowledge`. Raises `ApiError`."""
        try:
            await self._client.acknowledge(batch_id)
        except ApiRefusedError as error:
            if error.status not in (_UNKNOWN, _LOST):
                raise
            raise BatchLostError(f"batch {batch_id} is lost: {error}") from error


def group_arrays(group: WireGroup) -> dict[str, Any]:
    """A group as `group_rows` takes it: each row an array of its own, what is no array as it was sent."""
    aligned = {
        "tokens": group.tokens,
        "masks": group.masks,
        "inference_logprobs": group.inference_logprobs,
        "advantages": group.advantages,
    }
    cuts = group.ends[:-1]
    rows = {name: np.split(flat, cuts) for name, flat in aligned.items() if flat is not None}
    extras = {name: orjson.loads(value) for name, value in group.extras.items()}
    return extras | rows | {"scores": group.scores, "policy_version": group.policy_version}
