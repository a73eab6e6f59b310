"""When the driver dies, everything it started dies too, and the next start removes what could not be removed then."""

import json
import signal

import pytest

from tests.faults.footprint import traces_of
from tests.faults.programs import Program, program
from tests.faults.sandboxes import local_pool
from tests.processes import alive, children
from tests.waiting import eventually

pytestmark = [pytest.mark.sandbox, pytest.mark.slow]
_SLOTS = 64
_LOCAL = json.dumps({"type": "local", "slots": _SLOTS})
_PROCESSES_A_SLOT = 6
"""Bubblewrap, the slot's init, the shell and what it started."""


async def _busy(driver: Program) -> None:
    """Return when every slot of the driver is busy."""
    await driver.says("busy")
    await eventually(
        lambda: len(driver.footprint.look()) >= _SLOTS * _PROCESSES_A_SLOT, "every slot is busy"
    )


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
async def test_no_process_outlives_a_driver_that_is_killed(number: signal.Signals):
    async with program("-m", "tests.faults.busy_driver", _LOCAL) as driver:
        await _busy(driver)
        driver.process.send_signal(number)
        assert await driver.ended() == -number
        await driver.footprint.gone()


async def test_what_a_killed_driver_and_its_killed_host_leave_is_swept_by_the_next_start():
    async with program("-m", "tests.faults.busy_driver", _LOCAL) as driver:
        await _busy(driver)
        hosts = children(driver.process.pid)
        for host in hosts:
            host.kill()
        driver.process.kill()
        await driver.ended()
        await eventually(lambda: not alive(driver.footprint.seen), "all of its processes are gone")
        left = traces_of(hosts)
        async with local_pool(1)[0]:
            pass
        await eventually(lambda: not traces_of(hosts), f"the next start sweeps {len(left)} traces")
