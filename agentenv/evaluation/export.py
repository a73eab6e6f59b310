"""A sweep's samples for further work: CSV, JSON lines, Parquet. One row a sample, written as it is read."""

from __future__ import annotations

import csv
import json
import os
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from agentenv.errors import ConfigError, SweepError
from agentenv.evaluation.schema import NO_SEED, SampleRow
from agentenv.evaluation.spec import SampleKey
from agentenv.run.jsonl import encode_line

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from agentenv.evaluation.reader import SweepReader

_OWN = ("sample_id", "task_set", "task", "model", "settings", "seed", "attempt", "solved")
_ROW = tuple(
    spec.name for spec in fields(SampleRow) if spec.name not in {"arm", "task", "seed", "attempt"}
)
COLUMNS = _OWN + _ROW
"""Of every form. JSON lines have `trajectory` beside them where it is asked for."""
_PARQUET_ROWS = 10_000


def export(reader: SweepReader, target: Path, *, trajectories: bool = False) -> int:
    """Write every sample to a `.csv`, `.jsonl` or `.parquet` file; returns how many.

    The file is whole or not there. `trajectories` go into JSON lines alone. Raises `ConfigError`, or `SweepError` when
    it cannot be written.
    """
    write = _WRITERS.get(target.suffix)
    if write is None:
        raise ConfigError(f"{target}: must end with {', '.join(_WRITERS)}")
    if trajectories and target.suffix != ".jsonl":
        raise ConfigError(f"{target}: trajectories are exported to .jsonl alone")
    partial = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        try:
            count = write(rows(reader, trajectories=trajectories), partial)
            partial.replace(target)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise SweepError(f"{target} cannot be written: {error}") from error
    return count


def rows(reader: SweepReader, *, trajectories: bool = False) -> Iterator[dict[str, Any]]:
    """Every sample as a dict with `COLUMNS`, in order of task, arm, seed and attempt."""
    arms = reader.arms()
    tasks = {info.task: info.name for info in reader.tasks()}
    for stored in reader.samples():
        row, arm = stored.row, arms[stored.row.arm]
        seed = None if row.seed == NO_SEED else row.seed
        key = SampleKey(arm, tasks[row.task], seed, row.attempt)
        values: dict[str, Any] = {
            "sample_id": key.id,
            "task_set": arm.task_set,
            "task": key.task,
            "model": arm.model,
            "settings": arm.settings,
            "seed": seed,
            "attempt": row.attempt,
            "solved": None if row.reward is None else row.reward >= reader.success_at,
        }
        values |= {name: getattr(row, name) for name in _ROW}
        if trajectories:
            values["trajectory"] = reader.trajectory(stored.sample)
        yield values


def _write_csv(found: Iterable[dict[str, Any]], target: Path) -> int:
    """RFC 4180, UTF-8. A text that a spreadsheet would take for a formula gets an apostrophe before it."""
    count = 0
    with target.open("w", encoding="utf-8", errors="replace", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(COLUMNS)
        for values in found:
            writer.writerow([_inert(values[name]) for name in COLUMNS])
            count += 1
    return count


def _inert(value: Any) -> Any:
    if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r"):
        return f"'{value}"
    return value


def _write_jsonl(found: Iterable[dict[str, Any]], target: Path) -> int:
    count = 0
    with target.open("wb") as stream:
        for values in found:
            rewards = values["rewards"]
            stream.write(encode_line({**values, "rewards": json.loads(rewards or "{}")}))
            count += 1
    return count


def _write_parquet(found: Iterable[dict[str, Any]], target: Path) -> int:
    try:
        import pyarrow as pa  # noqa: PLC0415 - an extra
        import pyarrow.parquet as pq  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise ConfigError("Parquet needs pyarrow: pip install 'agentenv[parquet]'") from error
    schema = pa.schema([(name, _arrow_type(pa, name)) for name in COLUMNS])
    count = 0
    with pq.ParquetWriter(target, schema, compression="zstd") as writer:
        for part in _parts(found):
            writer.write_table(pa.Table.from_pylist(part, schema=schema))
            count += len(part)
    return count


_ROW_TYPES = {spec.name: str(spec.type) for spec in fields(SampleRow)}
_OWN_TYPES = {"seed": "int", "attempt": "int", "solved": "bool"}


def _arrow_type(pa: Any, name: str) -> Any:
    kind = (_OWN_TYPES.get(name) or _ROW_TYPES.get(name) or "str").split(" ")[0]
    types = {"int": pa.int64(), "float": pa.float64(), "bool": pa.bool_(), "str": pa.string()}
    return pa.string() if name in ("task", "arm") else types[kind]


def _parts(found: Iterable[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    part: list[dict[str, Any]] = []
    for values in found:
        part.append(values)
        if len(part) == _PARQUET_ROWS:
            yield part
            part = []
    if part:
        yield part


_WRITERS: dict[str, Callable[[Iterable[dict[str, Any]], Path], int]] = {
    ".csv": _write_csv,
    ".jsonl": _write_jsonl,
    ".parquet": _write_parquet,
}
