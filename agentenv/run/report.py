"""`report.html`: one file in which a person can read what a run's trajectories did and what will be trained on.

Everything a model wrote is inert, see `page.py`. The size is bounded: above `max_bytes` only every n-th group has its
trajectories in the page, and texts are cut; the page says so and points at `groups.jsonl`, which has everything. A
group is built in the page only when somebody opens it. Token texts come from the tokenizer, at the time of writing,
see `token_texts.py`; without one the page shows ids. Recorded terminals are rendered into screens, see `replay.py`.
"""

from __future__ import annotations

import json
import logging
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from agentenv.errors import RunDirectoryError
from agentenv.run.directory import (
    CONFIG_FILE,
    GROUPS_FILE,
    IN_FORCE_FILE,
    REPORT_FILE,
    SUMMARY_FILE,
    describe_bad_line,
    scan_groups,
)
from agentenv.run.jsonl import BadLine
from agentenv.run.masking import mask_secrets
from agentenv.run.page import clip, data_block, page_end, page_start, run_lengths
from agentenv.run.pictures import Pictures
from agentenv.run.replay import Replays

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import IO

    from agentenv.run.jsonl import Line
    from agentenv.run.token_texts import TokenTexts

logger = logging.getLogger(__name__)

MAX_BYTES = 50_000_000
MAX_TEXT_CHARS = 200_000
MAX_LISTED_GROUPS = 10_000
TERMINAL_SHARE = PICTURE_SHARE = 4
"""At most one in so many characters of the page is a terminal's; the same of an image's."""
_IGNORE_TOKEN = -100


@dataclass(slots=True)
class _Contents:
    """What went into the page so far."""

    bytes_left: int
    replays: Replays
    pictures: Pictures
    listed: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    seen: int = 0
    embedded: int = 0


def write_report(
    run_dir: Path | str, *, token_texts: TokenTexts | None = None, max_bytes: int = MAX_BYTES
) -> Path:
    """Write `report.html` into a run directory and return its path. Blocking: call it in a thread.

    `max_bytes` bounds the trajectories in the page. Damaged lines are left out and named in the page.
    Raises `RunDirectoryError` when the directory cannot be read or written.
    """
    run_dir = Path(run_dir)
    target = run_dir / REPORT_FILE
    partial = run_dir / f".{REPORT_FILE}.{os.getpid()}"
    config = read_config(run_dir)
    try:
        try:
            with partial.open("wb") as page:
                _write_page(page, run_dir, config, token_texts, max_bytes)
            partial.replace(target)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise RunDirectoryError(f"{target} cannot be written: {error}") from error
    return target


def read_config(run_dir: Path) -> dict[str, Any]:
    """The settings that were in force, secrets masked; empty where there are none. Raises `RunDirectoryError`."""
    for name in (IN_FORCE_FILE, CONFIG_FILE):
        file = run_dir / name
        try:
            config = yaml.safe_load(file.read_bytes())
        except FileNotFoundError:
            continue
        except (OSError, yaml.YAMLError) as error:
            raise RunDirectoryError(f"{file} cannot be read: {error}") from error
        return mask_secrets(config) if isinstance(config, dict) else {}
    return {}


def _write_page(
    page: IO[bytes], run_dir: Path, config: dict[str, Any], texts: TokenTexts | None, max_bytes: int
) -> None:
    title = f"{str(config.get('environment', 'run')).rpartition(':')[2]} · {run_dir.resolve().name}"
    replays = Replays(run_dir, max_chars=max_bytes // TERMINAL_SHARE)
    pictures = Pictures(max_chars=max_bytes // PICTURE_SHARE)
    contents = _Contents(bytes_left=max_bytes, replays=replays, pictures=pictures)
    page.write(page_start(title))
    _write_groups(page, run_dir / GROUPS_FILE, texts, contents, max_bytes)
    _note_left_out(contents)
    if texts is None:
        contents.notes.append(
            "Token texts are missing: the tokenizer was not found here. Ids are shown instead."
        )
    page.write(
        data_block(
            "run",
            {
                "title": title,
                "folder": str(run_dir.resolve()),
                "notes": contents.notes,
                "summary": _summary(run_dir),
                "config": yaml.safe_dump(config, sort_keys=False, allow_unicode=True)
                if config
                else "",
                "groups": contents.listed,
            },
        )
    )
    page.write(page_end())


def _write_groups(
    page: IO[bytes], file: Path, texts: TokenTexts | None, contents: _Contents, max_bytes: int
) -> None:
    size = file.stat().st_size if file.exists() else 0
    every = max(
        1, -(-size // max(max_bytes, 1))
    )  # a group takes about as much here as there, or less
    for line in scan_groups(file):
        if isinstance(line, BadLine):
            contents.notes.append(f"Left out: {describe_bad_line(file, line)}")
            continue
        number = contents.seen
        contents.seen += 1
        if len(contents.listed) >= MAX_LISTED_GROUPS:
            continue
        entry = _overview(line)
        contents.listed.append(entry)
        block = _group_block(line, number, texts, contents) if number % every == 0 else b""
        if block and len(block) <= contents.bytes_left:
            page.write(block)
            contents.bytes_left -= len(block)
            contents.embedded += 1
            entry["block"] = f"group-{number}"


def _note_left_out(contents: _Contents) -> None:
    listed, seen, embedded = len(contents.listed), contents.seen, contents.embedded
    if embedded < seen:
        contents.notes.append(
            f"This page holds the trajectories of {embedded:,} of {seen:,} groups, to stay readable. "
            f"All of them are in {GROUPS_FILE} beside it."
        )
    if listed < seen:
        contents.notes.append(f"The list ends after {listed:,} of {seen:,} groups.")


def _summary(run_dir: Path) -> dict[str, Any]:
    try:
        summary = json.loads((run_dir / SUMMARY_FILE).read_bytes())
    except (OSError, ValueError):
        return {}  # a run that was killed has none; the page then counts by itself
    return summary if isinstance(summary, dict) else {}


def _overview(line: Line) -> dict[str, Any]:
    """What the list of groups shows, small enough to be there for every group."""
    group, outcomes = line.value, dict[str, int]()
    for trajectory in group["trajectories"]:
        outcome = str(trajectory.get("outcome"))
        outcomes[outcome] = outcomes.get(outcome, 0) + 1
    preview = group.get("item_preview") or ""
    return {
        "line": line.number,
        "id": clip(str(group.get("group_id")), 100),
        "item": clip(str(group.get("item_id") or ""), 100),
        "preview": str(preview)[:240],
        "scores": _final_scores(group["trajectories"])[:64],
        "outcomes": outcomes,
        "seconds": group.get("duration_s"),
    }


def _final_scores(trajectories: Sequence[dict[str, Any]]) -> list[float]:
    scores = (trajectory.get("score") for trajectory in trajectories)
    return [score for score in scores if isinstance(score, int | float)]


def _group_block(line: Line, number: int, texts: TokenTexts | None, contents: _Contents) -> bytes:
    group = line.value
    sequences = [
        _sequence_lists(group, sequence)
        for trajectory in group["trajectories"]
        for sequence in trajectory.get("sequences", [])
    ]
    ids = sorted({token for tokens, _, _ in sequences for token in tokens})
    place = {token: index for index, token in enumerate(ids)}
    payload = {
        "ids": ids,
        "texts": clip(texts(ids), 200) if texts else None,
        "trajectories": [
            _trajectory(group, trajectory, place, contents) for trajectory in group["trajectories"]
        ],
    }
    return data_block(f"group-{number}", payload)


def _trajectory(
    group: dict[str, Any], trajectory: dict[str, Any], place: dict[int, int], contents: _Contents
) -> dict[str, Any]:
    plain = {name: value for name, value in trajectory.items() if name != "sequences"}
    shown = clip(plain, MAX_TEXT_CHARS)
    shown["sequences"] = [
        _sequence(group, sequence, place) for sequence in trajectory.get("sequences", [])
    ]
    contents.pictures.put_into(shown, trajectory)
    shown["terminals"] = contents.replays.of(trajectory.get("casts", ()))
    return dict(shown)


def _sequence(
    group: dict[str, Any], sequence: dict[str, Any], place: dict[int, int]
) -> dict[str, Any]:
    """A sequence with its tokens as places in the group's list of ids, its mask as run lengths."""
    tokens, masks, logprobs = _sequence_lists(group, sequence)
    return {
        "row": sequence.get("row"),
        "versions": sequence.get("policy_versions", []),
        "tokens": [place[token] for token in tokens],
        "trained": run_lengths(mask != _IGNORE_TOKEN for mask in masks),
        "logprobs": [
            round(value, 4) if isinstance(value, int | float) else None
            for value, mask in zip(logprobs, masks, strict=False)
            if mask != _IGNORE_TOKEN
        ],
    }


def _sequence_lists(
    group: dict[str, Any], sequence: dict[str, Any]
) -> tuple[list[int], list[int], list[float]]:
    row = sequence.get("row")
    if row is None:
        return sequence.get("tokens", []), sequence.get("masks", []), sequence.get("logprobs", [])
    return (
        _row(group, "tokens", row),
        _row(group, "masks", row),
        _row(group, "inference_logprobs", row),
    )


def _row(group: dict[str, Any], key: str, row: int) -> list[Any]:
    rows = group.get(key) or []
    return rows[row] if row < len(rows) else []
