"""What a section of the benchmark gives: rows of figures, and goals that were met or not. Data, and medians of it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from statistics import median

RATE, P50, P99, CPU, RATIO = "calls/s", "p50 ms", "p99 ms", "CPU µs", "of floor"


@dataclass(frozen=True, slots=True)
class Row:
    """One line of a section's table. `figures` maps a column, with its unit, to a value."""

    label: str
    figures: dict[str, float]
    note: str = ""


@dataclass(frozen=True, slots=True)
class Goal:
    """A figure and the bound it is meant to keep."""

    text: str
    value: float
    bound: float
    at_least: bool

    @property
    def met(self) -> bool:
        """Whether the value keeps the bound."""
        return self.value >= self.bound if self.at_least else self.value <= self.bound


@dataclass(frozen=True, slots=True)
class Section:
    """One table. `error` says why there are no rows."""

    name: str
    title: str
    rows: tuple[Row, ...] = ()
    goals: tuple[Goal, ...] = ()
    error: str = ""


@dataclass(frozen=True, slots=True)
class Effort:
    """How much is measured. Figures of different efforts are not to be compared."""

    rounds: int = 5
    """Repeats of each measurement, taken in turns with its rivals; a figure is their median."""
    seconds: float = 1.0
    """Length of one repeat."""
    trajectories: tuple[int, ...] = (1, 8, 64, 256)
    slots_alive: int = 1000
    slow_call_s: int = 10
    parked_rollouts: int = 200
    sequence_tokens: int = 16_384
    workspace_files: int = 2_000
    queued_groups: tuple[int, ...] = (100, 1_000, 5_000)
    sweep_samples: int = 10_000
    stored_samples: int = 100_000
    section_limit_s: float = 600.0


FULL = Effort()
QUICK = Effort(
    rounds=1,
    seconds=0.3,
    trajectories=(1, 8),
    slots_alive=16,
    slow_call_s=1,
    parked_rollouts=20,
    sequence_tokens=1024,
    workspace_files=200,
    queued_groups=(100, 300),
    sweep_samples=100,
    stored_samples=1_000,
    section_limit_s=120.0,
)
"""Shows in seconds that everything runs."""


@dataclass(frozen=True, slots=True)
class Load:
    """What one measurement under load saw. Latencies in seconds, of the calls that were asked to be timed."""

    rate: float
    p50: float
    p99: float
    calls: int
    """All calls, those included that ended too late to be counted in the rate."""
    cpu_s: float = 0.0
    """Processor time of one call, by whatever process it was spent; 0.0: not measured."""

    @staticmethod
    def of(done: int, latencies: list[float], seconds: float, calls: int) -> Load:
        """`done` calls within `seconds`."""
        p50, p99 = percentile(latencies, 0.5), percentile(latencies, 0.99)
        return Load(done / seconds, p50, p99, calls)

    def having_cost(self, cpu_s: float) -> Load:
        """The same, with the processor time of all calls together."""
        return replace(self, cpu_s=cpu_s / max(1, self.calls))

    @staticmethod
    def median(loads: list[Load]) -> Load:
        """Figure by figure."""
        return Load(
            median(load.rate for load in loads),
            median(load.p50 for load in loads),
            median(load.p99 for load in loads),
            sum(load.calls for load in loads),
            median(load.cpu_s for load in loads),
        )

    def figures(self) -> dict[str, float]:
        """As columns of a row."""
        figures = {RATE: self.rate, P50: self.p50 * 1e3, P99: self.p99 * 1e3}
        return figures | ({CPU: self.cpu_s * 1e6} if self.cpu_s else {})


def percentile(values: list[float], share: float) -> float:
    """The smallest value that `share` of them do not exceed; not a number when there are none."""
    if not values:
        return float("nan")
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]
