"""What the page of a sweep is given, as plain JSON: the overview, the index of tasks, and the samples of a task."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml

from agentenv.evaluation.comparison import holm_adjusted
from agentenv.evaluation.schema import NO_SEED
from agentenv.evaluation.summary import by_task, compare, summarise
from agentenv.evaluation.terminal import arm_labels
from agentenv.run.page import clip
from agentenv.run.pictures import Pictures
from agentenv.run.replay import Replays

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from agentenv.evaluation.reader import StoredSample, SweepReader, TaskInfo
    from agentenv.evaluation.summary import ArmSummary

MAX_TEXT_CHARS = 200_000
_MAX_COMPARED = 8
_SHORT_PREVIEW, _MANY_TASKS = 100, 20_000
_WHOLE = "sweep.db"


@dataclass(slots=True)
class Room:
    """What a page, or one answer of a server, may hold of images and terminals."""

    pictures: Pictures
    replays: Replays

    @classmethod
    def of(cls, reader: SweepReader, max_bytes: int, *, seconds: float = 60.0) -> Room:
        """A quarter of the bytes for each."""
        chars = max_bytes // 4
        return cls(
            Pictures(max_chars=chars, whole=_WHOLE),
            Replays(reader.path, max_chars=chars, max_seconds=seconds),
        )


def overview(reader: SweepReader, notes: Sequence[str], *, served: bool) -> dict[str, Any]:
    """Everything but tasks and samples."""
    summaries = summarise(reader)
    labels = arm_labels([summary.arm for summary in summaries])
    return {
        "title": clip(str(reader.spec["name"]), 200),
        "folder": str(reader.path.resolve()),
        "notes": list(notes),
        "served": served,
        "success_at": reader.success_at,
        "config": yaml.safe_dump(reader.spec, sort_keys=False, allow_unicode=True),
        "arms": [
            {"label": label, **asdict(summary), "lost": summary.lost}
            for label, summary in zip(labels, summaries, strict=True)
        ],
        "pairs": _pairs(reader, summaries),
    }


def _pairs(reader: SweepReader, summaries: Sequence[ArmSummary]) -> list[dict[str, Any]]:
    """Every two arms of one task set, compared; none where there are too many to be read."""
    numbered = [(place, summary) for place, summary in enumerate(summaries) if summary.scored]
    if len(numbered) > _MAX_COMPARED:
        return []
    found = [
        {"arms": [a, b], **asdict(compare(reader, _only(one), reader, _only(other)))}
        for (a, one), (b, other) in combinations(numbered, 2)
        if one.arm.task_set == other.arm.task_set and _overlap(reader, one, other)
    ]
    adjusted = holm_adjusted([pair["p_value"] for pair in found])
    return [{**pair, "adjusted": p} for pair, p in zip(found, adjusted, strict=True)]


def _only(summary: ArmSummary) -> dict[int, Any]:
    return {summary.number: summary.arm}


def _overlap(reader: SweepReader, one: ArmSummary, other: ArmSummary) -> bool:
    numbers = reader.columns().numbers
    tasks = [
        set(numbers["task"][(numbers["arm"] == arm.number) & ~np.isnan(numbers["reward"])])
        for arm in (one, other)
    ]
    return bool(tasks[0] & tasks[1])


def task_index(reader: SweepReader, tasks: Sequence[TaskInfo]) -> dict[str, Any]:
    """One column a fact, one entry a task. `means`, `tried` and `lost` have a list for each arm; null: no sample."""
    columns = reader.columns()
    chars = _SHORT_PREVIEW if len(tasks) > _MANY_TASKS else 240
    sets = sorted({info.task_set for info in tasks})
    cells = [_cells(columns.of_arm(arm).numbers, tasks, reader) for arm in reader.arms()]
    return {
        "sets": sets,
        "task": [info.task for info in tasks],
        "name": [clip(info.name, 200) for info in tasks],
        "set": [sets.index(info.task_set) for info in tasks],
        "preview": [info.preview[:chars] for info in tasks],
        "means": [cell[0] for cell in cells],
        "tried": [cell[1] for cell in cells],
        "lost": [cell[2] for cell in cells],
    }


def _cells(
    numbers: dict[str, Any], tasks: Sequence[TaskInfo], reader: SweepReader
) -> tuple[list[float | None], list[int], list[int]]:
    """Of one arm: each task's mean reward, samples with a reward, samples without."""
    reward = numbers["reward"]
    scored = ~np.isnan(reward)
    places = np.unique(numbers["task"][scored])
    tried, _, totals = by_task(numbers["task"][scored], reward[scored], reader)
    means = dict(
        zip(places.tolist(), np.round(totals / np.maximum(tried, 1), 4).tolist(), strict=True)
    )
    counts = dict(zip(places.tolist(), tried.tolist(), strict=True))
    lost_tasks, times = np.unique(numbers["task"][~scored], return_counts=True)
    lost = dict(zip(lost_tasks.tolist(), times.tolist(), strict=True))
    order = [info.task for info in tasks]
    return (
        [means.get(task) for task in order],
        [int(counts.get(task, 0)) for task in order],
        [int(lost.get(task, 0)) for task in order],
    )


def arm_places(reader: SweepReader) -> dict[int, int]:
    """The place of each arm in the overview, by its number."""
    return {number: place for place, number in enumerate(reader.arms())}


def samples_of(
    reader: SweepReader, task: int, places: dict[int, int], room: Room | None
) -> list[dict[str, Any]]:
    """The samples of a task, with their trajectories where there is `room`. `places` is `arm_places`."""
    return [_sample(reader, stored, places, room) for stored in reader.samples(tasks=[task])]


def _sample(
    reader: SweepReader, stored: StoredSample, places: dict[int, int], room: Room | None
) -> dict[str, Any]:
    row = stored.row
    shown: dict[str, Any] = {
        "sample": stored.sample,
        "arm": places[row.arm],
        "seed": None if row.seed == NO_SEED else row.seed,
        "attempt": row.attempt,
        "outcome": row.outcome,
        "stop_reason": row.stop_reason,
        "score": row.reward,
        "first_score": row.first_reward,
        "rewards": row.rewards,
        "cause": clip(row.cause, 2_000),
        "tokens": [row.input_tokens, row.output_tokens],
        "cost": row.cost_usd,
        "seconds": row.duration_s,
        "tries": row.tries,
        "output_dir": row.output_dir,
        "trajectory": None,
    }
    if room is not None:
        shown["trajectory"] = _trajectory(reader, stored.sample, room)
    return shown


def _trajectory(reader: SweepReader, sample: int, room: Room) -> dict[str, Any]:
    whole = reader.trajectory(sample)
    plain = {name: value for name, value in whole.items() if name not in ("sequences", "casts")}
    shown: dict[str, Any] = clip(plain, MAX_TEXT_CHARS, _WHOLE)
    room.pictures.put_into(shown, whole)
    shown["terminals"] = room.replays.of_casts(reader.casts(sample))
    return shown


def sections(
    tasks: Sequence[TaskInfo], sizes: dict[int, int], at_least: int
) -> Iterator[list[int]]:
    """Places of tasks in a row that together hold `at_least` bytes: a page unpacks a section at once."""
    part: list[int] = []
    held = 0
    for place, info in enumerate(tasks):
        part.append(place)
        held += sizes.get(info.task, 0)
        if held >= at_least:
            yield part
            part, held = [], 0
    if part:
        yield part
