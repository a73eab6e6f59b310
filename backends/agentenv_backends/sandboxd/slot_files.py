"""File operations of a slot: everything below the workspace, nothing outside, whatever links or races say.

Paths are walked one component at a time from a descriptor of the workspace, never following a link that the kernel
would resolve on its own: a link is read, and its text walked by the same rules. So no moment exists at which swapping
a folder for a link leads outside.
"""

from __future__ import annotations

import errno
import os
import stat
import time

from .frames import MAX_BODY
from .lean import json_dumps, write_all
from .refusal import RefusedError, from_os_error

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Dict, Iterator, List, Optional, Tuple

MAX_PATH = 4096
MAX_OFFSET = 1 << 62
MAX_LINKS = 40
MAX_STEPS = 50_000
"""Folders opened on one way: links can name a way of any length, through folders of any depth."""
MAX_HASHED = 100_000_000
MAX_LISTED_ENTRIES = 100_000
MAX_LISTING_TEXT = 8 << 20
MAX_DEPTH = 200
"""Folders deeper than this are listed but not entered: each level costs a descriptor."""
TIME_LIMIT_S = 20.0
FOLDER_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
FILE_FLAGS = os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY


def to_bytes(path: str) -> bytes:
    """A path from a request as the kernel takes it. Raises `RefusedError` for what no path can hold."""
    try:
        raw = path.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError as error:
        raise RefusedError("bad_request", "%a: not a path: %s" % (path, error.reason)) from error
    if b"\0" in raw:
        raise RefusedError("bad_request", "%a: a path cannot hold a NUL byte" % path)
    if not raw or len(raw) > MAX_PATH:
        raise RefusedError(
            "bad_request", "a path has 1 to %d bytes; this one has %d" % (MAX_PATH, len(raw))
        )
    return raw


def to_text(raw: bytes) -> str:
    """A path of the kernel as it goes into an answer."""
    return raw.decode("utf-8", "surrogateescape")


def show(path: str) -> str:
    """A path as it goes into a message: readable, on one line, not long."""
    text = path if path.isprintable() else ascii(path)
    return text if len(text) <= 200 else text[:200] + "..."


class Place:
    """Where a path leads: an open folder, the name in it (`.`: the workspace itself), and its path from the root."""

    __slots__ = ("folder", "name", "trail")

    def __init__(self, folder: int, name: bytes, trail: List[bytes]) -> None:
        self.folder = folder
        self.name = name
        self.trail = trail

    def __enter__(self) -> Place:  # noqa: PYI034 - `Self` is newer than Python 3.8
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.folder)


class Workspace:
    """The folder that a slot's file operations may touch."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.fd = os.open(path, FOLDER_FLAGS)
        self._parts = _components(os.fsencode(path))

    def reopen(self) -> None:
        """Go on with what has been mounted over the folder since."""
        fresh = os.open(self.path, FOLDER_FLAGS)
        os.close(self.fd)
        self.fd = fresh

    # --- walking --------------------------------------------------------------------------------------------------

    def locate(self, path: str, *, make_parents: bool = False) -> Place:
        """Walk to where `path` leads; its last component need not exist. Raises `RefusedError`."""
        try:
            return _Walk(self.fd, self._parts, path, make_parents=make_parents).run()
        except OSError as error:
            raise from_os_error(error, show(path)) from error

    def open_folder(self, path: str) -> int:
        """A descriptor of an existing folder. Raises `RefusedError`."""
        with self.locate(path) as place:
            try:
                return os.open(place.name, FOLDER_FLAGS, dir_fd=place.folder)
            except OSError as error:
                raise from_os_error(error, show(path)) from error

    def open_file(self, place: Place, path: str, flags: int) -> int:
        """Open a regular file and nothing else, without ever blocking on it. Raises `RefusedError` or `OSError`."""
        descriptor = os.open(place.name, flags | FILE_FLAGS, 0o644, dir_fd=place.folder)
        mode = os.fstat(descriptor).st_mode
        if stat.S_ISREG(mode):
            return descriptor
        os.close(descriptor)
        if stat.S_ISDIR(mode):
            raise RefusedError("is_a_directory", "%s: is a directory" % show(path))
        raise RefusedError("not_a_file", "%s: is not a regular file" % show(path))

    # --- operations: header and body of the request in, header and body of the answer out --------------------------

    def read(self, header: Dict[str, Any]) -> Tuple[bytes, bytes]:
        """Bytes of a file."""
        path, limit, offset = header["path"], int(header["max"]), int(header["offset"])
        if not (0 <= limit <= MAX_BODY and 0 <= offset <= MAX_OFFSET):
            raise RefusedError(
                "bad_request",
                "max_bytes is 0 to %d and offset 0 to %d" % (MAX_BODY, MAX_OFFSET),
            )
        with self.locate(path) as place:
            try:
                descriptor = self.open_file(place, path, os.O_RDONLY)
                try:
                    size = os.fstat(descriptor).st_size
                    content = read_range(descriptor, offset, limit)
                    digest = _sha256(descriptor, size, path) if header.get("sha256") else None
                finally:
                    os.close(descriptor)
            except OSError as error:
                raise from_os_error(error, show(path)) from error
        answer = b'{"size":%d,"offset":%d,"sha256":%s}' % (
            size,
            offset,
            b'"%s"' % digest if digest else b"null",
        )
        return answer, content

    def write(self, header: Dict[str, Any], content: bytes) -> Tuple[bytes, bytes]:
        """Write a file so that it appears whole or not at all."""
        path = header["path"]
        with self.locate(path, make_parents=True) as place:
            if place.name == b".":
                raise RefusedError("is_a_directory", "%s: is a directory" % show(path))
            try:
                if header.get("append"):
                    self._append(place, path, content)
                else:
                    self.replace(place, path, content)
            except OSError as error:
                raise from_os_error(error, show(path)) from error
        return b'{"written":%d}' % len(content), b""

    def _append(self, place: Place, path: str, content: bytes) -> None:
        descriptor = self.open_file(place, path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        try:
            size = os.fstat(descriptor).st_size
            try:
                write_all(descriptor, content)
            except OSError:
                os.ftruncate(descriptor, size)
                raise
        finally:
            os.close(descriptor)

    def replace(self, place: Place, path: str, content: bytes) -> None:
        """Write a file whole or not at all; one that is there leaves it its mode and owner.

        Raises `RefusedError` or `OSError`.
        """
        mode, owner = self._existing(place, path)
        name = b".agentenv-%d-%d" % (os.getpid(), time.monotonic_ns())
        descriptor = os.open(
            name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | FILE_FLAGS, mode, dir_fd=place.folder
        )
        try:
            try:
                if owner is not None:
                    _give_to(descriptor, owner, path)
                os.fchmod(descriptor, mode)
                write_all(descriptor, content)
            finally:
                os.close(descriptor)
            os.rename(name, place.name, src_dir_fd=place.folder, dst_dir_fd=place.folder)
        except (OSError, RefusedError):
            os.unlink(name, dir_fd=place.folder)
            raise

    def _existing(self, place: Place, path: str) -> Tuple[int, Optional[Tuple[int, int]]]:
        """Mode and owner. Opening what is there for writing asks the kernel what a plain write would have been told."""
        try:
            descriptor = self.open_file(place, path, os.O_WRONLY)
        except FileNotFoundError:
            return 0o644, None
        try:
            info = os.fstat(descriptor)
        finally:
            os.close(descriptor)
        return stat.S_IMODE(info.st_mode), (info.st_uid, info.st_gid)

    def list_folder(self, header: Dict[str, Any]) -> Tuple[bytes, bytes]:
        """Entries of a folder, or of all below it."""
        path, limit = header["path"], int(header["max"])
        if not 0 <= limit <= MAX_LISTED_ENTRIES:
            raise RefusedError("bad_request", "max_entries is 0 to %d" % MAX_LISTED_ENTRIES)
        with self.locate(path) as place:
            try:
                entries, truncated = _collect(place, bool(header.get("recursive")), limit)
            except OSError as error:
                raise from_os_error(error, show(path)) from error
        entries.sort()
        rows = [
            [to_text(name), _kind(info.st_mode), info.st_size, info.st_mtime]
            for name, info in entries
        ]
        return (b'{"truncated":true}' if truncated else b'{"truncated":false}'), json_dumps(rows)


class _Walk:
    """One walk along a path."""

    def __init__(
        self, root: int, root_parts: List[bytes], path: str, *, make_parents: bool
    ) -> None:
        self._root = root
        self._root_parts = root_parts
        self._path = path
        self._make_parents = make_parents
        self._todo = self._enter(to_bytes(path))
        self._trail: List[bytes] = []
        self._links = 0
        self._steps = 0
        self._fd = os.dup(root)

    def run(self) -> Place:
        try:
            while self._todo:
                name = self._todo.pop()
                if name == b"..":
                    self._up()
                elif not self._follow_link(name):
                    if not self._todo:
                        return Place(self._fd, name, [*self._trail, name])
                    self._down(name)
        except BaseException:
            os.close(self._fd)
            raise
        return self._here()

    def _here(self) -> Place:
        """The path named a folder by way of `.` or `..`: name it from its parent, or the root as itself."""
        return Place(self._fd, b".", self._trail)

    def _enter(self, raw: bytes) -> List[bytes]:
        """The components to walk from the workspace, last one first. Absolute paths must lie below it."""
        parts = _components(raw)
        if raw.startswith(b"/"):
            depth = len(self._root_parts)
            if parts[:depth] != self._root_parts:
                raise self._outside()
            parts = parts[depth:]
        parts.reverse()
        return parts

    def _outside(self) -> RefusedError:
        return RefusedError(
            "outside_workspace", "%s: leads outside the workspace" % show(self._path)
        )

    def _up(self) -> None:
        if not self._trail:
            raise self._outside()
        trail, self._trail = self._trail[:-1], []
        self._restart()
        for name in trail:
            self._down(name)

    def _restart(self) -> None:
        root = os.dup(self._root)
        os.close(self._fd)
        self._fd = root

    def _down(self, name: bytes) -> None:
        self._steps += 1
        if self._steps > MAX_STEPS:
            raise RefusedError("bad_request", "%s: too long a way" % show(self._path))
        try:
            below = os.open(name, os.O_PATH | FOLDER_FLAGS, dir_fd=self._fd)
        except FileNotFoundError:
            if not self._make_parents:
                raise
            os.mkdir(name, 0o755, dir_fd=self._fd)
            below = os.open(name, os.O_PATH | FOLDER_FLAGS, dir_fd=self._fd)
        os.close(self._fd)
        self._fd = below
        self._trail.append(name)

    def _follow_link(self, name: bytes) -> bool:
        try:
            target = os.readlink(name, dir_fd=self._fd)
        except OSError as error:
            if error.errno in (errno.EINVAL, errno.ENOENT):
                return False
            raise
        self._links += 1
        if self._links > MAX_LINKS:
            raise RefusedError("bad_request", "%s: too many links" % show(self._path))
        self._todo += self._enter(target)
        if target.startswith(b"/"):
            self._trail = []
            self._restart()
        return True


def _components(raw: bytes) -> List[bytes]:
    return [part for part in raw.split(b"/") if part not in (b"", b".")]


def walk(place: Place, *, recursive: bool) -> Iterator[Tuple[int, bytes, bytes, os.stat_result]]:
    """Every entry below a folder as (open parent folder, name, path from the workspace, lstat), parents first.

    Links are entries, never followed. What vanishes meanwhile is left out; so are folders that may not be read.
    """
    top = os.open(place.name, FOLDER_FLAGS, dir_fd=place.folder)
    start = b"/".join(place.trail)
    pending: List[Tuple[int, bytes, List[bytes]]] = [(top, start, _names(top))]
    try:
        while pending:
            folder, prefix, names = pending[-1]
            if not names:
                os.close(pending.pop()[0])
                continue
            name = names.pop()
            path = prefix + b"/" + name if prefix else name
            try:
                info = os.stat(name, dir_fd=folder, follow_symlinks=False)
            except FileNotFoundError:
                continue
            yield folder, name, path, info
            if recursive and stat.S_ISDIR(info.st_mode) and len(pending) < MAX_DEPTH:
                below = _open_below(folder, name)
                if below >= 0:
                    pending.append((below, path, _names(below)))
    finally:
        for folder, _, _ in pending:
            os.close(folder)


def _open_below(folder: int, name: bytes) -> int:
    try:
        return os.open(name, FOLDER_FLAGS, dir_fd=folder)
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return -1


def _names(folder: int) -> List[bytes]:
    """Names in a folder, last first; at most `MAX_LISTED_ENTRIES` + 1 of them."""
    names = []
    os.lseek(folder, 0, os.SEEK_SET)  # btrfs shows an open folder as it was when it was opened
    with os.scandir(folder) as entries:
        for entry in entries:
            names.append(os.fsencode(entry.name))
            if len(names) > MAX_LISTED_ENTRIES:
                break
    names.sort(reverse=True)
    return names


def _collect(
    place: Place, recursive: bool, limit: int
) -> Tuple[List[Tuple[bytes, os.stat_result]], bool]:
    entries: List[Tuple[bytes, os.stat_result]] = []
    text, end = 0, time.monotonic() + TIME_LIMIT_S
    depth_limit = len(place.trail) + MAX_DEPTH
    truncated = False
    for _, _, path, info in walk(place, recursive=recursive):
        text += len(path)
        if len(entries) >= limit or text > MAX_LISTING_TEXT or time.monotonic() > end:
            return entries, True
        entries.append((path, info))
        truncated = truncated or (
            stat.S_ISDIR(info.st_mode) and path.count(b"/") + 1 >= depth_limit
        )
    return entries, truncated and recursive


def _kind(mode: int) -> str:
    if stat.S_ISREG(mode):
        return "file"
    if stat.S_ISDIR(mode):
        return "directory"
    return "link" if stat.S_ISLNK(mode) else "other"


def _give_to(descriptor: int, owner: Tuple[int, int], path: str) -> None:
    """Make a new file its predecessor's owner's."""
    info = os.fstat(descriptor)
    if (info.st_uid, info.st_gid) == owner:
        return
    try:
        os.fchown(descriptor, *owner)
    except OSError as error:
        raise RefusedError(
            "permission_denied", "%s: belongs to another user, who would lose it" % show(path)
        ) from error


def read_range(descriptor: int, offset: int, limit: int) -> bytes:
    """Up to `limit` bytes from `offset` on. Raises `OSError`."""
    chunks = []
    while limit > 0:
        chunk = os.pread(descriptor, min(limit, 1 << 20), offset)
        if not chunk:
            break
        chunks.append(chunk)
        offset += len(chunk)
        limit -= len(chunk)
    return b"".join(chunks)


def _sha256(descriptor: int, size: int, path: str) -> bytes:
    if size > MAX_HASHED:
        raise RefusedError(
            "too_large", "%s: %d bytes; hashed are at most %d" % (show(path), size, MAX_HASHED)
        )
    import hashlib  # noqa: PLC0415 - few slots ever need it

    digest = hashlib.sha256()
    offset = 0
    while offset < size:
        chunk = os.pread(descriptor, 1 << 20, offset)
        if not chunk:
            break
        digest.update(chunk)
        offset += len(chunk)
    return digest.hexdigest().encode("ascii")
