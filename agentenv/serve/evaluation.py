"""Evaluating now and then while collection goes on."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any

from agentenv.config import EvalHandling
from agentenv.rollout import finish
from agentenv.stopping import failing_when_cancelled_inside, settled

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from agentenv.env import AgentEnv

logger = logging.getLogger(__name__)


class Evaluations:
    """At most one evaluation at a time. What it raises is logged and counted, and ends nothing else."""

    def __init__(
        self, env: AgentEnv[Any], on_metrics: Callable[[Mapping[str, Any], int], None]
    ) -> None:
        """`on_metrics` is told what `evaluate` returned, and the step it was begun at; also when it has ended badly,
        with nothing.
        """
        self._env = env
        self._on_metrics = on_metrics
        self._task: asyncio.Task[None] | None = None
        self.done = 0
        self.failed = 0
        self.skipped = 0
        """Times one was due while another was running."""

    @property
    def running(self) -> bool:
        """Whether one is under way."""
        return self._task is not None and not self._task.done()

    def workers(self, most: int) -> int:
        """How many groups may be under way meanwhile, of `most`."""
        config = self._env.config
        if not self.running or config.eval_handling is EvalHandling.NONE:
            return most
        if config.eval_handling is EvalHandling.STOP_TRAIN:
            return 0
        return int(most * config.eval_limit_ratio)

    def begin(self, step: int) -> None:
        """Evaluate, unless that is being done already."""
        if self.running:
            self.skipped += 1
            return
        self._task = asyncio.create_task(self._evaluate(step), name="evaluation")

    async def close(self) -> None:
        """End what is under way."""
        if self._task is not None:
            self._task.cancel()
            await finish(settled(self._task))

    async def _evaluate(self, step: int) -> None:
        timeout_s = self._env.config.eval_timeout_s
        metrics: Mapping[str, Any] = {}
        try:
            async with asyncio.timeout(timeout_s):
                with failing_when_cancelled_inside("evaluate"):
                    metrics = await self._env.evaluate() or {}
            self.done += 1
        except Exception:  # the environment's own code may raise anything
            self.failed += 1
            logger.exception(
                "the evaluation at step %d failed (eval_timeout_s=%g)", step, timeout_s
            )
        self._task = None
        self._on_metrics(metrics, step)
