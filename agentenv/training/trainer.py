"""The training loop: take a batch, learn from it, hand out the new weights, write a checkpoint, acknowledge.

A batch is acknowledged after the checkpoint that holds what was learned from it. Killed before that, the trainer is
handed the batch again when it comes back; killed in between, it knows the batch by its id and acknowledges it. So with
a checkpoint at each step every batch is learned from exactly once. With fewer checkpoints, the batches since the last
one are lost with the weights they made; and a server that knows no acknowledgement hands a batch out once, whatever
becomes of it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from agentenv.errors import AgentEnvError
from agentenv.training.rows import Row, TrainingDataError, group_rows

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from agentenv.training.checkpoints import CheckpointStore
    from agentenv.training.learner import Learner, StepStats

T = TypeVar("T")

logger = logging.getLogger(__name__)


class NoBatchError(AgentEnvError, TimeoutError):
    """The trajectory server had no batch, or could not be reached, for longer than a trainer waits."""


class BatchLostError(AgentEnvError):
    """The trajectory server does not count a batch as ours any more: its lease had ended, or the server was reset."""


class HandedOut(Protocol):
    """A batch as the trajectory server hands it out."""

    @property
    def batch_id(self) -> int | None:
        """None where the server knows no acknowledgement."""
        ...

    @property
    def step(self) -> int | None:
        """The server's step it is for; None where the server does not tell."""
        ...

    @property
    def groups(self) -> Sequence[Mapping[str, Any]]:
        """Its groups, as dicts of lists or of arrays."""
        ...


class BatchSource(Protocol):
    """What the loop needs of a client of the trajectory server."""

    async def batch(self) -> HandedOut | None:
        """The next batch; the same again until it is acknowledged; None: not enough groups yet."""
        ...

    async def acknowledge(self, batch_id: int) -> None:
        """The batch was learned from and must not come again. Raises `BatchLostError`."""
        ...


@dataclass(frozen=True, slots=True)
class LoopSettings:
    """How long to train, and how patiently."""

    steps: int
    checkpoint_every: int = 1
    """Steps between two checkpoints; the last step always makes one."""
    final_rate: float = 0.1
    """Share of the learning rate that is left at the last step; it falls along a line."""
    warmup_steps: int = 0
    """Steps in which the learning rate rises along a line to where it falls from: the optimizer knows the size of
    gradients only after some of them."""
    poll_s: float = 0.2
    """Pause before a server without a batch is asked again."""
    max_wait_s: float = 600.0
    """How long the loop waits for one batch, outages of the server included."""


@dataclass(frozen=True, slots=True)
class StepReport:
    """One step, for people and for pictures."""

    step: int
    """From 1: batches learned from."""
    groups: int
    refused_groups: int
    """Groups that could not be trained on; the log says why."""
    mean_score: float
    """Over all rows of the batch."""
    oldest_version: int | None
    """The oldest weights that sampled any of it, where the groups tell."""
    wait_s: float
    """How long the trainer waited for the batch."""
    stats: StepStats


class Trainer:
    """One run of training. `publish` gives new weights and their version to whoever samples; `register` tells the
    server of us, of whom it may know already, and returns its step.

    A version is the server's step, which counts batches handed out: what the age of groups is measured by. It is our
    own step until batches are lost, as when a trainer that was killed goes back to an older checkpoint.
    """

    def __init__(
        self,
        source: BatchSource,
        learner: Learner,
        settings: LoopSettings,
        *,
        publish: Callable[[Mapping[str, Any], str], Awaitable[None]],
        checkpoints: CheckpointStore,
        retry_on: tuple[type[Exception], ...] = (),
        on_step: Callable[[StepReport], None] = lambda report: None,
        register: Callable[[], Awaitable[int | None]] | None = None,
    ) -> None:
        self._source = source
        self._learner = learner
        self._settings = settings
        self._publish = publish
        self._checkpoints = checkpoints
        self._retry_on = retry_on
        self._on_step = on_step
        self._register = register
        self._batch_id: int | None = None
        self.step = 0
        """Batches learned from."""

    async def restore(self) -> int:
        """Go back to the latest checkpoint, if there is one, and publish its weights; returns its step."""
        found = await asyncio.to_thread(self._checkpoints.latest)
        if found is not None:
            await asyncio.to_thread(self._checkpoints.restore, found, self._learner)
            self.step, self._batch_id = found.step, found.batch_id
        await self._publish(self._learner.weights(), str(self.step))
        return self.step

    async def join(self) -> None:
        """Register with the server, and catch up with it. Raises what `register` raises."""
        if self._register is not None:
            await self.catch_up(await self.persistently(self._register))

    async def catch_up(self, server_step: int | None) -> None:
        """Name the weights by the server's step where it is ahead by more than the batch that is learned from next.

        Else every group would seem to be older than it is, and a bound on staleness drop them all.
        """
        if server_step is not None and server_step > self.step + 1:
            logger.warning(
                "batches are lost: the server is at step %d, we are at %d", server_step, self.step
            )
            await self._publish(self._learner.weights(), str(server_step))

    async def run(self) -> None:
        """Train until `steps`. Raises `NoBatchError`, `CheckpointError`, and what the source or `publish` raises."""
        while self.step < self._settings.steps:
            started = time.monotonic()
            batch = await self._next_batch()
            waited = time.monotonic() - started
            if batch.batch_id is not None and batch.batch_id == self._batch_id:
                logger.info("batch %s is in the checkpoint already", batch.batch_id)
            else:
                await self._learn(batch, waited)
            if batch.batch_id is not None:
                await self._let_go(batch.batch_id)

    async def _let_go(self, batch_id: int) -> None:
        """Acknowledge. Of a batch that is ours no more, what was learned stays: at worst it is learned from twice."""
        try:
            await self.persistently(partial(self._source.acknowledge, batch_id))
        except BatchLostError as error:
            logger.warning("%s; going on with what was learned from it", error)
            await self.join()

    async def _learn(self, batch: HandedOut, waited: float) -> None:
        rows, refused = usable_rows(batch.groups)
        stats = await asyncio.to_thread(self._learner.learn, rows, rate=self._rate())
        self.step, self._batch_id = self.step + 1, batch.batch_id
        version = self.step if batch.step is None else batch.step + 1
        await self._publish(self._learner.weights(), str(version))
        self._on_step(_report(self.step, batch.groups, refused, waited, stats))
        if self.step % self._settings.checkpoint_every == 0 or self.step == self._settings.steps:
            await asyncio.to_thread(
                self._checkpoints.save, self._learner, step=self.step, batch_id=self._batch_id
            )

    def _rate(self) -> float:
        """Share of the learning rate for the next step."""
        done = self.step / max(1, self._settings.steps - 1)
        warmth = min(1.0, (self.step + 1) / max(1, self._settings.warmup_steps))
        return warmth * (1.0 - (1.0 - self._settings.final_rate) * done)

    async def _next_batch(self) -> HandedOut:
        async def ask() -> HandedOut:
            while True:
                batch = await self._source.batch()
                if batch is not None:
                    return batch
                await asyncio.sleep(self._settings.poll_s)

        return await self.persistently(ask)

    async def persistently(self, ask: Callable[[], Awaitable[T]]) -> T:
        """`ask`, again while the server is away, for `max_wait_s` in all."""
        last: Exception | None = None
        try:
            async with asyncio.timeout(self._settings.max_wait_s) as deadline:
                while True:
                    try:
                        return await ask()
                    except self._retry_on as error:
                        last = error
                        logger.warning("the trajectory server is away: %s", error)
                    await asyncio.sleep(self._settings.poll_s)
        except TimeoutError:
            if not deadline.expired():
                raise
            why = f": {last}" if last is not None else ""
            raise NoBatchError(
                f"no batch within max_wait_s={self._settings.max_wait_s:g} after step {self.step}; does an "
                f"environment run, and are its groups as large as the batch allows?{why}"
            ) from last


def usable_rows(groups: Sequence[Mapping[str, Any]]) -> tuple[list[Row], int]:
    """The rows that can be learned from, and how many groups were refused, which the log explains.

    Raises `TrainingDataError` when every group is refused: then something is wrong with all of them.
    """
    found: list[list[Row]] = []
    refusals: list[TrainingDataError] = []
    for group in groups:
        try:
            found.append(group_rows(group))
        except TrainingDataError as error:
            logger.warning("a group cannot be trained on: %s", error)
            refusals.append(error)
    if refusals and not found:
        raise refusals[0]
    return list(chain.from_iterable(found)), len(refusals)


def _report(
    step: int, groups: Sequence[Mapping[str, Any]], refused: int, waited: float, stats: StepStats
) -> StepReport:
    scores = [float(score) for group in groups for score in group["scores"]]
    versions = [
        int(version) for group in groups if (version := group.get("policy_version")) is not None
    ]
    return StepReport(
        step=step,
        groups=len(groups),
        refused_groups=refused,
        mean_score=sum(scores) / max(1, len(scores)),
        oldest_version=min(versions, default=None),
        wait_s=waited,
        stats=stats,
    )
