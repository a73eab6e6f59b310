"""The run directory: what a run leaves behind, and nothing torn.

    config.yaml             what was set; `agentenv process config.yaml` does the same run again
    config.in_force.yaml    every setting there is, defaults included
    groups.jsonl            one complete group a line, see `record.py`
    casts/                  what its trajectories' terminals showed, see `casts.py`
    summary.json            totals, written at the end
    report.html             the same for people, see `report.py`
    run.lock                while a process uses the directory

Secrets are masked in the first two, by name, and in the casts, by shape: see `masking.py`.

Guaranteed: a line of `groups.jsonl` that `append` returned for is on the disk, whole, also after
SIGKILL or a power cut. When a line cannot be written (a full disk), what was written of it is taken
back. Not guaranteed: that a cancelled `append` did not write its line.
"""

from __future__ import annotations

import asyncio
import logging
import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import yaml

from agentenv.errors import RunDirectoryError
from agentenv.run.casts import encode_cast
from agentenv.run.jsonl import BadLine, Line, encode_line, scan
from agentenv.run.lock import FileLock
from agentenv.run.masking import mask_secrets
from agentenv.run.record import SCHEMA_VERSION, GroupRecord

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from agentenv.run.casts import CastFile

logger = logging.getLogger(__name__)
_T = TypeVar("_T")

CONFIG_FILE = "config.yaml"
IN_FORCE_FILE = "config.in_force.yaml"
GROUPS_FILE = "groups.jsonl"
SUMMARY_FILE = "summary.json"
REPORT_FILE = "report.html"
LOCK_FILE = "run.lock"


class RunDirectory:
    """An open run directory.

    Make one with `open`; every method runs its file work in a thread of its own, in order.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.groups_found = 0
        """Groups that were there when it was opened."""
        self._lock = FileLock(path / LOCK_FILE)
        self._groups_fd: int | None = None
        self._closed = False
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="run-directory")

    @classmethod
    async def open(cls, path: Path | str, *, extend: bool = False) -> RunDirectory:
        """Make the directory, or open one that is there.

        Raises `RunDirectoryError` when another process uses it, when it cannot be written, when a
        line in the middle of its `groups.jsonl` is damaged, or when it holds groups and `extend` is
        False. A torn last line is cut off, with a warning.
        """
        directory = cls(Path(path))
        try:
            await directory._run(directory._open, extend)
        except BaseException:
            await directory.close()
            raise
        return directory

    async def append(self, record: GroupRecord, casts: Sequence[CastFile] = ()) -> None:
        """Write one group, its casts first, and wait until it is on the disk.

        Raises `RunDirectoryError`; no torn line is left then. A cast that cannot be written is only warned of.
        """
        if casts:
            await self._run(self._write_casts, casts)
        await self._run(self._append, record)

    async def write_config(
        self, config: Mapping[str, Any], in_force: Mapping[str, Any] | None = None
    ) -> None:
        """Write `config.yaml`, and `config.in_force.yaml` if that is given. Models and plain values; secrets masked."""
        await self._run(self._write_yaml, CONFIG_FILE, config)
        if in_force is not None:
            await self._run(self._write_yaml, IN_FORCE_FILE, in_force)

    async def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Write `summary.json`."""
        await self._run(self._write_summary, summary)

    async def close(self) -> None:
        """Finish what is being written, and unlock. Idempotent."""
        if not self._closed:
            closing = self._run(self._close)
            self._closed = True
            await closing
            self._thread.shutdown(wait=False)

    def _run(self, work: Callable[..., _T], *args: Any) -> asyncio.Future[_T]:
        if self._closed:
            raise RunDirectoryError(f"run directory {self.path} is closed")
        return asyncio.get_running_loop().run_in_executor(self._thread, work, *args)

    def _open(self, extend: bool) -> None:
        groups = self.path / GROUPS_FILE
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock.acquire()
            self._groups_fd = os.open(
                groups, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644
            )
            self.groups_found = _repair(groups, self._groups_fd)
        except RunDirectoryError:
            raise
        except OSError as error:
            raise RunDirectoryError(f"run directory {self.path} cannot be used: {error}") from error
        if self.groups_found and not extend:
            raise RunDirectoryError(
                f"{self.path} already holds {self.groups_found} groups; "
                f"choose another run directory"
            )

    def _append(self, record: GroupRecord) -> None:
        fd = self._groups_fd
        assert fd is not None, "set while open"
        size = os.fstat(fd).st_size
        try:
            write_all(fd, encode_line(record.to_json()))
            os.fsync(fd)
        except OSError as error:
            os.ftruncate(fd, size)
            raise RunDirectoryError(
                f"{self.path / GROUPS_FILE} cannot take group {record.group_id}: {error.strerror}; "
                f"it holds {size} bytes of whole groups"
            ) from error

    def _write_casts(self, casts: Sequence[CastFile]) -> None:
        for cast in casts:
            target = self.path / cast.path
            try:
                target.parent.mkdir(exist_ok=True)
                target.write_bytes(encode_cast(cast.recording))
            except OSError as error:
                with suppress(OSError):
                    target.unlink(missing_ok=True)
                logger.warning("%s cannot be written: %s", target, error.strerror)

    def _write_yaml(self, name: str, config: Mapping[str, Any]) -> None:
        plain = _plain(mask_secrets(dict(config)))
        text = yaml.safe_dump(plain, sort_keys=False, allow_unicode=True)
        self._replace(name, text.encode("utf-8", "replace"))

    def _write_summary(self, summary: Mapping[str, Any]) -> None:
        self._replace(SUMMARY_FILE, encode_line(mask_secrets(dict(summary))))

    def _replace(self, name: str, content: bytes) -> None:
        target = self.path / name
        try:
            replace_file(target, content)
        except OSError as error:
            raise RunDirectoryError(f"{target} cannot be written: {error.strerror}") from error

    def _close(self) -> None:
        fd, self._groups_fd = self._groups_fd, None
        if fd is not None:
            os.close(fd)
        self._lock.release()


def replace_file(target: Path, content: bytes) -> None:
    """Write a file so that it is whole or not there, whatever happens.

    Raises `OSError`; no leftovers then.
    """
    partial = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        with partial.open("wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)


def read_groups(path: Path | str) -> Iterator[GroupRecord]:
    """The groups of a run directory, or of a `groups.jsonl`, one at a time.

    A torn last line is passed over with a warning. Raises `RunDirectoryError` for any other line
    that is no group, naming it.
    """
    file = groups_file(path)
    for line in scan_groups(file):
        if isinstance(line, Line):
            yield GroupRecord.from_json(line.value)
        elif line.torn:
            logger.warning("%s", describe_bad_line(file, line))
        else:
            raise RunDirectoryError(describe_bad_line(file, line))


def scan_groups(file: Path) -> Iterator[Line | BadLine]:
    """Every line of a `groups.jsonl`, good or bad; one of another schema version is bad.

    Raises `RunDirectoryError`.
    """
    try:
        for line in scan(file):
            yield _check_version(line) if isinstance(line, Line) else line
    except OSError as error:
        raise RunDirectoryError(f"{file} cannot be read: {error.strerror}") from error


def describe_bad_line(file: Path, line: BadLine) -> str:
    """What is wrong with a line, and where it is."""
    where = f"{file}, line {line.number} (byte {line.offset}, {line.size} bytes)"
    return (
        f"{where}: the last group was not written to its end"
        if line.torn
        else f"{where}: {line.reason}"
    )


def groups_file(path: Path | str) -> Path:
    """The `groups.jsonl` meant by a run directory or by the file itself."""
    path = Path(path)
    return path / GROUPS_FILE if path.is_dir() else path


def _check_version(line: Line) -> Line | BadLine:
    version = line.value.get("schema_version")
    if version == SCHEMA_VERSION and isinstance(line.value.get("trajectories"), list):
        return line
    reason = f"schema_version {version!r} is not the {SCHEMA_VERSION} that is read here"
    if version == SCHEMA_VERSION:
        reason = "it has no list of trajectories"
    return BadLine(line.number, line.offset, 0, reason, torn=False)


def _repair(groups: Path, fd: int) -> int:
    """Cut off a torn last line; returns the number of groups.

    Raises `RunDirectoryError` for other damage.
    """
    count, last = 0, None
    for last in scan_groups(groups):
        if isinstance(last, BadLine) and not last.torn:
            raise RunDirectoryError(describe_bad_line(groups, last))
        count += isinstance(last, Line)
    if isinstance(last, BadLine):
        logger.warning("%s; it is cut off", describe_bad_line(groups, last))
        os.ftruncate(fd, last.offset)
    elif last is not None and os.pread(fd, 1, os.fstat(fd).st_size - 1) != b"\n":
        write_all(fd, b"\n")
    return count


def write_all(fd: int, data: bytes) -> None:
    """Write every byte, however many calls that takes. Raises `OSError`."""
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(fd, rest) :]


def _plain(value: Any) -> Any:
    """As YAML's safe dumper knows it: what it does not know becomes text."""
    if isinstance(value, dict):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_plain(entry) for entry in value]
    if value is None or type(value) in (str, int, float, bool):
        return value
    return str(getattr(value, "value", value))
