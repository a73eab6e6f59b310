"""Random schedules of calls, latencies, faults, cancellations and releases; each from its seed."""

import asyncio
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentenv_backends.errors import InfrastructureError
from agentenv_backends.requests import ExecRequest
from agentenv_backends.testing import FakeProvider, Faults, run_in_virtual_time
from agentenv_tools import ToolExecutor, TrajectoryReleasedError
from agentenv_tools.testing import FakeRun, fake_executor
from tests.agentenv_tools.calls import sh


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**32), slots=st.integers(1, 4), trajectories=st.integers(1, 12))
def test_calls_of_each_trajectory_keep_their_order_whatever_the_latencies(
    seed, slots, trajectories
):
    async def trajectory(run: FakeRun, name: str) -> None:
        commands = [f"echo {name} {number}" for number in range(6)]
        results = await asyncio.gather(*(run.executor.execute(name, sh(c)) for c in commands))
        assert [r.output for r in results] == [f"{name} {number}\n" for number in range(6)]
        asked = [requests for requests in run.requests() if requests[0] == ExecRequest(commands[0])]
        assert asked == [[ExecRequest(command) for command in commands]]
        await run.executor.release_trajectory(name)

    async def test() -> None:
        provider = FakeProvider(faults=Faults(seed=seed, latency_s=(0.0, 2.0)))
        async with fake_executor(slots=slots, provider=provider, acquire_timeout_s=1e4) as run:
            names = [f"t{number}" for number in range(trajectories)]
            await asyncio.gather(*(trajectory(run, name) for name in names))

    run_in_virtual_time(test())


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_a_storm_of_cancellations_and_releases_leaves_nothing_and_no_trajectory_stuck(seed):
    chance = random.Random(seed)

    async def call(run: FakeRun, name: str) -> None:
        await asyncio.sleep(chance.uniform(0, 5))
        await run.executor.execute(name, sh(f"sleep {chance.uniform(0, 3)}"))

    async def storm(run: FakeRun, calls: list[asyncio.Task[None]], names: list[str]) -> None:
        for _ in range(30):
            await asyncio.sleep(chance.uniform(0, 0.4))
            chance.choice(calls).cancel()
            if chance.random() < 0.3:
                await run.executor.release_trajectory(chance.choice(names))

    async def test() -> None:
        provider = FakeProvider(faults=Faults(seed=seed, latency_s=(0.0, 0.5)))
        async with fake_executor(slots=3, provider=provider, acquire_timeout_s=1e4) as run:
            names = [f"t{number}" for number in range(6)]
            calls = [asyncio.create_task(call(run, chance.choice(names))) for _ in range(40)]
            storming = asyncio.create_task(storm(run, calls, names))
            releasing = asyncio.create_task(release_idle(run.executor, names))
            ended = await asyncio.gather(*calls, return_exceptions=True)
            releasing.cancel()
            await storming
            allowed = (asyncio.CancelledError, TrajectoryReleasedError)
            assert all(result is None or isinstance(result, allowed) for result in ended)
            await asyncio.gather(*(run.executor.release_trajectory(name) for name in names))
            for name in names:  # nothing is stuck: everyone gets a turn and a slot
                assert (await run.executor.execute(name, sh("true"))).success
                await run.executor.release_trajectory(name)

    run_in_virtual_time(test())


async def release_idle(executor: ToolExecutor, names: list[str]) -> None:
    """Give slots back now and then, as trajectories that end do; more wait than there are."""
    while True:
        for name in names:
            await asyncio.sleep(2)
            await executor.release_trajectory(name)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_faults_hit_their_own_trajectory_only_and_never_become_answers(seed):
    async def trajectory(run: FakeRun, name: str) -> InfrastructureError | None:
        try:
            for number in range(8):
                assert (await run.executor.execute(name, sh(f"echo {number} > f"))).success
                result = await run.executor.execute(name, sh("cat f"))
                assert result.output == f"{number}\n"
        except InfrastructureError as error:
            with pytest.raises(type(error)):
                await run.executor.execute(name, sh("true"))
            return error
        finally:
            await run.executor.release_trajectory(name)
        return None

    async def test() -> None:
        faults = Faults(seed=seed, slot_lost=0.02, exec_hangs=0.01, latency_s=(0.0, 0.2))
        async with fake_executor(
            slots=4, provider=FakeProvider(faults=faults), acquire_timeout_s=1e4
        ) as run:
            failures = await asyncio.gather(*(trajectory(run, f"t{n}") for n in range(16)))
            stats = run.executor.stats()
            assert stats.total_errors == 0
            # each failed trajectory failed once for good and once more when asked again
            assert stats.total_failures == 2 * sum(error is not None for error in failures)

    run_in_virtual_time(test())
