r"""What a trajectory's terminals showed, as asciinema v2 files below `casts/` of a run directory.

One file a session, named `GROUP.TRAJECTORY.SESSION.cast`; `asciinema play` and the asciinema player take them. A file
is a function of its recording alone: its header holds width and height and no date, its times are seconds since the
session began, to the millisecond, never falling. What was not recorded is said where the file ends.

Secrets are masked by shape, as in the other files: see `masking.py`. Not covered: one that was typed or printed in
several pieces.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from agentenv.run.masking import mask_secrets
from agentenv_backends.results import Recording, TerminalEvent

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

CASTS_FOLDER = "casts"
MAX_COLUMNS, MAX_ROWS = 500, 200
"""Larger screens than anybody asked for are cut: a player reserves the memory at once."""

_UNSAFE = re.compile(r"[^A-Za-z0-9_-]")
_SIZE = re.compile(r"(\d{1,9})x(\d{1,9})")
_PLAIN_RUN = re.compile(r"[^\x00-\x1f\x7f]+")
_MAX_NAME_PART = 80


@dataclass(frozen=True, slots=True)
class CastFile:
    """A cast to be written. `path` is relative to the run directory."""

    path: str
    recording: Recording


def cast_path(group_id: str, trajectory_id: str, session: str) -> str:
    """Where a session's cast belongs, whatever the names hold. Different names give different files."""
    parts = ".".join(_safe(part) for part in (group_id, trajectory_id, session))
    return f"{CASTS_FOLDER}/{parts}.cast"


def encode_cast(recording: Recording) -> bytes:
    """A recording as a whole file."""
    width, height = clamp_size(recording.width, recording.height)
    lines: list[Any] = [{"version": 2, "width": width, "height": height}]
    latest = 0.0
    for event in recording.events:
        latest = max(latest, _milliseconds(event.at_s))
        data = _resized(event.data) if event.kind == "r" else _masked(event.data)
        if data:
            lines.append([latest, event.kind, data])
    if recording.dropped_bytes:
        notice = f"\r\n\x1b[0m[{recording.dropped_bytes} bytes of output were not recorded]\r\n"
        lines.append([latest, "o", notice])
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    return text.encode("utf-8", "replace")


def read_cast(file: Path, max_bytes: int) -> tuple[Recording, bool]:
    """A cast as far as its first `max_bytes` go, and whether there is more. Events that are none are passed over.

    Raises `OSError`, or `ValueError` when it is no cast of version 2.
    """
    with file.open("rb") as stream:
        data = stream.read(max_bytes + 1)
    return parse_cast(data, file.stem.rpartition(".")[2], max_bytes)


def parse_cast(data: bytes, session: str, max_bytes: int) -> tuple[Recording, bool]:
    """The same, of a file's bytes. Raises `ValueError`."""
    lines = data[:max_bytes].decode("utf-8", "replace").split("\n")
    whole = len(data) <= max_bytes
    header = json.loads(lines[0])
    if not isinstance(header, dict) or header.get("version") != 2:
        raise ValueError("it has no header of an asciinema cast, version 2")
    width, height = clamp_size(header.get("width"), header.get("height"))
    events = tuple(_events(lines[1:] if whole else lines[1:-1]))
    return Recording(session, width, height, events), not whole


def clamp_size(width: object, height: object) -> tuple[int, int]:
    """A terminal's size within what is sensible; 80 x 24 for what is none."""
    columns = width if isinstance(width, int) and width > 0 else 80
    rows = height if isinstance(height, int) and height > 0 else 24
    return min(columns, MAX_COLUMNS), min(rows, MAX_ROWS)


def parse_size(text: str) -> tuple[int, int] | None:
    """`COLUMNSxROWS`, within what is sensible; None for anything else."""
    found = _SIZE.fullmatch(text)
    return clamp_size(int(found[1]), int(found[2])) if found else None


def _events(lines: list[str]) -> Iterator[TerminalEvent]:
    for line in lines:
        try:
            at_s, kind, data = json.loads(line)
        except (ValueError, TypeError, RecursionError):
            continue
        if isinstance(at_s, int | float) and kind in ("o", "i", "r") and isinstance(data, str):
            yield TerminalEvent(_milliseconds(at_s), kind, data)


def _safe(part: str) -> str:
    name = _UNSAFE.sub("-", part)[:_MAX_NAME_PART]
    if name == part and name:
        return name
    return f"{name}-{hashlib.sha256(part.encode('utf-8', 'replace')).hexdigest()[:8]}"


def _milliseconds(at_s: float) -> float:
    return round(float(at_s), 3) if 0 <= at_s < 1e9 else 0.0


def _resized(data: str) -> str:
    size = parse_size(data)
    return f"{size[0]}x{size[1]}" if size else ""


def _masked(data: str) -> str:
    """Masked piece by piece, so that a mask never swallows a control sequence that follows."""
    if "=" not in data and "://" not in data:
        return data
    return _PLAIN_RUN.sub(lambda run: str(mask_secrets(run[0])), data)
