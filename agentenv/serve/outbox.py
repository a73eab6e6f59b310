"""Finished groups until the server has stored them: kept on disk first, then sent in order."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any

from agentenv.api.codec import decode_message, encode_message, pack, packed_group, unpack
from agentenv.api.group import wire_group
from agentenv.errors import ApiError, ApiRefusedError
from agentenv.serve.session import Backoff

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from agentenv.api.group import WireGroup
    from agentenv.serve.spool import Spool

logger = logging.getLogger(__name__)

MAX_AT_ONCE = 8
"""Groups in one request, when several wait."""
_REFUSES_THE_GROUP = frozenset({0, 400, 413, 422})


class Outbox:
    """Sends what is put into it, in order, each group until the server has it or refuses it."""

    def __init__(
        self,
        spool: Spool,
        send: Callable[[Sequence[WireGroup]], Awaitable[None]],
        *,
        on_refused: Callable[[str], None] = lambda reason: None,
        retry_s: float = 0.1,
    ) -> None:
        """`on_refused` is told why the server would not take a group, which is then dropped."""
        self._spool = spool
        self._send = send
        self._on_refused = on_refused
        self._retry_s = retry_s
        self._changed = asyncio.Condition()
        self._bounded = True

    @property
    def pending(self) -> int:
        """Groups that the server does not have."""
        return self._spool.pending

    async def put(self, group: Mapping[str, Any]) -> None:
        """Keep a group, with its `group_id`, on disk; waits while too much is kept.

        Raises `RunDirectoryError`, or `GroupError` for a group that no trainer could read.
        """
        record = await asyncio.to_thread(encode, group)
        async with self._changed:
            await self._changed.wait_for(lambda: self._spool.has_room or not self._bounded)
            await self._spool.put(record)
            self._changed.notify_all()

    async def lift_bound(self) -> None:
        """Keep what still comes, however much that is: nothing new is being collected."""
        async with self._changed:
            self._bounded = False
            self._changed.notify_all()

    async def run(self) -> None:
        """Send, until cancelled."""
        while True:
            async with self._changed:
                await self._changed.wait_for(lambda: self._spool.pending)
            records = await self._spool.first(MAX_AT_ONCE)
            groups = await asyncio.to_thread(_decode_all, records)
            done = await self._deliver(groups)
            async with self._changed:
                await self._spool.done(done)
                self._changed.notify_all()

    async def drained(self) -> None:
        """Wait until nothing is pending."""
        async with self._changed:
            await self._changed.wait_for(lambda: not self._spool.pending)

    async def _deliver(self, groups: list[WireGroup]) -> int:
        """Send until the server took them or refused the first; how many are done with."""
        backoff = Backoff(self._retry_s)
        while True:
            try:
                await self._send(groups)
            except ApiError as error:
                if not _is_final(error):
                    logger.debug("sending %d groups: %s", len(groups), error)
                    await backoff.wait()
                elif len(groups) == 1:
                    self._on_refused(str(error))
                    return 1
                else:
                    groups = groups[:1]  # all were refused for one of them: find it
            else:
                return len(groups)


def _is_final(error: ApiError) -> bool:
    """Whether it is the group that is refused, and not the sender: a token that expired costs no group."""
    return isinstance(error, ApiRefusedError) and error.status in _REFUSES_THE_GROUP


def encode(group: Mapping[str, Any]) -> bytes:
    """A group as one record. Raises `GroupError` for one that no trainer could read."""
    return encode_message([pack(wire_group(group))])


def decode(record: bytes) -> WireGroup:
    """The group of a record."""
    ((head, body),) = decode_message(record)[1]
    return unpack(packed_group(head, body))


def _decode_all(records: list[bytes]) -> list[WireGroup]:
    return [decode(record) for record in records]
