"""The trajectory server without HTTP: requests in, answers out once what they changed is on the disk."""

from __future__ import annotations

import asyncio
import logging
import math
import shutil
import sqlite3
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from uuid import uuid4

from agentenv.api.codec import PackedGroup, frame, message_start
from agentenv.api.reading import ReadLimits
from agentenv.api.refusals import QueueFullError, UnknownEnvIdError
from agentenv.api.state import Change, ServerState
from agentenv.api.store import DATABASE_NAME, Store
from agentenv.api.writing import group_json
from agentenv.errors import TrajectoryStoreError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Sequence

    from agentenv.api.leases import Batch
    from agentenv.api.queue import Entry
    from agentenv.api.registry import Environment, EnvRegistration, TrainerRegistration
    from agentenv.api.settings import ApiSettings

T = TypeVar("T")
logger = logging.getLogger(__name__)

_THREADS = 4
_CHUNK_BYTES = 200_000
_SYNC_EVERY_S = 0.25
_DISK_EVERY_S = 0.02
"""How long a disk that had room is taken to have it still."""
_SWEEPS = 4
"""How often, within the time an environment may be silent, silence is looked for."""


class TrajectoryService:
    """The server's state and database. `start` before use, `close` at the end.

    Every method that changes something returns after the commit. `TrajectoryStoreError` means that nothing was changed.
    """

    def __init__(self, settings: ApiSettings) -> None:
        self.settings = settings
        self.limits = ReadLimits(settings.max_inflated_bytes, settings.accept_misaligned_advantages)
        self._state = ServerState()
        self._folder = settings.data or Path(tempfile.gettempdir(), f"agentenv-api-{uuid4().hex}")
        self._store = Store(_database(self._folder), sync_every_commit=settings.sync_every_commit)
        self._threads = ThreadPoolExecutor(_THREADS, "trajectory-api")
        self._seen: dict[int, float] = {}
        self._chores: list[asyncio.Task[None]] = []
        self._recovering = asyncio.Lock()
        self._disk_asked = -math.inf

    async def start(self) -> None:
        """Open the database and go on from it. Raises `ConfigError` when it cannot be had."""
        if self.settings.data is None:
            self._folder.mkdir(mode=0o700)
        self._store.open()
        try:
            self._state = await asyncio.to_thread(self._store.load)
        except BaseException:
            await self._store.close()
            raise
        self._seen = {env.env_id: time.monotonic() for env in self._state.registry.envs}
        self._chores = [asyncio.create_task(self._sweep(), name="expire-environments")]
        if not self.settings.sync_every_commit:
            self._chores.append(asyncio.create_task(self._sync(), name="sync-database"))

    async def close(self) -> None:
        """Commit what is under way, close the database. Idempotent."""
        chores, self._chores = self._chores, []
        for chore in chores:
            chore.cancel()
        if chores:
            await asyncio.wait(chores)
            self._store.submit(self._state.keep_counts().statements)
        await asyncio.to_thread(self._threads.shutdown)
        await self._store.close()
        if self.settings.data is None:
            await asyncio.to_thread(shutil.rmtree, self._folder, ignore_errors=True)

    @property
    def database(self) -> Path:
        """The file that keeps everything."""
        return self._store.path

    @property
    def state(self) -> ServerState:
        """To read from. It changes with each request."""
        return self._state

    async def in_thread(self, work: Callable[[], T]) -> T:
        """Run what needs the processor in one of the service's threads."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)

    # ---- registration ----

    async def register(self, trainer: TrainerRegistration) -> bool:
        """Whether these settings took effect: only the first since the start or a reset do."""
        took_effect, change = self._state.register(trainer)
        await self._commit(change)
        if not took_effect:
            logger.warning(
                "a trainer registered again; the settings of the first remain: batch_size=%d, step=%d. "
                "A new run needs another database, or /reset_data",
                self._state.registry.batch_size,
                self._state.registry.step,
            )
        return took_effect

    async def register_env(self, env: EnvRegistration) -> Environment:
        """The environment, with its id."""
        entry, change = self._state.register_env(env)
        self._seen[entry.env_id] = time.monotonic()
        await self._commit(change)
        return entry

    async def disconnect(self, env_id: int) -> bool:
        """Whether there was such an environment."""
        env = self._state.registry.env(env_id)
        if env is None:
            return False
        await self._commit(self._state.set_connected(env, connected=False))
        return True

    async def env_status(self, env_id: int) -> dict[str, Any]:
        """See `ServerState.env_status`. Raises `UnknownEnvIdError`."""
        env = self._state.registry.env(env_id)
        if env is None:
            raise UnknownEnvIdError(f"no environment {env_id} is registered")
        self._heard_of(env_id)
        answer, change = self._state.env_status(env, time.time())
        if change.statements:
            await self._commit(change)
        return answer

    def status(self) -> dict[str, Any]:
        """See `ServerState.status`."""
        return self._state.status(time.time())

    async def pause(self) -> None:
        """Tell environments to wait: until `resume`, and for `lease_s` unless it is called again."""
        await self._commit(self._state.pause_until(time.time() + self.settings.lease_s))

    async def resume(self) -> None:
        """Tell environments to go on."""
        await self._commit(self._state.pause_until(0.0))

    async def reset(self) -> None:
        """See `ServerState.reset`."""
        self._seen.clear()
        await self._commit(self._state.reset())

    # ---- groups ----

    def check_room(self) -> None:
        """Raises `QueueFullError` when no group may come now."""
        reason = self._why_full()
        if reason:
            self._state.counts["refused_full"] += 1
            raise QueueFullError(f"{reason}; come again later")

    def _why_full(self) -> str:
        kept = self._state.bytes
        if kept >= self.settings.max_queue_bytes:
            return (
                f"{kept} bytes of groups wait for the trainer, {self.settings.max_queue_bytes} may"
            )
        if time.monotonic() < self._disk_asked + _DISK_EVERY_S:
            return ""  # it had room
        reason = self._why_disk_full()
        if not reason:
            self._disk_asked = time.monotonic()
        return reason

    def _why_disk_full(self) -> str:
        folder, wanted = self.database.parent, self.settings.min_free_bytes
        if shutil.disk_usage(folder).free >= 2 * wanted:
            return ""  # not worth asking the database
        room = self._store.room()
        if room >= wanted:
            return ""
        return f"the disk of {folder} has room for {room} bytes more, and {wanted} must stay free"

    def count_refused(self) -> None:
        """A group was invalid."""
        self._state.counts["refused_invalid"] += 1

    async def put_groups(self, groups: Sequence[PackedGroup]) -> list[dict[str, Any]]:
        """Keep groups; what their sender is told of each."""
        for env_id in {group.env_id for group in groups}:
            self._heard_of(env_id)
        answers, change = self._state.put_groups(groups)
        await self._commit(change)
        return answers

    async def take_batch(self, consumer: str | None) -> Batch | None:
        """The batch a consumer gets now, as `ServerState.take_batch` says."""
        batch, change = self._state.take_batch(
            consumer, time.time(), self.settings.lease_s, self.settings.max_staleness
        )
        if change.statements:
            await self._commit(change)
        return batch

    async def acknowledge(self, batch_id: int, consumer: str | None) -> None:
        """Let go of a batch. Raises `UnknownBatchError`, `LostLeaseError`."""
        await self._commit(self._state.acknowledge(batch_id, consumer))

    def delivered(self, batch: Batch, *, whole: bool) -> None:
        """A client that does not acknowledge has its batch, or left before it had.

        Nobody waits for the commit: were it lost, the batch would be handed out once more.
        """
        state = self._state
        change = state.delivered(batch) if whole else state.undelivered(batch)
        self._store.submit(change.statements)

    async def batch_pieces(self, batch: Batch, *, binary: bool) -> AsyncIterator[bytes]:
        """A batch in pieces of a group or some small ones, so that little of it is in memory unpacked."""
        about = {"batch_id": batch.batch_id, "step": batch.step}
        yield message_start(about, len(batch.entries)) if binary else b'{"batch":['
        separator = b""
        for entries in _chunks(batch.entries):
            yield separator + await self.in_thread(partial(self._piece, entries, binary=binary))
            separator = b"" if binary else b","
        if not binary:
            known = b',"batch_id":%d,"step":%d' % (batch.batch_id, batch.step)
            yield b"]" + (known if batch.consumer is not None else b"") + b"}"

    def _piece(self, entries: Sequence[Entry], *, binary: bool) -> bytes:
        bodies = self._store.bodies([entry.seq for entry in entries])
        groups = (
            PackedGroup(body, entry.rows, entry.env_id, entry.policy_version, entry.group_id)
            for entry, body in zip(entries, bodies, strict=True)
        )
        return b"".join(map(frame, groups)) if binary else b",".join(map(group_json, groups))

    # ---- machinery ----

    async def _commit(self, change: Change) -> None:
        store, state = self._store, self._state
        try:
            await store.submit(change.statements)
        except TrajectoryStoreError:
            await self._recover(state)
            raise

    async def _recover(self, failed: ServerState) -> None:
        """Go back to what the database holds: what is in memory was not all written."""
        async with self._recovering:
            if self._state is not failed:
                return
            fresh = await asyncio.to_thread(self._store.load)
            self._store.admit()
            self._state = fresh

    def _heard_of(self, env_id: int | None) -> None:
        env = self._state.registry.env(env_id)
        if env is None:
            return
        self._seen[env.env_id] = time.monotonic()
        if env.expired:
            logger.info("environment %s is back", env.name)
            self._store.submit(self._state.set_connected(env, connected=True).statements)

    async def _sync(self) -> None:
        while True:
            await asyncio.sleep(_SYNC_EVERY_S)
            try:
                await self.in_thread(self._store.sync)
            except (OSError, sqlite3.Error) as error:
                logger.warning("%s cannot be synced: %s", self.database, error)

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(self.settings.env_timeout_s / _SWEEPS)
            oldest = time.monotonic() - self.settings.env_timeout_s
            for env in self._state.registry.envs:
                if env.counts and self._seen.setdefault(env.env_id, time.monotonic()) < oldest:
                    logger.warning(
                        "environment %s is silent since %g s: batches no longer wait for it",
                        env.name,
                        self.settings.env_timeout_s,
                    )
                    self._store.submit(self._state.expire(env).statements)


def _chunks(entries: Sequence[Entry]) -> Iterator[list[Entry]]:
    """Neighbours, as many as are worth one hop to a thread."""
    chunk: list[Entry] = []
    size = 0
    for entry in entries:
        if chunk and size + entry.size > _CHUNK_BYTES:
            yield chunk
            chunk, size = [], 0
        chunk.append(entry)
        size += entry.size
    if chunk:
        yield chunk


def _database(data: Path) -> Path:
    return data / DATABASE_NAME if data.is_dir() or not data.suffix else data
