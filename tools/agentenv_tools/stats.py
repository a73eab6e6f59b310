"""What a `ToolExecutor` counts."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping


class CallError(StrEnum):
    """Why a call's result has `success` False: always the agent's doing."""

    MALFORMED = "malformed"
    """What it wrote was no call."""
    UNKNOWN_TOOL = "unknown_tool"
    UNAVAILABLE = "unavailable"
    """The tool reported that it cannot be used now."""
    INVALID_ARGUMENTS = "invalid_arguments"
    TIMED_OUT = "timed_out"
    """The driver-side tool overran its deadline (a command that does is `FAILED`)."""
    RAISED = "raised"
    """The tool's own code raised."""
    FAILED = "failed"
    """The tool ran and reports failure, such as a non-zero exit code."""


@dataclass(frozen=True, slots=True)
class ExecutorStats:
    """A snapshot. The first two are gauges and 0 when nothing is going on; the others only grow."""

    queue_size: int
    """Calls that wait for their trajectory's turn or for a slot."""
    in_flight: int
    """Calls being carried out."""
    total_requests: int
    finished_requests: int
    total_errors: int
    """Calls whose result has `success` False; `errors_by_kind` says why."""
    total_failures: int
    """Calls that ended in an exception: the sandbox failed, or the trajectory was released."""
    cancelled: int
    total_latency_s: float
    """Seconds from `execute` to its end, summed over the finished calls."""
    total_wait_s: float
    """The part of it spent waiting for a turn or a slot."""
    batches: int
    """Groups of requests handed to one host within one turn of the event loop."""
    batched_requests: int
    cleanup_failures: int
    """Slots that could not be given back in order; their hosts deal with them."""
    calls_by_tool: Mapping[str, int] = field(default_factory=dict)
    errors_by_kind: Mapping[str, int] = field(default_factory=dict)

    @property
    def mean_latency_s(self) -> float:
        """Seconds per finished call; 0.0 before the first."""
        return self.total_latency_s / self.finished_requests if self.finished_requests else 0.0

    @property
    def mean_batch_size(self) -> float:
        """Requests per batch; 0.0 before the first."""
        return self.batched_requests / self.batches if self.batches else 0.0


@dataclass(slots=True)
class Counters:
    """The executor's running counts."""

    active: int = 0
    waiting: int = 0
    requests: int = 0
    finished: int = 0
    failures: int = 0
    cancelled: int = 0
    latency_s: float = 0.0
    wait_s: float = 0.0
    batches: int = 0
    batched_requests: int = 0
    cleanup_failures: int = 0
    by_tool: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)

    def snapshot(self) -> ExecutorStats:
        """The counts as of now."""
        return ExecutorStats(
            queue_size=self.waiting,
            in_flight=self.active - self.waiting,
            total_requests=self.requests,
            finished_requests=self.finished,
            total_errors=self.errors.total(),
            total_failures=self.failures,
            cancelled=self.cancelled,
            total_latency_s=self.latency_s,
            total_wait_s=self.wait_s,
            batches=self.batches,
            batched_requests=self.batched_requests,
            cleanup_failures=self.cleanup_failures,
            calls_by_tool=dict(self.by_tool),
            errors_by_kind=dict(self.errors),
        )
