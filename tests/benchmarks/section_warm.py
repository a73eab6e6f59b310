"""What a slot costs whoever asks for one: from a warm pool, and one that has to be opened first."""

from __future__ import annotations

from agentenv_backends.config import LocalConfig
from tests.benchmarks.acquiring import cold, figures, warm
from tests.benchmarks.figures import Effort, Goal, Row, Section, percentile

_GOAL_MS = 5.0
_BURST = 8


async def run(effort: Effort) -> Section:
    """Bursts of acquires, each after the pool had time to prepare; then the same without anything prepared."""
    bursts = 4 * effort.rounds
    ready = await warm(LocalConfig(slots=4 * _BURST, warm_slots=_BURST), _BURST, bursts)
    opened = await cold(LocalConfig(slots=bursts * _BURST + 1, warm_slots=0), bursts * _BURST)
    rows = (
        Row("warm", figures(ready), "a slot stands ready; a reset is over before the next burst"),
        Row("cold", figures(opened), "a slot is opened for each caller, who waits for it"),
    )
    ratio = percentile(opened, 0.5) / percentile(ready, 0.5)
    goals = (
        Goal("ms p50 from a warm pool", percentile(ready, 0.5) * 1e3, _GOAL_MS, at_least=False),
        Goal("times as long cold as warm", ratio, 1.0, at_least=True),
    )
    return Section("warm", f"acquiring a slot, {_BURST} one after another", rows, goals)
