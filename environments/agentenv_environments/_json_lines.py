"""Datasets of environments: files with one JSON object on each line."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, TypeVar

from pydantic import BaseModel, ValidationError

from agentenv import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

RowT = TypeVar("RowT", bound=BaseModel)
_SHOWN = 20


def read_json_lines(path: Path, setting: str, model: type[RowT]) -> dict[int, RowT]:
    """The rows of a file by line number. Blocks.

    Raises `ConfigError` that names the `setting` the path comes from, or every line that is no `model`.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{setting} = {path}: {error}") from error
    rows: dict[int, RowT] = {}
    problems: list[str] = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            rows[number] = model.model_validate(json.loads(line))
        except (ValueError, RecursionError, ValidationError) as error:
            problems.append(f"{path}:{number}: {' '.join(str(error).split())[:400]}")
    if problems or not rows:
        raise ConfigError("\n".join(problems[:_SHOWN]) or f"{setting} = {path}: it has no row")
    return rows
