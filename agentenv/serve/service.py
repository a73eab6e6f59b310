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
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from agentenv.api.client import EnvRegistration
from agentenv.api.group import GroupError
from agentenv.collected import CollectorSettings
from agentenv.collector import Collector
from agentenv.control.filters import GroupFilters, TooLong, equal_scores, load_filter
from agentenv.control.staleness import Supply
from agentenv.errors import ConfigError
from agentenv.lag import LagMonitor
from agentenv.records import group_casts
from agentenv.rollout import finish
from agentenv.run.progress import QuietProgress
from agentenv.serve.evaluation import Evaluations
from agentenv.serve.memory import Memory
from agentenv.serve.metrics import JsonlMetrics
from agentenv.serve.offpolicy import OffPolicyLimit, Queue, crossed
from agentenv.serve.outbox import Outbox
from agentenv.serve.reports import Reports
from agentenv.serve.session import TrainerSession
from agentenv.serve.spool import Spool
from agentenv.serve.wandb_metrics import require_wandb
from agentenv.stopping import StopRequests, side_by_side

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from agentenv.api.client import EnvStatus
    from agentenv.api.group import WireGroup
    from agentenv.collected import CollectedGroup
    from agentenv.control.filters import GroupFilter
    from agentenv.control.staleness import StalenessLimit
    from agentenv.env import AgentEnv
    from agentenv.run.directory import RunDirectory
    from agentenv.run.progress import Progress
    from agentenv.serve.link import Link
    from agentenv.types import ScoredDataGroup

logger = logging.getLogger(__name__)

STOP_GRACE_S = 5.0
"""After the first Ctrl-C, how long groups under way may go on, and then how long groups on disk are still sent."""
SPOOL_FOLDER = "spool"
_MB = 1_000_000


async def serve(
    env: AgentEnv[Any],
    link: Link,
    directory: RunDirectory,
    *,
    progress: Progress | None = None,
    handle_signals: bool = True,
    poll_s: float = 0.25,
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


@dataclass(frozen=True, slots=True)
class _RightSize:
    """Drops groups with another number of rows than the trainer expects of this environment."""

    group_size: int

    def __call__(self, group: ScoredDataGroup, /) -> str | None:
        overrides = group.get("group_overrides") or {}
        rows = len(group["tokens"])
        if rows == overrides.get("group_size", self.group_size):
            return None
        return "the group has another size than group_size, and no group_overrides that say so"


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
        self._evaluations = Evaluations(env, self._on_evaluated)
        self._collector: Collector | None = None
        self._limit = OffPolicyLimit(-1, config.group_size, config.max_batches_offpolicy)
        self._total_steps = config.total_steps
        self._status: EnvStatus | None = None
        self._heard = asyncio.Event()
        self._lifting: asyncio.Task[None] | None = None
        self._session.on_look = self._look
        self._session.on_rejoin = self._fit
        self._sent = self._sent_at_look = self._sent_in_status = self._in_hand = 0
        self._started_before = 0
        self._dropped: Counter[str] = Counter()

    # ------------------------------------------------------------------------------------------ lifecycle

    async def run(self, requests: StopRequests) -> None:
        """Everything up to the shut-down."""
        self.env.runtime.require_tokens()
        await self._session.join()
        self._fit()
        await self._memory.joined(self._session.joined)
        await self._reports.joined(self._session.joined, self._session.info, self._link)
        await side_by_side(
            self._work(requests), self._session.follow(self._on_status), self._send_groups()
        )

    async def close(self) -> None:
        """Tear everything down, say goodbye. What is on disk stays there."""
        try:
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
            "groups_sent": self._sent,
            "groups_kept_on_disk": self._spool.pending,
            "dropped_after_collection": dict(self._dropped),
            "step": self._status.current_step if self._status else None,
            "joined_again": self._session.rejoined,
            "evaluations": {
                "done": self._evaluations.done,
                "failed": self._evaluations.failed,
                "skipped": self._evaluations.skipped,
            },
            "checkpoints": {"saved": self._memory.saved, "failed": self._memory.failed},
            "metrics": self._reports.last,
        }

    def _fit(self) -> None:
        """Raise `ConfigError` where this environment cannot feed this trainer."""
        config, info = self.env.config, self._session.info
        if 0 < info.batch_size < config.group_size:
            raise ConfigError(
                f"env.group_size={config.group_size} is over the trainer's batch_size={info.batch_size}: no group "
                f"would fit a batch"
            )
        chosen = config.total_steps
        self._total_steps = chosen if chosen >= 0 else self._session.joined.num_steps
        if self._total_steps < 0:
            raise ConfigError(
                "env.total_steps=-1 leaves the number of steps to the trainer, which registered none; set it"
            )
        self._limit = OffPolicyLimit(
            info.batch_size,
            config.group_size,
            config.max_batches_offpolicy,
            config.min_batch_allocation,
        )

    async def _work(self, requests: StopRequests) -> None:
        await self.env.setup()
        self.env.runtime.on_rollout = self._progress.rollout_ended
        self._collector = collector = self._new_collector()
        self._memory.restore(collector, self._session.joined.starting_step)
        self._progress.started(self.env.runtime.backend.stats)
        requests.on_stop = self._stop
        async with LagMonitor() as lag:
            try:
                async with collector:
                    self._apply()
                    async for collected in collector:
                        await self._keep(collected)
            finally:
                self._progress.ended(loop_lag_p99_s=lag.p99_s)
        logger.info("collection has ended at step %d of %d", self._step, self._total_steps)
        await self._wind_up()

    def _stop(self) -> None:
        """What the first signal does."""
        assert self._collector is not None, "set before this is"
        self._collector.stop(STOP_GRACE_S)
        self._lifting = asyncio.create_task(self._outbox.lift_bound())

    async def _wind_up(self) -> None:
        """After the last group: send what can be sent, keep the state."""
        try:
            async with asyncio.timeout(STOP_GRACE_S):
                await self._outbox.drained()
        except TimeoutError:
            logger.warning(
                "%d groups are not sent; they are kept in %s, and sent by the next `serve` in that run directory",
                self._outbox.pending,
                self._spool.folder,
            )
        if self._status is not None:
            await self._memory.save(self._status.current_step)
        await self._reports.report()

    def _new_collector(self) -> Collector:
        config = self.env.config
        settings = CollectorSettings(
            workers=0,  # until the server has said how things stand
            worker_timeout_s=config.worker_timeout if config.worker_timeout > 0 else None,
            ends_with_dataset=False,
            keep_records=config.data_path_to_save_groups is not None,
            first_index=self._directory.groups_found,
        )
        rules: list[GroupFilter] = [_RightSize(config.group_size)]
        if config.ensure_scores_are_not_same:
            rules.append(equal_scores)
        rules.append(self._too_long)
        rules += [load_filter(path) for path in config.group_filters]
        filters = GroupFilters(rules)
        collector = Collector(self.env, settings, progress=self._progress, filters=filters)
        collector.on_attempt = self._reports.measured.group_ended
        collector.admits = self._admits
        return collector

    def _too_long(self, group: ScoredDataGroup, /) -> str | None:
        return TooLong(self._session.info.max_token_len)(group)  # a later trainer's may differ

    # ------------------------------------------------------------------------------------------ groups

    async def _keep(self, collected: CollectedGroup) -> None:
        """A finished group is on disk when this returns."""
        self._in_hand = 1
        self._apply()
        self._reports.measured.group_collected(collected.group)
        try:
            await self._outbox.put(
                {
                    **collected.group,
                    "group_id": collected.group_id,
                    "policy_version": collected.policy_version,
                }
            )
        except GroupError as error:
            self._drop(f"no trainer could read it: {error}")
            self._progress.group_failed(f"no trainer could read it: {error}", dropped=True)
        else:
            if collected.record is not None:
                casts = group_casts(collected.index, collected.context.members)
                await self._directory.append(collected.record, casts)
            self._progress.group_done(collected.group["scores"])
        self._in_hand = 0
        self._apply()

    async def _send_groups(self) -> None:
        await self._heard.wait()
        if self._spool.pending and self._memory.served_another(self._session.server_id):
            self._drop("left over from another training", self._spool.pending)
            await self._spool.done(self._spool.pending)
        await self._memory.heard(self._session.server_id)
        await self._outbox.run()

    async def _send(self, groups: Sequence[WireGroup]) -> None:
        limit, step = self.env.config.staleness, self._step
        fresh = [group for group in groups if limit.usable(group.policy_version, step)]
        if fresh:
            await self._session.send(fresh)
            self._reports.sent(len(fresh))
        self._sent += len(fresh)
        if len(fresh) < len(groups):
            self._drop("too old for the trainer when sent (staleness)", len(groups) - len(fresh))

    def _on_refused(self, reason: str) -> None:
        self._drop(f"the server refused it: {reason}")

    def _rejected(self) -> int:
        after = sum(self._dropped.values())
        return after + (self._collector.dropped if self._collector is not None else 0)

    def _drop(self, reason: str, groups: int = 1) -> None:
        self._dropped[reason] += groups
        logger.warning("%d groups dropped: %s", groups, reason)

    # ------------------------------------------------------------------------------------------ steering

    @property
    def _step(self) -> int:
        return self._status.current_step if self._status else self._session.joined.starting_step

    @property
    def _unseen(self) -> int:
        """Finished groups that the last status may not count: rather one too many than one too few."""
        return self._in_hand + self._outbox.pending + self._sent - self._sent_in_status

    def _look(self) -> None:
        self._sent_at_look = self._sent

    async def _on_status(self, status: EnvStatus) -> None:
        started = time.monotonic()
        old = self._step
        self._status, self._sent_in_status = status, self._sent_at_look
        self._heard.set()
        if self._collector is None:
            return
        self._apply()
        if status.current_step != old:
            await self._on_step(old, status.current_step)
        measured = self._reports.measured
        measured.looks_s.append(time.monotonic() - started)
        measured.workers_added.append(self._collector.started - self._started_before)
        self._started_before = self._collector.started
        self._show(status)

    def _apply(self) -> None:
        """Have the collector do what the last status asks for."""
        collector, status = self._collector, self._status
        if collector is None or status is None:
            return
        self.env.curr_step = collector.policy_version = status.current_step
        self.env.runtime.weigh(status.env_weight)
        self._pause_or_resume(collector, paused=status.paused)
        if self._limit.is_finished(_queue(status), self._total_steps):
            collector.stop()
        most = self._evaluations.workers(self.env.workers)
        collector.limit = self._limit.groups(_queue(status, self._unseen), most)
        self._withdraw_stale(collector)

    def _pause_or_resume(self, collector: Collector, *, paused: bool) -> None:
        if paused:
            self.env.runtime.gate.pause()
            collector.pause()
        else:
            self.env.runtime.gate.resume()
            collector.resume()

    def _supply(self, *, finished_here: int = 0) -> Supply:
        """What stands between the policy and the trainer, as the server counts it, and `finished_here`."""
        assert self._collector is not None, "collecting"
        assert self._status is not None, "collecting"
        size = self.env.config.group_size
        return Supply(
            step=self._status.current_step,
            batch_size=self._session.info.batch_size,
            waiting=(self._status.queue_size + finished_here) * size,
            running=len(self._collector.under_way) * size,
        )

    def _admits(self) -> bool:
        limit: StalenessLimit = self.env.config.staleness
        if limit.max_steps is None or self._collector is None or self._status is None:
            return True
        versions = [group.policy_version for group in self._collector.under_way]
        oldest = min((version for version in versions if version is not None), default=None)
        supply = self._supply(finished_here=self._unseen + self._collector.untaken)
        return limit.admits(supply, oldest, self.env.config.group_size)

    def _withdraw_stale(self, collector: Collector) -> None:
        limit = self.env.config.staleness
        if limit.max_steps is None:
            return
        under_way = {group.index: group.policy_version for group in collector.under_way}
        stale = set(limit.overdue(under_way, self._supply()))
        if stale:
            collector.withdraw(
                lambda group: group.index in stale,
                "too old for the trainer while under way (staleness)",
            )

    async def _on_step(self, old: int, new: int) -> None:
        if crossed(old, new, self.env.config.steps_per_eval):
            self._evaluations.begin(new)
            self._apply()
        every = self._session.joined.checkpoint_interval
        if crossed(old, new, every):
            await self._memory.save(new - new % every)
        if self._reports.due:
            await self._reports.report()

    def _on_evaluated(self, metrics: Mapping[str, Any], step: int) -> None:
        self._reports.evaluated(metrics, step)
        self._apply()

    def _show(self, status: EnvStatus) -> None:
        away_s = self._session.away_s
        self._progress.noted(
            {
                "training step": f"{status.current_step}/{self._total_steps}",
                "groups sent": f"{self._sent}",
                "waiting there": f"{status.queue_size}",
                "waiting here": f"{self._outbox.pending}",
                "policy": "paused" if status.paused else f"{status.env_weight:.0%} ours",
                "server": "there" if away_s is None else f"away for {away_s:.0f} s",
            }
        )


def _queue(status: EnvStatus, unseen: int = 0) -> Queue:
    return Queue(
        current_step=status.current_step,
        queue_size=status.queue_size + unseen,
        self_queue_size=status.self_queue_size + unseen,
        max_group_size=max(1, status.max_group_size),
        unallocated_fraction=status.unallocated_fraction,
    )
