"""What the server's last status means for collection: how much may be under way, how old it may be, when to wait."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from agentenv.control.staleness import Supply
from agentenv.errors import ConfigError
from agentenv.serve.offpolicy import OffPolicyLimit, Queue

if TYPE_CHECKING:
    from agentenv.api.client import EnvStatus
    from agentenv.collector import Collector
    from agentenv.control.staleness import StalenessLimit
    from agentenv.env import AgentEnv
    from agentenv.serve.evaluation import Evaluations
    from agentenv.serve.outbox import Outbox
    from agentenv.serve.session import TrainerSession


class Steering:
    """Steers one collector by what one session hears. Does nothing while either is missing."""

    def __init__(
        self,
        env: AgentEnv[Any],
        session: TrainerSession,
        outbox: Outbox,
        evaluations: Evaluations,
    ) -> None:
        config = env.config
        self.collector: Collector | None = None
        self.total_steps: int = config.total_steps
        """Training steps to take part in, once `fit` was called."""
        self.sent = 0
        """Groups the server took so far."""
        self._env = env
        self._session = session
        self._outbox = outbox
        self._evaluations = evaluations
        self._limit = OffPolicyLimit(-1, config.group_size, config.max_batches_offpolicy)
        self._status: EnvStatus | None = None
        self._sent_at_look = self._sent_in_status = self._in_hand = 0

    @property
    def step(self) -> int:
        """The trainer's step, as far as it is known."""
        return self._status.current_step if self._status else self._session.joined.starting_step

    def fit(self) -> None:
        """Take over what the trainer registered. Raises `ConfigError` where this environment cannot feed it."""
        config, info = self._env.config, self._session.info
        if 0 < info.batch_size < config.group_size:
            raise ConfigError(
                f"env.group_size={config.group_size} is over the trainer's batch_size={info.batch_size}: no group "
                f"would fit a batch"
            )
        chosen = config.total_steps
        self.total_steps = chosen if chosen >= 0 else self._session.joined.num_steps
        if self.total_steps < 0:
            raise ConfigError(
                "env.total_steps=-1 leaves the number of steps to the trainer, which registered none; set it"
            )
        self._limit = OffPolicyLimit(
            info.batch_size,
            config.group_size,
            config.max_batches_offpolicy,
            config.min_batch_allocation,
        )

    def look(self) -> None:
        """The server is about to be asked: what was sent before this, its answer counts."""
        self._sent_at_look = self.sent

    def heard(self, status: EnvStatus) -> None:
        """Take in how things stand, and act on it."""
        self._status, self._sent_in_status = status, self._sent_at_look
        self.apply()

    def took(self, groups: int) -> None:
        """So many groups were taken from the collector and are not in the outbox yet."""
        self._in_hand = groups
        self.apply()

    def apply(self) -> None:
        """Have the collector do what the last status asks for."""
        collector, status = self.collector, self._status
        if collector is None or status is None:
            return
        self._env.curr_step = collector.policy_version = status.current_step
        self._env.runtime.weigh(status.env_weight)
        self._pause_or_resume(collector, paused=status.paused)
        if self._limit.is_finished(_queue(status), self.total_steps):
            collector.stop()
        most = self._evaluations.workers(self._env.workers)
        collector.limit = self._limit.groups(_queue(status, self._unseen), most)
        self._withdraw_stale(collector, status)
        collector.reconsider()

    def admits(self) -> bool:
        """Whether one more group may start without any becoming too old for the trainer."""
        limit: StalenessLimit = self._env.config.staleness
        collector, status = self.collector, self._status
        if limit.max_steps is None or collector is None or status is None:
            return True
        versions = [group.policy_version for group in collector.under_way]
        oldest = min((version for version in versions if version is not None), default=None)
        supply = self._supply(collector, status, self._unseen + collector.untaken)
        return limit.admits(supply, oldest, self._env.config.group_size)

    @property
    def _unseen(self) -> int:
        """Finished groups that the last status may not count: rather one too many than one too few."""
        return self._in_hand + self._outbox.pending + self.sent - self._sent_in_status

    def _pause_or_resume(self, collector: Collector, *, paused: bool) -> None:
        if paused:
            self._env.runtime.gate.pause()
            collector.pause()
        else:
            self._env.runtime.gate.resume()
            collector.resume()

    def _withdraw_stale(self, collector: Collector, status: EnvStatus) -> None:
        limit = self._env.config.staleness
        if limit.max_steps is None:
            return
        under_way = {group.index: group.policy_version for group in collector.under_way}
        stale = set(limit.overdue(under_way, self._supply(collector, status, 0)))
        if stale:
            collector.withdraw(
                lambda group: group.index in stale,
                "too old for the trainer while under way (staleness)",
            )

    def _supply(self, collector: Collector, status: EnvStatus, finished_here: int) -> Supply:
        """What stands between the policy and the trainer, as the server counts it, and `finished_here`."""
        size = self._env.config.group_size
        return Supply(
            step=status.current_step,
            batch_size=self._session.info.batch_size,
            waiting=(status.queue_size + finished_here) * size,
            running=len(collector.under_way) * size,
        )


def _queue(status: EnvStatus, unseen: int = 0) -> Queue:
    return Queue(
        current_step=status.current_step,
        queue_size=status.queue_size + unseen,
        self_queue_size=status.self_queue_size + unseen,
        max_group_size=max(1, status.max_group_size),
        unallocated_fraction=status.unallocated_fraction,
    )
