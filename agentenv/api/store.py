"""The database: SQLite in WAL mode, written by one thread that commits what has gathered in one transaction.

A change is committed when its future is done: a killed process loses none. Against a power failure commits are synced
by `sync`, or each by itself with `sync_every_commit`, which costs a turn of the disk per request. When a commit fails
(a full disk), it and all that were waiting behind it are rolled back and fail; `load` then tells what is true.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import queue
import shutil
import sqlite3
import threading
from collections import Counter
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from agentenv.api.codec import PackedGroup
from agentenv.api.leases import Batch
from agentenv.api.queue import Entry
from agentenv.api.registry import Environment, Registry
from agentenv.api.state import ServerState
from agentenv.api.statements import ARRIVALS, FORMAT, TABLES, Statement, put_meta
from agentenv.errors import ConfigError, RunDirectoryError, TrajectoryStoreError
from agentenv.run.lock import FileLock

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

logger = logging.getLogger(__name__)

DATABASE_NAME = "trajectories.db"

_PAGE_BYTES = 16_384
_RESTART_PAGES = 64_000_000 // _PAGE_BYTES
_CHECKPOINT_PAGES = 4 * _RESTART_PAGES
_LONG_LOG_BYTES = 8_000_000
_CACHE_KIB = 16_000
_SIZES = "select * from pragma_freelist_count, pragma_page_count, pragma_page_size"
_MAX_GATHERED = 512
_BUSY_S = 30.0
_HOLD_UP_MS = 50
"""How long commits are held up at most for somebody who reads the file at the wrong moment."""
_CLOSE_S = 60.0


@dataclass(frozen=True, slots=True)
class _Submission:
    statements: Sequence[Statement]
    done: asyncio.Future[None]
    epoch: int


class Store:
    """One database file. `open` it, `load` the state, `submit` changes in order, `close` it."""

    def __init__(self, path: Path, *, sync_every_commit: bool = False) -> None:
        self.path = path
        self._sync_every_commit = sync_every_commit
        self._unsynced = False
        self._lock = FileLock(path.with_name(path.name + ".lock"))
        self._submissions: queue.SimpleQueue[_Submission | None] = queue.SimpleQueue()
        self._readers = threading.local()
        self._all_readers: list[sqlite3.Connection] = []
        self._file = -1  # to sync it. Closed last: SQLite's locks go with any descriptor of it
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._epoch = 0

    def open(self) -> None:
        """Lock the file, make its tables if it is new, and start the writer. Call on the event loop.

        Raises `ConfigError` for a file that is in use, or is no database of this server.
        """
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._lock.acquire()
        except (OSError, RunDirectoryError) as error:
            raise ConfigError(f"the database {self.path} cannot be had: {error}") from error
        try:
            connection = self._prepared()
            self._file = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        except BaseException:
            self._lock.release()
            raise
        self._loop = asyncio.get_running_loop()
        self._thread = threading.Thread(
            target=self._write_all, args=(connection,), name="trajectory-store", daemon=True
        )
        self._thread.start()

    def submit(self, statements: Sequence[Statement]) -> asyncio.Future[None]:
        """Commit changes, after all that were submitted before.

        The future is done once they are committed; it raises `TrajectoryStoreError` when they could not be written.
        Without statements: once all earlier ones are. It may be left alone: nothing is logged of an unread failure.
        """
        assert self._loop is not None
        done: asyncio.Future[None] = self._loop.create_future()
        self._submissions.put(_Submission(statements, done, self._epoch))
        return done

    def admit(self) -> None:
        """After a failure, and a `load` since: take changes again. Those submitted before still fail."""
        self._epoch += 1

    def sync(self) -> None:
        """Bring the commits so far to the disk, and those of a long log into the database file.

        Blocking; commits go on beside it. Raises `OSError` or `sqlite3.Error` when the disk fails.
        """
        if not self._unsynced:
            return
        self._unsynced = False
        path = self.path.with_name(self.path.name + "-wal")
        if path.stat().st_size > _LONG_LOG_BYTES:
            self._move_log()
            return
        log = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(log)
        finally:
            os.close(log)

    def _move_log(self) -> None:
        """From the log into the database file, or a commit would have to do it, and its callers wait.

        Commits go on meanwhile, so the log has more at the end, and grows. Once it is long commits are held up, so that
        it can begin anew: after all but the last of it was moved and synced, for some milliseconds.
        """
        reader = self._reader()
        for _ in range(3):
            _, pages, _ = reader.execute("pragma wal_checkpoint(passive)").fetchone()
            if pages < _RESTART_PAGES:
                return
            os.fsync(self._file)
        reader.execute(f"pragma busy_timeout = {_HOLD_UP_MS}")
        reader.execute("pragma wal_checkpoint(full)").fetchall()

    async def close(self) -> None:
        """Commit what was submitted, and close the file. Idempotent."""
        thread, self._thread = self._thread, None
        if thread is None:
            return
        self._submissions.put(None)
        await asyncio.to_thread(thread.join, _CLOSE_S)
        for reader in self._all_readers:
            reader.close()
        os.close(self._file)
        self._lock.release()

    # ---- reading: blocking, in any thread ----

    def bodies(self, seqs: Sequence[int]) -> Iterable[bytes]:
        """The packed bodies of groups, one by one."""
        for seq in seqs:
            row = self._reader().execute("select body from bodies where seq = ?", (seq,)).fetchone()
            if row is None:
                raise TrajectoryStoreError(f"group {seq} is not in {self.path}")
            yield row[0]

    def room(self) -> int:
        """Bytes that may still be written: what is free on the disk, and pages of the file that nothing uses.

        Pages that are in the write-ahead log alone are counted as written: the file will grow by them.
        """
        unused, pages, page_bytes = self._reader().execute(_SIZES).fetchone()
        growth = max(0, int(pages * page_bytes) - self.path.stat().st_size)
        return shutil.disk_usage(self.path.parent).free - growth + int(unused * page_bytes)

    def load(self) -> ServerState:
        """All that is known, without the groups' bodies. Blocking."""
        with closing(self._connect()) as connection:
            return _load(connection)

    def _reader(self) -> sqlite3.Connection:
        reader: sqlite3.Connection | None = getattr(self._readers, "connection", None)
        if reader is None:
            self._readers.connection = reader = self._connect()
            self._all_readers.append(reader)
        return reader

    # ---- the writer's thread ----

    def _write_all(self, connection: sqlite3.Connection) -> None:
        failed_epoch = -1
        with closing(connection):
            while gathered := self._gather():
                current = [one for one in gathered if one.epoch > failed_epoch]
                late = [one for one in gathered if one.epoch <= failed_epoch]
                error = self._commit(connection, current)
                if error is not None:
                    failed_epoch = current[0].epoch
                self._answer(current, error)
                self._answer(late, "an earlier change failed")

    def _gather(self) -> list[_Submission]:
        first = self._submissions.get()
        if first is None:
            return []
        gathered = [first]
        with suppress(queue.Empty):
            while len(gathered) < _MAX_GATHERED:
                following = self._submissions.get_nowait()
                if following is None:
                    self._submissions.put(None)
                    break
                gathered.append(following)
        return gathered

    def _commit(
        self, connection: sqlite3.Connection, submissions: Sequence[_Submission]
    ) -> str | None:
        statements = [one for submission in submissions for one in submission.statements]
        if not statements:
            return None
        try:
            _execute(connection, statements)
            self._unsynced = not self._sync_every_commit
        except Exception as error:  # noqa: BLE001 - of values SQLite cannot hold, too
            with suppress(sqlite3.Error):  # sqlite itself rolls back after some errors
                connection.execute("rollback")
            logger.warning("%s cannot be written: %s", self.path, error)
            return str(error)
        return None

    def _answer(self, submissions: Sequence[_Submission], error: str | None) -> None:
        loop = self._loop
        if submissions and loop is not None:
            with suppress(RuntimeError):  # the loop is closed: nobody waits any more
                loop.call_soon_threadsafe(_resolve, submissions, error, self.path)

    # ---- the file ----

    def _prepared(self) -> sqlite3.Connection:
        with ExitStack() as opened:
            try:
                connection = opened.enter_context(closing(self._connect()))
                self._prepare(connection)
            except sqlite3.Error as error:
                raise ConfigError(
                    f"the database {self.path} cannot be used: {error}; name another file"
                ) from error
            opened.pop_all()
        return connection

    def _prepare(self, connection: sqlite3.Connection) -> None:
        fresh = not connection.execute("select count(*) from sqlite_master").fetchone()[0]
        if fresh:
            connection.execute(f"pragma page_size = {_PAGE_BYTES}")
        connection.execute("pragma journal_mode = wal")
        level = "full" if self._sync_every_commit else "normal"
        connection.execute(f"pragma synchronous = {level}")
        connection.execute(f"pragma wal_autocheckpoint = {_CHECKPOINT_PAGES}")
        # Some builds overwrite what is deleted, which writes each group a second time.
        connection.execute("pragma secure_delete = off")
        if fresh:
            _make_tables(connection)
        _check_format(connection)
        connection.executescript(ARRIVALS)

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(
            self.path, timeout=_BUSY_S, isolation_level=None, check_same_thread=False
        )
        connection.execute(f"pragma cache_size = -{_CACHE_KIB}")
        return connection


def _execute(connection: sqlite3.Connection, statements: Sequence[Statement]) -> None:
    if len(statements) == 1 and statements[0].many is None:  # a transaction of its own
        connection.execute(statements[0].sql, statements[0].values)
        return
    connection.execute("begin immediate")
    for statement in statements:
        if statement.many is None:
            connection.execute(statement.sql, statement.values)
        else:
            connection.executemany(statement.sql, statement.many)
    connection.execute("commit")


def _resolve(submissions: Sequence[_Submission], error: str | None, path: Path) -> None:
    for submission in submissions:
        if submission.done.done():
            continue
        if error is None:
            submission.done.set_result(None)
        else:
            submission.done.set_exception(
                TrajectoryStoreError(f"{path} cannot be written: {error}")
            )
            submission.done.exception()  # read: those who wait raise it, others do not care


def _make_tables(connection: sqlite3.Connection) -> None:
    connection.executescript(f"begin; {TABLES} commit;")
    for key, value in (("format", FORMAT), ("server_id", ServerState().server_id)):
        statement = put_meta(key, value)
        connection.execute(statement.sql, statement.values)


def _check_format(connection: sqlite3.Connection) -> None:
    found = _meta(connection).get("format")
    if found != FORMAT:
        raise sqlite3.DatabaseError(f"its format is {found}, this version knows {FORMAT}")


def _meta(connection: sqlite3.Connection) -> dict[str, Any]:
    return {key: json.loads(value) for key, value in connection.execute("select * from meta")}


def _load(connection: sqlite3.Connection) -> ServerState:
    meta = _meta(connection)
    state = ServerState(server_id=meta["server_id"], counts=Counter(meta.get("counts", {})))
    settings = meta.get("registry", {})
    settings.pop("paused", None)  # of earlier versions, whose pauses had no end
    state.registry = Registry(**settings)
    state.registry.envs = [
        Environment(**json.loads(value))
        for (value,) in connection.execute("select value from envs order by env_id")
    ]
    entries = {
        row[0]: Entry(*row) for row in connection.execute("select * from groups order by seq")
    }
    last_seq = max(entries, default=0)
    _load_batches(connection, state, entries)
    _load_queue(state, entries.values())
    for group_id, seq, answer in connection.execute("select * from answers order by seq"):
        state.answers[group_id] = (seq, json.loads(answer))
    state.next_seq = 1 + max([last_seq, *(seq for seq, _ in state.answers.values())])
    state.next_batch_id = meta.get("next_batch_id", 1)
    state.latest = _load_latest(connection)
    return state


def _load_batches(
    connection: sqlite3.Connection, state: ServerState, entries: dict[int, Entry]
) -> None:
    for row in connection.execute("select * from batches order by batch_id"):
        batch_id, step, seqs, consumer, deadline, acknowledged = row
        own = () if acknowledged else tuple(entries.pop(seq) for seq in json.loads(seqs))
        if consumer is None:
            deadline = 0.0  # whoever it was sent to is gone, or was cut off
        state.leases.restore(Batch(batch_id, step, own, consumer, deadline, bool(acknowledged)))


def _load_queue(state: ServerState, entries: Iterable[Entry]) -> None:
    waiting = sorted(entries, key=lambda entry: (entry.position is None, entry.position, entry.seq))
    for entry in waiting:
        env = state.registry.env(entry.env_id)
        if entry.position is None and env is not None:
            state.queue.restore_buffered(entry, env)
        else:
            state.queue.enqueue(entry)


def _load_latest(connection: sqlite3.Connection) -> PackedGroup | None:
    row = connection.execute(
        "select body, rows, env_id, policy_version, group_id from groups join bodies using (seq) "
        "where position is not null order by position desc limit 1"
    ).fetchone()
    return PackedGroup(*row) if row else None
