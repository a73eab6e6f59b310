"""The files that a sample left, for the server of a report: listed, and handed out as what can do nothing.

Agents and tests wrote them. A browser is given text as plain text and everything else to be saved, and told to run
nothing of it.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from starlette.responses import FileResponse

from agentenv.errors import SweepError

if TYPE_CHECKING:
    from agentenv.evaluation.reader import SweepReader

MAX_LISTED = 2_000
_LOOKED_AT = 8_192
_INERT = {
    "content-security-policy": "default-src 'none'; frame-ancestors 'none'; sandbox",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-store",
}


def sample_folder(reader: SweepReader, sample: int) -> Path:
    """Where a sample's files are. Raises `SweepError` where none were kept."""
    name = reader.sample(sample).row.output_dir
    if name is None:
        raise SweepError(f"sample {sample} kept no files")
    return reader.path / name


def listed(folder: Path) -> dict[str, Any]:
    """The files below a folder by their paths, folder by folder, each with its size; `more` where not all are named."""
    found: list[list[Any]] = []
    for root, folders, names in os.walk(folder):
        folders.sort()
        for name in sorted(names):
            path = Path(root, name)
            if path.is_symlink():
                continue
            if len(found) == MAX_LISTED:
                return {"files": found, "more": True}
            found.append([path.relative_to(folder).as_posix(), path.stat().st_size])
    return {"files": found, "more": False}


def file_answer(folder: Path, name: str) -> FileResponse:
    """One of them. Raises `SweepError` for what is none."""
    root = folder.resolve()
    path = (root / name).resolve()
    if root not in path.parents or not path.is_file():
        raise SweepError(f"there is no file {name!r}")
    with path.open("rb") as content:
        is_text = b"\0" not in content.read(_LOOKED_AT)
    return FileResponse(
        path,
        media_type="text/plain; charset=utf-8" if is_text else "application/octet-stream",
        filename=path.name,
        content_disposition_type="inline" if is_text else "attachment",
        headers=_INERT,
    )
