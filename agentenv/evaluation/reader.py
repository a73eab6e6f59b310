"""Reading a sweep: its numbers as columns, its trajectories one at a time. Also while it runs; nothing is locked."""

from __future__ import annotations

import json
import sqlite3
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import zstandard

from agentenv.errors import SweepError
from agentenv.evaluation.schema import COLUMNS, DATABASE, SampleRow
from agentenv.evaluation.spec import Arm
from agentenv.evaluation.store import column_names, connect, read_spec

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_NUMBERS = (
    "arm", "task", "reward", "input_tokens", "output_tokens", "cost_usd", "tool_calls", "tool_errors", "duration_s",
    "tries",
)  # fmt: skip
_MAX_TRAJECTORY_BYTES = 1 << 30


@dataclass(frozen=True, slots=True)
class TaskInfo:
    """A task as the database knows it."""

    task: int
    task_set: str
    name: str
    preview: str


@dataclass(frozen=True, slots=True)
class StoredSample:
    """A sample's row, and its number."""

    sample: int
    row: SampleRow


@dataclass(frozen=True, slots=True)
class Columns:
    """The numbers of all samples, one array a column, in equal order. `reward` and `cost_usd` are NaN where unknown."""

    outcome: list[str]
    numbers: dict[str, Any]

    def of_arm(self, arm: int) -> Columns:
        """Those of one arm."""
        chosen = np.flatnonzero(self.numbers["arm"] == arm)
        outcome = [self.outcome[place] for place in chosen]
        return Columns(outcome, {name: column[chosen] for name, column in self.numbers.items()})


class SweepReader:
    """An open sweep. A context manager; blocking; for one thread at a time."""

    def __init__(self, path: Path | str) -> None:
        """Raises `SweepError` when there is no sweep in the directory."""
        self.path = Path(path)
        file = self.path / DATABASE
        if not file.exists():
            raise SweepError(f"{self.path} holds no sweep: there is no {DATABASE}")
        try:
            self._db = connect(file, read_only=True)
            spec = read_spec(self._db, self.path)
            there = column_names(self._db)
        except sqlite3.Error as error:
            raise SweepError(f"{file} cannot be read: {error}") from error
        if spec is None:
            raise SweepError(f"{file} was not begun: it holds no specification")
        self._columns = ", ".join(name if name in there else "null" for name in COLUMNS)
        self.spec = spec
        """What it measures, secrets masked."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._db.close()

    @property
    def success_at(self) -> float:
        """The least reward that counts as solved."""
        return float(self.spec["success_at"])

    @property
    def samples_per_task(self) -> int:
        """How often each task is tried by each arm, when the sweep is complete."""
        return int(self.spec["attempts"]) * len(self.spec["seeds"])

    def arms(self) -> dict[int, Arm]:
        """The arms that were begun, by number, in the order in which the specification has them."""
        rows = self._db.execute("select arm, task_set, model, settings from arms")
        places = {
            section: {name: place for place, name in enumerate(self.spec[section])}
            for section in ("tasks", "models", "settings")
        }

        def place(entry: tuple[int, Arm]) -> tuple[int, ...]:
            arm = entry[1]
            names = (("tasks", arm.task_set), ("models", arm.model), ("settings", arm.settings))
            return tuple(places[section].get(name, 1 << 30) for section, name in names)

        found = [(number, Arm(*names)) for number, *names in rows]
        return dict(sorted(found, key=place))

    def tasks(self) -> list[TaskInfo]:
        """Every task, set by set, in order."""
        query = "select task, task_set, name, preview from tasks order by task_set, place"
        return [TaskInfo(*row) for row in self._db.execute(query)]

    def task_counts(self) -> dict[str, int]:
        """How many tasks each set has."""
        return dict(self._db.execute("select task_set, count(*) from tasks group by task_set"))

    def columns(self) -> Columns:
        """All samples' numbers at once: a few milliseconds for ten thousand."""
        names = ", ".join(_NUMBERS)
        rows = self._db.execute(f"select {names}, outcome from samples").fetchall()  # noqa: S608
        *numbers, outcome = list(zip(*rows, strict=True)) or [()] * (len(_NUMBERS) + 1)
        arrays = {
            name: np.array(column, dtype=float)
            for name, column in zip(_NUMBERS, numbers, strict=True)
        }
        return Columns(list(outcome), arrays)

    def causes(self, arm: int, limit: int = 12) -> list[tuple[str, int]]:
        """Why samples of an arm have no reward, most frequent first."""
        query = (
            "select coalesce(cause, outcome), count(*) from samples where arm = ? and reward is null "
            "group by 1 order by 2 desc, 1 limit ?"
        )
        return self._db.execute(query, (arm, limit)).fetchall()

    def samples(self, *, tasks: Sequence[int] | None = None) -> Iterator[StoredSample]:
        """Rows, of some tasks or all, in order of task, arm, seed and attempt."""
        query = f"select sample, {self._columns} from samples"  # noqa: S608
        order = "order by task, arm, seed, attempt"
        if tasks is None:
            found = self._db.execute(f"{query} {order}")
        else:
            marks = ", ".join("?" * len(tasks))
            found = self._db.execute(f"{query} where task in ({marks}) {order}", tuple(tasks))
        for sample, *values in found:
            yield StoredSample(sample, SampleRow(*values))

    def sample(self, sample: int) -> StoredSample:
        """The row of one. Raises `SweepError`."""
        query = f"select {self._columns} from samples where sample = ?"  # noqa: S608
        row = self._db.execute(query, (sample,)).fetchone()
        if row is None:
            raise SweepError(f"sample {sample} is not in {self.path}")
        return StoredSample(sample, SampleRow(*row))

    def by_trajectory(self, trajectory_id: str) -> StoredSample | None:
        """The sample whose last try has this id."""
        query = f"select sample, {self._columns} from samples where trajectory_id = ?"  # noqa: S608
        row = self._db.execute(query, (trajectory_id,)).fetchone()
        return None if row is None else StoredSample(row[0], SampleRow(*row[1:]))

    def trajectory_ids(self, beginning: str, limit: int) -> list[str]:
        """Ids of trajectories that begin so, at most so many."""
        query = "select trajectory_id from samples where substr(trajectory_id, 1, ?) = ? limit ?"
        return [name for (name,) in self._db.execute(query, (len(beginning), beginning, limit))]

    def count(self) -> int:
        """How many samples there are."""
        return int(self._db.execute("select count(*) from samples").fetchone()[0])

    def trajectory_bytes(self) -> dict[int, int]:
        """How much the trajectories of each task take, compressed; terminals included."""
        sizes: dict[int, int] = {}
        for table in ("trajectories", "casts"):
            query = f"select task, sum(length(body)) from {table} join samples using (sample) group by task"  # noqa: S608
            for task, size in self._db.execute(query):
                sizes[task] = sizes.get(task, 0) + size
        return sizes

    def trajectory(self, sample: int) -> dict[str, Any]:
        """A sample's trajectory, as `TrajectoryRecord.to_json` has it. Raises `SweepError`."""
        query = "select body from trajectories where sample = ?"
        row = self._db.execute(query, (sample,)).fetchone()
        if row is None:
            raise SweepError(f"sample {sample} is not in {self.path}")
        found: dict[str, Any] = json.loads(_unpacked(row[0]))
        return found

    def casts(self, sample: int) -> Iterator[tuple[str, bytes]]:
        """A sample's terminals: session, and asciinema cast."""
        query = "select session, body from casts where sample = ? order by session"
        for session, body in self._db.execute(query, (sample,)):
            yield session, _unpacked(body)


def _unpacked(body: bytes) -> bytes:
    return zstandard.ZstdDecompressor().decompress(body, max_output_size=_MAX_TRAJECTORY_BYTES)
