"""`process`: collect groups into a run directory, several at once, until there are enough."""

from __future__ import annotations

import contextlib
import logging
from typing import TYPE_CHECKING, Any

from agentenv.collected import CollectorSettings
from agentenv.collector import (
    Collector,
    NothingCollectedError,
    failures_allowed,
)
from agentenv.control.filters import group_filters
from agentenv.lag import LagMonitor
from agentenv.records import group_casts
from agentenv.rollout import finish
from agentenv.run.progress import QuietProgress
from agentenv.stopping import StopRequests

if TYPE_CHECKING:
    from agentenv.collected import CollectedGroup
    from agentenv.env import AgentEnv
    from agentenv.run.directory import RunDirectory
    from agentenv.run.progress import Progress

__all__ = ["STOP_GRACE_S", "NothingCollectedError", "process"]

logger = logging.getLogger(__name__)

STOP_GRACE_S = 5.0
"""After the first Ctrl-C, how long groups under way may go on."""


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
    run = _Run(env, directory, progress or QuietProgress())
    requests = StopRequests()
    with requests.from_signals() if handle_signals else contextlib.nullcontext():
        try:
            await requests.run(run.run(requests))
        finally:
            await finish(env.shutdown())
    return run.written


class _Run:
    """One run of `process`."""

    def __init__(
        self, env: AgentEnv[Any], directory: RunDirectory | None, progress: Progress
    ) -> None:
        self.env = env
        self.written = 0
        self._directory = directory
        self._progress = progress

    async def run(self, requests: StopRequests) -> None:
        """Everything between set-up and shut-down."""
        if self.env.config.use_wandb:
            logger.warning("use_wandb is for `serve`; the metrics of `process` are in summary.json")
        self.env.runtime.require_tokens()
        await self.env.setup()
        self.env.runtime.on_rollout = self._progress.rollout_ended
        self._progress.started(self.env.runtime.backend.stats)
        collector = self._collector()
        requests.on_stop = lambda: collector.stop(STOP_GRACE_S)
        async with LagMonitor() as lag:
            try:
                async with collector:
                    async for collected in collector:
                        await self._write(collected)
            finally:
                self._progress.ended(loop_lag_p99_s=lag.p99_s)

    def _collector(self) -> Collector:
        config = self.env.config
        workers = self.env.workers
        settings = CollectorSettings(
            workers=workers,
            total=config.total_steps if config.total_steps >= 0 else None,
            failures_in_a_row=failures_allowed(workers),
            keep_records=True,
        )
        filters = group_filters(
            drop_equal_scores=self._drops_equal_scores(), custom=config.group_filters
        )
        return Collector(self.env, settings, progress=self._progress, filters=filters)

    async def _write(self, collected: CollectedGroup) -> None:
        if self._directory is not None:
            assert collected.record is not None, "asked for"
            casts = group_casts(collected.index, collected.context.members)
            await self._directory.append(collected.record, casts)
        self.written += 1
        self._progress.group_done(collected.group["scores"])

    def _drops_equal_scores(self) -> bool:
        config = self.env.config
        return (
            config.ensure_scores_are_not_same
            and "ensure_scores_are_not_same" in config.model_fields_set
        )
