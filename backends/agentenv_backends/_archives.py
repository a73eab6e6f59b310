"""Archives of snapshots on their way from one host to others: a bounded part in memory, the rest in nameless files."""

from __future__ import annotations

import asyncio
import tempfile
from dataclasses import dataclass
from typing import IO

from agentenv_backends.errors import InfrastructureError


@dataclass(eq=False, slots=True)
class Archive:
    """One archive in an `ArchiveStore`."""

    content: bytes | None = None
    file: IO[bytes] | None = None


class ArchiveStore:
    """Keeps at most `memory_bytes` of archives in memory; a file has no name, so that nothing outlives the driver."""

    def __init__(self, memory_bytes: int) -> None:
        self._room = memory_bytes

    async def put(self, content: bytes) -> Archive:
        """Keep `content`. Raises `InfrastructureError` when the driver's temporary folder takes no more."""
        if len(content) <= self._room:
            self._room -= len(content)
            return Archive(content)
        try:
            return Archive(file=await asyncio.to_thread(_spill, content))
        except OSError as error:
            raise InfrastructureError(
                f"an archive of {len(content)} bytes cannot be kept in {tempfile.gettempdir()}: "
                f"{error}; make room there, or set TMPDIR"
            ) from error

    async def get(self, archive: Archive) -> bytes:
        """The whole content."""
        if archive.file is None:
            return archive.content or b""
        return await asyncio.to_thread(_read, archive.file)

    def drop(self, archive: Archive) -> None:
        """Let go of an archive. Idempotent."""
        if archive.content is not None:
            self._room += len(archive.content)
            archive.content = None
        if archive.file is not None:
            archive.file.close()


def _spill(content: bytes) -> IO[bytes]:
    file = tempfile.TemporaryFile(prefix="agentenv-snapshot-")  # noqa: SIM115 - closed by `drop`
    try:
        file.write(content)
        file.flush()
    except BaseException:
        file.close()
        raise
    return file


def _read(file: IO[bytes]) -> bytes:
    file.seek(0)
    return file.read()
