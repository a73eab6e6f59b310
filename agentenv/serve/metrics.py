"""What `serve` measures, under the names users of Atropos know, and where it goes.

Every name is prefixed with the environment's name at the server and `_`, but for those of the inference servers.

    train/completion_lengths, _std, _max, _min     sampled tokens a row; `_p95` is the share of rows whose sampled
                                                   tokens exceed 95 % of the trainer's max_token_len
    train_perf/task_duration_mean, _std, _max, _min, and the same for succeeded_task_duration, failed_task_duration
                                                   seconds a group took
    train_perf/mainloop_timings_*                  seconds that one look at the server's status took to act on
    train_perf/workers_added_per_attempt_*         groups started between two looks
    train/items_sent_to_api, train/items_rejected  groups since the beginning: stored by the server; dropped, for any
                                                   reason
    server/server_<i>_request_time_avg, _std, _99p, and server/server_<i>_eval_request_time_*
                                                   seconds of inference server i's last attempts that succeeded
    server/server_<i>_average_num_attempts         attempts for each that succeeded, evaluation included
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
import statistics
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from agentenv.tokens.base import IGNORE_TOKEN

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from pathlib import Path

    from agentenv.policy.server import ServerStats
    from agentenv.types import ScoredDataGroup

logger = logging.getLogger(__name__)

METRICS_FILE = "metrics.jsonl"
CLOSE_DEADLINE_S = 30.0


class MetricsSink(Protocol):
    """Where metrics go."""

    def log(self, metrics: Mapping[str, float], *, step: int) -> None:
        """Take the metrics of one training step. Called on the event loop; returns at once, and never raises."""
        ...

    async def close(self) -> None:
        """Have everything written. Bounded in time; never raises. Idempotent."""
        ...


@dataclass(slots=True)
class Measurements:
    """What is measured between two reports."""

    lengths: list[int] = field(default_factory=list)
    durations: dict[str, list[float]] = field(
        default_factory=lambda: {"succeeded_task_duration": [], "failed_task_duration": []}
    )
    looks_s: list[float] = field(default_factory=list)
    workers_added: list[float] = field(default_factory=list)
    sent: int = 0
    """Groups the server took, since the beginning."""

    def group_ended(self, seconds: float, succeeded: bool) -> None:
        """Count one attempt at a group."""
        name = "succeeded_task_duration" if succeeded else "failed_task_duration"
        self.durations[name].append(seconds)

    def group_collected(self, group: ScoredDataGroup) -> None:
        """Count the sampled tokens of a group's rows."""
        self.lengths += [len(mask) - mask.count(IGNORE_TOKEN) for mask in group["masks"]]

    def report(self, max_token_len: int) -> dict[str, float]:
        """Everything since the last report; the total stays."""
        metrics: dict[str, float] = {"train/items_sent_to_api": self.sent}
        if self.lengths:
            spread = _spread(self.lengths)
            metrics["train/completion_lengths"] = spread.pop("mean")
            metrics |= {f"train/completion_lengths_{name}": spread[name] for name in spread}
            long = sum(length > 0.95 * max_token_len for length in self.lengths)
            metrics["train/completion_lengths_p95"] = long / len(self.lengths)
        every = [seconds for durations in self.durations.values() for seconds in durations]
        timed: dict[str, list[float]] = {"task_duration": every, **self.durations}
        timed |= {"mainloop_timings": self.looks_s, "workers_added_per_attempt": self.workers_added}
        for name, values in timed.items():
            if values:
                metrics |= {f"train_perf/{name}_{key}": v for key, v in _spread(values).items()}
        self.lengths.clear()
        for values in (self.looks_s, self.workers_added, *self.durations.values()):
            values.clear()
        return metrics


def _spread(values: Sequence[float]) -> dict[str, float]:
    return {
        "mean": statistics.fmean(values),
        "std": statistics.pstdev(values),
        "max": max(values),
        "min": min(values),
    }


def server_metrics(stats: Iterable[ServerStats]) -> dict[str, float]:
    """The metrics of inference servers: request times of late, attempts since the start."""
    metrics: dict[str, float] = {}
    for number, server in enumerate(stats):
        name = f"server/server_{number}"
        for split, prefix in (("train", name), ("eval", f"{name}_eval")):
            seconds = sorted(server.recent.get(split, ()))
            if seconds:
                metrics[f"{prefix}_request_time_avg"] = statistics.fmean(seconds)
                metrics[f"{prefix}_request_time_std"] = statistics.pstdev(seconds)
                metrics[f"{prefix}_request_time_99p"] = seconds[int(len(seconds) * 0.99)]
        if server.completions:
            attempts = server.completions + sum(server.faults.values())
            metrics[f"{name}_average_num_attempts"] = attempts / server.completions
    return metrics


def numbers_of(metrics: Mapping[Any, Any]) -> dict[str, float]:
    """The entries that are finite numbers; anything else an environment reports cannot be drawn as a curve."""
    found: dict[str, float] = {}
    for name, value in metrics.items():
        item = getattr(value, "item", None)  # numpy and torch scalars
        number = item() if callable(item) and getattr(value, "size", 1) == 1 else value
        if isinstance(number, int | float) and math.isfinite(number):
            found[str(name)] = float(number)
    return found


class Threaded:
    """Work in a thread of its own, in order; what fails is logged."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=name)
        self._closed = False

    def submit(self, work: Callable[[], None]) -> None:
        """Do it later."""
        if not self._closed:
            self._thread.submit(self._guarded, work)

    async def close(self, last: Callable[[], None]) -> None:
        """Do `last`, then end; without it after a deadline."""
        if self._closed:
            return
        self._closed = True
        end = self._thread.submit(self._guarded, last)
        try:
            async with asyncio.timeout(CLOSE_DEADLINE_S):
                await asyncio.wrap_future(end)
        except TimeoutError:
            logger.warning("%s did not end within %g s", self._name, CLOSE_DEADLINE_S)
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _guarded(self, work: Callable[[], None]) -> None:
        try:
            work()
        except Exception:  # metrics must never end a run; an observer may raise anything
            logger.exception("%s failed", self._name)


class JsonlMetrics:
    """One line a report in `metrics.jsonl`: `step` and the metrics by name."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / METRICS_FILE
        self._work = Threaded("metrics")

    def log(self, metrics: Mapping[str, float], *, step: int) -> None:
        """See `MetricsSink`."""
        line = json.dumps({"step": step, **metrics}) + "\n"
        self._work.submit(lambda: self._append(line))

    async def close(self) -> None:
        """See `MetricsSink`."""
        await self._work.close(lambda: None)

    def _append(self, line: str) -> None:
        with self._file.open("a", encoding="utf-8") as stream:
            stream.write(line)
