"""The folder of one run: the only place on the driver's machine that a run writes to."""

from __future__ import annotations

import asyncio
import io
import json
import os
import tarfile
from pathlib import Path, PurePosixPath
from typing import Any

from agentenv.tasks.templates import without_secrets


class RunFolder:
    """Writes below one folder. Texts have the run's secrets masked; what came out of a sandbox is never trusted.

    A file appears whole or not at all. Raises `OSError`.
    """

    def __init__(self, path: Path, secrets: tuple[str, ...] = ()) -> None:
        self.path = path
        self._secrets = secrets

    def below(self, name: str) -> RunFolder:
        """The folder of a step."""
        return RunFolder(self.path / name, self._secrets)

    def know_secrets(self, secrets: tuple[str, ...]) -> None:
        """Mask these from now on."""
        self._secrets = tuple(sorted({*self._secrets, *secrets}, key=len, reverse=True))

    def masked(self, value: Any) -> Any:
        """A value of JSON without secrets."""
        if isinstance(value, str):
            return without_secrets(value, self._secrets)
        if isinstance(value, dict):
            return {self.masked(key): self.masked(each) for key, each in value.items()}
        if isinstance(value, list | tuple):
            return [self.masked(each) for each in value]
        return value

    async def write_text(self, name: str, text: str) -> None:
        """Write a text file, in a thread."""
        content = self.masked(text).encode("utf-8", "backslashreplace")
        await asyncio.to_thread(self._write, name, content)

    async def write_bytes(self, name: str, content: bytes) -> None:
        """Write a file that is no text, as it is, in a thread."""
        await asyncio.to_thread(self._write, name, content)

    async def write_json(self, name: str, value: Any) -> None:
        """Write a value of JSON, in a thread."""
        text = json.dumps(self.masked(value), indent=2, ensure_ascii=False, allow_nan=False)
        await self.write_text(name, text + "\n")

    async def make(self, *names: str) -> None:
        """Make folders, in a thread."""
        for name in names:
            await asyncio.to_thread((self.path / name).mkdir, parents=True, exist_ok=True)

    async def extract(self, archive: bytes, name: str) -> list[str]:
        """Unpack a clean archive (see `archives`) below `name`, in a thread; what failed, a sentence each."""
        return await asyncio.to_thread(_extract, archive, self.path / name)

    async def extract_file(self, archive: bytes, member: str, name: str) -> list[str]:
        """Unpack the one file of a clean archive to `name`; likewise."""
        return await asyncio.to_thread(_extract_file, archive, member, self.path / name)

    def _write(self, name: str, content: bytes) -> None:
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_name(f".{path.name}.unfinished")
        unfinished.write_bytes(content)
        unfinished.replace(path)


class NoFolder(RunFolder):
    """Keeps nothing, for runs whose records go elsewhere."""

    def __init__(self) -> None:
        super().__init__(Path(os.devnull))

    def below(self, name: str) -> RunFolder:
        """Likewise."""
        return self

    async def write_text(self, name: str, text: str) -> None:
        """Nothing."""

    async def write_bytes(self, name: str, content: bytes) -> None:
        """Nothing."""

    async def make(self, *names: str) -> None:
        """Nothing."""

    async def extract(self, archive: bytes, name: str) -> list[str]:
        """Nothing."""
        return []

    async def extract_file(self, archive: bytes, member: str, name: str) -> list[str]:
        """Nothing."""
        return []


def _extract(archive: bytes, target: Path) -> list[str]:
    target.mkdir(parents=True, exist_ok=True)
    problems = []
    with tarfile.open(fileobj=io.BytesIO(archive), mode="r:") as tar:
        for member in tar:
            try:
                _extract_member(tar, member, target)
            except OSError as error:
                problems.append(f"{member.name[:200]!r} cannot be written here: {error.strerror}")
    return problems


def _extract_member(tar: tarfile.TarFile, member: tarfile.TarInfo, target: Path) -> None:
    path = target.joinpath(*PurePosixPath(member.name).parts)
    if member.isdir():
        path.mkdir(parents=True, exist_ok=True)
        return
    source = tar.extractfile(member)
    assert source is not None
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(source.read())


def _extract_file(archive: bytes, name: str, path: Path) -> list[str]:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(fileobj=io.BytesIO(archive), mode="r:") as tar:
        source = tar.extractfile(tar.getmember(f"./{name}"))
        assert source is not None
        try:
            path.write_bytes(source.read())
        except OSError as error:
            return [f"cannot be written here: {error.strerror}"]
    return []
