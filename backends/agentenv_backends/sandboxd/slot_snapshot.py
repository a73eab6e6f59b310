"""A whole workspace as an archive and back: tar, so that anyone can read it, with everything that a copy needs.

Files, folders, links, hard links, named pipes; modes, times to the nanosecond, `user.` attributes. Owners are left
out: whoever unpacks owns everything. So are sockets and devices, which are nothing without a process or a privilege.

What is packed and what is unpacked may both be meant to harm: nothing here follows a link, and nothing is made or
read outside of the folder that it is given as a descriptor.
"""

from __future__ import annotations

import os
import stat
import tarfile
import time
from copy import copy

from . import reflinks
from .refusal import RefusedError, from_os_error
from .slot_files import show
from .trees import empty_folder

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, BinaryIO, Dict, Iterator, List, Tuple, Union

MAX_ENTRIES = 200_000
MAX_DEPTH = 200
"""Folders below folders: each level costs a descriptor."""
TIME_LIMIT_S = 50.0
_ROOT = "."
_XATTR = "SCHILY.xattr."
_CHUNK = 1 << 16
_WORTH_SHARING = 1 << 16
"""Smaller files are copied sooner than their blocks are shared."""
_ZEROS = bytes(_CHUNK)
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
_FILE_MODE, _FOLDER_MODE = 0o1777, 0o3777
"""What is kept of modes: a copy must not gain set-user-id bits for whoever unpacks it."""


def pack(folder: int, target: int, max_bytes: int) -> int:
    """Write the archive of an open folder to the file `target`, which must be empty; returns the number of entries.

    Raises `RefusedError` for what is too much for an archive, and when the system refuses.
    """
    with os.fdopen(os.dup(target), "wb") as file:
        packer = _Packer(file, max_bytes)
        try:
            return packer.run(folder)
        except OSError as error:
            raise from_os_error(error, "packing %s" % show(packer.path)) from error


def unpack(folder: int, source: int) -> int:
    """Have an open folder hold what the archive in the file `source` does, and nothing else; the number of entries.

    Raises `RefusedError` for what is no such archive, and when the folder has no room; the folder is then of no use.
    """
    with os.fdopen(os.dup(source), "rb") as file:
        file.seek(0)
        try:
            empty_folder("/proc/self/fd/%d/." % folder)
            return _Unpacker(folder).run(file)
        except OSError as error:
            raise from_os_error(error, "unpacking a snapshot") from error
        except (tarfile.TarError, ValueError, KeyError, RecursionError, OverflowError) as error:
            raise _no_archive(str(error)) from error


def _no_archive(reason: str) -> RefusedError:
    return RefusedError("bad_request", "this is no archive of a snapshot: %s" % reason)


class _Clock:
    def __init__(self) -> None:
        self._end = time.monotonic() + TIME_LIMIT_S
        self.count = 0

    def tick(self) -> None:
        """One more entry."""
        self.count += 1
        if self.count > MAX_ENTRIES:
            raise RefusedError("too_large", "more than %d files and folders" % MAX_ENTRIES)
        if time.monotonic() > self._end:
            raise RefusedError("too_large", "it took over %d s" % TIME_LIMIT_S)


# --- Packing --------------------------------------------------------------------------------------


class _Packer:
    def __init__(self, file: BinaryIO, max_bytes: int) -> None:
        self._file = file
        self._max_bytes = max_bytes
        self._archive = tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT)
        self._clock = _Clock()
        self.path = _ROOT
        """What is being packed."""
        self._shares = True
        """Whether the archive may share blocks with the files, as far as is known."""
        self._linked: Dict[Tuple[int, int], str] = {}
        """Files with several names, by what identifies them, and the first name packed."""

    def run(self, folder: int) -> int:
        self._add(_member(_ROOT, os.fstat(folder), _attributes(folder)))
        for parent, name, path, info in _entries(folder):
            self._pack(parent, name, path, info)
        self._archive.close()
        return self._clock.count

    def _pack(self, parent: int, name: bytes, path: str, info: os.stat_result) -> None:
        self.path = path
        self._clock.tick()
        if not stat.S_ISDIR(info.st_mode) and info.st_nlink > 1:
            first = self._linked.setdefault((info.st_dev, info.st_ino), path)
            if first != path:
                member = tarfile.TarInfo(path)
                member.type, member.linkname = tarfile.LNKTYPE, first
                self._add(member)
                return
        if stat.S_ISREG(info.st_mode):
            self._pack_file(parent, name, path)
        elif stat.S_ISDIR(info.st_mode):
            descriptor = _open_even_if_closed(name, parent, _FOLDER)
            try:
                self._add(_member(path, info, _attributes(descriptor)))
            finally:
                os.close(descriptor)
        elif stat.S_ISLNK(info.st_mode):
            member = _member(path, info, {})
            member.linkname = os.fsdecode(os.readlink(name, dir_fd=parent))
            self._add(member)
        elif stat.S_ISFIFO(info.st_mode):
            self._add(_member(path, info, {}))

    def _pack_file(self, parent: int, name: bytes, path: str) -> None:
        descriptor = _open_even_if_closed(name, parent, os.O_RDONLY | _FILE)
        with os.fdopen(descriptor, "rb", buffering=0) as content:
            info = os.fstat(descriptor)
            member = _member(path, info, _attributes(descriptor))
            if not (
                self._shares and member.size >= _WORTH_SHARING and self._share(member, content)
            ):
                self._add(member, content)

    def _share(self, member: tarfile.TarInfo, content: Any) -> bool:
        """Have the archive and the file share their blocks; False where they cannot."""
        header = _aligned_header(member, self._file.tell())
        if not header:
            return False
        self._check_room(member)
        start = self._file.tell()
        self._file.write(header)
        self._file.flush()
        begin = start + len(header)
        if not reflinks.share(self._file.fileno(), begin, content.fileno(), 0, 0):
            self._shares = False  # another file system: no other file will
            self._file.seek(start)
            self._file.truncate()
            return False
        # As much as the header says, whatever the file has become since.
        end = begin + member.size + -member.size % tarfile.BLOCKSIZE
        os.ftruncate(self._file.fileno(), begin + member.size)
        os.ftruncate(self._file.fileno(), end)
        self._file.seek(end)
        self._archive.offset += end - start  # what it believes to have written
        return True

    def _add(self, member: tarfile.TarInfo, content: Any = None) -> None:
        self._check_room(member)
        self._archive.addfile(member, content)
        self._archive.members = []  # type: ignore[attr-defined] # it would keep all of them

    def _check_room(self, member: tarfile.TarInfo) -> None:
        if self._file.tell() + member.size > self._max_bytes:
            raise RefusedError(
                "too_large", "the workspace is over %d bytes as an archive" % self._max_bytes
            )


def _entries(top: int) -> Iterator[Tuple[int, bytes, str, os.stat_result]]:
    """Everything below a folder as (open parent, name, path, lstat), folders before what is in them."""
    pending: List[Tuple[_OpenFolder, str, List[bytes]]] = [
        (_OpenFolder(os.dup(top)), "", _names(top))
    ]
    try:
        while pending:
            opened, prefix, names = pending[-1]
            if not names:
                pending.pop()[0].close()
                continue
            folder = opened.descriptor
            name = names.pop()
            path = prefix + os.fsdecode(name)
            info = os.stat(name, dir_fd=folder, follow_symlinks=False)
            yield folder, name, path, info
            if stat.S_ISDIR(info.st_mode):
                if len(pending) > MAX_DEPTH:
                    raise RefusedError("too_large", "folders deeper than %d" % MAX_DEPTH)
                below = _OpenFolder(_open_even_if_closed(name, folder, _FOLDER))
                pending.append((below, path + "/", []))
                below.let_pass()
                pending[-1][2].extend(_names(below.descriptor))
    finally:
        for opened, _, _ in reversed(pending):
            opened.close()


class _OpenFolder:
    """A folder that is open, and can be passed until it is closed even if its owner has closed it to itself."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self._mode = -1
        """What it is to have again; -1: what it has."""

    def let_pass(self) -> None:
        """Only its owner can; somebody else needs no permission, or has none."""
        mode = stat.S_IMODE(os.fstat(self.descriptor).st_mode)
        if mode & stat.S_IXUSR:
            return
        try:
            os.fchmod(self.descriptor, mode | stat.S_IXUSR)
        except OSError:
            return
        self._mode = mode

    def close(self) -> None:
        """Give it back as it was."""
        try:
            if self._mode >= 0:
                os.fchmod(self.descriptor, self._mode)
        finally:
            os.close(self.descriptor)


def _names(folder: int) -> List[bytes]:
    """Names in a folder, last first."""
    names = []
    os.lseek(folder, 0, os.SEEK_SET)  # btrfs shows an open folder as it was when it was opened
    with os.scandir(folder) as entries:
        for entry in entries:
            names.append(os.fsencode(entry.name))
            if len(names) > MAX_ENTRIES:
                raise RefusedError("too_large", "more than %d files in a folder" % MAX_ENTRIES)
    names.sort(reverse=True)
    return names


def _open_even_if_closed(name: bytes, parent: int, flags: int) -> int:
    """Open what its owner may have closed to itself by its mode, which stays as it was."""
    try:
        return os.open(name, flags, dir_fd=parent)
    except PermissionError:
        handle = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
    try:
        # By way of the handle: a name might have become a link meanwhile.
        path, mode = "/proc/self/fd/%d" % handle, stat.S_IMODE(os.fstat(handle).st_mode)
        os.chmod(path, mode | stat.S_IRWXU)
        try:
            return os.open(path, flags & ~os.O_NOFOLLOW)
        finally:
            os.chmod(path, mode)
    finally:
        os.close(handle)


def _member(path: str, info: os.stat_result, attributes: Dict[str, str]) -> tarfile.TarInfo:
    member = tarfile.TarInfo(path)
    member.mode = stat.S_IMODE(info.st_mode)
    member.pax_headers = dict(attributes, mtime="%d.%09d" % divmod(info.st_mtime_ns, 10**9))
    if stat.S_ISREG(info.st_mode):
        member.size = info.st_size
    elif stat.S_ISDIR(info.st_mode):
        member.type = tarfile.DIRTYPE
    elif stat.S_ISLNK(info.st_mode):
        member.type = tarfile.SYMTYPE
    else:
        member.type = tarfile.FIFOTYPE
    return member


def _aligned_header(member: tarfile.TarInfo, position: int) -> bytes:
    """A header after which the content begins at a block, with a comment that fills it up; empty: none was found."""
    filled = copy(member)
    for size in range(0, reflinks.BLOCK + tarfile.BLOCKSIZE, tarfile.BLOCKSIZE):
        if size:
            filled.pax_headers = dict(member.pax_headers, comment="-" * size)
        header = filled.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")
        if (position + len(header)) % reflinks.BLOCK == 0:
            return header
    return b""


def _attributes(descriptor: int) -> Dict[str, str]:
    try:
        names = os.listxattr(descriptor)
    except OSError:
        return {}  # this file system has none
    # The archive's format ends a name at "=".
    ours = [name for name in names if name.startswith("user.") and "=" not in name]
    return {_XATTR + name: os.fsdecode(os.getxattr(descriptor, name)) for name in ours}


# --- Unpacking ------------------------------------------------------------------------------------


class _Unpacker:
    def __init__(self, folder: int) -> None:
        self._top = folder
        self._clock = _Clock()
        self._source = -1
        self._shares = True
        """Whether files may share blocks with the archive, as far as is known."""
        self._parent: Tuple[Tuple[bytes, ...], int] = ((), os.dup(folder))
        """The folder that was last filled, and a descriptor of it: most entries lie next to the one before."""
        self._folders: List[Tuple[Tuple[bytes, ...], tarfile.TarInfo]] = []

    def run(self, file: BinaryIO) -> int:
        self._source = file.fileno()
        try:
            with tarfile.open(fileobj=file, mode="r:") as archive:
                member = archive.next()
                while member is not None:
                    self._clock.tick()
                    self._make(archive, member)
                    archive.members = []  # type: ignore[attr-defined] # it would keep all of them
                    member = archive.next()
            self._finish_folders()
        finally:
            os.close(self._parent[1])
        return self._clock.count

    def _make(self, archive: tarfile.TarFile, member: tarfile.TarInfo) -> None:
        if member.name == _ROOT and member.isdir():
            self._folders.append(((), member))
            return
        parts = _parts(member.name)
        parent, name = self._open(parts[:-1]), parts[-1]
        if member.isreg() and member.sparse is None:
            self._make_file(archive, member, parent, name)
        elif member.isdir():
            os.mkdir(name, 0o700, dir_fd=parent)
            self._folders.append((parts, member))
        elif member.issym():
            os.symlink(os.fsencode(member.linkname), name, dir_fd=parent)
            os.utime(name, ns=_times(member), dir_fd=parent, follow_symlinks=False)
        elif member.islnk():
            self._make_link(member, parent, name)
        elif member.isfifo():
            os.mkfifo(name, 0o600, dir_fd=parent)
            os.chmod(name, member.mode & _FILE_MODE, dir_fd=parent)
            os.utime(name, ns=_times(member), dir_fd=parent)
        else:
            raise _no_archive("an entry of type %r" % member.type)

    def _make_file(
        self, archive: tarfile.TarFile, member: tarfile.TarInfo, parent: int, name: bytes
    ) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | _FILE
        descriptor = os.open(name, flags, 0o600, dir_fd=parent)
        try:
            if not self._share(archive, member, descriptor):
                content = archive.extractfile(member)
                assert content is not None
                _fill(descriptor, content, member.size)
            _finish(descriptor, member, member.mode & _FILE_MODE)
        finally:
            os.close(descriptor)

    def _share(self, archive: tarfile.TarFile, member: tarfile.TarInfo, target: int) -> bool:
        """Have the new file and the archive share their blocks; False where they cannot."""
        if not self._shares or member.size < _WORTH_SHARING or member.offset_data % reflinks.BLOCK:
            return False
        source = self._source
        whole = member.size + -member.size % reflinks.BLOCK
        end = os.fstat(source).st_size
        if member.offset_data + member.size > end:
            raise _no_archive("it ends in the middle of a file")
        length = whole if member.offset_data + whole <= end else 0
        self._shares = reflinks.share(target, 0, source, member.offset_data, length)
        if self._shares:
            os.ftruncate(target, member.size)
        return self._shares

    def _make_link(self, member: tarfile.TarInfo, parent: int, name: bytes) -> None:
        first = _parts(member.linkname)
        folder = _open_below(self._top, first[:-1])
        try:
            os.link(first[-1], name, src_dir_fd=folder, dst_dir_fd=parent, follow_symlinks=False)
        finally:
            os.close(folder)

    def _open(self, parts: Tuple[bytes, ...]) -> int:
        known, descriptor = self._parent
        if parts != known:
            fresh = _open_below(self._top, parts)
            os.close(descriptor)
            self._parent = (parts, fresh)
        return self._parent[1]

    def _finish_folders(self) -> None:
        """Last ones first: a folder that is closed to its owner closes what is below it too."""
        for parts, member in reversed(self._folders):
            folder = _open_below(self._top, parts)
            try:
                _finish(folder, member, member.mode & _FOLDER_MODE)
            finally:
                os.close(folder)


def _parts(path: str) -> Tuple[bytes, ...]:
    parts = tuple(os.fsencode(path).split(b"/"))
    if not path or "\0" in path or any(part in (b"", b".", b"..") for part in parts):
        raise _no_archive("an entry named %a" % path[:200])
    if len(parts) > MAX_DEPTH + 1:
        raise _no_archive("folders deeper than %d" % MAX_DEPTH)
    return parts


def _open_below(top: int, parts: Tuple[bytes, ...]) -> int:
    """A folder below `top`, reached without following any link."""
    descriptor = os.dup(top)
    for part in parts:
        try:
            below = os.open(part, _FOLDER, dir_fd=descriptor)
        finally:
            os.close(descriptor)
        descriptor = below
    return descriptor


def _fill(descriptor: int, content: Any, size: int) -> None:
    """Copy, leaving holes where there are only zeros."""
    done = 0
    while done < size:
        data = content.read(min(_CHUNK, size - done))
        if not data:
            raise _no_archive("it ends in the middle of a file")
        if data == _ZEROS[: len(data)]:
            os.lseek(descriptor, len(data), os.SEEK_CUR)
        else:
            _write(descriptor, data)
        done += len(data)
    os.ftruncate(descriptor, size)


def _write(descriptor: int, data: Union[bytes, memoryview]) -> None:
    while data:
        data = memoryview(data)[os.write(descriptor, data) :]


def _finish(descriptor: int, member: tarfile.TarInfo, mode: int) -> None:
    for key, value in member.pax_headers.items():
        if key.startswith(_XATTR + "user."):
            try:
                os.setxattr(descriptor, key[len(_XATTR) :], os.fsencode(value))
            except OSError:
                continue  # this file system takes none, or not as many
    os.fchmod(descriptor, mode)
    os.utime(descriptor, ns=_times(member))


def _times(member: tarfile.TarInfo) -> Tuple[int, int]:
    seconds, _, fraction = member.pax_headers.get("mtime", str(int(member.mtime))).partition(".")
    modified = int(seconds) * 10**9 + int((fraction + "000000000")[:9])
    return modified, modified
