"""Prepared workspaces that the engine keeps for later runs, as images of one layer.

An image holds a workspace's archive and what the set-up returned as two files, byte for byte, so that the engine
interprets nothing of what a set-up made. No container is ever started from it. Its name and labels are digests: of the
key, of the image that the workspace was made in, and of the contents, which are checked whenever they are read.

Whatever is missing, broken or in the way means that there is no such workspace, and never another one.
"""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import logging
import tarfile
import tempfile
from math import inf
from typing import IO, TYPE_CHECKING, NoReturn

from agentenv_backends.docker.engine import Engine
from agentenv_backends.errors import EngineError
from agentenv_backends.host import KeptSnapshot, Leftover

if TYPE_CHECKING:
    from collections.abc import Sequence

    from agentenv_backends.config import DockerConfig
    from agentenv_backends.docker.engine import ImageEntry

_log = logging.getLogger(__name__)

REPOSITORY = "agentenv-workspace"
KEY_LABEL = "agentenv.workspace"
CONTENT_LABEL = "agentenv.workspace.sha256"
_FORMAT = 1
_ARCHIVE, _NOTE = "workspace.tar", "note"
_TRANSFER_S = 120.0
_IN_MEMORY = 8 << 20
_MB = 1 << 20


class WorkspaceImages:
    """The workspaces of one configuration and base image. Implements `SnapshotCache`.

    Workspaces of all configurations share the bounds: the least recently used go first.
    """

    def __init__(self, config: DockerConfig, image_id: str) -> None:
        self._config = config
        # The size, because what fills one workspace has no room in a smaller one.
        self._scope = json.dumps([_FORMAT, image_id, config.slots == 1, config.disk_mb])

    async def load(self, key: str) -> KeptSnapshot | None:
        """See `SnapshotCache.load`."""
        digest = self._digest(key)
        async with Engine(self._config.docker_host) as engine:
            image = await engine.find_image(_name(digest))
            labels = (image or {}).get("Config", {}).get("Labels") or {}
            if image is None or labels.get(KEY_LABEL) != digest:
                return None
            with tempfile.SpooledTemporaryFile(_IN_MEMORY) as saved:
                await engine.save_image(image["Id"], saved, _TRANSFER_S)
                kept = await asyncio.to_thread(_unpacked, saved)
            if kept is None or _content_digest(kept) != labels.get(CONTENT_LABEL):
                _log.warning("image %s is damaged, and not used", _name(digest))
                return None
            await engine.tag_image(image["Id"], REPOSITORY, digest)  # the engine notes when
            return kept

    async def store(self, key: str, kept: KeptSnapshot) -> None:
        """See `SnapshotCache.store`."""
        if len(kept.archive) + len(kept.note) > self._config.workspace_images_mb * _MB:
            return
        digest = self._digest(key)
        labels = {KEY_LABEL: digest, CONTENT_LABEL: await asyncio.to_thread(_content_digest, kept)}
        layer = await asyncio.to_thread(_packed, kept)
        async with Engine(self._config.docker_host) as engine:
            older = await engine.find_image(_name(digest))
            await engine.import_image(layer, REPOSITORY, digest, labels, _TRANSFER_S)
            if older is not None:
                await engine.remove_image(older["Id"])
            await remove_least_used(
                engine,
                KEY_LABEL,
                most=self._config.workspace_images,
                most_bytes=self._config.workspace_images_mb * _MB,
                keep=_name(digest),
            )

    def _digest(self, key: str) -> str:
        return hashlib.sha256(json.dumps([self._scope, key]).encode()).hexdigest()


async def remove_least_used(
    engine: Engine, label: str, *, most: int, most_bytes: float = inf, keep: str
) -> None:
    """Remove images with this label, so that at most so many are left. Raises `EngineError`."""
    for image in beyond(await engine.list_images(label), most, most_bytes, keep):
        await _removed(engine, image)


async def clear(docker_host: str | None, label: str, *, remove: bool) -> tuple[Leftover, ...]:
    """Every image with this label that the engine keeps, removed if asked to. Raises `EngineError`."""
    async with Engine(docker_host) as engine:
        found = await engine.list_images(label)
        gone = [remove and await _removed(engine, image) for image in found]
    return tuple(
        Leftover("image", image.name, "kept for later runs", removed)
        for image, removed in zip(found, gone, strict=True)
    )


def beyond(
    images: Sequence[ImageEntry], most: int, most_bytes: float, keep: str
) -> list[ImageEntry]:
    """What has to go so that at most so many, of so many bytes, are left; `keep` stays."""
    left, size, gone = 0, 0, []
    for image in sorted(images, key=lambda image: (image.name == keep, image.used), reverse=True):
        if image.name != keep and (left >= most or size + image.size > most_bytes):
            gone.append(image)
        else:
            left, size = left + 1, size + image.size
    return gone


async def _removed(engine: Engine, image: ImageEntry) -> bool:
    try:
        await engine.remove_image(image.image_id)
    except EngineError as error:
        _log.warning("an image kept for later runs stays: %s", error)
        return False
    return True


def _name(digest: str) -> str:
    return f"{REPOSITORY}:{digest}"


def _content_digest(kept: KeptSnapshot) -> str:
    digest = hashlib.sha256(len(kept.note).to_bytes(8, "big"))
    digest.update(kept.note)
    digest.update(kept.archive)
    return digest.hexdigest()


def _packed(kept: KeptSnapshot) -> IO[bytes]:
    layer = io.BytesIO()
    with tarfile.open(fileobj=layer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, content in ((_ARCHIVE, kept.archive), (_NOTE, kept.note)):
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(content), 0o600
            tar.addfile(member, io.BytesIO(content))
    layer.seek(0)
    return layer


def _unpacked(saved: IO[bytes]) -> KeptSnapshot | None:
    """The files of a saved image's only layer; None when there are no such files."""
    saved.seek(0)
    try:
        with tarfile.open(fileobj=saved, mode="r:") as image:
            (described,) = json.loads(_read(image, "manifest.json"))
            (layer,) = described["Layers"]
            with tarfile.open(fileobj=image.extractfile(layer) or _absent(layer)) as files:
                return KeptSnapshot(_read(files, _ARCHIVE), _read(files, _NOTE))
    except (tarfile.TarError, OSError, ValueError, KeyError, TypeError) as error:
        _log.debug("no kept workspace: %s", error)
        return None


def _read(tar: tarfile.TarFile, name: str) -> bytes:
    return (tar.extractfile(name) or _absent(name)).read()


def _absent(name: str) -> NoReturn:
    raise KeyError(f"{name} is no file")
