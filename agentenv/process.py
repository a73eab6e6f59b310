"""`process`: collect groups into a run directory, several at once, until there are enough.

Nothing is lost silently: a group that cannot be completed gives its item back, which is tried again a bounded number of
times; what is then dropped is counted with its cause.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from agentenv.errors import AgentEnvError
from agentenv.group import GroupContext, current_group
from agentenv.lag import LagMonitor
from agentenv.records import group_casts, group_record
from agentenv.rollout import finish
from agentenv.run.progress import QuietProgress

if TYPE_CHECKING:
    from collections.abc import Iterator

    from agentenv.config import AgentEnvConfig
    from agentenv.env import AgentEnv
    from agentenv.run.directory import RunDirectory
    from agentenv.run.progress import Progress
    from agentenv.run.record import GroupRecord
    from agentenv.runtime import EnvRuntime
    from agentenv.types import Item, ScoredDataGroup

logger = logging.getLogger(__name__)

ITEM_ATTEMPTS = 3
"""Times an item is tried as a group before it is dropped."""
STOP_GRACE_S = 2.5
"""After the first Ctrl-C, how long groups under way may go on. A run promises to end within ten seconds: the rest is
for giving back slots (`runtime.RELEASE_PATIENCE_S`) and for ending hosts, also those that do not answer.
"""


class NothingCollectedError(AgentEnvError):
    """So many groups failed in a row that going on is pointless. The message holds the last cause."""


@dataclass(slots=True)
class _Work:
    """An item on its way to a group."""

    index: int
    item: Item
    attempts: int = 0


async def process(
    env: AgentEnv[Any],
    *,
    directory: RunDirectory | None = None,
    progress: Progress | None = None,
    handle_signals: bool = True,
) -> int:
    """Set the environment up, collect `total_steps` groups, shut it down; returns how many were written.

    The first SIGINT or SIGTERM starts no more groups and gives those under way a few seconds; the second ends them at
    once. Either way the sandboxes are gone and everything written is kept when this returns.
    Raises what `setup` raises, `RunDirectoryError`, or `NothingCollectedError`.
    """
    collection = _Collection(env, directory, progress or QuietProgress())
    with _signals(collection) if handle_signals else contextlib.nullcontext():
        try:
            await collection.run()
        finally:
            await finish(env.shutdown())
    return collection.written


class _Collection:
    """One run of `process`."""

    def __init__(
        self, env: AgentEnv[Any], directory: RunDirectory | None, progress: Progress
    ) -> None:
        self.env = env
        self.written = 0
        self._directory = directory
        self._progress = progress
        self._backlog: list[_Work] = []
        self._next_index = 0
        self._exhausted = False
        self._failures_in_a_row = 0
        self._set_up = False
        self._stop = asyncio.Event()
        self._abort = asyncio.Event()

    def request_stop(self) -> None:
        """First call: finish what runs, if anything does yet. Second call: end it now."""
        self._progress.interrupted()
        (self._abort if self._stop.is_set() or not self._set_up else self._stop).set()

    async def run(self) -> None:
        main = asyncio.ensure_future(self._run())
        abort = asyncio.ensure_future(self._abort.wait())
        try:
            await asyncio.wait({main, abort}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            abort.cancel()
            if not main.done():
                main.cancel()
                await finish(_settled(main))
        if not main.cancelled():
            main.result()

    async def _run(self) -> None:
        if self.env.config.use_wandb:
            logger.warning("use_wandb has no effect in this version; metrics are in summary.json")
        self.env.runtime.require_tokens()
        await self.env.setup()
        self._set_up = True
        self.env.runtime.on_rollout = self._progress.rollout_ended
        self._progress.started(self.env.runtime.backend.stats)
        running: set[asyncio.Task[None]] = set()
        async with LagMonitor() as lag:
            try:
                await self._dispatch(running)
            finally:
                await finish(_cancel_all(running, self.env.runtime))
                self._progress.ended(loop_lag_p99_s=lag.p99_s)

    async def _dispatch(self, running: set[asyncio.Task[None]]) -> None:
        """Keep groups under way until enough are written, the dataset ends, or a stop is asked for."""
        stop = asyncio.ensure_future(self._stop.wait())
        try:
            while not self._stop.is_set():
                await self._launch(running)
                if not running:
                    return
                done, _ = await asyncio.wait({*running, stop}, return_when=asyncio.FIRST_COMPLETED)
                self._settle(running, done)
            if running:
                done, _ = await asyncio.wait(running, timeout=STOP_GRACE_S)
                self._settle(running, done)
        finally:
            stop.cancel()

    def _settle(self, running: set[asyncio.Task[None]], done: set[asyncio.Task[Any]]) -> None:
        finished = running & done
        running -= finished
        for task in finished:
            task.result()

    async def _launch(self, running: set[asyncio.Task[None]]) -> None:
        while len(running) < self._workers() and not self._stop.is_set():
            work = await self._next_work(len(running))
            if work is None:
                return
            running.add(asyncio.create_task(self._collect(work)))

    def _workers(self) -> int:
        config: AgentEnvConfig = self.env.config
        if config.max_num_workers > 0:
            return config.max_num_workers
        return config.max_num_workers_per_node * max(1, len(self.env.server_configs))

    async def _next_work(self, running: int) -> _Work | None:
        target = self.env.config.total_steps
        if target >= 0 and self.written + running >= target:
            return None
        if self._backlog:
            return self._backlog.pop(0)
        if self._exhausted:
            return None
        item = await self._next_item()
        if item is None:
            self._exhausted = True
            return None
        self._next_index += 1
        return _Work(self._next_index - 1, item)

    async def _next_item(self) -> Item | None:
        """The dataset's next item; None also when a stop is asked for while it is being waited for."""
        fetching = asyncio.ensure_future(self.env.get_next_item())
        stop = asyncio.ensure_future(self._stop.wait())
        try:
            done, _ = await asyncio.wait({fetching, stop}, return_when=asyncio.FIRST_COMPLETED)
            return fetching.result() if fetching in done else None
        finally:
            stop.cancel()
            fetching.cancel()

    async def _collect(self, work: _Work) -> None:
        """One attempt at one group, to its end."""
        started = time.monotonic()
        context = GroupContext(work.index)
        current_group.set(context)
        self._progress.group_started()
        try:
            group, backlog = await self.env.collect_trajectories(work.item)
            if group is not None:
                group = await self.env.postprocess_histories(group)
            record = (
                None
                if group is None
                else self._record(work, group, context, time.monotonic() - started)
            )
            cause = _last_cause(context)
        except asyncio.CancelledError as error:
            if _withdrawn():
                self._progress.group_failed("the run was stopped", dropped=True)
                raise
            record, backlog, cause = None, [work.item], f"the environment raised {error!r}"
        except Exception as error:  # the environment may raise anything; its item is given back
            logger.exception("collecting group %d failed", work.index)
            record, backlog, cause = None, [work.item], f"{type(error).__name__}: {error}"
        if record is None:
            self._give_back(work, backlog, cause)
        else:
            self._failures_in_a_row = 0
            await self._write(record, context)

    def _give_back(self, work: _Work, backlog: list[Item], cause: str) -> None:
        work.attempts += 1
        again = bool(backlog) and work.attempts < ITEM_ATTEMPTS
        if again:
            self._backlog.append(work)
        self._progress.group_failed(cause, dropped=not again)
        self._failed(cause)

    def _failed(self, cause: str) -> None:
        self._failures_in_a_row += 1
        limit = max(8, 2 * self._workers())
        if self._failures_in_a_row >= limit:
            raise NothingCollectedError(
                f"{self._failures_in_a_row} groups failed in a row; the last: {cause}"
            )

    def _record(
        self, work: _Work, group: ScoredDataGroup, context: GroupContext, seconds: float
    ) -> GroupRecord:
        if not isinstance(group, dict) or not {"tokens", "masks", "scores"} <= group.keys():
            raise TypeError(
                f"a group must be a dict with tokens, masks and scores, not a {type(group).__name__}"
            )
        preview = self.env.build_task(work.item)
        return group_record(work.index, work.item, preview, group, context.members, seconds)

    async def _write(self, record: GroupRecord, context: GroupContext) -> None:
        scores = record.group["scores"]
        if self._drops_equal_scores() and len(set(scores)) < 2:
            self._progress.group_failed(
                "all scores are equal (ensure_scores_are_not_same)", dropped=True
            )
            return
        if self._directory is not None:
            casts = group_casts(context.index, context.members)
            await self._directory.append(record, casts)
        self.written += 1
        self._progress.group_done(scores)

    def _drops_equal_scores(self) -> bool:
        config = self.env.config
        return (
            config.ensure_scores_are_not_same
            and "ensure_scores_are_not_same" in config.model_fields_set
        )


def _withdrawn() -> bool:
    """Whether the current task was cancelled from outside, and not only awaited something that was."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _last_cause(context: GroupContext) -> str:
    causes = [
        record.cause for member in context.members for record in member.records if record.cause
    ]
    return causes[-1] if causes else "no trajectory could be trained on"


async def _settled(task: asyncio.Future[Any]) -> None:
    await asyncio.wait({task})


async def _cancel_all(tasks: set[asyncio.Task[None]], runtime: EnvRuntime) -> None:
    await runtime.cancel(tasks)
    for task in tasks:
        if not task.cancelled() and task.exception():
            logger.warning("a group failed while it was being ended: %s", task.exception())


@contextlib.contextmanager
def _signals(collection: _Collection) -> Iterator[None]:
    """Route SIGINT and SIGTERM to the collection while it runs. Only possible in the main thread."""
    loop = asyncio.get_running_loop()
    installed: list[signal.Signals] = []
    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            with contextlib.suppress(NotImplementedError, RuntimeError, ValueError):
                loop.add_signal_handler(number, collection.request_stop)
                installed.append(number)
        yield
    finally:
        for number in installed:
            loop.remove_signal_handler(number)
