"""Containers that are killed and an engine that stands still cost time and nothing else."""

from __future__ import annotations

import os
import random
from typing import TYPE_CHECKING, Any

import pytest

from agentenv.run.progress import QuietProgress
from tests.docker_engine import needs_engine
from tests.faults.containers import docker_pool, real_engine, stalling_engine
from tests.faults.disturbing import SHARE, Disturbing
from tests.faults.ledger_env import ledger_env
from tests.faults.ledger_runs import collected, trained_on
from tests.faults.sandboxes import local_pool
from tests.processes import process_of

if TYPE_CHECKING:
    from pathlib import Path

    from agentenv.rollout import RolloutRecord
    from agentenv_backends.pool import SlotPool
    from tests.faults.containers import Engine, Stalling

pytestmark = [pytest.mark.docker, pytest.mark.sandbox, pytest.mark.slow, needs_engine]
_GROUP, _GROUPS = 8, 25
_SLOTS, _CONTAINERS = 4, 4
_STALL_AFTER, _STALL_S = 60, 10.0


class Killer(Disturbing):
    """Kills a container for every twentieth rollout that ends, and once has the engine stand still."""

    def __init__(self, docker: Engine, engine: Stalling) -> None:
        super().__init__()
        self.killed = self.stalls = 0
        self._docker = docker
        self._engine = engine
        self._me = process_of(os.getpid())
        self._draw = random.Random(5)

    def rollout_ended(self, record: RolloutRecord) -> None:
        super().rollout_ended(record)
        if self.rollouts == _STALL_AFTER:
            self.meanwhile(self._stall())

    async def _stall(self) -> None:
        await self._engine.stall(_STALL_S)
        self.stalls += 1

    async def mishap(self) -> None:
        names = sorted(await self._docker.containers_of(self._me))
        self._draw.shuffle(names)
        for name in names:
            if await self._docker.kill(name):
                self.killed += 1
                return


async def _collect(
    path: Path, pool: SlotPool, progress: QuietProgress
) -> dict[str, dict[str, Any]]:
    env = ledger_env(
        pool,
        group_size=_GROUP,
        total_steps=_GROUPS,
        max_num_workers=_SLOTS * _CONTAINERS // _GROUP,
        policy_retry_limit=8,
    )
    return trained_on(await collected(env, path, progress))


async def test_killing_containers_and_a_stalled_engine_lose_no_group_and_change_no_reward(
    tmp_path: Path,
):
    local, _ = local_pool(_SLOTS * _CONTAINERS)
    undisturbed = await _collect(tmp_path / "undisturbed", local, QuietProgress())
    async with real_engine() as docker, stalling_engine(tmp_path) as engine:
        pool, _ = docker_pool(slots=_SLOTS, max_hosts=_CONTAINERS, **engine.settings)
        killer = Killer(docker, engine)
        try:
            disturbed = await _collect(tmp_path / "disturbed", pool, killer)
        finally:
            await killer.finish()
        assert not await docker.containers_of(process_of(os.getpid()))
    counters = killer.counters
    assert killer.killed >= SHARE * _GROUPS * _GROUP * 0.8
    assert killer.stalls == 1
    assert counters.outcomes["infrastructure_failed"] >= 1
    assert set(counters.outcomes) == {"scored", "infrastructure_failed"}, counters.failures
    assert (counters.groups_dropped, counters.groups_retried) == (0, 0)
    assert len(undisturbed) == _GROUPS
    assert disturbed == undisturbed
    assert len({score for group in disturbed.values() for score in group["scores"]}) > 1
