"""The files of a task directory: found without leaving it, filtered, measured, hashed and packed."""

from __future__ import annotations

import hashlib
import io
import os
import stat
import tarfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from agentenv.tasks.errors import TaskFormatError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    Keeps = Callable[[str], bool]

MAX_TEXT_BYTES = 1 << 20
"""Of task.toml, an instruction, an ignore file."""
MAX_FILE_BYTES = 48 << 20
"""Of a file that goes into a sandbox."""
MAX_CONTEXT_FILE_BYTES = 1 << 30
"""Of a file in environment/, which an image may be built from."""
MAX_FOLDER_BYTES = 4 << 30
MAX_ENTRIES = 20_000
MAX_DEPTH = 64
PART_BYTES = 24 << 20
"""Archives of more than this are sent in parts."""


@dataclass(frozen=True, slots=True)
class InputFile:
    """One file of a task directory."""

    name: str
    """Relative to the folder it was looked for in, with forward slashes."""
    path: Path
    """Where its content really is: links are followed."""
    size: int
    executable: bool


@dataclass(slots=True)
class _Walk:
    root: Path
    folder: Path
    keeps: Keeps
    max_file_bytes: int
    files: list[InputFile] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    entries: int = 0
    size: int = 0


def files_below(
    root: Path,
    folder: Path,
    *,
    keeps: Keeps = lambda name: True,
    max_file_bytes: int = MAX_FILE_BYTES,
) -> tuple[list[InputFile], list[str]]:
    """The regular files below `folder`, in the order of their names, and what is wrong there.

    Links are followed as long as they stay inside `root`, which is a real path. `keeps` gets a name relative to
    `folder`, that of a folder with a slash behind it; what it refuses is as if it were not there.
    """
    walk = _Walk(root, folder, keeps, max_file_bytes)
    real = _contained(root, folder, walk.problems)
    if real is not None:
        _visit(walk, real, "", (real,))
    return sorted(walk.files, key=lambda file: file.name), walk.problems


def _visit(walk: _Walk, real: Path, name: str, above: tuple[Path, ...]) -> None:
    if len(above) > MAX_DEPTH:
        walk.problems.append(f"{_shown(walk, name)}: more than {MAX_DEPTH} folders deep")
        return
    try:
        entries = sorted(os.scandir(real), key=lambda entry: entry.name)
    except OSError as error:
        walk.problems.append(f"{_shown(walk, name)}: cannot be read: {error.strerror}")
        return
    for entry in entries:
        walk.entries += 1
        if walk.entries > MAX_ENTRIES:
            if walk.entries == MAX_ENTRIES + 1:
                walk.problems.append(f"{_shown(walk, '')}: more than {MAX_ENTRIES} files")
            return
        _take(walk, Path(entry.path), f"{name}{entry.name}", above)


def _take(walk: _Walk, path: Path, name: str, above: tuple[Path, ...]) -> None:
    problems: list[str] = []
    real = _contained(walk.root, path, problems, shown=_shown(walk, name))
    is_folder = real is not None and real.is_dir()
    if not walk.keeps(f"{name}/" if is_folder else name):
        return
    walk.problems += problems
    if real is None:
        return
    if is_folder:
        if real in above:
            walk.problems.append(f"{_shown(walk, name)}: a link back to a folder above it")
        else:
            _visit(walk, real, f"{name}/", (*above, real))
        return
    _take_file(walk, real, name)


def _take_file(walk: _Walk, real: Path, name: str) -> None:
    info = real.stat()
    if not stat.S_ISREG(info.st_mode):
        walk.problems.append(f"{_shown(walk, name)}: neither a file nor a folder")
    elif info.st_size > walk.max_file_bytes:
        walk.problems.append(
            f"{_shown(walk, name)}: {info.st_size} bytes; at most {walk.max_file_bytes} are taken"
        )
    else:
        walk.size += info.st_size
        if walk.size > MAX_FOLDER_BYTES >= walk.size - info.st_size:
            walk.problems.append(f"{_shown(walk, '')}: more than {MAX_FOLDER_BYTES} bytes in all")
        walk.files.append(
            InputFile(name, real, info.st_size, executable=bool(info.st_mode & 0o100))
        )


def _shown(walk: _Walk, name: str) -> str:
    return str((walk.folder / name).relative_to(walk.root)) if walk.folder != walk.root else name


def _contained(root: Path, path: Path, problems: list[str], shown: str = "") -> Path | None:
    """Where `path` really is, if that is inside `root`."""
    shown = shown or str(path.relative_to(root))
    try:
        real = Path(os.path.realpath(path, strict=True))
    except (OSError, RuntimeError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        problems.append(f"{shown}: cannot be followed: {reason}")
        return None
    if real != root and root not in real.parents:
        problems.append(f"{shown}: leads out of the task directory")
        return None
    return real


def contained_file(root: Path, name: str) -> Path | None:
    """Where the file `name` below `root` really is; None when there is none.

    Raises `TaskFormatError` when it leads out of `root`, is no file, or is a link in circles.
    """
    path = root / name
    if not path.is_symlink() and not path.exists():
        return None
    problems: list[str] = []
    real = _contained(root, path, problems, shown=name)
    if real is not None and not real.is_file():
        problems.append(f"{name}: no file")
    if problems:
        raise TaskFormatError(problems)
    return real


def read_text(root: Path, name: str, *, max_bytes: int = MAX_TEXT_BYTES) -> str | None:
    """The text of the file `name` below `root`; None when there is none. Raises `TaskFormatError`."""
    path = contained_file(root, name)
    if path is None:
        return None
    try:
        with path.open("rb") as file:
            content = file.read(max_bytes + 1)
    except OSError as error:
        raise TaskFormatError([f"{name}: cannot be read: {error.strerror}"]) from error
    if len(content) > max_bytes:
        raise TaskFormatError([f"{name}: more than {max_bytes} bytes"])
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise TaskFormatError([f"{name}: no UTF-8 text, at byte {error.start}"]) from error


def packed(files: Iterable[InputFile]) -> Iterator[bytes]:
    """Tar archives that hold the files between them, each of a size that one message carries.

    Equal files give equal archives. Raises `OSError`.
    """
    part: list[InputFile] = []
    size = 0
    for file in files:
        if part and size + file.size > PART_BYTES:
            yield _archive(part)
            part, size = [], 0
        part.append(file)
        size += file.size
    if part:
        yield _archive(part)


def _archive(files: list[InputFile]) -> bytes:
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for file in files:
            content = file.path.read_bytes()
            member = tarfile.TarInfo(file.name)
            member.size, member.mode = len(content), 0o755 if file.executable else 0o644
            tar.addfile(member, io.BytesIO(content))
    return target.getvalue()


def checksum(files: Iterable[InputFile]) -> str:
    """SHA-256 over names, execute bits and contents. Raises `OSError`."""
    total = hashlib.sha256()
    for file in files:
        with file.path.open("rb") as content:
            digest = hashlib.file_digest(content, "sha256").hexdigest()
        total.update(
            f"{file.name}\0{int(file.executable)}\0{digest}\n".encode("utf-8", "surrogateescape")
        )
    return total.hexdigest()
