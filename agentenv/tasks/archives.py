"""Archives that came out of a sandbox, made safe to put anywhere: plain files and folders, below their root."""

from __future__ import annotations

import io
import os
import tarfile
from dataclasses import dataclass
from pathlib import PurePosixPath

MAX_FILES = 5_000
_MAX_PATH = 1_000


@dataclass(frozen=True, slots=True)
class CleanArchive:
    """An archive of nothing but files and folders."""

    content: bytes
    files: int
    left_out: tuple[str, ...]
    """What else there was, a sentence each."""


def cleaned(archive: bytes) -> CleanArchive:
    """A sandbox's tar archive without links, devices, sparse files and whatever leads out of it."""
    left_out: list[str] = []
    target = io.BytesIO()
    files = 0
    with tarfile.open(fileobj=target, mode="w", format=tarfile.GNU_FORMAT) as clean:
        try:
            with tarfile.open(fileobj=io.BytesIO(archive), mode="r:") as tar:
                for number, member in enumerate(tar):
                    if number >= MAX_FILES:
                        left_out.append(f"everything after {MAX_FILES} entries")
                        break
                    reason = _refusal(member)
                    if reason:
                        left_out.append(f"{member.name[:200]!r}: {reason}")
                        continue
                    files += member.isreg()
                    _copy(tar, member, clean)
        except (tarfile.TarError, EOFError, ValueError) as error:
            left_out.append(f"the rest of a broken archive: {error}")
    return CleanArchive(target.getvalue(), files, tuple(left_out))


def _refusal(member: tarfile.TarInfo) -> str:
    name = PurePosixPath(member.name)
    if name.is_absolute() or ".." in name.parts or "\0" in member.name:
        return "leads out of its folder"
    if len(os.fsencode(member.name)) > _MAX_PATH:
        return "its path is too long"
    if not (member.isdir() or member.isreg()) or member.sparse is not None:
        return "neither a plain file nor a folder"
    return ""


def _copy(tar: tarfile.TarFile, member: tarfile.TarInfo, clean: tarfile.TarFile) -> None:
    copy = tarfile.TarInfo(member.name)
    copy.type = member.type if member.isdir() else tarfile.REGTYPE
    copy.mode = 0o755 if member.isdir() or member.mode & 0o100 else 0o644
    if member.isdir():
        clean.addfile(copy)
        return
    source = tar.extractfile(member)
    assert source is not None
    content = source.read()
    copy.size = len(content)
    clean.addfile(copy, io.BytesIO(content))
