"""Whole pools under seeded faults, in virtual time: what must hold holds in every schedule."""
# mypy: disable-error-code="no-untyped-call, union-attr"

import asyncio
import random

import pytest

from agentenv_backends.errors import BackendError, InfrastructureError
from agentenv_backends.requests import ExecRequest, ReadRequest, WriteRequest
from agentenv_backends.results import OpFailure
from agentenv_backends.testing import FakeProvider, Faults, fake_pool, run_in_virtual_time


def draw_faults(seed):
    chance = random.Random(seed)

    def rare(at_most):
        return chance.choice((0.0, 0.0, at_most * chance.random()))

    return Faults(
        seed=seed,
        launch_fails=rare(0.3),
        launch_hangs=rare(0.1),
        open_fails=rare(0.2),
        open_hangs=rare(0.05),
        close_fails=rare(0.2),
        close_hangs=rare(0.05),
        exec_hangs=rare(0.05),
        slot_lost=rare(0.1),
        host_lost=rare(0.02),
        host_freezes=rare(0.01),
        latency_s=(0.0, chance.choice((0.0, 0.05, 1.0))),
    )


class Run:
    """Some trajectories on a small pool; some of them are cancelled."""

    def __init__(self, seed):
        self.chance = random.Random(-seed - 1)
        self.provider = FakeProvider(faults=draw_faults(seed))
        self.pool = fake_pool(
            self.provider,
            slots=self.chance.randint(1, 3),
            max_hosts=self.chance.randint(1, 2),
            acquire_timeout_s=120,
            launch_timeout_s=10,
        )
        self.holders = {}
        self.outcomes = []

    async def trajectory(self, name):
        slot = await self.pool.acquire(name)
        assert slot.slot_id not in self.holders, "two holders of one slot"
        self.holders[slot.slot_id] = name
        try:
            found = await self.pool.execute(slot, ReadRequest("note"))
            assert isinstance(found, OpFailure), "the slot was used before"
            await self.pool.execute(slot, WriteRequest("note", name.encode()))
            await self.pool.execute(slot, ExecRequest("sleep 3", timeout_s=5))
            found = await self.pool.execute(slot, ReadRequest("note"))
            assert found.content == name.encode(), "somebody else wrote here"
        finally:
            await self.pool.release(slot, reset_workspace=self.chance.random() < 0.5)

    async def attempt(self, name):
        try:
            await self.trajectory(name)
        except InfrastructureError as error:
            self.outcomes.append(type(error).__name__)
        except asyncio.CancelledError:
            self.outcomes.append("cancelled")
            raise
        else:
            self.outcomes.append("done")

    async def main(self):
        self.tasks_before = asyncio.all_tasks()
        try:
            await self.pool.start()
        except BackendError as error:
            self.outcomes.append(f"start: {type(error).__name__}")
        else:
            await self.trajectories()
        await self.pool.stop()
        await asyncio.sleep(0)
        assert asyncio.all_tasks() <= self.tasks_before, "a task was left behind"
        assert self.pool.stats().acquired_slots == self.pool.stats().waiting == 0
        assert not self.provider.live, "a host was left behind"

    async def trajectories(self):
        tasks = [asyncio.create_task(self.attempt(f"t{n}")) for n in range(12)]
        for task in tasks:
            if self.chance.random() < 0.2:
                delay = self.chance.choice((0.0, 0.1, 3.0))
                asyncio.get_running_loop().call_later(delay, task.cancel)
        done, pending = await asyncio.wait(tasks, timeout=600)
        assert not pending, "a trajectory hangs"
        for task in done:
            if not task.cancelled():
                task.result()
        assert self.pool.stats().acquired_slots == 0, "a slot was not given back"


def run_schedule(seed):
    run = Run(seed)
    try:
        run_in_virtual_time(asyncio.wait_for(run.main(), timeout=100_000))
    except Exception as error:
        raise AssertionError(f"seed {seed}: {error!r}") from error
    return run.outcomes


def run_schedules(seeds):
    return [outcome for seed in seeds for outcome in run_schedule(seed)]


def test_three_hundred_fault_schedules_keep_every_promise():
    outcomes = run_schedules(range(300))
    # The faults did strike, and did not strike everything.
    assert {"done", "cancelled", "SlotLostError", "HostLostError", "SandboxTimeoutError"} <= set(
        outcomes
    )
    assert outcomes.count("done") > len(outcomes) / 3


@pytest.mark.parametrize("seed", [2071, 7031, 9389])
def test_schedules_that_once_failed_keep_them_too(seed):
    run_schedule(seed)


@pytest.mark.slow
def test_three_thousand_more_keep_them_too():
    run_schedules(range(300, 3_300))
