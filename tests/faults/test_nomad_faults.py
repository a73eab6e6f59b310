"""A cluster that loses nodes, restarts, moves and refuses costs time and nothing else: no group is lost, no reward
changes, and nothing is left running.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import time
from typing import TYPE_CHECKING, Any

import pytest

from agentenv.run.progress import QuietProgress
from agentenv_backends.errors import SandboxTimeoutError
from agentenv_backends.nomad.provider import NomadProvider
from tests.agentenv_backends.nomad.cluster import live, small
from tests.emulators.nomad.server import running_nomad
from tests.faults.ledger_env import append_by_seed, ledger_env
from tests.faults.ledger_runs import collected, trained_on
from tests.faults.overruns import TimedPool, call_on_a_host_that_falls_silent
from tests.faults.sandboxes import local_pool
from tests.processes import children, process_of

if TYPE_CHECKING:
    from pathlib import Path

    from agentenv.rollout import RolloutRecord
    from agentenv.testing import FakeRequest
    from agentenv_backends.base import Slot
    from agentenv_backends.pool import SlotPool
    from tests.emulators.nomad.server import Nomad
    from tests.emulators.nomad.tasks import TaskRunner

pytestmark = [pytest.mark.sandbox, pytest.mark.slow]
_GROUP = 8
_GROUPS = 25
_BETWEEN = 5
"""Rollouts between the end of one mishap and the next."""
_WITHIN_S = 120.0
_HOSTS = 3
_RECOVERY_S = 5.0
_SERVER_ERRORS_S = 30.0
_PATIENCE = 6.0
"""How much longer than promised a recovery may take on a machine that is busy with other things."""
_log = logging.getLogger(__name__)


def unhurried(request: FakeRequest) -> str:
    """As `append_by_seed`, with commands that take a moment, so that mishaps meet some of them."""
    return append_by_seed(request).replace("echo ", "sleep 2; echo ")


class Counting(QuietProgress):
    """Lets one wait for rollouts that end well."""

    def __init__(self) -> None:
        super().__init__()
        self.scored = 0
        self._more = asyncio.Event()

    def rollout_ended(self, record: RolloutRecord) -> None:
        super().rollout_ended(record)
        self.scored += str(record.outcome) == "scored"
        self._more.set()

    async def more(self, count: int) -> None:
        """Return when so many more have ended well."""
        goal = self.scored + count
        async with asyncio.timeout(_WITHIN_S):
            while self.scored < goal:
                self._more.clear()
                await self._more.wait()


class Mishaps:
    """One after another, each met by rollouts under way."""

    def __init__(
        self, nomad: Nomad, provider: NomadProvider, pool: SlotPool, progress: Counting
    ) -> None:
        self.recoveries: dict[str, float] = {}
        """How long after the end of each there were as many hosts as there should be, and rollouts ended well."""
        self.silent_call: Exception | None = None
        """How a call ended whose host fell silent under it."""
        self._nomad = nomad
        self._provider = provider
        self._pool = pool
        self._progress = progress
        self._silent: list[TaskRunner] = []

    async def happen(self) -> None:
        for mishap in (
            self.restart,
            self.lose_a_node,
            self.reschedule,
            self.ports_missing,
            self.server_errors,
            self.scaling_blocked,
            self.everything_at_once,
        ):
            await self._progress.more(_BETWEEN)
            _log.info("%s begins", mishap.__name__)
            await mishap()
            began = time.monotonic()
            async with asyncio.timeout(_WITHIN_S):
                while self._pool.stats().hosts < _HOSTS:
                    await asyncio.sleep(0.02)
            await self._progress.more(1)
            self.recoveries[mishap.__name__] = time.monotonic() - began
            _log.info("%s: recovered in %.1f s", mishap.__name__, self.recoveries[mishap.__name__])

    async def restart(self) -> None:
        self._kill(1)

    async def lose_a_node(self) -> None:
        """Its processes go on, unheard of; it comes back when all has been placed elsewhere."""
        node = live(self._nomad)[0].node
        self._nomad.cluster.lose_node(node)
        while any(each.node is node for each in live(self._nomad)):
            await asyncio.sleep(0.05)
        self._nomad.cluster.return_node(node)

    async def reschedule(self) -> None:
        """One is killed whenever it is up, until it has failed for good or the driver has had it replaced."""
        alloc = live(self._nomad)[0]
        while alloc.client != "failed" and alloc.desired == "run":
            if alloc.runner is not None:
                alloc.runner.kill()
            await asyncio.sleep(0.02)

    async def _fall_silent(self) -> None:
        """One answers nothing any more, while its connections stay; then it is gone."""
        self.silent_call = await call_on_a_host_that_falls_silent(self._pool, self._stop_server)
        for runner in self._silent:
            runner.kill()

    async def ports_missing(self) -> None:
        self._nomad.faults.ports_missing_s = 5.0
        self._kill(1)
        await asyncio.sleep(5.0)
        self._nomad.faults.ports_missing_s = 0.0

    async def server_errors(self) -> None:
        """While no call of the API succeeds one host goes and another falls silent; the third has all the work."""
        self._kill(1)
        async with asyncio.TaskGroup() as meanwhile:
            meanwhile.create_task(self._nomad.faults.server_errors(_SERVER_ERRORS_S))
            meanwhile.create_task(self._fall_silent())

    async def scaling_blocked(self) -> None:
        self._nomad.faults.scaling_blocked = True
        self._kill(1)
        await asyncio.sleep(3.0)
        self._nomad.faults.scaling_blocked = False

    async def everything_at_once(self) -> None:
        self._nomad.faults.placement_s = 0.5
        self._kill(len(live(self._nomad)))
        await self._nomad.faults.server_errors(3.0, probability=0.5)
        self._nomad.faults.placement_s = 0.0

    def _stop_server(self, slot: Slot) -> None:
        wanted = self._provider.hosts[slot.host_id].allocation.allocation_id
        alloc = next(each for each in live(self._nomad) if each.alloc_id == wanted)
        assert alloc.runner is not None
        assert alloc.runner.pid is not None
        for server in (process_of(alloc.runner.pid), *children(alloc.runner.pid)):
            server.kill(signal.SIGSTOP)
        self._silent.append(alloc.runner)

    def _kill(self, count: int) -> None:
        for alloc in live(self._nomad)[:count]:
            if alloc.runner is not None:
                alloc.runner.kill()


async def _collect(path: Path, pool: SlotPool, progress: QuietProgress) -> dict[str, Any]:
    env = ledger_env(
        pool,
        script=unhurried,
        group_size=_GROUP,
        total_steps=_GROUPS,
        max_num_workers=3,
        policy_retry_limit=12,
    )
    return trained_on(await collected(env, path, progress))


async def test_mishaps_of_a_cluster_lose_no_group_and_change_no_reward(tmp_path: Path):
    local, _ = local_pool(16)
    async with running_nomad(nodes=3) as nomad:
        config = small(nomad, slots=4, min_hosts=_HOSTS, max_hosts=4)
        provider = NomadProvider(config)
        pool = TimedPool(provider, config.pool_settings())
        progress = Counting()
        mishaps = Mishaps(nomad, provider, pool, progress)
        nomad.faults.purge_lag_s = 0.5
        happening = asyncio.create_task(mishaps.happen())
        try:
            sound, faulty = await asyncio.gather(
                _collect(tmp_path / "sound", local, QuietProgress()),
                _collect(tmp_path / "faulty", pool, progress),
            )
            assert happening.done(), "the run was over before all mishaps were"
        finally:
            happening.cancel()
            await asyncio.gather(happening, return_exceptions=True)
        assert nomad.cluster.state.jobs == {}
        assert nomad.cluster.pids == []
    happening.result()
    assert pool.counters().lost_hosts >= 7
    assert set(progress.counters.outcomes) == {"scored", "infrastructure_failed"}
    assert progress.counters.groups_dropped == 0
    assert len(sound) == _GROUPS
    assert faulty == sound
    slow = {name: s for name, s in mishaps.recoveries.items() if s > _PATIENCE * _RECOVERY_S}
    assert not slow, mishaps.recoveries
    assert isinstance(mishaps.silent_call, SandboxTimeoutError)
    assert pool.worst_overrun_s <= 1.0
