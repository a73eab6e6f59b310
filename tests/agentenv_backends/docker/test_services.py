"""Services beside hosts, on a real engine."""
# mypy: disable-error-code="no-untyped-call, no-untyped-def, union-attr"

import asyncio
import signal

import pytest

from agentenv_backends.docker import owners
from agentenv_backends.docker.engine import Engine
from agentenv_backends.errors import BackendUnavailableError, HostLostError, HostStartError
from tests.agentenv_backends.docker.real import end_driver, eventually, existing, start_driver
from tests.docker_engine import IMAGE, needs_engine
from tests.waiting import WITHIN_S

pytestmark = [pytest.mark.docker, pytest.mark.slow, needs_engine]

SERVER = (
    "mkdir -p /srv && cd /srv && echo $GREETING > greeting && exec python3 -u -m http.server 80"
)
FETCH = "python3 -c 'import urllib.request as u; print(u.urlopen(\"http://{}/greeting\", timeout=60).read().decode())'"
HEALTHY = {"test": ("CMD-SHELL", FETCH.format("127.0.0.1")), "interval_s": 0.5, "retries": 100}


def service(name="db", **more):
    own = {"name": name, "image": IMAGE, "command": ("sh", "-c", SERVER), "healthcheck": HEALTHY}
    return {**own, "variables": {"GREETING": f"hello from {name}"}, "memory_mb": 128, **more}


def beside(*services, **more):
    alone = {"slots": 1, "run_as_root": True, "read_only_root": False, "min_hosts": 0}
    patient = {
        "launch_timeout_s": 120.0,
        "acquire_timeout_s": 240.0,
        "warm_slots": 0,
        "max_hosts": 1,
    }
    return {**alone, **patient, "services": services, **more}


async def networks():
    async with Engine() as engine:
        return {entry.name for entry in await engine.list_networks(owners.OWNER_LABEL)}


async def left_of(names):
    return {each for each in await existing() | await networks() if each.startswith(tuple(names))}


async def test_a_service_is_reached_by_its_name_and_goes_with_its_host(ground):
    here = await ground(**beside(service()))
    slot = await here.pool.acquire("a")
    assert await here.say(slot, FETCH.format("db")) == "hello from db\n\n"
    outside = "python3 -c 'import socket; socket.create_connection((\"172.17.0.1\", 22), 3)' 2>&1"
    assert "rror" in await here.say(slot, outside)
    name = here.provider.container_names[slot.host_id]
    assert {name, f"{name}-db", f"{name}.keeper"} <= await existing()
    assert name in await networks()
    await here.pool.stop()
    assert not await left_of([name])


async def test_hosts_side_by_side_have_services_of_their_own(ground):
    here = await ground(**beside(service(), max_hosts=2))
    slots = [await here.pool.acquire(each) for each in "ab"]
    mark = "python3 -c 'import socket; print(socket.gethostbyname(\"db\"))'"
    address, other = [(await here.say(slot, mark)).strip() for slot in slots]
    assert address != other
    assert await here.say(slots[0], FETCH.format(address)) == "hello from db\n\n"
    reaching = FETCH.format(other).replace("60", "3") + " 2>&1"
    assert "URLError" in await here.say(slots[0], reaching)


async def test_a_service_that_is_waited_for_comes_first(ground):
    first = service(
        healthcheck={**HEALTHY, "test": ("CMD-SHELL", "test -e /ready || { touch /ready; false; }")}
    )
    second = service(
        "web", command=("sh", "-c", f"{FETCH.format('db')} && {SERVER}"), after=("db",)
    )
    here = await ground(**beside(second, first))
    slot = await here.pool.acquire("a")
    assert await here.say(slot, FETCH.format("web")) == "hello from web\n\n"


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ({"command": ("sh", "-c", "echo no luck; exit 3")}, r"service db has ended: .*exit code 3.*no luck"),
        ({"healthcheck": {"test": ("CMD-SHELL", "echo out of order; false"), "interval_s": 0.5, "retries": 1}},
         r"service db is not healthy: its last check said 'out of order'.*Serving HTTP"),
    ],
)  # fmt: skip
async def test_a_service_that_does_not_come_up_is_named_with_what_it_said(ground, more, told):
    with pytest.raises(HostStartError, match=f"(?s){told}"):
        await ground(**beside(service(**more)))


async def test_a_service_without_an_image_is_named(ground):
    with pytest.raises(BackendUnavailableError, match=r"service db: .* no image 'agentenv-none:1'"):
        await ground(**beside(service(image="agentenv-none:1")))


async def test_a_service_that_dies_is_the_hosts_loss_and_the_next_host_has_a_new_one(
    ground, docker
):
    here = await ground(**beside(service()))
    slot = await here.pool.acquire("a")
    call = asyncio.create_task(here.run(slot, "sleep 500", 600))
    name = here.provider.container_names[slot.host_id]
    await docker.containers.container(f"{name}-db").kill()
    with pytest.raises(HostLostError, match=r"service db has ended: .*exit code 137"):
        await call
    await here.pool.release(slot)
    fresh = await here.pool.acquire("after")
    assert await here.say(fresh, FETCH.format("db")) == "hello from db\n\n"

    async def gone():
        return not await left_of([name])

    await eventually(gone)


async def test_a_start_that_is_cancelled_leaves_nothing(ground):
    check = {"test": ("CMD-SHELL", "false"), "interval_s": 1, "retries": 1000}
    starting = asyncio.create_task(ground(**beside(service("stuck", healthcheck=check))))

    async def stuck():
        return {name for name in await existing() if name.endswith("-stuck")}

    await eventually(stuck)
    hosts = [name.removesuffix("-stuck") for name in await stuck()]
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting

    async def gone():
        return not await left_of(hosts)

    await eventually(gone)


async def test_services_of_a_killed_driver_end_with_it_and_a_sweep_removes_their_network(ground):
    driver, names = await asyncio.to_thread(start_driver, 1, 1, "with services")
    try:
        (name,) = names
        assert f"{name}-db" in await existing()
        driver.send_signal(signal.SIGKILL)
        await asyncio.to_thread(driver.wait, WITHIN_S)

        async def gone():
            return not {each for each in await existing() if each.startswith(name)}

        await eventually(gone)
        async with Engine() as engine:
            swept = await owners.sweep(engine, remove=True)
        assert ("network", name) in {(left.kind, left.name) for left in swept}
        assert name not in await networks()
    finally:
        end_driver(driver)
