"""A service that stumbles, is full, is slow or goes away: what a pool of sandboxes makes of it."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from agentenv_backends.cleanup import clean_up
from agentenv_backends.errors import HostLostError, InfrastructureError
from agentenv_backends.modal import creation
from agentenv_backends.requests import ExecRequest
from agentenv_backends.results import ExecResult
from tests.agentenv_backends.modal.conftest import Ground, small
from tests.modal_service import MODAL
from tests.waiting import WITHIN_S, eventually

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tests.emulators.modal.running import EmulatedModal

    Start = Callable[..., Awaitable[Ground]]

pytestmark = [pytest.mark.sandbox, pytest.mark.slow]
_RUNNING = "echo begun > begun; sleep 600"


async def _begun(ground: Ground, timeout_s: float = 300.0) -> tuple[Any, asyncio.Task[Any]]:
    """A slot, and a command that runs in it."""
    slot = await ground.pool.acquire("t")
    task = asyncio.create_task(ground.pool.execute(slot, ExecRequest(_RUNNING, timeout_s)))
    await asyncio.sleep(0.2)
    return slot, task


async def _id_of(server: EmulatedModal, ground: Ground, slot: Any) -> Any:
    name = ground.name_of(slot)
    return next(each["id"] for each in server.sandboxes() if each["name"] == name)


async def test_a_third_of_all_calls_unavailable_costs_nothing_but_time(
    start: Start, server: EmulatedModal
):
    server.fault("*", "UNAVAILABLE", probability=0.3)
    ground = await start(launch_timeout_s=110)
    slots = [await ground.pool.acquire(f"t{n}") for n in range(4)]
    for number in range(5):
        lines = await asyncio.gather(
            *(ground.say(slot, "echo x >> f; wc -l < f") for slot in slots)
        )
        assert lines == [f"{number + 1}\n"] * 4
    for slot in slots:
        await ground.pool.release(slot)


async def test_a_create_whose_answer_was_lost_is_found_again(start: Start, server: EmulatedModal):
    before = len(server.sandboxes(alive=False))
    # The client itself asks four times.
    server.fault("SandboxCreateV2", "UNAVAILABLE", answer_lost=True, times=1)
    ground = await start()
    slot = await ground.pool.acquire("t")
    assert await ground.say(slot, "echo hi") == "hi\n"
    made = server.sandboxes(alive=False)[before:]
    assert len(made) == 2, "the trial, and the host"


async def test_a_service_that_is_full_is_asked_again_later_and_later(
    start: Start, server: EmulatedModal
):
    ground = await start(min_hosts=0)
    calls = server.calls()["SandboxCreateV2"]
    server.fault("SandboxCreateV2", "RESOURCE_EXHAUSTED")
    held = [await ground.pool.acquire(f"t{n}", timeout_s=30) for n in range(2)]
    waiting = asyncio.create_task(ground.pool.acquire("one more"))
    await eventually(
        lambda: server.calls()["SandboxCreateV2"] >= calls + 2, "a second try", within_s=60
    )
    assert server.calls()["SandboxCreateV2"] <= calls + 3
    server.heal()
    slot = await waiting
    assert await ground.say(slot, "echo hi") == "hi\n"
    assert len(held) == 2


async def test_a_launch_that_is_given_up_leaves_no_sandbox(start: Start, server: EmulatedModal):
    ground = await start(min_hosts=0)
    for number in range(2):
        await ground.pool.acquire(f"held {number}")
    calls = server.calls()["SandboxCreateV2"]
    server.fault("SandboxCreateV2", delay_s=1.0)
    launching = asyncio.create_task(ground.provider.launch("slow"))
    await eventually(
        lambda: server.calls()["SandboxCreateV2"] > calls, "it is asked for", within_s=WITHIN_S
    )
    launching.cancel()
    await asyncio.gather(launching, return_exceptions=True)
    name = ground.provider.sandbox_names["slow"]
    await eventually(
        lambda: not [each for each in server.sandboxes() if each["name"] == name],
        "the sandbox is gone",
        within_s=60,
    )


@pytest.mark.parametrize(
    ("status", "code", "told"),
    [
        ("GENERIC_STATUS_TIMEOUT", 124, "its lifetime is over"),
        ("GENERIC_STATUS_TERMINATED", 137, "it was terminated from outside"),
        ("GENERIC_STATUS_KERNEL_OOM_KILL", 137, "memory runs out: see sandbox_memory_mb"),
        ("GENERIC_STATUS_INTERNAL_FAILURE", 1, "it ended with code 1"),
    ],
)
async def test_how_a_sandbox_ended_under_a_command_is_told(
    start: Start, server: EmulatedModal, status: str, code: int, told: str
):
    ground = await start()
    slot, running = await _begun(ground)
    server.tell("end", sandbox_id=await _id_of(server, ground, slot), status=status, code=code)
    async with asyncio.timeout(30):
        with pytest.raises(HostLostError, match=re.escape(told)):
            await running
    fresh = await ground.pool.acquire("again")
    assert await ground.say(fresh, "ls") == ""


async def test_a_sandbox_server_says_itself_that_its_lifetime_is_over(
    start: Start, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(creation, "_LAST_MOMENT_S", 296.0)
    ground = await start(max_lifetime_s=300, trajectory_life_s=1)
    slot = await ground.pool.acquire("t")
    with pytest.raises(InfrastructureError, match="its lifetime of"):
        await ground.pool.execute(slot, ExecRequest("sleep 600", 100))


async def test_a_server_killed_under_a_command_is_noticed_and_work_goes_on_when_it_is_back(
    start: Start, server: EmulatedModal
):
    ground = await start()
    slot, running = await _begun(ground)
    server.kill()
    server.start()
    back = time.monotonic()
    async with asyncio.timeout(60):
        with pytest.raises(InfrastructureError):
            await running
        fresh = await ground.pool.acquire("again")
        assert await ground.say(fresh, "ls") == ""
    assert slot.host_id != fresh.host_id
    assert time.monotonic() - back < 30, "not when the client itself gives up"


async def test_a_server_that_stays_away_ends_a_command_long_before_its_deadline(
    server: EmulatedModal,
):
    ground = Ground(small())
    await ground.pool.start()
    _, running = await _begun(ground, timeout_s=600)
    server.kill()
    try:
        async with asyncio.timeout(60):
            with pytest.raises(InfrastructureError, match="cannot be reached"):
                await running
            await ground.pool.stop()
    finally:
        server.start()


async def test_large_data_passes_both_ways_while_calls_fail(start: Start, server: EmulatedModal):
    ground = await start()
    slot = await ground.pool.acquire("t")
    server.fault("TaskExecStdinWrite", "UNAVAILABLE", probability=0.3)
    data = os.urandom(12_000_000)
    request = ExecRequest("tee copy | md5sum; md5sum < copy", 120, stdin=data)
    answer = await ground.pool.execute(slot, request)
    assert isinstance(answer, ExecResult)
    sums = answer.stdout.text().split()
    assert sums[0] == sums[2]


async def _killed_driver(app_name: str) -> subprocess.Popen[bytes]:
    """A driver that is no more, and whose one sandbox is still there."""
    driver = subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("driver.py")), app_name],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": ":".join(sys.path)},
    )
    assert driver.stdout is not None
    with driver.stdout as told:
        name = await asyncio.to_thread(told.readline)
        driver.kill()
        driver.wait()
    assert name, "the driver did not start"
    return driver


async def test_sandboxes_of_a_driver_that_was_killed_are_swept_and_those_of_living_ones_are_not(
    start: Start, server: EmulatedModal
):
    living = await start()
    slot = await living.pool.acquire("t")
    driver = await _killed_driver(MODAL["app_name"])
    found = await living.provider.sweep(remove=False)
    assert [(each.kind, each.removed) for each in found] == [("sandbox", False)]
    assert f"process {driver.pid}" in found[0].owner
    (swept,) = await living.provider.sweep()
    assert swept.removed
    assert [each["name"] for each in server.sandboxes()] == [living.name_of(slot)]
    assert await living.say(slot, "echo alive") == "alive\n"
    assert await living.provider.sweep() == ()


async def test_cleaning_up_finds_what_dead_drivers_left_whatever_their_app_is_called(
    start: Start, server: EmulatedModal
):
    living = await start()
    slot = await living.pool.acquire("t")
    driver = await _killed_driver("another-app")
    assert await living.provider.sweep() == ()
    (found,) = await clean_up(["modal"])
    assert not found.skipped
    assert [(each.kind, each.removed) for each in found.leftovers] == [("sandbox", True)]
    assert f"process {driver.pid}" in found.leftovers[0].owner
    assert [each["name"] for each in server.sandboxes()] == [living.name_of(slot)]
    assert await living.say(slot, "echo alive") == "alive\n"
