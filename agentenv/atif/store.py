"""Every rollout's trajectory, in one file of the run directory: `trajectories.sqlite`.

Written beside the run by a thread of its own, in the order the rollouts ended; a trajectory is there for certain, also
after SIGKILL, once its commit is (usually milliseconds later), and after a power cut but for the last few. Tokens and
images are kept apart from the text, so each is there once; `Trajectories.read` puts them together again.

Guaranteed: what is written here neither ends nor changes a rollout, and delays none but while the disk is `MAX_PENDING`
records behind. A record that cannot be written (a full disk) is counted and warned of.
"""

from __future__ import annotations

import asyncio
import base64
import logging
import sqlite3
import threading
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import orjson
import zstandard

from agentenv.atif.models import Agent, Trajectory
from agentenv.atif.rollouts import from_rollout, rollout_images
from agentenv.atif.tokens import attach_tokens, pack_sequences, unpack_sequences
from agentenv.errors import RunDirectoryError
from agentenv_tools.images import image_part

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from agentenv.rollout import RolloutRecord
    from agentenv_tools.schema import ImagePart

logger = logging.getLogger(__name__)

TRAJECTORIES_FILE = "trajectories.sqlite"
MAX_PENDING = 256
"""Records that may wait to be written before `room` waits."""
_FORMAT = "agentenv-trajectories-1"
_LEVEL = 3
_BATCH = 64
_MAX_DOCUMENT_BYTES = 1_000_000_000
_BUSY_S = 30.0

_TABLES = """
create table if not exists meta (key text primary key, value text not null) without rowid;
create table if not exists trajectories (
    position integer primary key,
    trajectory_id text not null unique,
    outcome text not null,
    stop_reason text not null,
    reward real,
    steps integer not null,
    ended_at real not null,
    document blob not null,
    tokens blob
);
create table if not exists images (
    trajectory_id text not null, path text not null, media_type text not null, content blob not null,
    primary key (trajectory_id, path)
) without rowid;
"""


@dataclass(frozen=True, slots=True)
class TrajectorySummary:
    """One stored trajectory, without its content."""

    trajectory_id: str
    outcome: str
    stop_reason: str
    reward: float | None
    steps: int
    ended_at: float
    """Seconds since the epoch."""


@dataclass(frozen=True, slots=True)
class _Row:
    values: tuple[Any, ...]
    images: dict[str, ImagePart] = field(default_factory=dict)


class TrajectoryLog:
    """Writes trajectories. The file is made with the first of them, and extended where it exists.

    `add` and `close` belong to one event loop.
    """

    def __init__(self, path: Path, agent: Agent) -> None:
        self.path = path
        self.agent = agent
        self.written = 0
        self.lost = 0
        """Records that could not be written."""
        self._pending: deque[tuple[RolloutRecord, str]] = deque()
        self._lock = threading.Lock()
        self._draining = False
        self._idle = asyncio.Event()
        self._idle.set()
        self._connection: sqlite3.Connection | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="trajectories")
        self._closed = False

    def add(self, record: RolloutRecord, instruction: str) -> None:
        """Have a record written."""
        if self._closed:
            return
        loop = asyncio.get_running_loop()
        with self._lock:
            self._pending.append((record, instruction))
            start, self._draining = not self._draining, True
        if start:
            self._idle.clear()
            self._thread.submit(self._drain, loop)

    async def room(self) -> None:
        """Wait while more than `MAX_PENDING` records are waiting to be written."""
        if len(self._pending) > MAX_PENDING:
            await self._idle.wait()

    async def close(self) -> None:
        """Write what is waiting, and close the file. Idempotent."""
        if self._closed:
            return
        self._closed = True
        await self._idle.wait()
        await asyncio.get_running_loop().run_in_executor(self._thread, self._disconnect)
        self._thread.shutdown(wait=False)
        if self.lost:
            logger.warning(
                "%s lacks %d trajectories that could not be written", self.path, self.lost
            )

    # ---- in the thread ----

    def _drain(self, loop: asyncio.AbstractEventLoop) -> None:
        while True:
            with self._lock:
                batch = [self._pending.popleft() for _ in range(min(_BATCH, len(self._pending)))]
                if not batch:
                    self._draining = False
                    loop.call_soon_threadsafe(self._set_idle)
                    return
            rows = [row for record, text in batch if (row := self._row(record, text)) is not None]
            self._write(rows)

    def _set_idle(self) -> None:
        if not self._draining:
            self._idle.set()

    def _row(self, record: RolloutRecord, instruction: str) -> _Row | None:
        try:
            return _row(record, instruction, self.agent)
        except Exception:  # whatever an environment put into a record must not end the run
            self.lost += 1
            logger.exception("trajectory %s cannot be recorded", record.trajectory_id)
            return None

    def _write(self, rows: Sequence[_Row]) -> None:
        try:
            connection = self._connection or self._connect()
            with connection:
                for row in rows:
                    _insert(connection, row)
            self.written += len(rows)
        except (sqlite3.Error, OSError) as error:
            if not self.lost:
                logger.warning("%s cannot be written: %s", self.path, error)
            self.lost += len(rows)

    def _connect(self) -> sqlite3.Connection:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        connection = sqlite3.connect(self.path, timeout=_BUSY_S, isolation_level=None)
        connection.execute("pragma journal_mode = wal")
        connection.execute("pragma synchronous = normal")
        connection.executescript(_TABLES)
        connection.execute("insert or ignore into meta values ('format', ?)", (_FORMAT,))
        connection.isolation_level = "DEFERRED"
        self._connection = connection
        return connection

    def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()


class Trajectories:
    """The trajectories of a run directory, or of its `trajectories.sqlite`. Blocking; also while a run writes them.

    Raises `RunDirectoryError` when there are none.
    """

    def __init__(self, path: Path | str) -> None:
        path = Path(path)
        self.path = path / TRAJECTORIES_FILE if path.is_dir() else path
        if not self.path.is_file():
            raise RunDirectoryError(
                f"{path} holds no {TRAJECTORIES_FILE}: only runs with `env.record_trajectories` write it"
            )
        with self._connect() as connection:
            found = connection.execute("select value from meta where key = 'format'").fetchone()
        if found != (_FORMAT,):
            raise RunDirectoryError(
                f"{self.path} is of format {found!r}, and {_FORMAT!r} is read here"
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        """Nothing is open between two calls."""

    def count(self) -> int:
        """How many there are."""
        with self._connect() as connection:
            return int(connection.execute("select count(*) from trajectories").fetchone()[0])

    def summaries(self) -> Iterator[TrajectorySummary]:
        """Each of them, in the order in which they ended."""
        columns = "trajectory_id, outcome, stop_reason, reward, steps, ended_at"
        with self._connect() as connection:
            for row in connection.execute(f"select {columns} from trajectories order by position"):  # noqa: S608
                yield TrajectorySummary(*row)

    def find(self, name: str) -> str:
        """The id that `name` is or begins. Raises `RunDirectoryError` unless it is exactly one."""
        escaped = name.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
        with self._connect() as connection:
            query = "select trajectory_id from trajectories where trajectory_id like ? escape '\\' limit 3"
            found = [row[0] for row in connection.execute(query, (f"{escaped}%",))]
        if name in found or len(found) == 1:
            return name if name in found else str(found[0])
        what = (
            f"several trajectories begin with {name!r}" if found else f"no trajectory is {name!r}"
        )
        raise RunDirectoryError(f"{self.path}: {what}; `agentenv trajectory list` names them")

    def read(self, trajectory_id: str) -> Trajectory:
        """One trajectory with its tokens. Raises `RunDirectoryError`."""
        query = "select document, tokens from trajectories where trajectory_id = ?"
        with self._connect() as connection:
            row = connection.execute(query, (trajectory_id,)).fetchone()
        if row is None:
            raise RunDirectoryError(f"{self.path}: no trajectory is {trajectory_id!r}")
        try:
            document = zstandard.decompress(row[0], max_output_size=_MAX_DOCUMENT_BYTES)
            trajectory = Trajectory.model_validate_json(document)
            return attach_tokens(trajectory, unpack_sequences(row[1])) if row[1] else trajectory
        except (ValueError, zstandard.ZstdError) as error:
            raise RunDirectoryError(
                f"{self.path}: trajectory {trajectory_id!r} cannot be read: {error}"
            ) from error

    def images(self, trajectory_id: str) -> dict[str, ImagePart]:
        """Its images, by the paths that it names. Raises `ValueError` for one that is no image."""
        query = "select path, media_type, content from images where trajectory_id = ? order by path"
        with self._connect() as connection:
            rows = connection.execute(query, (trajectory_id,)).fetchall()
        return {path: image_part(content, media_type) for path, media_type, content in rows}

    def _connect(self) -> closing[sqlite3.Connection]:
        try:
            connection = sqlite3.connect(
                f"{self.path.absolute().as_uri()}?mode=ro", uri=True, timeout=_BUSY_S
            )
            connection.execute("select 1 from meta").fetchone()
        except sqlite3.Error as error:
            raise RunDirectoryError(f"{self.path} cannot be read: {error}") from error
        return closing(connection)


def _row(record: RolloutRecord, instruction: str, agent: Agent) -> _Row:
    trajectory = from_rollout(record, agent=agent, instruction=instruction, tokens=False)
    sequences = record.result.sequences if record.result else ()
    values = (
        record.trajectory_id,
        record.outcome.value,
        record.stop_reason.value,
        record.reward,
        len(trajectory.steps),
        time.time(),
        zstandard.compress(orjson.dumps(trajectory.to_json()), _LEVEL),
        pack_sequences(sequences) if sequences else None,
    )
    return _Row(values, rollout_images(record))


def _insert(connection: sqlite3.Connection, row: _Row) -> None:
    connection.execute(
        "insert or replace into trajectories (trajectory_id, outcome, stop_reason, reward, steps, "
        "ended_at, document, tokens) values (?, ?, ?, ?, ?, ?, ?, ?)",
        row.values,
    )
    connection.executemany(
        "insert or replace into images values (?, ?, ?, ?)",
        (
            (row.values[0], path, image.media_type, base64.b64decode(image.data))
            for path, image in row.images.items()
        ),
    )
