"""The directory of a sweep: what it measures, and every sample that has ended.

    sweep.db          samples and trajectories, see `schema.py`; `reader.py` reads it, also while a sweep runs
    sweep.lock        while a process adds to it
    outputs/          files of samples, see `folders.py`

A sample is in the database once the future of `add` is done, whole or not at all, whatever kills the process; against a
power failure the last seconds may be lost, never what was there before. One thread writes, and commits together what
has gathered. A second process is refused.
"""

from __future__ import annotations

import asyncio
import json
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import zstandard

from agentenv.errors import RunDirectoryError, SweepError
from agentenv.evaluation.folders import SampleFolders, remove_outputs, remove_unnamed
from agentenv.evaluation.schema import ADDED_COLUMNS, DATABASE, FORMAT, INSERT, TABLES
from agentenv.evaluation.spec import changes, stored_form
from agentenv.run.lock import FileLock

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from agentenv.evaluation.schema import EndedSample, Rescored, SampleRow, TaskEntry
    from agentenv.evaluation.spec import Arm, SweepConfig

    _Submission = tuple[Callable[[], EndedSample], asyncio.Future[SampleRow]]

LOCK = "sweep.lock"
_LEVEL = 3
_PAGE_BYTES = 8_192
_DONE = "outcome not in ('infrastructure_failed', 'cancelled')"

_RESCORE = (
    "update samples set first_reward = coalesce(first_reward, reward), reward = ?, outcome = ?, cause = ?, "
    "rewards = ? where sample = ?"
)

T = TypeVar("T")
Ended = tuple[int, int, int]
"""Task, seed and attempt of a sample, as numbers of its database."""


class SweepStore:
    """An open sweep directory, to be added to. Make one with `open`; belongs to one event loop."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.folders = SampleFolders(path)
        self._lock = FileLock(path / LOCK)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="sweep-store")
        self._connection: sqlite3.Connection | None = None
        self._gathered: list[_Submission] = []
        self._writing = False
        self._closed = False
        self._compress = zstandard.ZstdCompressor(level=_LEVEL).compress

    @classmethod
    async def open(
        cls, path: Path | str, config: SweepConfig, *, other: bool = False
    ) -> SweepStore:
        """Begin a sweep in a directory, or go on with the one that is there.

        Raises `SweepError` when the sweep there is another one (see `spec.changes`), unless `other` allows that, or
        when it is no sweep; `RunDirectoryError` when another process uses the directory or it cannot be written.
        """
        store = cls(Path(path))
        try:
            await store._do(store._open, config, other)
        except BaseException:
            await store.close()
            raise
        return store

    async def arm(self, arm: Arm) -> int:
        """The number of an arm."""
        return await self._do(self._arm, arm)

    async def tasks(self, task_set: str, entries: Sequence[TaskEntry]) -> list[int]:
        """The numbers of a set's tasks. Those that are there already must be the same, in the same order.

        Raises `SweepError` when they are not.
        """
        return await self._do(self._tasks, task_set, entries)

    async def known_tasks(self, task_set: str) -> list[int]:
        """The numbers of a set's tasks, as far as they were stored before."""
        return await self._do(self._known_tasks, task_set)

    async def ended(self, arm: int) -> set[Ended]:
        """The samples of an arm that need not be taken again. What infrastructure failed is not among them."""
        return await self._do(self._ended, arm)

    async def spent(self) -> tuple[int, float]:
        """Tokens and US dollars that all samples so far have used."""
        return await self._do(self._spent)

    async def add(self, make: Callable[[], EndedSample]) -> SampleRow:
        """Write what `make` returns, which is called in the writer's thread, and return its row when it is committed.

        Raises `SweepError` when it cannot be written.
        """
        done: asyncio.Future[SampleRow] = asyncio.get_running_loop().create_future()
        self._gathered.append((make, done))
        if not self._writing:
            self._writing = True
            self._start_writing()
        return await asyncio.shield(done)

    async def rescore(self, updates: Sequence[Rescored]) -> None:
        """Change scores. The first reward of a sample is kept beside."""
        await self._do(self._rescore, updates)

    async def close(self) -> None:
        """Finish what is being written, and unlock. Idempotent."""
        if not self._closed:
            if waiting := [done for _, done in self._gathered]:
                await asyncio.wait(waiting)
            closing = self._do(self._close)
            self._closed = True
            await asyncio.shield(closing)
            self._thread.shutdown(wait=False)

    # ------------------------------------------------------------------------------------ the writer's thread

    def _do(self, work: Callable[..., T], *args: Any) -> asyncio.Future[T]:
        if self._closed:
            raise SweepError(f"the sweep in {self.path} is closed")
        return asyncio.get_running_loop().run_in_executor(self._thread, work, *args)

    def _start_writing(self) -> None:
        """Have everything that has gathered written; goes on until nothing gathered meanwhile."""
        taken, self._gathered = self._gathered, []
        writing = self._do(self._write, [make for make, _ in taken])
        writing.add_done_callback(lambda written: self._written(written, taken))

    def _written(
        self,
        written: asyncio.Future[list[SampleRow]],
        taken: Sequence[_Submission],
    ) -> None:
        error = written.exception()
        if error is None:
            for row, (_, done) in zip(written.result(), taken, strict=True):
                done.set_result(row)
        else:
            for _, done in taken:
                done.set_exception(SweepError(_refusal(self.path, error)))
                done.exception()  # seen: whoever waited for it may be gone
        if self._gathered and not self._closed:
            self._start_writing()
        else:
            self._writing = False

    @property
    def _db(self) -> sqlite3.Connection:
        assert self._connection is not None, "while open"
        return self._connection

    def _open(self, config: SweepConfig, other: bool) -> None:
        file = self.path / DATABASE
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock.acquire()
            self._connection = connect(file)
            self._prepare(config, other)
            remove_unnamed(self.path, self._named())
        except (OSError, sqlite3.Error) as error:
            if isinstance(error, RunDirectoryError):
                raise
            raise RunDirectoryError(f"the sweep in {self.path} cannot be used: {error}") from error

    def _prepare(self, config: SweepConfig, other: bool) -> None:
        with self._db as db:
            db.execute("begin immediate")
            if not db.execute("select 1 from sqlite_master").fetchone():
                for statement in filter(str.strip, TABLES.split(";")):
                    db.execute(statement)
                db.execute("insert into meta values ('format', ?)", (FORMAT,))
            _add_columns(db)
            stored = read_spec(db, self.path)
            if stored is not None and not other:
                _refuse(changes(stored, config), self.path)
            spec = json.dumps(stored_form(config))
            db.execute("insert or replace into meta values ('spec', ?)", (spec,))

    def _named(self) -> set[str]:
        query = "select output_dir from samples where output_dir is not null"
        return {name for (name,) in self._db.execute(query)}

    def _arm(self, arm: Arm) -> int:
        names = (arm.task_set, arm.model, arm.settings)
        with self._db as db:
            db.execute(
                "insert or ignore into arms (task_set, model, settings) values (?, ?, ?)", names
            )
        where = "where task_set = ? and model = ? and settings = ?"
        return int(self._db.execute(f"select arm from arms {where}", names).fetchone()[0])  # noqa: S608

    def _tasks(self, task_set: str, entries: Sequence[TaskEntry]) -> list[int]:
        query = "select task, name from tasks where task_set = ? order by place"
        known = self._db.execute(query, (task_set,)).fetchall()
        for place, (_, name) in enumerate(known[: len(entries)]):
            if _storable((entries[place].name,)) != (name,):
                raise SweepError(
                    f"task {place} of {task_set!r} is {entries[place].name!r} now, and was {name!r} in {self.path}: "
                    "all models and settings must be given the same tasks, and so must a sweep that is gone on with"
                )
        rows = [
            (task_set, place, entry.name, entry.preview)
            for place, entry in enumerate(entries)
            if place >= len(known)
        ]
        with self._db as db:
            insert = "insert into tasks (task_set, place, name, preview) values (?, ?, ?, ?)"
            db.executemany(insert, map(_storable, rows))
        found = self._db.execute(query, (task_set,)).fetchall()
        return [task for task, _ in found[: len(entries)]]

    def _known_tasks(self, task_set: str) -> list[int]:
        query = "select task from tasks where task_set = ? order by place"
        return [task for (task,) in self._db.execute(query, (task_set,))]

    def _ended(self, arm: int) -> set[Ended]:
        query = f"select task, seed, attempt from samples where arm = ? and {_DONE}"  # noqa: S608
        return set(self._db.execute(query, (arm,)))

    def _spent(self) -> tuple[int, float]:
        query = "select total(input_tokens + output_tokens), total(cost_usd) from samples"
        tokens, cost = self._db.execute(query).fetchone()
        return int(tokens), float(cost)

    def _write(self, makers: Sequence[Callable[[], EndedSample]]) -> list[SampleRow]:
        samples = [make() for make in makers]
        replaced: list[str] = []
        with self._db as db:
            for sample in samples:
                replaced += _outputs_of(db, sample.row)
                number = db.execute(INSERT, _storable(sample.row.values())).lastrowid
                body = self._compress(sample.trajectory)
                db.execute("insert into trajectories values (?, ?)", (number, body))
                for session, cast in sample.casts.items():
                    packed = self._compress(cast)
                    db.execute("insert into casts values (?, ?, ?)", (number, session, packed))
        remove_outputs(self.path, replaced)
        return [sample.row for sample in samples]

    def _rescore(self, updates: Sequence[Rescored]) -> None:
        with self._db as db:
            for new in updates:
                db.execute(
                    _RESCORE,
                    _storable((new.reward, new.outcome, new.cause, new.rewards, new.sample)),
                )
                body = self._compress(new.trajectory)
                db.execute("update trajectories set body = ? where sample = ?", (body, new.sample))

    def _close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()
        self._lock.release()


def _refusal(path: Path, error: BaseException) -> str:
    return f"{path} cannot take a sample: {error}; what it holds stays, and the same command goes on from there"


def _add_columns(db: sqlite3.Connection) -> None:
    """What a sweep that was begun by an earlier version lacks."""
    there = column_names(db)
    for name, kind in ADDED_COLUMNS.items():
        if there and name not in there:
            db.execute(f"alter table samples add column {name} {kind}")
    if there:
        db.execute("create index if not exists samples_by_trajectory on samples (trajectory_id)")


def _outputs_of(db: sqlite3.Connection, row: SampleRow) -> list[str]:
    """The folder of the row that this one takes the place of."""
    query = (
        "select output_dir from samples where arm = ? and task = ? and seed = ? and attempt = ? "
        "and output_dir is not null"
    )
    found = db.execute(query, (row.arm, row.task, row.seed, row.attempt))
    return [name for (name,) in found if name != row.output_dir]


def _storable(values: tuple[Any, ...]) -> tuple[Any, ...]:
    """Texts without lone surrogates, which are no characters: a model may write them, and SQLite takes none."""
    return tuple(
        value.encode("utf-8", "replace").decode() if isinstance(value, str) else value
        for value in values
    )


def column_names(db: sqlite3.Connection) -> set[str]:
    """The columns of `samples` that a database has."""
    return {str(row[1]) for row in db.execute("pragma table_info(samples)")}


def connect(file: Path, *, read_only: bool = False) -> sqlite3.Connection:
    """A connection to a sweep's database. Raises `sqlite3.Error`."""
    mode = "ro" if read_only else "rwc"
    address = f"file:{_escaped(file)}?mode={mode}"
    connection = sqlite3.connect(address, uri=True, check_same_thread=False, timeout=30.0)
    connection.execute("pragma foreign_keys = on")
    if not read_only:
        connection.execute(f"pragma page_size = {_PAGE_BYTES}")
        connection.execute("pragma journal_mode = wal")
        connection.execute("pragma synchronous = normal")
    return connection


def _escaped(file: Path) -> str:
    from urllib.parse import quote  # noqa: PLC0415 - once for each opening

    return quote(str(file.resolve()))


def read_spec(db: sqlite3.Connection, path: Path) -> dict[str, Any] | None:
    """What a sweep measures, as it was stored; None for a new one. Raises `SweepError` for what is no sweep of ours."""
    try:
        meta = dict(db.execute("select name, value from meta"))
    except sqlite3.DatabaseError as error:
        raise SweepError(f"{path / DATABASE} is no sweep: {error}") from error
    if meta.get("format") != FORMAT:
        raise SweepError(
            f"{path / DATABASE} has format {meta.get('format')!r}; this version reads {FORMAT!r}"
        )
    return json.loads(meta["spec"]) if "spec" in meta else None


def _refuse(problems: Sequence[str], path: Path) -> None:
    if problems:
        listed = "".join(f"\n  {problem}" for problem in problems)
        raise SweepError(
            f"{path} holds another sweep:{listed}\nadd to it (tasks, models, settings, seeds, attempts), choose "
            "another directory, or say --other-spec to mix samples of both"
        )
