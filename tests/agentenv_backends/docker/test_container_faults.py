"""Containers that are killed, paused and full, and an engine that stalls or goes."""
# mypy: disable-error-code="no-untyped-call, union-attr"

import asyncio

import pytest

from agentenv_backends.errors import HostLostError, InfrastructureError, SandboxTimeoutError
from agentenv_backends.results import ExecStatus
from tests.agentenv_backends.docker.real import SOCKET, Ground, eventually, existing, small
from tests.agentenv_backends.docker.stalling import stalling_way
from tests.docker_engine import needs_engine

pytestmark = [pytest.mark.docker, pytest.mark.slow, needs_engine]


async def test_a_container_killed_in_mid_command_is_told_and_replaced(ground):
    here = await ground()
    slot = await here.pool.acquire("a")
    call = asyncio.create_task(here.run(slot, "sleep 500", 600))
    await here.say(await here.pool.acquire("b"), "true")
    await here.container(slot).kill()
    with pytest.raises(HostLostError, match=r"agentenv-.* ended with exit code 137 \(killed\)"):
        await call
    await here.pool.release(slot)
    fresh = await here.pool.acquire("after", timeout_s=60)
    assert fresh.host_id != slot.host_id
    assert await here.say(fresh, "echo ok") == "ok\n"


async def test_a_container_paused_for_a_while_goes_on(ground):
    here = await ground()
    slot = await here.pool.acquire("a")
    await here.container(slot).pause()
    call = asyncio.create_task(here.run(slot, "echo ok"))
    await asyncio.sleep(4)
    await here.container(slot).unpause()
    assert (await call).stdout.text() == "ok\n"
    assert here.pool.stats().lost_hosts == 0


async def test_a_container_that_stays_paused_does_not_keep_stop_from_removing_it(ground):
    here = await ground()
    slot = await here.pool.acquire("a")
    await here.container(slot).pause()
    call = asyncio.create_task(here.run(slot, "echo ok", 1))
    with pytest.raises(SandboxTimeoutError):
        await call
    await here.pool.stop()
    assert here.provider.container_names[slot.host_id] not in await existing()


async def test_a_container_that_runs_out_of_memory_fails_commands_and_not_scores(ground):
    here = await ground(slots=2, memory_mb=512, container_memory_mb=160)
    slot = await here.pool.acquire("a")
    eat = "python3 -c \"x = [bytearray(1 << 20) for _ in range(400)]; print('ate it')\""
    try:
        answer = await here.run(slot, eat)
        assert answer.status in (ExecStatus.OUT_OF_MEMORY, ExecStatus.SIGNALED), answer
    except HostLostError as error:
        assert "out of memory" in str(error)  # noqa: PT017 - either end is right
    except InfrastructureError as error:
        assert "memory" in str(error)  # noqa: PT017
    fresh = await here.pool.acquire("after", timeout_s=60)
    assert await here.say(fresh, "echo ok") == "ok\n"


async def test_a_fork_bomb_ends_with_its_slot(ground):
    here = await ground(max_hosts=1)
    bomb, other = await here.pool.acquire("bomb"), await here.pool.acquire("other")
    await here.run(bomb, "bomb() { bomb | bomb & }; bomb; sleep 3", 5)
    assert await here.say(other, "echo fine") == "fine\n"
    await here.pool.release(bomb)
    again = await here.pool.acquire("again")
    assert await here.say(again, "echo ok") == "ok\n"


async def test_an_engine_that_stalls_for_ten_seconds_loses_nothing(docker, tmp_path):
    async with stalling_way(tmp_path, SOCKET) as way:
        here = Ground(small(docker_host=way.url, max_hosts=3), docker)
        async with here.pool:
            slots = [await here.pool.acquire(f"t{n}") for n in range(4)]
            calls = [asyncio.create_task(here.run(slot, "sleep 1; echo ok")) for slot in slots]
            way.open.clear()
            more = asyncio.create_task(here.pool.acquire("needs a new container", timeout_s=60))
            await asyncio.sleep(10)
            way.open.set()
            assert [(await call).stdout.text() for call in calls] == ["ok\n"] * 4
            assert await here.say(await more, "echo new") == "new\n"
            assert here.pool.stats().lost_hosts == 0


async def test_an_engine_that_goes_away_is_a_lost_host(docker, tmp_path):
    async with stalling_way(tmp_path, SOCKET) as way:
        here = Ground(small(docker_host=way.url), docker)
        await here.pool.start()
        slot = await here.pool.acquire("a")
        call = asyncio.create_task(here.run(slot, "sleep 500", 600))
        await here.say(await here.pool.acquire("b"), "true")
        await way.end()
        with pytest.raises(HostLostError):
            await call
        name = here.provider.container_names[slot.host_id]

        async def gone():
            return name not in await existing()

        await eventually(gone)  # its stream has ended, and so has it
        await here.pool.stop()
