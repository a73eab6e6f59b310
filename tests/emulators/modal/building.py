"""Building images from the commands of a Dockerfile: FROM, ENV, WORKDIR, COPY of files and folders, and RUN.

An image of a registry has no files of its own here: like a sandbox it sees the programs of this machine. What a build
adds lies in a folder that sandboxes of the image begin with.
"""

import shlex
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tests.emulators.modal.process import OUTPUT, Command
from tests.emulators.modal.sandbox import PATH, confined, copy_tree, lay_out


class BuildError(Exception):
    """The image cannot be built."""


@dataclass
class Image:
    description: str
    contents: Path | None = None
    """Of a snapshot, or of a build that added something."""
    workdir: str = ""
    environment: dict[str, str] = field(default_factory=dict)


@dataclass
class Build:
    """One image under way. `files` is what may be copied, by path; `folder` is where its files are to lie."""

    commands: list[str]
    bases: Mapping[str, Image]
    files: Mapping[str, bytes]
    folder: Path

    def __post_init__(self) -> None:
        self._image = Image("\n".join(self.commands))

    async def run(self) -> Image:
        """The image. Raises `BuildError`."""
        lines = "\n".join(self.commands).replace("\\\n", " ").splitlines()
        for line in lines:
            word, _, rest = line.strip().partition(" ")
            if word and not word.startswith("#"):
                await self._obey(word.upper(), rest.strip())
        return self._image

    async def _obey(self, word: str, rest: str) -> None:
        if word == "FROM":
            await self._begin(self.bases.get(rest))
        elif word == "ENV":
            self._image.environment |= dict(part.split("=", 1) for part in shlex.split(rest))
        elif word == "WORKDIR":
            self._image.workdir = rest
            (await self._place(rest)).mkdir(parents=True, exist_ok=True)
        elif word == "COPY":
            await self._copy(*shlex.split(rest))
        elif word == "RUN":
            await self._run(rest)

    async def _begin(self, base: Image | None) -> None:
        if base is None:
            return
        self._image.workdir, self._image.environment = base.workdir, dict(base.environment)
        if base.contents is not None:
            await copy_tree(base.contents, self.folder)
            self._image.contents = self.folder

    async def _place(self, path: str) -> Path:
        if self._image.contents is None:
            lay_out(self.folder)
            self._image.contents = self.folder
        return self.folder / (Path("/") / self._image.workdir / path).relative_to("/")

    async def _copy(self, source: str, target: str) -> None:
        source = source.removeprefix("./").rstrip("/")
        place = await self._place(target)
        within = "" if source in ("", ".") else f"{source}/"
        found = {name: data for name, data in self.files.items() if name.startswith(within)}
        if source in self.files:
            to_folder = target.endswith("/") or place.is_dir()
            found = {source: self.files[source]}
            place, within = (place / Path(source).name if to_folder else place), source
        if not found:
            raise BuildError(f'failed to compute cache key: "/{source}": not found')
        for name, data in found.items():
            path = place / name.removeprefix(within)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)

    async def _run(self, words: str) -> None:
        await self._place(".")
        argv = [*confined(self.folder, network=False), "--chdir", self._image.workdir or "/"]
        environment = {"PATH": PATH, "HOME": "/root", **self._image.environment}
        command = await Command.start([*argv, "--", "/bin/sh", "-c", words], environment, 60.0)
        await command.exited.wait()
        if command.code:
            said = (await command.outputs[OUTPUT].read(0)).decode()
            raise BuildError(f"RUN {words}: exit code {command.code}: {said}")


def forget(folder: Path) -> None:
    """Remove what a build that failed has left."""
    shutil.rmtree(folder, ignore_errors=True)
