"""Taking the samples of a sweep: several at once, each until it has ended, within the budget.

Arms are worked through in order. A few workers take samples; the next arm is opened when the one before has none left
to begin, and an arm is closed with its last sample, so hardly more than two stand open at a time. What a sample gives
depends on its key alone, never on which others ran beside or before it.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from agentenv.errors import SweepError
from agentenv.evaluation.samples import SampleSpent, ended_sample
from agentenv.evaluation.schema import NO_SEED
from agentenv.evaluation.sources import SampleResult, open_source
from agentenv.evaluation.spec import SampleKey
from agentenv.outcomes import Outcome
from agentenv.rollout import finish
from agentenv.stopping import STOP_GRACE_S

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from agentenv.evaluation.schema import EndedSample, SampleRow
    from agentenv.evaluation.sources import SampleSource
    from agentenv.evaluation.spec import Arm, SweepConfig
    from agentenv.evaluation.store import Ended, SweepStore

logger = logging.getLogger(__name__)

LOST = Outcome.INFRASTRUCTURE_FAILED.value


@dataclass(slots=True)
class SweepCounts:
    """Where a sweep is. Written by the event loop alone."""

    planned: int = 0
    """Samples of the arms opened so far."""
    found: int = 0
    """Of those, how many had ended before this run."""
    ended: int = 0
    """In this run."""
    under_way: int = 0
    tries_again: int = 0
    outcomes: dict[str, int] = field(default_factory=dict)
    """In this run."""
    tokens: int = 0
    """Of the whole sweep, earlier runs included, as `cost_usd`."""
    cost_usd: float = 0.0
    stopped: str | None = None
    """Why no more samples are begun; None: they are, or all were."""
    arm: str = ""
    """The one that was opened last."""
    failures_in_a_row: int = 0


@dataclass(slots=True)
class _OpenArm:
    """An arm with its source, and the samples of it that are still to be begun."""

    arm: Arm
    number: int
    source: SampleSource
    left: Iterator[tuple[SampleKey, int]] = field(default_factory=lambda: iter(()))
    workers: set[asyncio.Task[Any]] = field(default_factory=set)
    drained: bool = False


class Sweep:
    """One run over a sweep's samples: those that the store does not hold yet."""

    def __init__(
        self,
        config: SweepConfig,
        store: SweepStore,
        *,
        source: Callable[[SweepConfig, Arm], SampleSource] = open_source,
        counts: SweepCounts | None = None,
    ) -> None:
        self.config = config
        self.counts = counts or SweepCounts()
        self._store = store
        self._source = source
        self._arms = config.arms()
        self._current: _OpenArm | None = None
        self._open: list[_OpenArm] = []
        self._opening = asyncio.Lock()
        self._closing: set[asyncio.Task[None]] = set()
        self._workers: list[asyncio.Task[None]] = []
        self._cancelling: asyncio.Task[None] | None = None

    async def run(self) -> None:
        """Take every sample that is left, until all have ended or `stop` was called.

        Raises what opening a source raises; `SweepError` when samples cannot be written, or when so many fail in a row
        for want of infrastructure that going on is pointless. Everything that was opened is closed then, too.
        """
        self.counts.tokens, self.counts.cost_usd = await self._store.spent()
        self._check_budget()
        loop = asyncio.get_running_loop()
        timer = None
        if self.config.budget.wall_s is not None:
            timer = loop.call_later(self.config.budget.wall_s, self._spend_time)
        try:
            await self._work()
        finally:
            if timer is not None:
                timer.cancel()
            await finish(self._end())

    def stop(self, reason: str, grace_s: float | None = None) -> None:
        """Begin no more samples; those under way have `grace_s` seconds, or all the time they need."""
        if self.counts.stopped is None:
            self.counts.stopped = reason
        if grace_s is not None and self._cancelling is None:
            self._cancelling = asyncio.create_task(self._cancel_after(grace_s))

    @property
    def complete(self) -> bool:
        """Whether every sample has ended; infrastructure's failures are no end, nor is being cancelled."""
        counts = self.counts
        left = counts.planned - counts.found - counts.ended
        unfinished = counts.outcomes.get(LOST) or counts.outcomes.get(Outcome.CANCELLED.value)
        return not (counts.stopped or left or unfinished)

    # ---------------------------------------------------------------------------------------- workers

    async def _work(self) -> None:
        self._workers = [
            asyncio.create_task(self._take_samples(), name=f"sample-worker-{number}")
            for number in range(self.config.concurrency)
        ]
        done, _ = await asyncio.wait(self._workers, return_when=asyncio.FIRST_EXCEPTION)
        for worker in done:
            if not worker.cancelled() and worker.exception() is not None:
                worker.result()

    async def _take_samples(self) -> None:
        me = asyncio.current_task()
        assert me is not None
        while (work := await self._next()) is not None:
            arm, key, task = work
            arm.workers.add(me)
            self.counts.under_way += 1
            try:
                await self._take(arm, key, task)
            finally:
                self.counts.under_way -= 1
                arm.workers.discard(me)
                self._close_if_done(arm)

    async def _next(self) -> tuple[_OpenArm, SampleKey, int] | None:
        """The next sample to begin; None when there is none."""
        async with self._opening:
            while self.counts.stopped is None:
                arm = self._current
                if arm is None:
                    arm = await self._open_next()
                    if arm is None:
                        return None
                if (work := next(arm.left, None)) is not None:
                    return arm, *work
                arm.drained, self._current = True, None
                self._close_if_done(arm)
            return None

    async def _take(self, arm: _OpenArm, key: SampleKey, task: int) -> None:
        """Try a sample until infrastructure lets it end, or for the last time; and write it."""
        retry, spent, folders = self.config.retry, SampleSpent(), self._store.folders
        for number in range(1, retry.attempts + 1):
            folder = folders.begin(key.id)
            result = await arm.source.run(
                key.task,
                seed=key.rollout_seed,
                trajectory_id=f"{key.id}.{number}",
                folder=folder,
            )
            spent.add(result)
            self._count_usage(result)
            if result.is_final or not result.record.outcome.retryable or number == retry.attempts:
                break
            if self.counts.stopped is not None:
                break
            self.counts.tries_again += 1
            await asyncio.to_thread(folders.drop, folder)
            await asyncio.sleep(min(retry.max_wait_s, retry.wait_s * 2 ** (number - 1)))
        place, keep_tokens = (arm.number, task), self.config.keep_tokens
        outputs = self._keeps_outputs(result)

        def ended() -> EndedSample:
            kept = folders.keep(folder, outputs=outputs)
            return ended_sample(key, place, result, spent, keep_tokens=keep_tokens, output_dir=kept)

        self._count(await self._store.add(ended))

    def _keeps_outputs(self, result: SampleResult) -> bool:
        wanted, reward = self.config.keep_outputs, result.record.reward
        if isinstance(wanted, bool):
            return wanted
        return reward is None or reward < self.config.success_at

    def _count_usage(self, result: SampleResult) -> None:
        usage = result.usage
        self.counts.tokens += usage.prompt_tokens + usage.completion_tokens
        self.counts.cost_usd += usage.cost_usd or 0.0
        self._check_budget()

    def _check_budget(self) -> None:
        budget, counts = self.config.budget, self.counts
        if budget.tokens is not None and counts.tokens >= budget.tokens:
            self.stop(f"budget.tokens={budget.tokens:,} is spent")
        if budget.cost_usd is not None and counts.cost_usd >= budget.cost_usd:
            self.stop(f"budget.cost_usd={budget.cost_usd:g} is spent")

    def _spend_time(self) -> None:
        self.stop(f"budget.wall_s={self.config.budget.wall_s:g} is spent", STOP_GRACE_S)

    def _count(self, row: SampleRow) -> None:
        counts = self.counts
        counts.ended += 1
        counts.outcomes[row.outcome] = counts.outcomes.get(row.outcome, 0) + 1
        if row.outcome != LOST:
            counts.failures_in_a_row = 0
            return
        counts.failures_in_a_row += 1
        if counts.failures_in_a_row >= max(8, 2 * self.config.concurrency):
            raise SweepError(
                f"{counts.failures_in_a_row} samples in a row were lost to infrastructure; the last: {row.cause}"
            )

    # ---------------------------------------------------------------------------------------- arms

    async def _open_next(self) -> _OpenArm | None:
        """Open the next arm that has samples left."""
        for arm in self._arms:
            number = await self._store.arm(arm)
            ended = await self._store.ended(number)
            if await self._is_done(arm, ended):
                continue
            opened = _OpenArm(arm, number, self._source(self.config, arm))
            self._open.append(opened)
            self.counts.arm = f"{arm.task_set}, {arm.model}, {arm.settings}"
            entries = await opened.source.open()
            tasks = await self._store.tasks(arm.task_set, entries)
            keys = list(self._keys(arm, [entry.name for entry in entries], tasks, ended))
            self._plan(len(tasks), len(keys))
            opened.left = iter(keys)
            if keys:
                self._current = opened
                return opened
            opened.drained = True
            self._close_if_done(opened)
        return None

    async def _is_done(self, arm: Arm, ended: set[Ended]) -> bool:
        """Whether an arm has every sample, which is known without opening it where its tasks are counted."""
        count = self.config.tasks[arm.task_set].count
        known = await self._store.known_tasks(arm.task_set)
        if count is None or len(known) < count:
            return False
        if next(self._keys(arm, [""] * count, known[:count], ended), None) is not None:
            return False
        self._plan(count, 0)
        return True

    def _plan(self, tasks: int, left: int) -> None:
        planned = tasks * self.config.attempts * len(self.config.seeds)
        self.counts.planned += planned
        self.counts.found += planned - left

    def _keys(
        self, arm: Arm, names: list[str], tasks: list[int], ended: set[Ended]
    ) -> Iterator[tuple[SampleKey, int]]:
        """Attempt by attempt, so that an early stop has tried every task about as often."""
        for seed, attempt in self.config.draws():
            stored = NO_SEED if seed is None else seed
            for name, task in zip(names, tasks, strict=True):
                if (task, stored, attempt) not in ended:
                    yield SampleKey(arm, name, seed, attempt), task

    def _close_if_done(self, arm: _OpenArm) -> None:
        if arm.drained and not arm.workers and arm in self._open:
            self._open.remove(arm)
            closing = asyncio.create_task(self._close(arm))
            self._closing.add(closing)
            closing.add_done_callback(self._closing.discard)

    async def _close(self, arm: _OpenArm) -> None:
        try:
            await arm.source.close()
        except Exception:  # its samples are written; the next arm may still be tried
            logger.exception("closing %s failed", arm.arm)

    # ---------------------------------------------------------------------------------------- the end

    async def _cancel_after(self, grace_s: float) -> None:
        await asyncio.wait(self._workers, timeout=grace_s)
        await self._cancel_workers()

    async def _cancel_workers(self) -> None:
        """End what is under way, through its source: hosts that do not answer must not hold up the end."""
        working = [(arm.source, list(arm.workers)) for arm in self._open if arm.workers]
        ending = [asyncio.ensure_future(source.cancel(tasks)) for source, tasks in working]
        left = [worker for worker in self._workers if not worker.done()]
        for worker in left:
            worker.cancel()
        if ending:
            await asyncio.wait(ending)
        if left:
            await asyncio.wait(left, timeout=STOP_GRACE_S)

    async def _end(self) -> None:
        """Leave nothing behind, in whatever way the run ends."""
        if self._cancelling is not None:
            self._cancelling.cancel()
            await asyncio.wait({self._cancelling})
        await self._cancel_workers()
        for arm in list(self._open):
            arm.drained = True
            arm.workers.clear()
            self._close_if_done(arm)
        if self._closing:
            await asyncio.wait(set(self._closing))
        await asyncio.to_thread(self._store.folders.drop_begun)
        for worker in self._workers:
            with suppress(asyncio.CancelledError):
                if worker.done():
                    worker.exception()
