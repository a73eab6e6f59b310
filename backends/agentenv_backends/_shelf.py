"""Snapshots of a pool: where each of them lies, how it gets to another host, and that it goes in the end."""

from __future__ import annotations

import asyncio
import itertools
import logging
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from agentenv_backends._aio import CANCEL_GRACE_S, bounded
from agentenv_backends._archives import Archive, ArchiveStore
from agentenv_backends.base import Snapshot
from agentenv_backends.errors import (
    BackendError,
    BackendStoppedError,
    HostLostError,
    SandboxTimeoutError,
    SlotLostError,
    SlotStateError,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine
    from typing import Any

    from agentenv_backends._leases import Lease
    from agentenv_backends.host import Host
    from agentenv_backends.settings import PoolSettings

T = TypeVar("T")
_log = logging.getLogger(__name__)

_TRANSFERS_AT_ONCE = 2
"""Archives that are whole in memory at the same time, beside those that the store keeps there."""
_DROP_ATTEMPTS = 3


@dataclass(frozen=True, slots=True)
class Hosts:
    """The pool, as far as snapshots need it."""

    find: Callable[[str], Host | None]
    """The connection to a host; None when it is not live."""
    lost: Callable[[str, str], None]
    """Report that a host is gone, and why."""
    pin: Callable[[str], None]
    """Something lies on this host: do not end it for being idle."""
    unpin: Callable[[str], None]
    """It does no longer."""
    carry: Callable[[Lease, Callable[[], Awaitable[None]], str, float], Awaitable[None]]
    """Await what a host does in a held slot: the lease, the work, what it is, and its deadline."""


@dataclass(eq=False, slots=True)
class _Kept:
    """A snapshot that may still lie somewhere."""

    snapshot: Snapshot
    lies_on: set[str] = field(default_factory=set)
    """Hosts that may hold something of it, and are pinned for that."""
    whole_on: set[str] = field(default_factory=set)
    """Hosts to restore it on, or to fetch it from."""
    archive: Archive | None = None
    fetching: asyncio.Lock = field(default_factory=asyncio.Lock)
    transfers: dict[str, asyncio.Task[None]] = field(default_factory=dict)
    """By the host they go to."""
    restores: int = 0
    """Under way now."""
    idle: asyncio.Event = field(default_factory=asyncio.Event)
    """Set while there are none."""

    def begin(self) -> None:
        """One more restore."""
        self.restores += 1
        self.idle.clear()

    def end(self) -> None:
        """One less."""
        self.restores -= 1
        if not self.restores:
            self.idle.set()


class SnapshotShelf:
    """All snapshots of a pool.

    One that is asked for on another host is fetched once and put there once, however many restores wait for it.
    Dropping one waits for its restores under way. Whatever fails or is cancelled in the middle, each host is told to
    let go of what it may hold.
    """

    def __init__(self, hosts: Hosts, settings: PoolSettings) -> None:
        self._hosts = hosts
        self._settings = settings
        self._archives = ArchiveStore(settings.archive_memory_bytes)
        self._kept: dict[str, _Kept] = {}
        self._going: set[_Kept] = set()
        """Being dropped."""
        self._ids = itertools.count(1)
        self._lanes = asyncio.Semaphore(_TRANSFERS_AT_ONCE)
        self._work: set[asyncio.Task[None]] = set()
        self._closed = False

    # --- What callers do -------------------------------------------------------------------------

    async def take(self, lease: Lease) -> Snapshot:
        """Freeze the workspace of a held slot."""
        slot = lease.slot
        kept = _Kept(Snapshot(f"{slot.host_id}-n{next(self._ids)}", slot.host_id))
        kept.idle.set()
        snapshot_id = kept.snapshot.snapshot_id
        self._note(kept, slot.host_id)
        try:
            take = partial(lease.host.take_snapshot, slot.slot_id, snapshot_id)
            await self._in_slot(lease, take, "taking a snapshot")
            kept.whole_on.add(slot.host_id)
            if self._settings.limits.single_use_hosts:  # the host goes with the slot
                async with self._lanes:
                    await self._archive(kept)
        except BaseException:
            self._let_go(kept)
            raise
        self._kept[snapshot_id] = kept
        return kept.snapshot

    async def put(self, archive: bytes) -> Snapshot:
        """A snapshot that lies nowhere yet, from what `content` gave. Raises `InfrastructureError`."""
        kept = _Kept(Snapshot(f"n{next(self._ids)}", ""))
        kept.idle.set()
        kept.archive = await self._archives.put(archive)
        self._kept[kept.snapshot.snapshot_id] = kept
        return kept.snapshot

    async def content(self, snapshot: Snapshot) -> bytes:
        """A snapshot as an archive. Raises `InfrastructureError`."""
        kept = self._kept.get(snapshot.snapshot_id)
        if kept is None:
            raise HostLostError(f"snapshot {snapshot.snapshot_id} is gone")
        async with self._lanes:
            return await self._archives.get(await self._archive(kept))

    def can_restore(self, snapshot: Snapshot) -> bool:
        """Whether it lies somewhere still."""
        kept = self._kept.get(snapshot.snapshot_id)
        return kept is not None and (kept.archive is not None or bool(kept.whole_on))

    async def restore(self, lease: Lease, snapshot: Snapshot) -> None:
        """Give a held slot, in which nothing was done yet, the contents of `snapshot`."""
        slot, kept = lease.slot, self._kept.get(snapshot.snapshot_id)
        if kept is None:
            raise SlotStateError(
                f"snapshot {snapshot.snapshot_id} was dropped, or does not come from this backend"
            )
        if lease.used or lease.restoring:
            raise SlotStateError(
                f"slot {slot.slot_id} was used already: restore a snapshot before anything else"
            )
        lease.check()
        lease.restoring = True
        kept.begin()
        try:
            await self._bring(kept, slot.host_id)
            await self._restore(lease, snapshot.snapshot_id)
        finally:
            lease.restoring = False
            kept.end()

    async def drop(self, snapshot: Snapshot) -> None:
        """Let go of a snapshot, once its restores under way have ended. Bounded, never raises."""
        kept = self._kept.pop(snapshot.snapshot_id, None)
        if kept is not None and (dropping := self._let_go(kept)) is not None:
            await asyncio.wait({dropping})

    # --- What happens to hosts -------------------------------------------------------------------

    def forget(self, host_id: str) -> None:
        """A host is being ended: nothing lies there any more."""
        for kept in (*self._kept.values(), *self._going):
            kept.lies_on.discard(host_id)
            kept.whole_on.discard(host_id)

    async def close(self) -> None:
        """Let go of everything, once every host is ended. Bounded."""
        self._closed = True
        for task in self._work:
            task.cancel()
        if self._work:
            await asyncio.wait(self._work, timeout=2 * CANCEL_GRACE_S)
        for kept in (*self._kept.values(), *self._going):
            self._drop_archive(kept)
        self._kept.clear()

    # --- Restoring -------------------------------------------------------------------------------

    async def _restore(self, lease: Lease, snapshot_id: str) -> None:
        slot_id = lease.slot.slot_id
        restore = partial(lease.host.restore_snapshot, slot_id, snapshot_id)
        try:
            await self._in_slot(lease, restore, "restoring a snapshot")
        except BaseException:
            # Nobody knows what is in it now.
            lease.end(SlotLostError(f"slot {slot_id} was not restored to its end"))
            raise

    async def _in_slot(self, lease: Lease, work: Callable[[], Awaitable[None]], what: str) -> None:
        await self._hosts.carry(lease, work, what, self._settings.snapshot_timeout_s)

    async def _bring(self, kept: _Kept, host_id: str) -> None:
        """Have the snapshot lie whole on a host. Raises `InfrastructureError` when that cannot be."""
        if host_id in kept.whole_on:
            return
        if self._closed:
            raise BackendStoppedError("the backend was stopped, and its snapshots are gone")
        if host_id not in kept.transfers:
            kept.transfers[host_id] = self._spawn(self._transfer(kept, host_id))
        task, patience_s = kept.transfers[host_id], 2 * self._settings.snapshot_timeout_s
        done, _ = await asyncio.wait({task}, timeout=patience_s)
        snapshot_id = kept.snapshot.snapshot_id
        if not done:
            raise SandboxTimeoutError(
                f"snapshot {snapshot_id} did not reach host {host_id} within {patience_s:g} s"
            )
        if task.cancelled():
            raise BackendStoppedError(f"the backend was stopped while it carried {snapshot_id}")
        task.result()

    async def _transfer(self, kept: _Kept, host_id: str) -> None:
        try:
            async with self._lanes:
                archive = await self._archive(kept)
                if host_id in kept.lies_on:  # the remains of a transfer that failed
                    await self._drop_on(kept, host_id)
                self._note(kept, host_id)
                put = partial(self._put, kept.snapshot.snapshot_id, archive)
                await self._on_host(host_id, put, "putting a snapshot there")
                if host_id in kept.lies_on:
                    kept.whole_on.add(host_id)
        finally:
            del kept.transfers[host_id]

    async def _put(self, snapshot_id: str, archive: Archive, host: Host) -> None:
        await host.put_snapshot(snapshot_id, await self._archives.get(archive))

    async def _archive(self, kept: _Kept) -> Archive:
        """The snapshot as an archive, fetched when it is first asked for."""
        async with kept.fetching:
            if kept.archive is None:
                source = next(iter(kept.whole_on), None)
                if source is None:
                    raise HostLostError(
                        f"snapshot {kept.snapshot.snapshot_id} is gone with host "
                        f"{kept.snapshot.host_id}"
                    )
                fetch = partial(_fetch, kept.snapshot.snapshot_id)
                content = await self._on_host(source, fetch, "fetching a snapshot")
                kept.archive = await self._archives.put(content)
            return kept.archive

    # --- Letting go ------------------------------------------------------------------------------

    def _note(self, kept: _Kept, host_id: str) -> None:
        kept.lies_on.add(host_id)
        self._hosts.pin(host_id)

    def _let_go(self, kept: _Kept) -> asyncio.Task[None] | None:
        if self._closed:
            self._drop_archive(kept)
            return None
        self._going.add(kept)
        return self._spawn(self._drop(kept))

    async def _drop(self, kept: _Kept) -> None:
        try:
            await kept.idle.wait()
            if kept.transfers:
                await asyncio.wait(set(kept.transfers.values()))
            hosts = sorted(kept.lies_on)
            await asyncio.gather(*(self._drop_on(kept, host_id) for host_id in hosts))
        finally:
            self._drop_archive(kept)
            self._going.discard(kept)

    async def _drop_on(self, kept: _Kept, host_id: str) -> None:
        drop = partial(_drop, kept.snapshot.snapshot_id)
        for attempt in range(1, _DROP_ATTEMPTS + 1):
            try:
                await self._on_host(host_id, drop, "dropping a snapshot", short=True)
                break
            except HostLostError:
                break
            except BackendError as error:
                if attempt == _DROP_ATTEMPTS:
                    _log.warning("a snapshot stays on host %s until its end: %s", host_id, error)
        if host_id in kept.lies_on:
            kept.lies_on.discard(host_id)
            kept.whole_on.discard(host_id)
            self._hosts.unpin(host_id)

    def _drop_archive(self, kept: _Kept) -> None:
        if kept.archive is not None:
            self._archives.drop(kept.archive)
            kept.archive = None

    # --- Machinery -------------------------------------------------------------------------------

    async def _on_host(
        self,
        host_id: str,
        work: Callable[[Host], Coroutine[Any, Any, T]],
        what: str,
        *,
        short: bool = False,
    ) -> T:
        """Await what a host does, within a deadline. Raises `InfrastructureError`."""
        host = self._hosts.find(host_id)
        if host is None:
            raise HostLostError(f"host {host_id} is gone")
        settings = self._settings
        timeout_s = settings.close_timeout_s if short else settings.snapshot_timeout_s
        try:
            return await bounded(work(host), timeout_s, f"host {host_id}: {what}")
        except HostLostError as error:
            self._hosts.lost(host_id, str(error))
            raise
        except BackendError:
            raise
        except TimeoutError as error:
            raise SandboxTimeoutError(str(error)) from error

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work, name="snapshot")
        self._work.add(task)
        task.add_done_callback(self._settle)
        return task

    def _settle(self, task: asyncio.Task[None]) -> None:
        self._work.discard(task)
        if task.cancelled() or (error := task.exception()) is None:
            return
        # Whoever waits for it hears of it; what is no failure of a sandbox is a fault of ours.
        level = logging.DEBUG if isinstance(error, BackendError) else logging.ERROR
        _log.log(level, "a step with a snapshot failed: %r", error, exc_info=error)


async def _fetch(snapshot_id: str, host: Host) -> bytes:
    return await host.fetch_snapshot(snapshot_id)


async def _drop(snapshot_id: str, host: Host) -> None:
    await host.drop_snapshot(snapshot_id)
