"""Trajectories into files: whole or not there, with their images beside them."""

from __future__ import annotations

import base64
import binascii
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import orjson

from agentenv.atif.exporting import export, with_version
from agentenv.atif.versions import WRITTEN
from agentenv.errors import RunDirectoryError
from agentenv.run.directory import replace_file

if TYPE_CHECKING:
    from collections.abc import Mapping

    from agentenv.atif.models import Trajectory
    from agentenv_tools.schema import ImagePart


def encode_trajectory(trajectory: Trajectory, version: str = WRITTEN) -> bytes:
    """A trajectory as JSON in UTF-8, one of `EXPORTS`. Raises `ConfigError` for another version."""
    return orjson.dumps(export(trajectory, version), option=orjson.OPT_INDENT_2) + b"\n"


def write_trajectory(
    trajectory: Trajectory,
    path: Path | str,
    *,
    images: Mapping[str, ImagePart] | None = None,
    version: str = WRITTEN,
) -> Path:
    """Write a trajectory to `path`, its folder made where needed, and `images` by their paths beside it, images first.

    Blocking. Returns the file. Raises `RunDirectoryError` when it cannot be written, `ConfigError` for another version
    than `EXPORTS` has, `ValueError` for an image whose path leads out of the folder.
    """
    file = Path(path)
    content = encode_trajectory(
        with_version(trajectory) if version == WRITTEN else trajectory, version
    )
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        for name, image in (images or {}).items():
            _write_image(file.parent, name, image)
        replace_file(file, content)
    except OSError as error:
        raise RunDirectoryError(f"{file} cannot be written: {error.strerror or error}") from error
    return file


def _write_image(folder: Path, name: str, image: ImagePart) -> None:
    place = PurePosixPath(name)
    if place.is_absolute() or ".." in place.parts:
        raise ValueError(f"the image {name!r} would be outside of the trajectory's folder")
    target = folder / place
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        target.write_bytes(base64.b64decode(image.data, validate=True))
    except binascii.Error as error:
        raise ValueError(f"the image {name!r} is no base64: {error}") from error
