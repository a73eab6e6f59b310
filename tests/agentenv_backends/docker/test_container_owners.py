"""What becomes of containers when drivers end, and of drivers side by side."""
# mypy: disable-error-code="no-untyped-call, union-attr"

import asyncio
import os
import random
import signal
import subprocess
from dataclasses import replace

import pytest

from agentenv_backends._owner import Owner
from agentenv_backends.docker import owners
from agentenv_backends.docker.containers import create_options
from agentenv_backends.docker.engine import Engine
from agentenv_backends.docker.provider import DockerProvider
from agentenv_backends.sandboxd import leftovers
from tests.agentenv_backends.docker.real import (
    end_driver,
    eventually,
    existing,
    small,
    start_driver,
)
from tests.docker_engine import IMAGE, needs_engine
from tests.waiting import WITHIN_S

pytestmark = [pytest.mark.docker, pytest.mark.slow, needs_engine]


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
async def test_whatever_ends_the_driver_ends_its_containers(end):
    driver, names = await asyncio.to_thread(start_driver, 2, 4)
    try:
        assert len(names) == 2
        assert names <= await existing()
        driver.send_signal(end)
        await asyncio.to_thread(driver.wait, WITHIN_S)

        async def gone():
            return not names & await existing()

        await eventually(gone)
    finally:
        end_driver(driver)


async def test_two_drivers_side_by_side_leave_each_other_alone(ground):
    first = await ground()
    slot = await first.pool.acquire("a")
    await first.run(slot, "echo here > mark")
    driver, names = await asyncio.to_thread(start_driver, 1, 2)
    try:
        second = await ground()
        assert not names & {left.name for left in await first.provider.sweep()}
        assert not await second.provider.sweep()
        assert names <= await existing()
        assert await first.say(slot, "cat mark") == "here\n"
    finally:
        end_driver(driver)


async def test_a_sweep_finds_what_a_dead_driver_had_created_and_not_started():
    dead = subprocess.Popen(["sleep", "60"])
    started = leftovers.start_time(dead.pid) or 0
    owner = replace(Owner.me(), pid=dead.pid, start_time=started)
    name = f"agentenv-dead-{os.getpid()}"
    config = small()
    async with Engine() as engine:
        labels = owners.labels("dead", owner, 2e9)
        try:
            await engine.create(name, create_options(config, IMAGE, labels))
            provider = DockerProvider(config)
            assert name not in {left.name for left in await provider.sweep()}
            dead.kill()
            dead.wait()
            assert name in {left.name for left in await provider.sweep(remove=False)}
            (left,) = [left for left in await provider.sweep() if left.name == name]
            assert left.removed
            assert name not in await existing()
        finally:
            dead.kill()
            dead.wait()
            await engine.remove(name)


async def test_launches_cancelled_at_random_moments_leave_no_container():
    provider = DockerProvider(small(max_hosts=4))
    await provider.prepare()
    chance = random.Random(3)
    for n in range(12):
        launch = asyncio.create_task(provider.launch(f"h{n}"))
        await asyncio.sleep(chance.random() * 0.8)
        launch.cancel()
        await asyncio.wait({launch})
        if not launch.cancelled():
            await launch.result().close()
    assert not set(provider.container_names.values()) & await existing()
