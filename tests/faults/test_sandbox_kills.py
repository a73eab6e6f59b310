"""Sandboxes that die under their trajectories cost time and nothing else: no group is lost and no reward changes.

AGENTENV_KILLED_GROUPS says with how many groups of eight it is tried; with 50, two hosts die and 20 sandboxes.
"""

from __future__ import annotations

import os
import random
from typing import TYPE_CHECKING, Any

import pytest

from agentenv.run.progress import QuietProgress
from tests.faults.footprint import Footprint
from tests.faults.ledger_env import ledger_env
from tests.faults.ledger_runs import collected, trained_on
from tests.faults.sandboxes import hosts_of, local_pool, slots_of
from tests.processes import children

if TYPE_CHECKING:
    from pathlib import Path

    from agentenv.rollout import RolloutRecord
    from agentenv_backends.local import LocalProvider

pytestmark = [pytest.mark.sandbox]
_SHARE = 0.05
_SLOTS = 64
_GROUP = 8
_GROUPS = int(os.environ.get("AGENTENV_KILLED_GROUPS", "50"))
_ROLLOUTS_PER_HOST_KILL = 300


class Killer(QuietProgress):
    """Kills a sandbox for every twentieth rollout that ends, and now and then the host with all of them."""

    def __init__(self, provider: LocalProvider, footprint: Footprint) -> None:
        super().__init__()
        self.slots_killed = self.hosts_killed = 0
        self._provider = provider
        self._footprint = footprint
        self._draw = random.Random(5)
        self._owed = 0.0

    def rollout_ended(self, record: RolloutRecord) -> None:
        super().rollout_ended(record)
        self._owed += _SHARE
        if sum(self.counters.outcomes.values()) % _ROLLOUTS_PER_HOST_KILL == 50:
            self._kill_hosts()
        elif self._owed >= 1:
            self._kill_slot()

    def _kill_hosts(self) -> None:
        self._footprint.look()
        for host in hosts_of(self._provider):
            host.kill()
            self.hosts_killed += 1

    def _kill_slot(self) -> None:
        self._footprint.look()
        slots = sorted(slots_of(self._provider), key=lambda slot: slot.pid)
        if slots:
            slot = self._draw.choice(slots)
            inits = sorted(children(slot.pid), key=lambda init: init.pid)
            self._draw.choice([slot, *inits]).kill()  # bubblewrap itself, or the slot's init
            self.slots_killed += 1
            self._owed -= 1


async def _collect(path: Path, groups: int, *, kill: bool) -> tuple[dict[str, Any], QuietProgress]:
    footprint = Footprint(os.getpid())
    pool, provider = local_pool(_SLOTS)
    env = ledger_env(
        pool,
        group_size=_GROUP,
        total_steps=groups,
        max_num_workers=_SLOTS // _GROUP,
        policy_retry_limit=8,
    )
    progress = Killer(provider, footprint) if kill else QuietProgress()
    written = await collected(env, path, progress)
    await footprint.gone()
    return trained_on(written), progress


@pytest.mark.parametrize(
    "groups", [pytest.param(12, id="few"), pytest.param(_GROUPS, id="many", marks=pytest.mark.slow)]
)
async def test_killing_sandboxes_loses_no_group_and_changes_no_reward(tmp_path: Path, groups: int):
    undisturbed, _ = await _collect(tmp_path / "undisturbed", groups, kill=False)
    disturbed, killer = await _collect(tmp_path / "disturbed", groups, kill=True)
    assert isinstance(killer, Killer)
    counters = killer.counters
    assert killer.slots_killed >= _SHARE * groups * _GROUP * 0.8
    assert killer.hosts_killed >= 1
    assert counters.outcomes["infrastructure_failed"] >= killer.hosts_killed
    assert set(counters.outcomes) == {"scored", "infrastructure_failed"}, counters.failures
    assert (counters.groups_dropped, counters.groups_retried) == (0, 0)
    assert len(undisturbed) == groups
    assert disturbed == undisturbed
    assert len({score for group in disturbed.values() for score in group["scores"]}) > 1
