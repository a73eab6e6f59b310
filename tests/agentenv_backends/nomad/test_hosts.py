"""Hosts in allocations: they come and go as they are needed, and whatever the cluster does to them is told apart."""
# mypy: disable-error-code="no-untyped-call, union-attr"

import asyncio
import json
import os
import signal
import sys

import pytest

from agentenv_backends.errors import (
    AcquireTimeoutError,
    BackendUnavailableError,
    HostLostError,
    HostStartError,
    InfrastructureError,
)
from agentenv_backends.nomad import provider as provider_module
from agentenv_backends.nomad.provider import NomadProvider
from agentenv_backends.requests import ExecRequest
from tests.agentenv_backends.nomad.cluster import (
    WITHIN_S,
    alloc_of,
    count,
    live,
    pool_of,
    running_pool,
    says,
    small,
    until,
)
from tests.emulators.nomad.faults import RouteFault
from tests.emulators.nomad.server import running_nomad

pytestmark = [pytest.mark.sandbox, pytest.mark.slow]


@pytest.fixture
async def nomad():
    async with running_nomad() as running:
        yield running


async def lost(pool, slot):
    """Why a host went while a command ran in it."""
    with pytest.raises(HostLostError) as caught:
        async with asyncio.timeout(WITHIN_S):
            await pool.execute(slot, ExecRequest("sleep 600", timeout_s=600))
    return str(caught.value)


# --- as many as are needed -------------------------------------------------------------------------


async def test_the_job_grows_with_those_who_wait_in_one_step_and_shrinks_again(nomad):
    async with running_pool(nomad, max_hosts=3) as (pool, provider):
        scaled = nomad.faults.counts.get("POST /v1/job/:id/scale", 0)
        slots = await asyncio.gather(*(pool.acquire(f"t{n}") for n in range(3)))
        assert count(nomad, provider) == 3
        assert nomad.faults.counts["POST /v1/job/:id/scale"] - scaled <= 3
        assert len({alloc_of(nomad, provider, slot).alloc_id for slot in slots}) == 3
        assert len({alloc_of(nomad, provider, slot).node.name for slot in slots}) == 2
        for slot in slots:
            await pool.release(slot)
        await until(lambda: len(live(nomad)) == 1 and count(nomad, provider) == 1)
    assert nomad.cluster.state.jobs == {}
    assert nomad.cluster.pids == []


async def test_no_command_asks_the_cluster_anything(nomad):
    async with running_pool(nomad) as (pool, provider):
        slot = await pool.acquire("a")
        before = sum(nomad.faults.counts.values())
        for n in range(200):
            assert await says(pool, slot, f"echo {n}") == f"{n}\n"
        # The driver follows the listing, which is asked for again each time something happens in the cluster.
        assert sum(nomad.faults.counts.values()) - before <= 3
        assert provider.calls == sum(nomad.faults.counts.values())
        await pool.release(slot)


async def test_two_runs_side_by_side_have_a_job_each(nomad):
    async with running_pool(nomad) as (one, first), running_pool(nomad) as (two, second):
        slots = [await one.acquire("a"), await two.acquire("b")]
        assert len(nomad.cluster.state.jobs) == 2
        assert await second.sweep() == ()
        assert await says(one, slots[0], "echo 1") == "1\n"
        await one.stop()
        assert set(nomad.cluster.state.jobs) == {second.job_id} != {first.job_id}
        assert await says(two, slots[1], "echo 2") == "2\n"


async def test_stopping_while_hosts_start_leaves_nothing(nomad):
    nomad.faults.ports_missing_s = 600.0
    pool, provider = pool_of(nomad)
    starting = asyncio.create_task(pool.start())
    await until(lambda: live(nomad))
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    await pool.stop()
    assert nomad.cluster.state.jobs == {}
    assert nomad.cluster.pids == []
    assert provider.hosts == {}


# --- what happens to hosts -------------------------------------------------------------------------


async def test_a_task_that_is_killed_is_told_with_its_event_and_its_trajectory_gets_another_host(
    nomad,
):
    async with running_pool(nomad) as (pool, provider):
        slot = await pool.acquire("a")
        asked = asyncio.create_task(lost(pool, slot))
        await asyncio.sleep(0.1)
        (alloc,) = live(nomad)
        alloc.runner.kill()
        reason = await asked
        assert f"allocation {alloc.alloc_id[:8]} on node {alloc.node.name}" in reason
        assert "Terminated: Exit Code: 0, Signal: 9" in reason
        again = await pool.acquire("a")
        assert await says(pool, again, "echo still here") == "still here\n"
        assert alloc_of(nomad, provider, again) is not alloc or alloc.tasks["sandboxd"]["Restarts"]


async def test_an_allocation_that_an_operator_stops_is_replaced(nomad):
    async with running_pool(nomad) as (pool, provider):
        slot = await pool.acquire("a")
        before = alloc_of(nomad, provider, slot)
        nomad.cluster.jobs.stop_alloc(before.alloc_id)
        with pytest.raises(InfrastructureError, match=r"told to stop|SIGTERM"):
            await pool.execute(slot, ExecRequest("sleep 600", timeout_s=600))
        again = await pool.acquire("a")
        after = alloc_of(nomad, provider, again)
        assert (after.index, after.alloc_id != before.alloc_id) == (before.index, True)


@pytest.mark.parametrize("power", [True, False])
async def test_a_lost_node_is_told_and_its_hosts_are_replaced_elsewhere(nomad, power):
    """With its power left, the old host runs on beside the new one; nobody speaks with it any more."""
    async with running_pool(nomad) as (pool, provider):
        slot = await pool.acquire("a")
        before = alloc_of(nomad, provider, slot)
        asked = asyncio.create_task(lost(pool, slot))
        await asyncio.sleep(0.1)
        nomad.cluster.lose_node(before.node, power=power)
        reason = await asked
        if power:
            assert "lost with its node" in reason
        again = await pool.acquire("a")
        after = alloc_of(nomad, provider, again)
        assert after.node is not before.node
        nomad.cluster.return_node(before.node)
        await until(lambda: before.runner.pid is None)
        assert await says(pool, again, "echo new") == "new\n"


async def test_a_port_that_is_mapped_late_is_waited_for(nomad):
    nomad.faults.ports_missing_s = 1.5
    async with running_pool(nomad) as (pool, _):
        slot = await pool.acquire("a")
        assert await says(pool, slot, "echo mapped") == "mapped\n"


async def test_a_port_that_never_is_mapped_is_the_reason_told(nomad):
    nomad.faults.ports_missing_s = 600.0
    with pytest.raises(BackendUnavailableError, match="its port is not mapped yet"):
        async with running_pool(nomad, launch_timeout_s=6):
            pass
    assert nomad.cluster.pids == []


async def test_scaling_that_is_blocked_is_tried_again_until_it_is_not(nomad):
    async with running_pool(nomad, max_hosts=2) as (pool, provider):
        first = await pool.acquire("a")
        nomad.faults.scaling_blocked = True
        asked = asyncio.create_task(pool.acquire("b"))
        await until(lambda: nomad.faults.counts.get("POST /v1/job/:id/scale", 0) >= 4)
        assert count(nomad, provider) == 1
        nomad.faults.scaling_blocked = False
        second = await asked
        assert {await says(pool, slot, "echo x") for slot in (first, second)} == {"x\n"}


async def test_a_full_cluster_is_told_with_what_is_missing_and_waited_for(nomad):
    async with running_pool(nomad, max_hosts=2) as (pool, _):
        await pool.acquire("a")
        nomad.faults.no_placement = True
        with pytest.raises(AcquireTimeoutError):
            await pool.acquire("b", timeout_s=2)
        asked = asyncio.create_task(pool.acquire("b"))
        await asyncio.sleep(0.5)
        nomad.cluster.allow_placement()
        assert await says(pool, await asked, "echo room") == "room\n"


async def test_why_a_launch_failed_names_what_the_cluster_lacks(nomad):
    provider = NomadProvider(small(nomad, max_hosts=2))
    await provider.prepare()
    try:
        first = await provider.launch("h1")
        provider._config = small(nomad, max_hosts=2, launch_timeout_s=4)
        nomad.faults.no_placement = True
        with pytest.raises(HostStartError, match="memory is used up on 2 nodes"):
            await provider.launch("h2")
        await first.ping()
        await first.close()
    finally:
        await provider.close()


# --- what happens to the API -----------------------------------------------------------------------


async def test_hosts_go_on_whatever_becomes_of_the_api(nomad):
    async with running_pool(nomad, max_hosts=2) as (pool, _):
        slot = await pool.acquire("a")
        faults = nomad.faults
        for broken in (
            RouteFault("/v1/", 500, "No cluster leader"),
            RouteFault("/v1/", 403, "Permission denied"),
            RouteFault("/v1/", 404, "job not found"),
            RouteFault("/v1/", 200, "[]", truncated=True),
            RouteFault("/v1/", 200, "<html>"),
            RouteFault("allocations", 200, "[]"),
        ):
            faults.routes.append(broken)
            nomad.cluster.state.touch("allocs")
            for n in range(5):
                assert await says(pool, slot, f"echo {n}") == f"{n}\n"
                await asyncio.sleep(0.05)
            faults.routes.remove(broken)
        faults.index_back = faults.early_return = True
        nomad.cluster.state.touch("allocs")
        assert await says(pool, slot, "echo on") == "on\n"
        assert pool.counters().lost_hosts == 0
        asked = await pool.acquire("b")
        faults.early_return = False
        assert await says(pool, asked, "echo more") == "more\n"


async def test_without_a_leader_the_end_of_a_run_is_bounded_and_says_what_is_left(
    nomad, caplog, monkeypatch
):
    monkeypatch.setattr(provider_module, "_PURGE_S", 1.0)
    pool, provider = pool_of(nomad)
    await pool.start()
    await pool.acquire("a")
    nomad.faults.no_leader = True
    async with asyncio.timeout(WITHIN_S):
        await pool.stop()
    assert "No cluster leader" in caplog.text
    nomad.faults.no_leader = False
    other, sweeper = pool_of(nomad)
    del other
    # The driver, this process, is alive: nothing is swept before the claim is void.
    assert await sweeper.sweep() == ()
    await sweeper.close()
    assert provider.job_id in nomad.cluster.state.jobs


# --- jobs that stay, and drivers that go -----------------------------------------------------------


async def test_a_job_that_was_left_is_taken_over_with_its_hosts(nomad):
    staying = {"job_id": "tools", "purge_job_on_shutdown": False}
    async with running_pool(nomad, **staying):
        (before,) = live(nomad)
    assert live(nomad) == [before]
    async with running_pool(nomad, **staying) as (pool, provider):
        slot = await pool.acquire("a")
        assert alloc_of(nomad, provider, slot) is before
        assert await says(pool, slot, "echo again") == "again\n"
    async with running_pool(nomad, job_id="tools", purge_job_on_start=True) as (pool, provider):
        assert alloc_of(nomad, provider, await pool.acquire("a")) is not before
    assert nomad.cluster.state.jobs == {}


async def test_a_job_in_use_and_one_of_other_hosts_are_refused_by_name(nomad):
    staying = {"job_id": "tools", "purge_job_on_shutdown": False}
    async with running_pool(nomad, **staying) as (pool, _):
        slot = await pool.acquire("a")
        with pytest.raises(
            BackendUnavailableError, match=r"job 'tools' is in use by run .*, process"
        ):
            async with running_pool(nomad, **staying):
                pass
        assert await says(pool, slot, "echo mine") == "mine\n"
    with pytest.raises(
        BackendUnavailableError, match=r"other settings of hosts.*purge_job_on_start"
    ):
        async with running_pool(nomad, **staying, memory_mb=200):
            pass
    assert "tools" in nomad.cluster.state.jobs


async def test_a_job_of_somebody_else_is_left_alone(nomad):
    task = {"Name": "t", "Driver": "raw_exec", "Config": {"command": "sleep", "args": ["600"]}}
    networks = [{"DynamicPorts": [{"Label": "http"}]}]
    group = {"Name": "g", "Count": 1, "Tasks": [task], "Networks": networks}
    job = {"ID": "tools", "Type": "service", "Datacenters": ["*"], "TaskGroups": [group]}
    nomad.cluster.jobs.register({"Job": job})
    await until(lambda: live(nomad))
    with pytest.raises(BackendUnavailableError, match="not one of ours"):
        async with running_pool(nomad, job_id="tools"):
            pass
    assert "tools" in nomad.cluster.state.jobs


async def test_a_job_whose_purge_lags_is_waited_for(nomad):
    staying = {"job_id": "tools", "purge_job_on_shutdown": False}
    async with running_pool(nomad, **staying):
        (before,) = live(nomad)
    nomad.faults.purge_lag_s = 1.0
    async with running_pool(nomad, job_id="tools", purge_job_on_start=True):
        assert before.client == "complete"


async def start_driver(nomad, hosts, **settings):
    words = (
        "-m",
        "tests.agentenv_backends.nomad.driver",
        nomad.url,
        str(hosts),
        json.dumps(settings),
    )
    driver = await asyncio.create_subprocess_exec(
        sys.executable,
        *words,
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": ":".join(sys.path)},
    )
    async with asyncio.timeout(WITHIN_S):
        line = (await driver.stdout.readline()).decode().split()
    assert line[:1] == ["busy"]
    return driver, line[1]


async def test_what_a_killed_driver_leaves_the_next_run_removes_and_nothing_else(nomad):
    driver, job_id = await start_driver(nomad, 2)
    async with running_pool(nomad) as (pool, provider):
        assert job_id in nomad.cluster.state.jobs
        driver.send_signal(signal.SIGKILL)
        await driver.wait()
        (left,) = await provider.sweep(remove=False)
        assert (left.kind, left.name, left.removed) == ("job", job_id, False)
        assert f"process {driver.pid}" in left.owner
        (removed,) = await provider.sweep()
        assert removed.removed
        await until(lambda: len(nomad.cluster.pids) == 1)
        assert await says(pool, await pool.acquire("a"), "echo mine") == "mine\n"


async def test_hosts_whose_driver_is_gone_end_by_themselves_for_good(nomad, monkeypatch):
    """Restarted and rescheduled ones too: nothing of the job runs any more, though nobody has ended it."""
    monkeypatch.setattr("agentenv_backends.nomad.job._PATIENCE_LEASES", 0.01)
    pool, provider = pool_of(nomad)
    await pool.start()
    monkeypatch.setattr(provider, "_may_be_registered", False)  # as if this driver had been killed
    await pool.stop()
    allocs = nomad.cluster.state.allocs
    # The first, and as often anew as the job allows.
    await until(lambda: [each.client for each in allocs.values()] == 6 * ["failed"])
    assert nomad.cluster.pids == []
    assert provider.job_id in nomad.cluster.state.jobs
