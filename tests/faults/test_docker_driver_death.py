"""When the driver dies, its containers end themselves; what cannot is removed by whoever starts or cleans up next.

AGENTENV_DRIVER_DEATHS says how often it is tried.
"""

import json
import os
import signal
from pathlib import Path

import pytest

from agentenv.testing import running_engine
from tests.docker_engine import DOCKER, needs_engine
from tests.faults.containers import docker_pool, real_engine
from tests.faults.ledger_runs import POLICY, ledger_run
from tests.faults.programs import program
from tests.processes import process_of
from tests.waiting import WITHIN_S, eventually

pytestmark = [pytest.mark.docker, pytest.mark.sandbox, pytest.mark.slow, needs_engine]
_REPEATS = int(os.environ.get("AGENTENV_DRIVER_DEATHS", "3"))
_SLOTS, _CONTAINERS = 64, 8
_BACKENDS = (
    {"type": "local", "slots": _SLOTS},
    DOCKER | {"slots": 2, "max_hosts": _CONTAINERS},
)
_PROCESSES_A_SLOT = 6
_FROZEN = 2


async def _start_another_run() -> None:
    async with docker_pool(slots=1, max_hosts=1)[0]:
        pass


async def _clean_up() -> None:
    async with program("-m", "agentenv", "cleanup", "--backend", "docker") as cleanup:
        assert await cleanup.ended() == 0


_REMOVERS = (_start_another_run, _clean_up)


@pytest.mark.parametrize("repeat", range(_REPEATS))
async def test_nothing_outlives_a_driver_that_is_killed_with_all_its_slots_busy(repeat: int):
    async with (
        real_engine() as engine,
        program("-m", "tests.faults.busy_driver", *map(json.dumps, _BACKENDS)) as driver,
    ):
        await driver.says("busy")
        await eventually(
            lambda: len(driver.footprint.look()) >= _SLOTS * _PROCESSES_A_SLOT,
            "every local slot is busy",
        )
        names = await engine.containers_of(process_of(driver.process.pid))
        assert len(names) == _CONTAINERS
        # What is frozen cannot end itself: neither its driver's end nor its lease reaches it.
        frozen = set(sorted(names)[: _FROZEN if repeat else 0])
        await engine.pause(frozen)
        driver.process.kill()
        await driver.ended()
        await driver.footprint.gone()
        await engine.gone(names - frozen, within_s=WITHIN_S)
        if frozen:
            await _REMOVERS[repeat % len(_REMOVERS)]()
            assert not frozen & await engine.containers()


async def test_runs_side_by_side_and_clean_ups_among_them_never_touch_each_other(tmp_path: Path):
    backend = DOCKER | {"slots": 4, "max_hosts": 2}
    async with (
        real_engine() as engine,
        running_engine(**POLICY) as policy,
        ledger_run(tmp_path / "one", policy.base_url, backend, "--no-report") as one,
        ledger_run(tmp_path / "other", policy.base_url, backend, "--no-report") as other,
        program("-m", "tests.faults.busy_driver", json.dumps(backend)) as dead,
    ):
        await dead.says("busy")
        left = await engine.containers_of(process_of(dead.process.pid))
        await engine.pause(left)
        dead.process.kill()
        await dead.ended()
        runs = (one, other)
        for run in runs:
            await run.under_way()
        await _clean_up()
        await _start_another_run()
        assert not left & await engine.containers()
        for run in runs:
            await run.under_way(run.written() + 2)
        for run in runs:
            run.process.send_signal(signal.SIGINT)
        for run in runs:
            assert await run.ended() == 0, run.output
            outcomes = run.summary()["trajectories"]["outcomes"]
            assert set(outcomes) <= {"scored", "cancelled"}, outcomes
    groups = [{group.group_id: dict(group.group) for group in run.groups()} for run in runs]
    common = groups[0].keys() & groups[1].keys()
    assert common
    assert all(groups[0][name] == groups[1][name] for name in common)
