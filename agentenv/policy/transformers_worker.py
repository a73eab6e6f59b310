"""The thread that owns the model of an in-process policy: it takes jobs from event loops and
settles them.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from agentenv.errors import PolicyError
from agentenv.policy.base import Completion
from agentenv.policy.transformers_batch import Row, RunningBatch

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Mapping, Sequence

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class BatchStats:
    """What the worker has done so far, and what it holds."""

    steps: int
    """Forward passes that sampled, prompts apart."""
    tokens: int
    """Tokens sampled by the rows that ended."""
    in_use: int
    """Rows in the batch."""
    waiting: int
    """Requests not yet in it."""


@dataclass(slots=True, eq=False)
class Job:
    """Something the worker does for a coroutine, which waits for `answer`."""

    loop: asyncio.AbstractEventLoop
    answer: asyncio.Future[Any]

    def settle(self, result: Any = None, error: Exception | None = None) -> None:
        """Hand the outcome to the loop, from the worker's thread."""
        try:
            self.loop.call_soon_threadsafe(self._set, result, error)
        except RuntimeError:  # the loop is closed: whoever waited is gone
            logger.debug("an outcome found its event loop closed")

    def _set(self, result: Any, error: Exception | None) -> None:
        if self.answer.done():
            return
        if error is None:
            self.answer.set_result(result)
        else:
            self.answer.set_exception(error)


@dataclass(slots=True, eq=False)
class Generation(Job):
    """One completion to sample."""

    row: Row


@dataclass(slots=True, eq=False)
class WeightUpdate(Job):
    """Weights to take, once the batch is empty."""

    weights: Mapping[str, Any] | Path
    version: str


class BatchWorker:
    """The thread that owns the model."""

    def __init__(
        self, model: Any, max_batch_size: int, torch_threads: int, version: str | None
    ) -> None:
        self._model = model
        self._max_batch_size = max_batch_size
        self._torch_threads = torch_threads
        self._version = version
        self._batch = RunningBatch(model)
        self._jobs: dict[Row, Generation] = {}
        self._inbox: deque[Generation] = deque()
        self._updates: deque[WeightUpdate] = deque()
        self._changed = threading.Condition()
        self._stopping = False
        self._steps = self._tokens = 0
        self._thread = threading.Thread(target=self._run, name="agentenv-policy", daemon=True)

    def start(self) -> None:
        """Begin to work."""
        self._thread.start()

    def submit(self, job: Generation | WeightUpdate) -> None:
        """Take a job on. From any thread."""
        with self._changed:
            if self._stopping:
                raise PolicyError("the policy is closed")
            if isinstance(job, WeightUpdate):
                self._updates.append(job)
            else:
                self._inbox.append(job)
            self._changed.notify()

    def stop(self) -> None:
        """End the thread and wait for it. What was not finished fails."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        self._thread.join()

    @property
    def version(self) -> str | None:
        """The name of the weights in the model."""
        return self._version

    def stats(self) -> BatchStats:
        """Counters and gauges now."""
        return BatchStats(self._steps, self._tokens, len(self._batch.rows), len(self._inbox))

    def _run(self) -> None:
        torch.set_num_threads(self._torch_threads)  # of this thread's operations
        while self._await_work():
            try:
                if self._updates and not self._batch.rows:
                    self._update(self._updates.popleft())
                else:
                    with torch.inference_mode():
                        self._advance()
            except Exception as error:
                logger.debug("a step failed", exc_info=True)
                self._fail(self._batch.clear(), PolicyError(f"the model failed: {error!r}"))
        self._abandon()

    def _await_work(self) -> bool:
        with self._changed:
            while not (self._stopping or self._inbox or self._updates or self._batch.rows):
                self._changed.wait()
            return not self._stopping

    def _advance(self) -> None:
        admitted = self._admissible()
        self._jobs |= {job.row: job for job in admitted}
        try:
            self._batch.admit([job.row for job in admitted])
        except Exception:
            # Those whose prompt was not read are not in the batch, so its failure would not reach
            # them.
            outside = [job.row for job in admitted if job.row not in self._batch.rows]
            self._fail(outside, PolicyError("the model failed while it read the prompt"))
            raise
        self._deliver(self._batch.leave())
        if self._batch.rows:
            self._batch.step()
            self._steps += 1
            self._deliver(self._batch.leave())

    def _admissible(self) -> list[Generation]:
        """The requests that join now. None while an update waits for the batch to run empty."""
        if self._updates:
            return []
        admitted: list[Generation] = []
        with self._changed:
            while self._inbox and len(self._batch.rows) + len(admitted) < self._max_batch_size:
                job = self._inbox.popleft()
                if not job.row.cancelled:
                    admitted.append(job)
        return admitted

    def _deliver(self, rows: Sequence[Row]) -> None:
        for row in rows:
            job = self._jobs.pop(row)
            self._tokens += len(row.ids)
            if row.error is not None:
                job.settle(error=row.error)
            elif row.finish_reason is not None:
                ids, logprobs = tuple(row.ids), tuple(row.logprobs)
                job.settle(Completion(ids, logprobs, row.finish_reason, self._version))

    def _update(self, job: WeightUpdate) -> None:
        try:
            _replace_weights(self._model, job.weights)
        except (OSError, ValueError, RuntimeError) as error:
            job.settle(error=PolicyError(f"the weights {job.version!r} were not taken: {error}"))
            return
        self._version = job.version
        job.settle()

    def _fail(self, rows: Sequence[Row], error: PolicyError) -> None:
        for row in rows:
            self._jobs.pop(row).settle(error=error)

    def _abandon(self) -> None:
        error = PolicyError("the policy was closed")
        self._fail(self._batch.clear(), error)
        for job in (*self._inbox, *self._updates):
            job.settle(error=error)


def _replace_weights(model: Any, weights: Mapping[str, Any] | Path) -> None:
    """Copy the weights in, all or none. A tied parameter may be left out."""
    given = _read_weights(weights) if isinstance(weights, Path) else weights
    own = model.state_dict()
    unknown = sorted(given.keys() - own.keys())
    covered = {own[name].data_ptr() for name in given.keys() & own.keys()}
    missing = [name for name in own if name not in given and own[name].data_ptr() not in covered]
    if unknown or missing:
        raise ValueError(f"unknown: {unknown[:5]}, missing: {missing[:5]}")
    for name, tensor in given.items():
        if tensor.shape != own[name].shape:
            raise ValueError(
                f"{name} has shape {tuple(tensor.shape)}, not {tuple(own[name].shape)}"
            )
    with torch.no_grad():
        for name, tensor in given.items():
            own[name].copy_(tensor)


def _read_weights(path: Path) -> dict[str, Any]:
    from safetensors.torch import load_file  # noqa: PLC0415 - only where weights come as a file

    files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
    if not files:
        raise ValueError(f"{path} holds no .safetensors file")
    return {name: tensor for file in files for name, tensor in load_file(file).items()}
