"""Packing a folder of the workspace. Apart from `slot_files`, because few slots ever need what this imports."""

from __future__ import annotations

import gzip
import io
import os
import stat
import tarfile
import time

from .frames import MAX_BODY
from .refusal import RefusedError, from_os_error
from .slot_files import MAX_LISTED_ENTRIES, TIME_LIMIT_S, Place, Workspace, show, to_text, walk

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Dict, Optional, Tuple

MAX_UNPACKED = 1 << 30


class _BoundedBuffer(io.BytesIO):
    """Refuses to grow over a limit, in bytes and in time."""

    def __init__(self, limit: int) -> None:
        super().__init__()
        self._limit = limit
        self._end = time.monotonic() + TIME_LIMIT_S

    def write(self, data: Any) -> int:
        if self.tell() + len(data) > self._limit:
            raise RefusedError("too_large", "the archive is over max_bytes (%d)" % self._limit)
        self.check_time()
        return super().write(data)

    def check_time(self) -> None:
        if time.monotonic() > self._end:
            raise RefusedError("too_large", "packing took over %d s" % TIME_LIMIT_S)


def pack(workspace: Workspace, header: Dict[str, Any]) -> Tuple[bytes, bytes]:
    """A tar.gz of a folder (or one file), the same bytes for the same tree."""
    path, limit, max_entries = header["path"], int(header["max"]), int(header["max_entries"])
    if not (0 < limit <= MAX_BODY and 0 <= max_entries <= MAX_LISTED_ENTRIES):
        raise RefusedError(
            "bad_request",
            "max_bytes is 1 to %d, max_entries 0 to %d" % (MAX_BODY, MAX_LISTED_ENTRIES),
        )
    sink = _BoundedBuffer(limit)
    with workspace.locate(path) as place:
        try:
            with gzip.GzipFile(fileobj=sink, mode="wb", mtime=0) as packed:
                with tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as archive:
                    count = _Packer(archive, sink, max_entries).add_all(place, path)
        except OSError as error:
            raise from_os_error(error, show(path)) from error
    return b'{"entries":%d}' % count, sink.getvalue()


class _Packer:
    def __init__(self, archive: tarfile.TarFile, sink: _BoundedBuffer, max_entries: int) -> None:
        self._archive = archive
        self._sink = sink
        self._max_entries = max_entries
        self._count = 0
        self._unpacked = 0

    def add_all(self, place: Place, path: str) -> int:
        info = os.stat(place.name, dir_fd=place.folder, follow_symlinks=False)
        if not stat.S_ISDIR(info.st_mode):
            if not stat.S_ISREG(info.st_mode):
                raise RefusedError("not_a_file", "%s: is neither a file nor a folder" % show(path))
            self._add(place.folder, place.name, place.name, info)
            return self._count
        skip = len(b"/".join(place.trail)) + 1 if place.trail else 0
        for folder, name, below, entry_info in walk(place, recursive=True):
            self._add(folder, name, below[skip:], entry_info)
        return self._count

    def _add(self, folder: int, name: bytes, path: bytes, info: os.stat_result) -> None:
        member = _member(folder, name, path, info)
        if member is None:
            return
        self._count += 1
        self._unpacked += member.size
        if self._count > self._max_entries:
            raise RefusedError(
                "too_large", "more than max_entries (%d) entries" % self._max_entries
            )
        if self._unpacked > MAX_UNPACKED:
            raise RefusedError("too_large", "more than %d bytes to pack" % MAX_UNPACKED)
        self._sink.check_time()
        if not member.isreg():
            self._archive.addfile(member)
            return
        descriptor = os.open(
            name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder
        )
        with os.fdopen(descriptor, "rb") as content:
            self._archive.addfile(member, content)


def _member(
    folder: int, name: bytes, path: bytes, info: os.stat_result
) -> Optional[tarfile.TarInfo]:
    """The entry's description without anything of the machine in it; None for what is left out."""
    member = tarfile.TarInfo(to_text(path))
    member.mode = stat.S_IMODE(info.st_mode)
    member.mtime = int(info.st_mtime)
    if stat.S_ISREG(info.st_mode):
        member.size = info.st_size
    elif stat.S_ISDIR(info.st_mode):
        member.type = tarfile.DIRTYPE
    elif stat.S_ISLNK(info.st_mode):
        member.type = tarfile.SYMTYPE
        member.linkname = to_text(os.readlink(name, dir_fd=folder))
    else:
        return None
    return member
