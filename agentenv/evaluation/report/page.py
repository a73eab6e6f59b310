"""`report.html` of a sweep: one file that opens from disk, asks nobody for anything, and shows all as text.

The index of tasks and the samples are compressed, in sections of some tasks each; the script unpacks a section when
somebody opens a task of it. The size is bounded: beyond `max_bytes` every n-th task alone has its trajectories in the
file, the others their scores; the page says so, and how to have all of them served.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agentenv.errors import SweepError
from agentenv.evaluation.reader import SweepReader
from agentenv.evaluation.report.data import Room, overview, samples_of, sections, task_index
from agentenv.run.jsonl import encode_line
from agentenv.run.page import PageSource, data_block, packed_block, page_end, page_start

if TYPE_CHECKING:
    from typing import IO

    from agentenv.evaluation.reader import TaskInfo

REPORT_FILE = "report.html"
MAX_BYTES = 50_000_000
_SECTION_BYTES = 60_000
"""Of trajectories as they are stored, compressed."""
_GROWTH = 1.7
"""A stored byte becomes about so many in the page, in base64."""

SWEEP_PAGE = PageSource(
    scripts=(
        "agentenv.run/elements.js",
        "agentenv.run/trajectory.js",
        "agentenv.run/terminal.js",
        "agentenv.evaluation.report/packed.js",
        "agentenv.evaluation.report/plots.js",
        "agentenv.evaluation.report/table.js",
        "agentenv.evaluation.report/sweep.js",
    ),
    styles=("agentenv.run/report.css", "agentenv.evaluation.report/sweep.css"),
    body="agentenv.evaluation.report/sweep.html",
)


def write_sweep_report(
    directory: Path | str, *, max_bytes: int = MAX_BYTES, target: Path | None = None
) -> Path:
    """Write `report.html` into a sweep's directory, or `target`, and return its path. Blocking: call it in a thread.

    Raises `SweepError` when the sweep cannot be read or the file not be written.
    """
    directory = Path(directory)
    target = target or directory / REPORT_FILE
    partial = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        try:
            with SweepReader(directory) as reader, partial.open("wb") as page:
                _write(page, reader, max_bytes)
            partial.replace(target)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise SweepError(f"{target} cannot be written: {error}") from error
    return target


def served_page(reader: SweepReader) -> bytes:
    """The page without tasks and samples, for a server that is asked for them."""
    start = page_start(str(reader.spec["name"]), SWEEP_PAGE, asks=True)
    return start + data_block("sweep", overview(reader, [], served=True)) + page_end(SWEEP_PAGE)


def _write(page: IO[bytes], reader: SweepReader, max_bytes: int) -> None:
    tasks, sizes = reader.tasks(), reader.trajectory_bytes()
    every = max(1, round(sum(sizes.values()) * _GROWTH / max(max_bytes, 1) + 0.49))
    room = Room.of(reader, max_bytes)
    page.write(page_start(str(reader.spec["name"]), SWEEP_PAGE))
    section_of = [0] * len(tasks)
    left = max_bytes
    embedded = 0
    for number, places in enumerate(sections(tasks, sizes, _SECTION_BYTES * every)):
        samples, whole = _section(reader, tasks, places, every if left > 0 else 0, room)
        block = packed_block(f"section-{number}", samples)
        page.write(block)
        left -= len(block)
        embedded += whole
        for place in places:
            section_of[place] = number
    index = task_index(reader, tasks) | {"section": section_of}
    page.write(packed_block("tasks", encode_line(index)))
    notes = []
    if embedded < len(tasks):
        notes.append(
            f"This file holds the trajectories of {embedded:,} of {len(tasks):,} tasks, to stay readable; the scores "
            "of all. Every trajectory: agentenv report --serve, with this folder."
        )
    page.write(data_block("sweep", overview(reader, notes, served=False)))
    page.write(page_end(SWEEP_PAGE))


def _section(
    reader: SweepReader, tasks: list[TaskInfo], places: list[int], every: int, room: Room
) -> tuple[bytes, int]:
    """The samples of some tasks as JSON, and of how many the trajectories are among them. `every` 0: of none."""
    found: dict[str, Any] = {}
    whole = 0
    for place in places:
        with_trajectories = every > 0 and place % every == 0
        found[str(place)] = samples_of(
            reader, tasks[place].task, room, trajectories=with_trajectories
        )
        whole += with_trajectories
    return encode_line(found), whole
