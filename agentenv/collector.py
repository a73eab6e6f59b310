"""Collecting groups as a stream: several under way at once, as many as the limit of the moment allows.

`process` writes what comes out to a run directory, `serve` sends it to a trainer's server, and a trainer in the same
process takes it as it is:

    await env.setup()
    async with env.groups(total=100) as groups:
        async for collected in groups:
            train_on(collected.group)

Nothing is lost silently: an item whose group could not be completed, took too long, or was withdrawn is tried again;
what is dropped is counted with its cause.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING, Any, Self

from agentenv._attempt import attempt_group, last_cause
from agentenv._work import CollectionState, Work
from agentenv.collected import CollectorSettings
from agentenv.control.curriculum import ItemPool
from agentenv.control.filters import GroupFilters, group_filters
from agentenv.errors import AgentEnvError
from agentenv.group import GroupContext, current_group
from agentenv.rollout import finish
from agentenv.run.progress import QuietProgress
from agentenv.stopping import (
    cancel_all,
    cancelled_from_outside,
    failing_when_cancelled_inside,
    settled,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

    from agentenv.collected import CollectedGroup, GroupUnderWay
    from agentenv.env import AgentEnv
    from agentenv.run.progress import Progress
    from agentenv.types import Item

logger = logging.getLogger(__name__)

_SHORTEST_PAUSE_S, _LONGEST_PAUSE_S = 0.1, 15.0
_ASK_AGAIN_S = 0.25


class NothingCollectedError(AgentEnvError):
    """So many groups failed in a row that going on is pointless. The message holds the last cause."""


class Collector:
    """One collection of an environment's groups. The environment is set up before, and shut down after, by its owner.

    An `async with` block starts it and ends it: when the block is left, in whatever way, no group is under way and
    every slot is back. Iterating gives groups as they are finished; while nobody takes them, collection is held up. A
    plain `async for` without the block does the same, but what a `break` leaves under way may end a little later.
    Belongs to one event loop.
    """

    def __init__(
        self,
        env: AgentEnv[Any],
        settings: CollectorSettings | None = None,
        *,
        progress: Progress | None = None,
        filters: GroupFilters | None = None,
    ) -> None:
        """`filters` say which complete groups are dropped; None: none is."""
        self.env = env
        self.settings = settings or CollectorSettings()
        self.policy_version: int | None = None
        """The trainer's step now: what groups started from here on are stamped with."""
        self.admits: Callable[[], bool] = lambda: True
        """Asked before every start, whether one more group may be; again when a group ends, and by `reconsider`."""
        self.started = self.dropped = 0
        """Groups begun, and items dropped for good, so far."""
        self._progress = progress or QuietProgress()
        self.items = ItemPool.from_config(
            env.config.curriculum,
            env.get_next_item,
            group_size=env.config.group_size,
            seed=env.config.seed,
        )
        """Where items come from: the dataset, in the order its curriculum chooses."""
        self.on_attempt: Callable[[float, bool], None] = lambda seconds, succeeded: None
        """Called with the seconds of each attempt at a group, and whether one came of it."""
        self._filters = filters or GroupFilters()
        self._limit = self.settings.workers
        self._paused = False
        self._state = CollectionState(next_index=self.settings.first_index)
        self._changed = asyncio.Event()
        self._arrived = asyncio.Event()
        self._main: asyncio.Task[None] | None = None

    # ------------------------------------------------------------------------------------------ steering

    @property
    def limit(self) -> int:
        """Groups under way or waiting to be taken, at most. May be set at any time; lowering it ends nothing."""
        return self._limit

    @limit.setter
    def limit(self, groups: int) -> None:
        if groups != self._limit:
            self._limit = groups
            self._changed.set()

    def pause(self) -> None:
        """Start no more groups. Those under way go on; to hold their turns and deadlines too, close the gate of the
        environment's runtime.
        """
        self._paused = True

    def resume(self) -> None:
        """Start groups again."""
        self._paused = False
        self._changed.set()

    def reconsider(self) -> None:
        """Ask `admits` again: what it depends on has changed."""
        self._changed.set()

    def withdraw(self, which: Callable[[GroupUnderWay], bool], reason: str) -> int:
        """Cancel the groups under way that `which` picks; their items are tried again first. Returns how many."""
        picked = [
            (task, work)
            for task, work in self._state.running.items()
            if work.withdrawn is None and which(work.under_way())
        ]
        for task, work in picked:
            work.withdrawn = reason
            task.cancel()
        return len(picked)

    def stop(self, grace_s: float = 0.0) -> None:
        """Start no more groups; those under way have `grace_s` seconds. The iteration ends with the last of them."""
        if self._state.stop_at is None:
            self._state.stop_at = asyncio.get_running_loop().time() + grace_s
            self._changed.set()

    @property
    def under_way(self) -> tuple[GroupUnderWay, ...]:
        """The groups that are being collected now."""
        return tuple(work.under_way() for work in self._state.running.values())

    @property
    def waiting(self) -> int:
        """Items that wait to be tried again."""
        return len(self._state.backlog)

    @property
    def unfinished(self) -> list[Item]:
        """Items that were fetched and of which nobody has taken a group. Those that were dropped are not among them."""
        state = self._state
        work = sorted((*state.running.values(), *state.backlog), key=lambda w: w.index)
        ready = [collected.item for collected in state.ready]
        return [*ready, *(held.item for held in work), *self.items.held]

    def take_up(self, items: Sequence[Item]) -> None:
        """Work on these items before the dataset's next: an earlier collection fetched them and did not finish."""
        for item in items:
            self._take(item)
        self._changed.set()

    @property
    def untaken(self) -> int:
        """Finished groups that nobody has taken yet."""
        return len(self._state.ready)

    # ------------------------------------------------------------------------------------------ stream

    async def __aenter__(self) -> Self:
        self._start()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    async def __aiter__(self) -> AsyncIterator[CollectedGroup]:
        """Groups as they are finished. Raises what `get_next_item` raises, or `NothingCollectedError`."""
        self._start()
        try:
            while (collected := await self.take()) is not None:
                yield collected
        finally:
            await self.close()

    async def close(self) -> None:
        """Cancel what is under way and wait until it has let go of everything. Idempotent."""
        if self._main is not None:
            self._main.cancel()
            await finish(settled(self._main))

    def _start(self) -> None:
        if self._main is None:
            self._main = asyncio.create_task(self._run(), name="collector")
            self._main.add_done_callback(lambda _: self._arrived.set())

    async def take(self) -> CollectedGroup | None:
        """The next finished group; None when no more will come. Raises as iterating does. For inside the block."""
        assert self._main is not None, "inside the block"
        while not self._state.ready:
            if self._main.done():
                if not self._main.cancelled():
                    self._main.result()
                return None
            self._arrived.clear()
            await self._arrived.wait()
        self._changed.set()
        return self._state.ready.popleft()

    # ------------------------------------------------------------------------------------------ scheduling

    async def _run(self) -> None:
        try:
            while True:
                self._changed.clear()
                self._launch()
                if self._is_over():
                    return
                await self._change(self._next_look())
                self._settle()
        finally:
            await finish(self._end_all())

    def _launch(self) -> None:
        state = self._state
        while self._may_start():
            if state.backlog:
                self._begin(state.backlog.popleft())
            elif state.fetching is None and not state.exhausted:
                state.fetching = asyncio.create_task(self._fetch())
                state.fetching.add_done_callback(lambda _: self._changed.set())
                return
            else:
                return

    async def _fetch(self) -> Item | None:
        with failing_when_cancelled_inside("get_next_item"):
            return await self.items.next()

    def _may_start(self) -> bool:
        state = self._state
        total = self.settings.total
        if self._paused or state.stop_at is not None:
            return False
        if asyncio.get_running_loop().time() < state.not_before:
            return False
        if total is not None and state.finished + len(state.running) >= total:
            return False
        return len(state.running) + len(state.ready) < self._limit and self.admits()

    def _begin(self, work: Work) -> None:
        work.withdrawn = None
        work.policy_version = self.policy_version
        work.started_at = time.monotonic()
        self.started += 1
        task = asyncio.create_task(self._collect(work))
        self._state.running[task] = work
        task.add_done_callback(lambda _: self._changed.set())

    def _settle(self) -> None:
        """Take in what ended: groups, and the fetching of an item."""
        state = self._state
        for task in [task for task in state.running if task.done()]:
            work = state.running.pop(task)
            if not task.cancelled():
                task.result()
            elif work.withdrawn is not None:
                state.backlog.appendleft(work)
        if state.fetching is not None and state.fetching.done():
            fetched, state.fetching = state.fetching, None
            self._take(fetched.result())

    def _take(self, item: Item | None) -> None:
        state = self._state
        if item is not None:
            state.backlog.append(Work(state.next_index, item))
            state.next_index += 1
        elif self.settings.ends_with_dataset:
            state.exhausted = True
        else:
            state.not_before = asyncio.get_running_loop().time() + _ASK_AGAIN_S

    def _is_over(self) -> bool:
        state = self._state
        if state.running:
            return state.stop_at is not None and self._next_look() == 0
        total = self.settings.total
        reached = total is not None and state.finished >= total
        ended = state.exhausted and not state.backlog
        return reached or ended or state.stop_at is not None

    def _next_look(self) -> float | None:
        """Seconds until something is due by the clock; None: nothing is."""
        due = [when for when in (self._state.stop_at, self._state.not_before) if when]
        now = asyncio.get_running_loop().time()
        ahead = [when - now for when in due if when > now]
        if self._state.stop_at is not None and self._state.stop_at <= now:
            return 0
        return min(ahead, default=None)

    async def _change(self, timeout_s: float | None) -> None:
        try:
            async with asyncio.timeout(timeout_s):
                await self._changed.wait()
        except TimeoutError:
            pass  # something is due

    async def _end_all(self) -> None:
        state = self._state
        tasks: list[asyncio.Task[Any]] = [*state.running]
        if state.fetching is not None:
            tasks.append(state.fetching)
        if self.settings.last:
            await self.env.runtime.cancel(tasks)
        else:
            await cancel_all(tasks)
        for task in tasks:
            if task.done() and not task.cancelled() and task.exception():
                logger.warning("a group failed while it was being ended: %s", task.exception())
        state.backlog.extendleft(
            work for task, work in state.running.items() if not task.done() or task.cancelled()
        )
        state.running.clear()
        state.fetching = None

    # ------------------------------------------------------------------------------------------ one group

    async def _collect(self, work: Work) -> None:
        """One attempt at one group, to its end."""
        context = GroupContext(work.index)
        current_group.set(context)
        self._progress.group_started()
        try:
            limit_s = self.settings.worker_timeout_s
            async with self.env.runtime.gate.timeout(limit_s) as deadline:
                collected, backlog = await attempt_group(self.env, work, context, self.settings)
            cause = last_cause(context)
        except asyncio.CancelledError as error:
            if cancelled_from_outside():
                self._count_withdrawn(work)
                raise
            collected, backlog, cause = None, [work.item], f"the environment raised {error!r}"
        except Exception as error:  # the environment may raise anything; its item is given back
            if isinstance(error, TimeoutError) and deadline.expired():
                cause = f"not done within worker_timeout={self.settings.worker_timeout_s:g} s"
                logger.warning("group %d: %s", work.index, cause)
            else:
                logger.exception("collecting group %d failed", work.index)
                cause = f"{type(error).__name__}: {error}"
            collected, backlog = None, [work.item]
        self.on_attempt(time.monotonic() - work.started_at, collected is not None)
        if collected is None:
            self._give_back(work, backlog, cause)
        else:
            self._deliver(collected)

    def _deliver(self, collected: CollectedGroup) -> None:
        self._state.failures_in_a_row = 0
        self.items.record(collected.item, collected.group["scores"])
        reason = self._filters.reason(collected.group)
        if reason is not None:
            self.dropped += 1
            self._progress.group_failed(reason, dropped=True)
            return
        self._state.finished += 1
        self._state.ready.append(collected)
        self._arrived.set()

    def _count_withdrawn(self, work: Work) -> None:
        reason = work.withdrawn or "the run was stopped"
        self._progress.group_failed(reason, dropped=work.withdrawn is None)

    def _give_back(self, work: Work, backlog: list[Item], cause: str) -> None:
        work.attempts += 1
        again = bool(backlog) and work.attempts < self.settings.item_attempts
        if again:
            self._state.backlog.append(work)
        self.dropped += not again
        self._progress.group_failed(cause, dropped=not again)
        self._slow_down(cause)

    def _slow_down(self, cause: str) -> None:
        state, limit = self._state, self.settings.failures_in_a_row
        state.failures_in_a_row += 1
        if limit is None:
            doubled = min(state.failures_in_a_row // max(1, self._limit), 16)
            pause_s = min(_LONGEST_PAUSE_S, _SHORTEST_PAUSE_S * 2**doubled)
            state.not_before = asyncio.get_running_loop().time() + pause_s
        elif state.failures_in_a_row >= limit:
            raise NothingCollectedError(
                f"{state.failures_in_a_row} groups failed in a row; the last: {cause}"
            )


def collect_groups(env: AgentEnv[Any], total: int | None, *, workers: int) -> Collector:
    """A collection with the environment's own filters, behind `AgentEnv.groups`."""
    settings = CollectorSettings(
        workers=workers, total=total, failures_in_a_row=failures_allowed(workers)
    )
    filters = group_filters(
        drop_equal_scores=env.config.ensure_scores_are_not_same, custom=env.config.group_filters
    )
    return Collector(env, settings, filters=filters)


def failures_allowed(workers: int) -> int:
    """How many groups may fail in a row before a run that has nothing to wait for gives up."""
    return max(8, 2 * workers)
