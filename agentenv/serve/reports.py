"""When metrics are reported, under which names, and to whom."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any

from agentenv.errors import ApiError
from agentenv.policy.router import PolicyRouter
from agentenv.rollout import finish
from agentenv.serve.metrics import Measurements, numbers_of, server_metrics
from agentenv.serve.wandb_metrics import WandbMetrics
from agentenv.stopping import failing_when_cancelled_inside, settled

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from agentenv.api.client import EnvRegistered, TrainerInfo
    from agentenv.env import AgentEnv
    from agentenv.serve.link import Link
    from agentenv.serve.metrics import MetricsSink

logger = logging.getLogger(__name__)

_HOOK_DEADLINE_S = 60.0
_WANDB_INFO_S = 30.0


class Reports:
    """One run's. `report` asks the environment's `wandb_log`, which adds its own metrics to ours."""

    def __init__(self, env: AgentEnv[Any], sinks: list[MetricsSink]) -> None:
        self.measured = Measurements()
        self.last: dict[str, float] = {}
        """The last report."""
        self.rejected: Callable[[], int] = lambda: 0
        """How many groups were dropped since the beginning, for any reason."""
        self._env = env
        self._sinks = sinks
        self._prefix = ""
        self._max_token_len = -1
        self._sent_in_step = 0
        self._reporting: asyncio.Task[None] | None = None
        env.runtime.on_metrics = self._log

    @property
    def due(self) -> bool:
        """Whether enough was sent since the last report."""
        enough: int = self._env.config.min_items_sent_before_logging
        return self._sent_in_step >= enough

    def sent(self, groups: int) -> None:
        """The server took groups."""
        self.measured.sent += groups
        self._sent_in_step += groups

    async def joined(self, joined: EnvRegistered, info: TrainerInfo, link: Link) -> None:
        """The server gave a name, which goes before every metric of ours."""
        self._prefix = f"{joined.wandb_name}_"
        self._max_token_len = info.max_token_len
        if self._env.config.use_wandb:
            group, project = await _wandb_info(link)
            config = self._env.config.model_dump(mode="json")
            self._sinks.append(
                WandbMetrics(name=joined.wandb_name, project=project, group=group, config=config)
            )

    def begin(self) -> asyncio.Task[None]:
        """Report what was measured since the last time, and do not wait for it: the environment's `wandb_log` may take
        long. Begins none while a report is under way.
        """
        if self._reporting is None or self._reporting.done():
            self._reporting = asyncio.create_task(self._report(), name="report")
        return self._reporting

    async def report(self) -> None:
        """Report, after what is under way, and wait until that is done."""
        if self._reporting is not None:
            await settled(self._reporting)
        await settled(self.begin())

    async def _report(self) -> None:
        """What the environment's own code raises is logged."""
        self._sent_in_step = 0
        try:
            async with asyncio.timeout(_HOOK_DEADLINE_S):
                with failing_when_cancelled_inside("wandb_log"):
                    await self._env.wandb_log({})
        except Exception:  # the environment's own code may raise anything
            logger.exception("wandb_log failed")

    def evaluated(self, metrics: Mapping[str, Any], step: int) -> None:
        """Report what an evaluation gave."""
        numbers = numbers_of(metrics)
        if numbers:
            self._tell({f"{self._prefix}{name}": numbers[name] for name in numbers}, step)

    async def close(self) -> None:
        """Have everything written; a report that is under way is given up."""
        if self._reporting is not None:
            self._reporting.cancel()
            await finish(settled(self._reporting))
        for sink in self._sinks:
            await sink.close()

    def _log(self, metrics: Mapping[str, Any]) -> None:
        own = self.measured.report(self._max_token_len)
        own["train/items_rejected"] = self.rejected()
        own |= numbers_of(metrics)
        named = {f"{self._prefix}{name}": value for name, value in own.items()}
        policy = self._env.runtime.policy
        if isinstance(policy, PolicyRouter):
            named |= server_metrics(policy.stats())
        self.last = named
        self._tell(named, self._env.curr_step)

    def _tell(self, metrics: Mapping[str, float], step: int) -> None:
        for sink in self._sinks:
            sink.log(metrics, step=step)


async def _wandb_info(link: Link) -> tuple[str | None, str | None]:
    """The trainer's group and project; (None, None), with a warning, when they cannot be had in time."""
    try:
        async with asyncio.timeout(_WANDB_INFO_S):
            return await link.wandb_info()
    except (ApiError, TimeoutError) as error:
        logger.warning("the trainer's wandb group and project cannot be had: %r", error)
        return None, None
