"""`report.html` of a sweep: one file that opens from disk, asks nobody for anything, and shows all as text.

The index of tasks and the samples are compressed, in sections of some tasks each; the script unpacks a section when
somebody opens a task of it. The size is bounded: beyond `max_bytes` every n-th task alone has its trajectories in the
file, the others their scores; the page says so, and how to have all of them served.
"""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agentenv.errors import SweepError
from agentenv.evaluation.reader import SweepReader
from agentenv.evaluation.report.data import (
    Room,
    arm_places,
    overview,
    samples_of,
    sections,
    task_index,
)
from agentenv.run.jsonl import encode_json
from agentenv.run.page import PageSource, data_block, packed_block, page_end, page_start

if TYPE_CHECKING:
    from typing import IO

    from agentenv.evaluation.reader import TaskInfo

REPORT_FILE = "report.html"
MAX_BYTES = 50_000_000
_SECTION_BYTES = 60_000
"""Of trajectories as they are stored, compressed."""
_TRIED_SECTIONS = 3

SWEEP_PAGE = PageSource(
    scripts=(
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
    expected = sum(sizes.values()) * _growth(reader, tasks, sizes)
    every = max(1, math.ceil(expected / max(max_bytes, 1)))
    page.write(page_start(str(reader.spec["name"]), SWEEP_PAGE))
    writer = _Sections(reader, tasks, Room.of(reader, max_bytes), every)
    section_of = [0] * len(tasks)
    left = max_bytes
    for number, places in enumerate(sections(tasks, sizes, _SECTION_BYTES * every)):
        block = packed_block(f"section-{number}", writer.section(places, full=left <= 0))
        page.write(block)
        left -= len(block)
        for place in places:
            section_of[place] = number
    index = task_index(reader, tasks) | {"section": section_of}
    page.write(packed_block("tasks", encode_json(index)))
    notes = []
    if writer.whole < len(tasks):
        notes.append(
            f"This file holds the trajectories of {writer.whole:,} of {len(tasks):,} tasks, to stay readable; the "
            "scores of all. Every trajectory: agentenv report --serve, with this folder."
        )
    page.write(data_block("sweep", overview(reader, notes, served=False)))
    page.write(page_end(SWEEP_PAGE))


def _growth(reader: SweepReader, tasks: list[TaskInfo], sizes: dict[int, int]) -> float:
    """How many bytes of the page a stored byte becomes, as a few sections that are tried tell.

    Samples of a section are compressed together, so like ones take much less than they do in the database.
    """
    every_section = list(sections(tasks, sizes, _SECTION_BYTES))
    step = max(1, len(every_section) // _TRIED_SECTIONS)
    stored = shown = 0
    for places in every_section[::step][:_TRIED_SECTIONS]:
        room = Room.of(reader, _SECTION_BYTES * 10, seconds=1.0)
        made = _Sections(reader, tasks, room, 1).section(places, full=False)
        shown += len(packed_block("", made))
        stored += sum(sizes.get(tasks[place].task, 0) for place in places)
    return shown / stored if stored else 1.0


class _Sections:
    """Makes sections; `whole` counts the tasks whose trajectories are in them."""

    def __init__(self, reader: SweepReader, tasks: list[TaskInfo], room: Room, every: int) -> None:
        """Every `every`-th task gets its trajectories."""
        self._reader = reader
        self._tasks = tasks
        self._room = room
        self._every = every
        self._arms = arm_places(reader)
        self.whole = 0

    def section(self, places: list[int], *, full: bool) -> bytes:
        """The samples of some tasks as JSON, by place; without any trajectory once the file is `full`."""
        found: dict[str, Any] = {}
        for place in places:
            kept = not full and place % self._every == 0
            room = self._room if kept else None
            found[str(place)] = samples_of(self._reader, self._tasks[place].task, self._arms, room)
            self.whole += kept
        return encode_json(found)
