"""What a slot in a container costs whoever asks for one, by how much of it stands ready."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any

from agentenv_backends.config import DockerConfig
from tests.benchmarks.acquiring import cold, figures, warm
from tests.benchmarks.figures import Effort, Goal, Row, Section, percentile
from tests.docker_engine import DOCKER, why_no_engine

_GOAL_MS = 5.0
_BURST, _SINGLE_USE_BURST = 8, 4


async def run(effort: Effort) -> Section:
    """A slot of a live container and a container of one's own, each from a warm pool and from nothing."""
    title = "acquiring a slot in a container, one after another"
    if reason := await asyncio.to_thread(why_no_engine):
        return Section("containers", title, (Row("warm", {}, f"not measured: {reason}"),))
    bursts, single_uses = 2 * effort.rounds, effort.rounds
    shared = {
        "warm": await warm(_config(slots=4 * _BURST, warm_slots=_BURST), _BURST, bursts),
        "cold": await cold(_config(slots=bursts * _BURST + 1, warm_slots=0), bursts * _BURST),
    }
    single_use = partial(_config, slots=1, read_only_root=False)
    alone = {
        "warm": await warm(
            single_use(max_hosts=2 * _SINGLE_USE_BURST, warm_slots=_SINGLE_USE_BURST),
            _SINGLE_USE_BURST,
            single_uses,
        ),
        "cold": await cold(single_use(max_hosts=single_uses + 1, warm_slots=0), single_uses),
    }
    rows = (
        Row("a slot beside others, warm", figures(shared["warm"])),
        Row("a slot beside others, cold", figures(shared["cold"]), "its container lives"),
        Row("a container used once, warm", figures(alone["warm"])),
        Row("a container, cold", figures(alone["cold"]), "from its making to its first slot"),
    )
    goals = tuple(
        goal
        for name, seconds in (("a shared container", shared), ("one used once", alone))
        for goal in _goals(name, seconds["warm"], seconds["cold"])
    )
    return Section("containers", title, rows, goals)


def _config(**more: Any) -> DockerConfig:
    return DockerConfig.model_validate(DOCKER | more)


def _goals(name: str, ready: list[float], opened: list[float]) -> tuple[Goal, Goal]:
    p50 = percentile(ready, 0.5)
    return (
        Goal(f"ms p50 from a warm pool, {name}", p50 * 1e3, _GOAL_MS, at_least=False),
        Goal(f"times as long cold, {name}", percentile(opened, 0.5) / p50, 1.0, at_least=True),
    )
