"""What a run counts. Every method costs microseconds; nothing here prints or waits."""

from __future__ import annotations

import re
import time
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from agentenv.rollout import RolloutRecord
    from agentenv_backends.base import PoolStats

SOLVED_SCORE = 1.0
"""A trajectory with at least this score counts as solved."""
_MAX_CAUSES = 50
_RATE_WINDOW_S = 15.0


@dataclass(slots=True)
class RunCounters:
    """Counts since the run began. Written by the event loop alone; other threads only read."""

    target: int | None = None
    """Groups wanted; None: as many as the dataset gives."""
    started_at: float = field(default_factory=time.monotonic)
    ended_at: float | None = None
    groups_running: int = 0
    groups_done: int = 0
    groups_mixed: int = 0
    """Groups whose scores differ: those that carry an advantage."""
    groups_retried: int = 0
    groups_dropped: int = 0
    outcomes: dict[str, int] = field(default_factory=dict)
    stops: dict[str, int] = field(default_factory=dict)
    failures: dict[str, int] = field(default_factory=dict)
    """How often each cause made a rollout fail."""
    retries: dict[str, int] = field(default_factory=dict)
    """How often each cause made a group's item be tried again."""
    drops: dict[str, int] = field(default_factory=dict)
    """How often each cause made a group be dropped for good."""
    scored: int = 0
    solved: int = 0
    score_sum: float = 0.0
    last_group_mean: float | None = None
    tokens: int = 0
    tool_calls: int = 0
    loop_lag_p99_s: float | None = None
    notes: dict[str, str] = field(default_factory=dict)
    """What else a display shows, by name. Replaced, never changed."""

    def rollout_ended(self, record: RolloutRecord) -> None:
        """Count one rollout, whatever became of it."""
        _count(self.outcomes, record.outcome.value)
        _count(self.stops, record.stop_reason.value)
        if record.cause:
            _count(self.failures, short_cause(record.cause))
        if record.reward is not None:
            self.scored += 1
            self.score_sum += record.reward
            self.solved += record.reward >= SOLVED_SCORE
        if record.result is not None:
            self.tokens += record.result.total_tokens
            self.tool_calls += record.result.total_tool_calls

    def group_done(self, scores: Sequence[float]) -> None:
        """Count one group that was written."""
        self.groups_running -= 1
        self.groups_done += 1
        self.groups_mixed += len(set(scores)) > 1
        self.last_group_mean = sum(scores) / len(scores) if scores else None

    def group_failed(self, cause: str, *, dropped: bool) -> None:
        """Count one group that was not: its item is tried again, or dropped for good."""
        self.groups_running -= 1
        if dropped:
            self.groups_dropped += 1
            _count(self.drops, short_cause(cause))
        else:
            self.groups_retried += 1
            _count(self.retries, short_cause(cause))

    @property
    def elapsed_s(self) -> float:
        """Seconds since the run began, until it ended."""
        return (self.ended_at or time.monotonic()) - self.started_at

    @property
    def mean_score(self) -> float | None:
        """Mean score of every trajectory that has one."""
        return self.score_sum / self.scored if self.scored else None

    @property
    def solved_share(self) -> float | None:
        """Share of scored trajectories that solved their task."""
        return self.solved / self.scored if self.scored else None

    @property
    def trajectories(self) -> int:
        """Rollouts that ended, in whatever way."""
        return sum(self.outcomes.values())

    def summary(self) -> dict[str, Any]:
        """The totals, JSON-plain, as `summary.json` holds them."""
        seconds = self.elapsed_s
        return {
            "groups": {
                "written": self.groups_done,
                "target": self.target,
                "with_differing_scores": self.groups_mixed,
                "retried": self.groups_retried,
                "dropped": self.groups_dropped,
            },
            "trajectories": {
                "ended": self.trajectories,
                "outcomes": self.outcomes,
                "stops": self.stops,
            },
            "scores": {"mean": self.mean_score, "solved_share": self.solved_share},
            "sampled_tokens": self.tokens,
            "tool_calls": self.tool_calls,
            "failures": self.failures,
            "retries": self.retries,
            "drops": self.drops,
            "elapsed_s": seconds,
            "per_second": {
                name: count / seconds if seconds > 0 else 0.0
                for name, count in (
                    ("groups", self.groups_done),
                    ("sampled_tokens", self.tokens),
                    ("tool_calls", self.tool_calls),
                )
            },
            "loop_lag_p99_s": self.loop_lag_p99_s,
        }


@dataclass(slots=True)
class Rates:
    """Tokens and tool calls a second, over the last seconds. For one reader."""

    clock: Callable[[], float] = time.monotonic
    _samples: deque[tuple[float, int, int]] = field(default_factory=deque)

    def update(self, counters: RunCounters) -> tuple[float, float]:
        """Take a sample; returns (tokens/s, tool calls/s)."""
        now = self.clock()
        if not self._samples:
            self._samples.append((counters.started_at, 0, 0))
        self._samples.append((now, counters.tokens, counters.tool_calls))
        while len(self._samples) > 2 and now - self._samples[1][0] > _RATE_WINDOW_S:
            self._samples.popleft()
        then, tokens, calls = self._samples[0]
        seconds = max(now - then, 1e-9)
        return (counters.tokens - tokens) / seconds, (counters.tool_calls - calls) / seconds


@dataclass(frozen=True, slots=True)
class View:
    """What a display shows at one moment."""

    counters: RunCounters
    tokens_per_s: float
    calls_per_s: float
    pool: PoolStats | None


def short_cause(cause: str) -> str:
    """A cause with what differs from case to case taken out, so that equal ones are counted
    together.
    """
    line = cause.strip().splitlines()[0] if cause.strip() else "unknown"
    return re.sub(
        r"\bh\d+(?:-s\d+)?\b|\b(?=[0-9a-f-]*\d)[0-9a-f][0-9a-f-]{5,}\b|\b\d+(?:\.\d+)?", "…", line
    )[:160]


def _count(counts: dict[str, int], key: str) -> None:
    if key not in counts and len(counts) >= _MAX_CAUSES:
        key = "others"
    counts[key] = counts.get(key, 0) + 1
