"""Finished groups on their way to the server, on disk: none is lost when the server is away or this process is killed.

    groups.spool    records in the order they were put: b"AEGS", u32 length, u32 CRC-32, the bytes
    groups.sent     u64: how many bytes of it are done with

Guaranteed: a record that `put` returned for is on the disk, also after SIGKILL or a power cut, and comes back in order
until `done` was called for it. A process that is killed between the server's answer and `done` sends that record again,
under the same group id. A record that was torn while it was written is cut off.
"""

from __future__ import annotations

import asyncio
import logging
import os
import struct
import zlib
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeVar

from agentenv.errors import RunDirectoryError
from agentenv.run.directory import write_all

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

logger = logging.getLogger(__name__)
_T = TypeVar("_T")

_MAGIC = b"AEGS"
_HEAD = struct.Struct("<4sII")
_OFFSET = struct.Struct("<Q")
SPOOL_FILE = "groups.spool"
SENT_FILE = "groups.sent"


class Spool:
    """A bounded queue of records on disk. Make one with `open`; its file work runs in a thread of its own, in order."""

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self.folder = folder
        self.max_bytes = max_bytes
        self._sizes: deque[int] = deque()
        self._start = self._end = 0
        self._fd = self._sent_fd = -1
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="spool")

    @classmethod
    async def open(cls, folder: Path, *, max_bytes: int) -> Spool:
        """Open what is there, or make it. Raises `RunDirectoryError`."""
        spool = cls(folder, max_bytes)
        try:
            await spool._run(spool._open)
        except OSError as error:
            await spool.close()
            raise RunDirectoryError(f"{folder} cannot be used: {error.strerror}") from error
        return spool

    @property
    def pending(self) -> int:
        """Records that are not done with."""
        return len(self._sizes)

    @property
    def bytes_used(self) -> int:
        """What the file holds, records that are done with included until the last of them is."""
        return self._end

    @property
    def has_room(self) -> bool:
        """Whether another record may be put. A single record may go over the bound."""
        return self._end < self.max_bytes

    async def put(self, record: bytes) -> None:
        """Append a record and wait until it is on the disk. Raises `RunDirectoryError`; nothing torn is left then."""
        await self._run(self._put, record)

    async def first(self, count: int) -> list[bytes]:
        """The first records, at most `count`."""
        return await self._run(self._first, count)

    async def done(self, count: int) -> None:
        """Forget the first `count` records."""
        await self._run(self._done, count)

    async def close(self) -> None:
        """Close the files. What is pending stays. Idempotent."""
        if self._fd >= 0 or self._sent_fd >= 0:
            await self._run(self._close)
        self._thread.shutdown(wait=False)

    def _run(self, work: Callable[..., _T], *args: Any) -> asyncio.Future[_T]:
        return asyncio.get_running_loop().run_in_executor(self._thread, work, *args)

    def _open(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
        self._fd = os.open(self.folder / SPOOL_FILE, flags, 0o600)
        self._sent_fd = os.open(self.folder / SENT_FILE, flags, 0o600)
        size = os.fstat(self._fd).st_size
        held = os.pread(self._sent_fd, _OFFSET.size, 0)
        sent = _OFFSET.unpack(held)[0] if len(held) == _OFFSET.size else 0
        self._start = self._end = sent if sent <= size else 0
        while (record := self._read(self._end)) is not None:
            self._sizes.append(len(record) + _HEAD.size)
            self._end += self._sizes[-1]
        if self._end < size:
            logger.warning(
                "%s: the last %d bytes are no whole record and are cut off",
                self.folder / SPOOL_FILE,
                size - self._end,
            )
            os.ftruncate(self._fd, self._end)
        if not self._sizes:
            self._empty()

    def _read(self, offset: int) -> bytes | None:
        head = os.pread(self._fd, _HEAD.size, offset)
        if len(head) < _HEAD.size:
            return None
        magic, length, checksum = _HEAD.unpack(head)
        if magic != _MAGIC:
            return None
        record = os.pread(self._fd, length, offset + _HEAD.size)
        return record if len(record) == length and zlib.crc32(record) == checksum else None

    def _put(self, record: bytes) -> None:
        head = _HEAD.pack(_MAGIC, len(record), zlib.crc32(record))
        try:
            os.lseek(self._fd, self._end, os.SEEK_SET)
            write_all(self._fd, head + record)
            os.fsync(self._fd)
        except OSError as error:
            os.ftruncate(self._fd, self._end)
            raise RunDirectoryError(
                f"{self.folder / SPOOL_FILE} cannot take a group: {error.strerror}"
            ) from error
        self._end += _HEAD.size + len(record)
        self._sizes.append(_HEAD.size + len(record))

    def _first(self, count: int) -> list[bytes]:
        records, offset = [], self._start
        for size in list(islice(self._sizes, count)):
            record = self._read(offset)
            if record is None:
                raise RunDirectoryError(
                    f"{self.folder / SPOOL_FILE} was changed from outside at byte {offset}"
                )
            records.append(record)
            offset += size
        return records

    def _done(self, count: int) -> None:
        for _ in range(count):
            self._start += self._sizes.popleft()
        if self._sizes:
            os.pwrite(self._sent_fd, _OFFSET.pack(self._start), 0)
        else:
            self._empty()

    def _empty(self) -> None:
        # In this order: a file that is shorter than what was sent of it counts as new.
        os.ftruncate(self._fd, 0)
        os.pwrite(self._sent_fd, _OFFSET.pack(0), 0)
        # Else a power cut could leave the old place, and new records before it would pass for done.
        os.fsync(self._sent_fd)
        self._start = self._end = 0

    def _close(self) -> None:
        for fd in (self._fd, self._sent_fd):
            if fd >= 0:
                os.close(fd)
        self._fd = self._sent_fd = -1
