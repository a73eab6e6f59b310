"""Ctrl-C at any moment of a run on Docker: it ends, nothing is left, and what was collected is kept.

AGENTENV_INTERRUPTS says at how many moments it is tried.
"""

import asyncio
import itertools
import os
import random
import signal
from pathlib import Path

import pytest

from agentenv.testing import running_engine
from tests.agentenv_backends.docker.stalling import stalling_way
from tests.docker_engine import DOCKER, needs_engine
from tests.faults.containers import Engine, engine_socket, real_engine
from tests.faults.ledger_runs import GROUP_SIZE, POLICY, LedgerRun, ledger_run
from tests.processes import Process, process_of
from tests.waiting import WITHIN_S

pytestmark = [pytest.mark.docker, pytest.mark.slow, needs_engine]
_MOMENTS = int(os.environ.get("AGENTENV_INTERRUPTS", "6"))
_AT_ONCE = 2
_BACKEND = DOCKER | {"slots": 4, "max_hosts": 3}
_PHASES = ("importing", "starting containers", "collecting")
_LONGEST_WAIT_S = 2.0


async def _reach(phase: str, running: LedgerRun, driver: Process, docker: Engine) -> None:
    if phase == "starting containers":
        await docker.appeared(driver)
    elif phase == "collecting":
        await running.under_way(1)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_a_signal_while_the_engine_stands_still_ends_the_run_and_says_what_is_left(
    tmp_path: Path, number: signal.Signals
):
    async with (
        real_engine() as docker,
        running_engine(**POLICY) as policy,
        stalling_way(tmp_path, engine_socket()) as way,
        ledger_run(tmp_path / "run", policy.base_url, _BACKEND | {"docker_host": way.url}) as run,
    ):
        driver = process_of(run.process.pid)
        await run.under_way(1)
        run.footprint.look()
        way.open.clear()
        run.process.send_signal(number)
        status = await run.ended()
        assert status == 0, run.output
        assert "the container ends by itself" in " ".join(run.output.split())
        way.open.set()
        await docker.gone(await docker.containers_of(driver), within_s=WITHIN_S)
        await run.footprint.gone()


async def test_ctrl_c_before_the_first_group_is_told_by_the_exit_status(tmp_path: Path):
    async with (
        real_engine() as docker,
        running_engine(**POLICY) as policy,
        ledger_run(tmp_path, policy.base_url, _BACKEND) as run,
    ):
        await docker.appeared(process_of(run.process.pid))
        run.process.send_signal(signal.SIGINT)
        assert await run.ended() == 130, run.output


async def test_ctrl_c_at_random_moments_leaves_nothing(tmp_path: Path):
    draw = random.Random(_MOMENTS)
    lanes = asyncio.Semaphore(_AT_ONCE)

    async def interrupt(number: int, phase: str, wait_s: float) -> None:
        backend, moment = _BACKEND, f"{wait_s:.2f} s into {phase}"
        async with lanes, ledger_run(tmp_path / str(number), policy.base_url, backend) as running:
            driver = process_of(running.process.pid)
            await _reach(phase, running, driver, docker)
            await asyncio.sleep(wait_s)  # the moment is what is tried
            running.footprint.look()
            written = running.written()
            running.process.send_signal(signal.SIGINT)
            status = await running.ended()
            assert status in (0, 1, 130, -signal.SIGINT), (moment, running.output)
            assert not await docker.containers_of(driver), (moment, running.output)
            await running.footprint.gone()
            groups = running.groups()
            assert len(groups) >= written, moment
            assert all(len(group.group["scores"]) == GROUP_SIZE for group in groups)

    async with (
        real_engine() as docker,
        running_engine(**POLICY) as policy,
    ):
        before = await docker.networks_and_volumes()
        async with asyncio.TaskGroup() as group:
            for number, phase in zip(range(_MOMENTS), itertools.cycle(_PHASES), strict=False):
                wait_s = draw.uniform(0, _LONGEST_WAIT_S)
                group.create_task(interrupt(number, phase, wait_s))
        assert not await docker.networks_and_volumes() - before
