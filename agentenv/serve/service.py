"""`serve`: collect groups for a trainer behind a trajectory server, for as long as it trains.

The collector makes groups, the outbox gets them to the server, and the session tells how things stand there; here is
what follows from that: how many groups may be under way, when to pause, evaluate, keep a checkpoint, report, and end.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

from agentenv.api.client import EnvRegistration
from agentenv.api.group import GroupError
from agentenv.collected import CollectorSettings
from agentenv.collector import Collector
from agentenv.errors import ApiRefusedError, ConfigError, RunDirectoryError
from agentenv.lag import LagMonitor
from agentenv.records import group_casts
from agentenv.rollout import finish
from agentenv.run.progress import QuietProgress
from agentenv.serve.evaluation import Evaluations
from agentenv.serve.filters import serve_filters
from agentenv.serve.memory import Memory
from agentenv.serve.metrics import JsonlMetrics
from agentenv.serve.offpolicy import crossed
from agentenv.serve.outbox import Outbox
from agentenv.serve.reports import Reports
from agentenv.serve.session import TrainerSession
from agentenv.serve.spool import Spool
from agentenv.serve.steering import Steering
from agentenv.serve.wandb_metrics import require_wandb
from agentenv.stopping import STOP_GRACE_S, StopRequests, side_by_side

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from agentenv.api.client import EnvStatus
    from agentenv.api.group import WireGroup
    from agentenv.collected import CollectedGroup
    from agentenv.env import AgentEnv
    from agentenv.run.directory import RunDirectory
    from agentenv.run.progress import Progress
    from agentenv.serve.link import Link

logger = logging.getLogger(__name__)

SEND_GRACE_S = 2.5
"""At the end, how long groups on disk are still sent. What is not sent stays there."""
REPORT_GRACE_S = 1.0
"""At the end, how long the last report of metrics may take."""
SPOOL_FOLDER = "spool"
_MB = 1_000_000


async def serve(
    env: AgentEnv[Any],
    link: Link,
    directory: RunDirectory,
    *,
    progress: Progress | None = None,
    handle_signals: bool = True,
    poll_s: float = 0.1,
) -> dict[str, Any]:
    """Wait for a trainer, set the environment up, feed the trainer until it has enough, shut down.

    The server may be away or forget the environment at any time: groups are kept on disk meanwhile, collection goes on
    as far as the trainer's limits allow, and the environment joins again. `directory` holds what must outlive this
    process: groups that are not sent yet, and who this environment is to the server.
    The first SIGINT or SIGTERM starts no more groups and gives those under way a few seconds; the second ends them at
    once. Either way the server is told, the sandboxes are gone and nothing finished is lost when this returns.
    `poll_s` is the time between two looks at the server. The link stays open. Returns totals, JSON-plain.
    Raises what `setup` and `get_next_item` raise, `RunDirectoryError`, `ConfigError` where trainer and environment do
    not fit, and what the server refuses at the start.
    """
    if env.config.use_wandb:
        require_wandb()
    memory = await Memory.open(directory.path, env)
    spool = await Spool.open(directory.path / SPOOL_FOLDER, max_bytes=env.config.spool_max_mb * _MB)
    serving = _Serving(env, link, directory, progress or QuietProgress(), memory, spool, poll_s)
    requests = StopRequests()
    with requests.from_signals() if handle_signals else contextlib.nullcontext():
        try:
            await requests.run(serving.run(requests))
        finally:
            await finish(serving.close())
    return serving.summary()


class _Serving:
    """One run of `serve`."""

    def __init__(
        self,
        env: AgentEnv[Any],
        link: Link,
        directory: RunDirectory,
        progress: Progress,
        memory: Memory,
        spool: Spool,
        poll_s: float,
    ) -> None:
        config = env.config
        self.env = env
        self._link = link
        self._directory = directory
        self._progress = progress
        self._memory = memory
        self._spool = spool
        registration = EnvRegistration(
            max_token_length=config.max_token_length,
            desired_name=env.display_name,
            weight=config.inference_weight,
            group_size=config.group_size,
            min_batch_allocation=config.min_batch_allocation,
            instance=memory.instance,
        )
        self._session = TrainerSession(link, registration, poll_s=poll_s)
        self._outbox = Outbox(spool, self._send, on_refused=self._on_refused)
        self._reports = Reports(env, [JsonlMetrics(directory.path)])
        self._reports.rejected = self._rejected
        self._evaluations = Evaluations(env, self._on_evaluated)
        self._steering = Steering(env, self._session, self._outbox, self._evaluations)
        self._heard = asyncio.Event()
        self._lifting: asyncio.Task[None] | None = None
        self._session.on_look = self._steering.look
        self._session.on_rejoin = self._on_rejoin
        self._started_before = 0
        self._storing: asyncio.Task[bool] | None = None
        self._dropped: Counter[str] = Counter()

    # ------------------------------------------------------------------------------------------ lifecycle

    async def run(self, requests: StopRequests) -> None:
        """Everything up to the shut-down."""
        self.env.runtime.require_tokens()
        await self._join()
        self._steering.fit()
        await self._memory.joined(self._session.joined)
        await self._reports.joined(self._session.joined, self._session.info, self._link)
        await side_by_side(
            self._work(requests), self._session.follow(self._on_status), self._send_groups()
        )

    async def _join(self) -> None:
        try:
            await self._session.join()
        except ApiRefusedError as error:
            if error.status in (401, 403):
                raise ConfigError(
                    f"{error}; env.rollout_server_token is the server's token for environments"
                ) from error
            raise

    async def close(self) -> None:
        """Tear everything down, say goodbye. What is on disk stays there."""
        try:
            await self._store_the_rest()
            await self._evaluations.close()
            await self.env.shutdown()
        finally:
            await self._session.leave()
            await self._reports.close()
            await self._memory.close()
            await self._spool.close()

    def summary(self) -> dict[str, Any]:
        """The totals."""
        return {
            "groups_sent": self._steering.sent,
            "groups_kept_on_disk": self._spool.pending,
            "dropped_after_collection": dict(self._dropped),
            "step": self._steering.step if self._heard.is_set() else None,
            "joined_again": self._session.rejoined,
            "evaluations": {
                "done": self._evaluations.done,
                "failed": self._evaluations.failed,
                "skipped": self._evaluations.skipped,
            },
            "checkpoints": {"saved": self._memory.saved, "failed": self._memory.failed},
            "metrics": self._reports.last,
        }

    async def _work(self, requests: StopRequests) -> None:
        await self.env.setup()
        self.env.runtime.on_rollout = self._progress.rollout_ended
        self._steering.collector = collector = self._new_collector()
        self._memory.restore(collector, self._session.joined.starting_step)
        self._progress.started(self.env.runtime.backend.stats)
        requests.on_stop = lambda: self._stop(collector)
        async with LagMonitor() as lag:
            try:
                async with collector:
                    self._steering.apply()
                    async for collected in collector:
                        await self._keep(collected)
            finally:
                self._progress.ended(loop_lag_p99_s=lag.p99_s)
        steering = self._steering
        logger.info("collection has ended at step %d of %d", steering.step, steering.total_steps)
        await self._wind_up()

    def _stop(self, collector: Collector) -> None:
        """What the first signal does."""
        collector.stop(STOP_GRACE_S)
        self._lifting = asyncio.create_task(self._outbox.lift_bound())

    async def _wind_up(self) -> None:
        """After the last group: send what can be sent, keep the state."""
        try:
            async with asyncio.timeout(SEND_GRACE_S):
                await self._outbox.drained()
        except TimeoutError:
            logger.warning(
                "%d groups are not sent; they are kept in %s, and sent by the next `serve` in that run directory",
                self._outbox.pending,
                self._spool.folder,
            )
        if self._heard.is_set():
            await self._memory.save(self._steering.step)
        try:
            async with asyncio.timeout(REPORT_GRACE_S):
                await self._reports.report()
        except TimeoutError:
            logger.warning("the last metrics are not reported: wandb_log takes too long")

    def _new_collector(self) -> Collector:
        config = self.env.config
        settings = CollectorSettings(
            workers=0,  # until the server has said how things stand
            worker_timeout_s=config.worker_timeout if config.worker_timeout > 0 else None,
            ends_with_dataset=False,
            keep_records=config.data_path_to_save_groups is not None,
            first_index=self._directory.groups_found,
            one_row_each=True,
            last=True,
        )
        filters = serve_filters(config, lambda: self._session.info)
        collector = Collector(self.env, settings, progress=self._progress, filters=filters)
        collector.on_attempt = self._reports.measured.group_ended
        collector.admits = self._steering.admits
        return collector

    # ------------------------------------------------------------------------------------------ groups

    async def _keep(self, collected: CollectedGroup) -> None:
        """A finished group is on disk when this returns."""
        self._steering.took(1)
        self._reports.measured.group_collected(collected.group)
        self._storing = asyncio.create_task(self._store(collected))
        if await asyncio.shield(self._storing):
            if collected.record is not None:
                casts = group_casts(collected.index, collected.context.members)
                await self._directory.append(collected.record, casts)
            self._progress.group_done(collected.group["scores"])
        self._steering.took(0)

    async def _store(self, collected: CollectedGroup) -> bool:
        """Whether the group could be kept for the trainer."""
        version = collected.policy_version
        try:
            await self._outbox.put(
                {**collected.group, "group_id": collected.group_id, "policy_version": version}
            )
        except GroupError as error:
            self._drop(f"no trainer could read it: {error}")
            self._progress.group_failed(f"no trainer could read it: {error}", dropped=True)
            return False
        return True

    async def _store_the_rest(self) -> None:
        """What was finished and not stored when the end came at once."""
        collector = self._steering.collector
        if collector is None:
            return
        await self._outbox.lift_bound()
        try:
            if self._storing is not None:
                await self._storing
            while collector.untaken and (collected := await collector.take()) is not None:
                await self._store(collected)
        except RunDirectoryError as error:
            logger.error("finished groups are lost: %s", error)  # noqa: TRY400 - no trace is of use

    async def _send_groups(self) -> None:
        await self._heard.wait()
        if self._spool.pending and self._memory.served_another(self._session.server_id):
            self._drop("left over from another training", self._spool.pending)
            await self._spool.done(self._spool.pending)
        await self._memory.heard(self._session.server_id)
        await self._outbox.run()

    async def _send(self, groups: Sequence[WireGroup]) -> None:
        limit, step = self.env.config.staleness, self._steering.step
        fresh = [group for group in groups if limit.usable(group.policy_version, step)]
        if fresh:
            await self._session.send(fresh)
            self._reports.sent(len(fresh))
        self._steering.sent += len(fresh)
        if len(fresh) < len(groups):
            self._drop("too old for the trainer when sent (staleness)", len(groups) - len(fresh))

    def _on_refused(self, reason: str) -> None:
        self._drop(f"the server refused it: {reason}")

    def _rejected(self) -> int:
        after = sum(self._dropped.values())
        collector = self._steering.collector
        return after + (collector.dropped if collector is not None else 0)

    def _drop(self, reason: str, groups: int = 1) -> None:
        self._dropped[reason] += groups
        logger.warning("%d groups dropped: %s", groups, reason)

    # ------------------------------------------------------------------------------------------ looking

    async def _on_rejoin(self) -> None:
        self._steering.fit()
        if (
            self._heard.is_set()
        ):  # else what an earlier process left is still to be judged by whom it served
            await self._memory.heard(self._session.server_id)

    async def _on_status(self, status: EnvStatus) -> None:
        started = time.monotonic()
        old = self._steering.step
        self._steering.heard(status)
        self._heard.set()
        collector = self._steering.collector
        if collector is None:
            return
        if status.current_step != old:
            await self._on_step(old, status.current_step)
        measured = self._reports.measured
        measured.looks_s.append(time.monotonic() - started)
        measured.workers_added.append(collector.started - self._started_before)
        self._started_before = collector.started
        self._show(status)

    async def _on_step(self, old: int, new: int) -> None:
        if crossed(old, new, self.env.config.steps_per_eval):
            self._evaluations.begin(new)
            self._steering.apply()
        every = self._session.joined.checkpoint_interval
        if crossed(old, new, every):
            await self._memory.save(new - new % every)
        if self._reports.due:
            self._reports.begin()

    def _on_evaluated(self, metrics: Mapping[str, Any], step: int) -> None:
        self._reports.evaluated(metrics, step)
        self._steering.apply()

    def _show(self, status: EnvStatus) -> None:
        away_s = self._session.away_s
        self._progress.noted(
            {
                "training step": f"{status.current_step}/{self._steering.total_steps}",
                "groups sent": f"{self._steering.sent}",
                "waiting there": f"{status.queue_size}",
                "waiting here": f"{self._outbox.pending}",
                "policy": "paused" if status.paused else f"{status.env_weight:.0%} ours",
                "server": "there" if away_s is None else f"away for {away_s:.0f} s",
            }
        )
