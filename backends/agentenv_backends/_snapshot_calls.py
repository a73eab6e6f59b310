"""Snapshots from the driver's end of a host: the calls of `HostConnection` that concern them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from agentenv_backends.errors import HostLostError, SlotLostError
from agentenv_backends.sandboxd import frames

if TYPE_CHECKING:
    from collections.abc import Callable

TIMEOUT_S = 60.0
"""For one step: freezing, restoring, packing, carrying a chunk."""
CHUNK = 4 << 20
"""Bytes of an archive that one frame carries to a host."""


class SnapshotCalls:
    """What `HostConnection` can do with snapshots. Needs its `_ask`, `_slot`, `_write` and `_loop`."""

    host_id: str
    _loop: Any
    _grace_s: float
    _slot: Callable[[str], Any]
    _ask: Callable[..., Any]
    _write: Callable[[bytes], None]

    async def take_snapshot(self, slot_id: str, snapshot_id: str) -> None:
        """See `Host.take_snapshot`. The slot's earlier requests are done before, its later ones after.

        Also raises `SlotLostError`, with the slot unharmed, where the host has no room for it.
        """
        try:
            await self._in_slot("take", slot_id, snapshot_id)
        except SlotLostError:
            raise  # the host keeps nothing of what it refused
        except BaseException:
            self._forget_snapshot(snapshot_id)
            raise

    async def restore_snapshot(self, slot_id: str, snapshot_id: str) -> None:
        """See `Host.restore_snapshot`."""
        await self._in_slot("restore", slot_id, snapshot_id)

    async def fetch_snapshot(self, snapshot_id: str) -> bytes:
        """See `Host.fetch_snapshot`. Raises `SlotLostError` for what is unknown or too large to be carried."""
        archive = bytearray()
        while True:
            frame = await self._to_host("fetch", snapshot_id, offset=len(archive))
            archive += frame.body
            if len(archive) >= json.loads(frame.header)["size"]:
                return bytes(archive)
            if not frame.body:
                raise SlotLostError(f"snapshot {snapshot_id!r} changed while it was fetched")

    async def put_snapshot(self, snapshot_id: str, archive: bytes) -> None:
        """See `Host.put_snapshot`. Raises `SlotLostError` for what is no archive, or too large for the host."""
        try:
            for offset in range(0, max(1, len(archive)), CHUNK):
                part = archive[offset : offset + CHUNK]
                last = offset + CHUNK >= len(archive)
                await self._to_host("put", snapshot_id, body=part, offset=offset, last=last)
        except SlotLostError:
            raise  # the host keeps nothing of what it refused
        except BaseException:
            self._forget_snapshot(snapshot_id)
            raise

    async def drop_snapshot(self, snapshot_id: str) -> None:
        """See `Host.drop_snapshot`. Nor is it an error when the host is gone, and the snapshot with it."""
        try:
            await self._to_host("drop", snapshot_id)
        except HostLostError:
            return

    async def _in_slot(self, do: str, slot_id: str, snapshot_id: str) -> None:
        slot = self._slot(slot_id)
        now = self._loop.time()
        slot.busy_until = max(now, slot.busy_until if slot.pending else 0.0) + TIMEOUT_S
        timeout_s = slot.busy_until - now + self._grace_s
        header = _header(do, snapshot_id)
        await self._ask(frames.SNAPSHOT, slot, header=header, timeout_s=timeout_s)

    async def _to_host(
        self, do: str, snapshot_id: str, *, body: bytes = b"", **values: Any
    ) -> frames.Frame:
        header = _header(do, snapshot_id, **values)
        frame: frames.Frame = await self._ask(
            frames.SNAPSHOT, None, header=header, body=body, timeout_s=TIMEOUT_S + self._grace_s
        )
        return frame

    def _forget_snapshot(self, snapshot_id: str) -> None:
        """Nobody waits for it any more; the host may have it, or be about to."""
        self._write(frames.encode(frames.SNAPSHOT, header=_header("drop", snapshot_id)))


def _header(do: str, snapshot_id: str, **values: Any) -> bytes:
    return json.dumps({"do": do, "snapshot": snapshot_id, **values}).encode("ascii")
