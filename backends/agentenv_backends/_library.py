"""Snapshots that are used again under a key: by later groups of this run, and by later runs where the provider can."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from agentenv_backends._aio import CANCEL_GRACE_S, bounded
from agentenv_backends.base import KnownSnapshot
from agentenv_backends.errors import BackendError
from agentenv_backends.host import KeptSnapshot

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from typing import Any

    from agentenv_backends._shelf import SnapshotShelf
    from agentenv_backends.base import Snapshot
    from agentenv_backends.host import SnapshotCache

T = TypeVar("T")
_log = logging.getLogger(__name__)

MOST_ENTRIES = 16
"""Snapshots kept for later groups, beside those that are in use."""
_STORE_PATIENCE_S = 1.5
"""How long the end of a pool waits for a snapshot on its way to later runs."""


@dataclass(eq=False, slots=True)
class _Entry:
    snapshot: Snapshot
    note: bytes


class SnapshotLibrary:
    """Snapshots by key, those not asked for longest let go of first.

    One that is handed out is borrowed until it is given back, however long that takes. What fails here is logged: then
    there is no such snapshot.
    """

    def __init__(
        self, shelf: SnapshotShelf, cache: Callable[[], SnapshotCache | None], timeout_s: float
    ) -> None:
        self._shelf = shelf
        self._cache = cache
        self._timeout_s = timeout_s
        self._entries: dict[str, _Entry] = {}
        """The one that was asked for last is the last."""
        self._lent: dict[Snapshot, list[_Entry]] = {}
        """An element for each who borrowed it."""
        self._work: set[asyncio.Task[None]] = set()
        self._closed = False

    async def recall(self, key: str) -> KnownSnapshot | None:
        """What is known under a key; to be given back. Bounded, never raises."""
        entry = self._entries.pop(key, None)
        if entry is not None and not self._shelf.can_restore(entry.snapshot):
            self._let_go(entry)  # it went with its host
            entry = None
        if entry is None:
            entry = await self._load(key)
        if entry is None or self._closed:
            return None
        self._entries[key] = entry
        self._shrink()
        return KnownSnapshot(self._lend(entry), entry.note)

    def remember(self, key: str, snapshot: Snapshot, note: bytes) -> None:
        """Have a snapshot of the caller's known under a key; the caller gives it back as one that was recalled."""
        if self._closed or key in self._entries:
            return
        entry = self._entries[key] = _Entry(snapshot, note)
        self._lend(entry)
        self._shrink()
        if (cache := self._cache()) is not None:
            self._lend(entry)
            self._spawn(self._store(cache, key, entry))

    def give_back(self, snapshot: Snapshot) -> bool:
        """One who borrowed it needs it no longer. False when it was never anybody's but the caller's."""
        lent = self._lent.get(snapshot)
        if lent is None:
            return False
        entry = lent.pop()
        if not lent:
            del self._lent[snapshot]
        self._forget_if_unwanted(entry)
        return True

    async def close(self) -> None:
        """Wait a moment for what is on its way to later runs. Bounded."""
        self._closed = True
        if self._work:
            await asyncio.wait(self._work, timeout=_STORE_PATIENCE_S)
        for task in self._work:
            task.cancel()
        if self._work:
            await asyncio.wait(self._work, timeout=CANCEL_GRACE_S)

    # --- Later runs ------------------------------------------------------------------------------

    async def _load(self, key: str) -> _Entry | None:
        cache = self._cache()
        if cache is None:
            return None
        kept = await self._tried(cache.load(key), "looking for a kept snapshot")
        if kept is None:
            return None
        try:
            snapshot = await self._shelf.put(kept.archive)
        except BackendError as error:
            _log.warning("a kept snapshot is not used: %s", error)
            return None
        return _Entry(snapshot, kept.note)

    async def _store(self, cache: SnapshotCache, key: str, entry: _Entry) -> None:
        try:
            archive = await self._tried(
                self._shelf.content(entry.snapshot), "fetching a snapshot to keep it"
            )
            if archive is not None:
                kept = KeptSnapshot(archive, entry.note)
                await self._tried(cache.store(key, kept), "keeping a snapshot for later runs")
        finally:
            self.give_back(entry.snapshot)

    async def _tried(self, work: Coroutine[Any, Any, T], what: str) -> T | None:
        try:
            return await bounded(work, self._timeout_s, what)
        except Exception as error:  # noqa: BLE001 - whatever it is, a run goes on without what was kept
            _log.warning("%s failed: %s", what, error)
            return None

    # --- Books -----------------------------------------------------------------------------------

    def _lend(self, entry: _Entry) -> Snapshot:
        self._lent.setdefault(entry.snapshot, []).append(entry)
        return entry.snapshot

    def _shrink(self) -> None:
        unused = [key for key, entry in self._entries.items() if entry.snapshot not in self._lent]
        for key in unused[: max(0, len(self._entries) - MOST_ENTRIES)]:
            self._let_go(self._entries.pop(key))

    def _forget_if_unwanted(self, entry: _Entry) -> None:
        if entry not in self._entries.values():
            self._let_go(entry)
        else:
            self._shrink()

    def _let_go(self, entry: _Entry) -> None:
        if entry.snapshot not in self._lent and not self._closed:
            self._spawn(self._shelf.drop(entry.snapshot))

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work, name="library of snapshots")
        self._work.add(task)
        task.add_done_callback(self._work.discard)
