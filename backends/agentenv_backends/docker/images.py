"""The image of a run's containers: looked up, pulled, or built from a Dockerfile."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import tarfile
import tempfile
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from agentenv_backends.docker._ignore import ignored_by
from agentenv_backends.errors import BackendUnavailableError, EngineError

if TYPE_CHECKING:
    from agentenv_backends.config import DockerConfig
    from agentenv_backends.docker.engine import Engine

BUILT_NAME = "agentenv-built"
_DOCKERFILE = ".agentenv.Dockerfile"
_IN_MEMORY = 8 << 20


async def provide_image(engine: Engine, config: DockerConfig) -> dict[str, Any]:
    """The engine's description of the image to use, which it has from now on.

    Raises `BackendUnavailableError` with the engine's own words when it cannot be had.
    """
    try:
        if config.dockerfile is not None:
            name = await _build(engine, config, config.dockerfile)
        else:
            name = config.image
            await _pull(engine, config)
        image = await engine.find_image(name)
    except EngineError as error:
        raise BackendUnavailableError(f"no image to run: {error}") from error
    if image is None:
        raise BackendUnavailableError(
            f"{engine.name} has no image {name!r} and pull is {config.pull!r}: "
            f"`docker pull {name}`, or set pull: missing"
        )
    return image


async def _pull(engine: Engine, config: DockerConfig) -> None:
    if config.pull == "always" or (
        config.pull == "missing" and await engine.find_image(config.image) is None
    ):
        try:
            await engine.pull(config.image, config.pull_timeout_s)
        except EngineError as error:
            raise BackendUnavailableError(
                f"no image to run: {error}. The settings are image: {config.image!r} and pull: {config.pull!r}. Is the "
                "name right, can the engine reach its registry, and does it need `docker login`? Else bring the image "
                "there yourself (`docker pull`, `docker load`, or `dockerfile`) and set pull: never"
            ) from error


async def _build(engine: Engine, config: DockerConfig, dockerfile: Path) -> str:
    """Build, unless an image of the same content is there. Returns its name, which its content decides."""
    with tempfile.SpooledTemporaryFile(_IN_MEMORY) as context:
        try:
            digest = await asyncio.to_thread(
                pack_context, dockerfile, config.build_context, context
            )
        except OSError as error:
            raise BackendUnavailableError(
                f"cannot read what {dockerfile} needs: {error}"
            ) from error
        arguments = json.dumps(config.build_args, sort_keys=True)
        name = f"{BUILT_NAME}:{hashlib.sha256((digest + arguments).encode()).hexdigest()[:24]}"
        if config.pull == "always" or await engine.find_image(name) is None:
            await engine.build(
                context,
                name,
                _DOCKERFILE,
                config.build_args,
                pull=config.pull == "always",
                timeout_s=config.pull_timeout_s,
            )
    return name


def pack_context(dockerfile: Path, folder: Path | None, archive: IO[bytes]) -> str:
    """Write the tar archive that a build is sent, and return its SHA-256.

    It holds the Dockerfile, and what is below `folder` and not listed in its `.dockerignore`. Equal contents, names and
    execute bits give equal bytes: times and owners are left out. Raises `OSError`.
    """
    with tarfile.open(fileobj=archive, mode="w", format=tarfile.PAX_FORMAT) as tar:
        _add(tar, dockerfile, _DOCKERFILE)
        if folder is not None:
            for path in _files_of(folder):
                _add(tar, folder / path, path)
    archive.seek(0)
    digest = hashlib.file_digest(archive, "sha256").hexdigest()  # type: ignore[arg-type]
    archive.seek(0)
    return digest


def _files_of(folder: Path) -> list[str]:
    """Paths below `folder`, sorted, folders before what is in them."""
    if not folder.is_dir():
        raise NotADirectoryError(f"build_context {folder} is no folder")
    rules = folder / ".dockerignore"
    ignored = ignored_by(rules.read_text(encoding="utf-8") if rules.is_file() else "")
    found = []
    for root, folders, files in os.walk(folder):
        below = Path(root).relative_to(folder)
        found += [str(below / name) for name in (*folders, *files)]
    return sorted(path for path in found if not ignored(path))


def _add(tar: tarfile.TarFile, source: Path, name: str) -> None:
    info = tar.gettarinfo(source, name)
    info.mtime = info.uid = info.gid = 0
    info.uname = info.gname = ""
    info.mode = 0o755 if info.isdir() or info.mode & 0o100 else 0o644
    if info.isreg():
        with source.open("rb") as file:
            tar.addfile(info, file)
    else:
        tar.addfile(info)
