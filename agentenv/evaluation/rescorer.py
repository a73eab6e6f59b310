"""Asking the verifiers of a sweep again, about the samples it holds."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from agentenv.errors import VerifierError
from agentenv.evaluation.reader import SweepReader
from agentenv.evaluation.rescoring import WorkspaceGoneError
from agentenv.evaluation.samples import named_rewards
from agentenv.evaluation.schema import Rescored
from agentenv.evaluation.sources import open_source
from agentenv.outcomes import Outcome
from agentenv.rollout import finish
from agentenv.run.jsonl import encode_line, json_plain
from agentenv.run.record import TrajectoryRecord

if TYPE_CHECKING:
    from collections.abc import Callable

    from agentenv.evaluation.reader import StoredSample
    from agentenv.evaluation.sources import SampleSource
    from agentenv.evaluation.spec import Arm, SweepConfig
    from agentenv.evaluation.store import SweepStore

_JUDGED = (Outcome.SCORED.value, Outcome.VERIFIER_FAILED.value)
_AT_ONCE = 200


@dataclass(slots=True)
class RescoreCounts:
    """What came of it."""

    scored: int = 0
    """Samples whose verifier gave a reward."""
    changed: int = 0
    """Of those, how many have another reward than before."""
    failed: int = 0
    """Samples whose verifier failed: they have no reward now."""
    kept: dict[str, int] = field(default_factory=dict)
    """Samples that keep what they have, by reason: their verifier needs the workspace."""


async def rescore(
    config: SweepConfig,
    store: SweepStore,
    *,
    source: Callable[[SweepConfig, Arm], SampleSource] = open_source,
) -> RescoreCounts:
    """Judge every sample again whose outcome depends on a verifier. Nothing is run, and no policy is asked.

    Raises what opening a source raises.
    """
    counts = RescoreCounts()
    with SweepReader(store.path) as reader:
        names = {info.task: info.name for info in reader.tasks()}
        for number, arm in reader.arms().items():
            samples = [
                stored
                for stored in reader.samples()
                if stored.row.arm == number and stored.row.outcome in _JUDGED
            ]
            opened = source(config, arm)
            try:
                await opened.open(only_judge=True)
                judge = _Judge(reader, opened, names, counts, asyncio.Semaphore(config.concurrency))
                for start in range(0, len(samples), _AT_ONCE):
                    part = samples[start : start + _AT_ONCE]
                    async with asyncio.TaskGroup() as group:
                        judged = [group.create_task(judge.judge(stored)) for stored in part]
                    found = [task.result() for task in judged]
                    await store.rescore([new for new in found if new is not None])
            finally:
                await finish(opened.close())
    return counts


@dataclass(frozen=True, slots=True)
class _Judge:
    """Judges samples of one arm, some at a time."""

    reader: SweepReader
    source: SampleSource
    names: dict[int, str]
    counts: RescoreCounts
    room: asyncio.Semaphore
    reading: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def judge(self, stored: StoredSample) -> Rescored | None:
        async with self.room:
            async with self.reading:
                read = await asyncio.to_thread(self.reader.trajectory, stored.sample)
            record = TrajectoryRecord.from_json(read)
            return await self._judged(stored, record) if record.steps else None

    async def _judged(self, stored: StoredSample, record: TrajectoryRecord) -> Rescored | None:
        counts, row, rewards = self.counts, stored.row, None
        folder = None if row.output_dir is None else self.reader.path / row.output_dir
        try:
            verdict = await self.source.judge(self.names[row.task], record, folder)
        except WorkspaceGoneError as error:
            counts.kept[str(error)] = counts.kept.get(str(error), 0) + 1
            return None
        except VerifierError as error:
            counts.failed += 1
            new = replace(
                record, score=None, outcome=Outcome.VERIFIER_FAILED.value, cause=str(error)[:2000]
            )
        else:
            counts.scored += 1
            counts.changed += verdict.reward != row.reward
            rewards = named_rewards(verdict.metadata.get("rewards"))
            new = replace(
                record,
                score=verdict.reward,
                outcome=Outcome.SCORED.value,
                cause=None,
                score_metadata=json_plain(verdict.metadata),
            )
        return Rescored(
            stored.sample, new.score, new.outcome, new.cause, rewards, encode_line(new.to_json())
        )
