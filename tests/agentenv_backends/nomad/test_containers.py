"""Hosts of the driver `docker`, as containers of a real engine started with what the job says."""
# mypy: disable-error-code="no-untyped-call, union-attr"

import asyncio
import os
import subprocess

import pytest

from agentenv_backends.base import Capabilities
from agentenv_backends.conformance import CHECKS, run_checks
from tests.agentenv_backends.nomad.cluster import SMALL, alloc_of, running_pool, says
from tests.docker_engine import IMAGE, needs_engine
from tests.emulators.nomad.server import running_nomad

pytestmark = [pytest.mark.docker, pytest.mark.slow, needs_engine]
CONTAINER = {"driver": "docker", "image": IMAGE, "slots": 2, "max_hosts": 1}


@pytest.fixture
async def nomad():
    async with running_nomad(nodes=1, images=(IMAGE,), has_engine=True) as running:
        yield running


async def test_slots_of_a_container_are_users_without_sockets(nomad):
    async with running_pool(nomad, **CONTAINER) as (pool, _):
        assert pool.capabilities == Capabilities(
            isolation="user",
            network_control=True,
            memory_limit=False,
            process_limit=True,
            disk_limit=False,
            stateful_terminals=True,
            tmux=True,
            snapshot=True,
        )
        slots = await asyncio.gather(pool.acquire("a"), pool.acquire("b"))
        users = {await says(pool, slot, "id -u") for slot in slots}
        assert len(users) == 2
        for path in ("/secrets/agentenv.key", "/local/gate.lock"):
            assert await says(pool, slots[0], f"cat {path} 2>/dev/null; echo $?") == "1\n"
        for path in ("/alloc/x", "/local/x", "/local/slots/x", "/x", "/tmp/x"):
            assert await says(pool, slots[0], f"touch {path} 2>/dev/null; echo $?") != "0\n", path
        tries = [
            f"import socket; socket.socket(socket.AF_{family}, socket.SOCK_{kind})"
            for family, kind in (("INET", "STREAM"), ("INET6", "DGRAM"), ("NETLINK", "RAW"))
        ]
        for program in tries:
            said = await says(pool, slots[0], f"python3 -c '{program}' 2>&1 | tail -1")
            assert "PermissionError" in said, program
        unix = "import socket; socket.socketpair(); print(socket.socket(socket.AF_UNIX).family)"
        assert "1" in await says(pool, slots[0], f"python3 -c '{unix}'")
    assert nomad.cluster.pids == []


async def test_with_the_network_allowed_commands_have_their_hosts(nomad):
    async with running_pool(nomad, **CONTAINER, allow_network=True) as (pool, _):
        slot = await pool.acquire("a")
        program = 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.family)'
        assert await says(pool, slot, f"python3 -c '{program}'") == "2\n"


async def test_a_container_that_is_killed_is_replaced(nomad):
    async with running_pool(nomad, **CONTAINER) as (pool, provider):
        slot = await pool.acquire("a")
        await says(pool, slot, "echo mine > file")
        alloc_of(nomad, provider, slot).runner.kill()
        again = await pool.acquire("a")
        while again.host_id == slot.host_id:  # its end is not known yet
            await pool.release(again)
            again = await pool.acquire("a")
        assert await says(pool, again, "ls") == ""


@pytest.fixture
def built(tmp_path):
    """An image with a directory and a variable of its own."""
    (tmp_path / "Dockerfile").write_text(
        f"FROM {IMAGE}\nENV SHADE=dark\nWORKDIR /app\nRUN echo kept > file && chmod 600 file\n"
    )
    name = f"agentenv-test-nomad:{os.getpid()}"
    subprocess.run(["docker", "build", "-q", "-t", name, tmp_path], check=True, capture_output=True)
    yield name
    subprocess.run(["docker", "rmi", "-f", name], check=True, capture_output=True)


async def test_a_trajectory_may_have_a_whole_container_with_the_images_own_directory(built):
    own = {"image": built, "read_only_root": False, "workspace": None, "image_variables": True}
    more = {"folders": ["/logs/agent"], "variables": {"COLOUR": "red"}, "slots": 1, "max_hosts": 1}
    looks = "pwd; cat file; ls -A /logs/agent; echo $SHADE $COLOUR $NOMAD_ALLOC_ID; id -un; ls /tmp"
    async with (
        running_nomad(nodes=1, images=(built,), has_engine=True) as nomad,
        running_pool(nomad, **CONTAINER | own | more) as (pool, _),
    ):
        hosts = set()
        for name in ("a", "b"):
            slot = await pool.acquire(name)
            hosts.add(slot.host_id)
            assert await says(pool, slot, looks) == "/app\nkept\ndark red\nagent\n"
            fill = "echo new > file; touch /logs/agent/x /tmp/x; cat /secrets/agentenv.key; echo $?"
            assert await says(pool, slot, fill) == "1\n"
            await pool.release(slot)
        assert len(hosts) == 2


async def test_what_the_contract_says_of_confinement_holds_in_containers(nomad):
    arguments = {**SMALL, **CONTAINER, "type": "nomad", "address": nomad.url, "slots": 4}
    checks = [check for check in CHECKS if check.group == "confinement"]
    report = await run_checks(arguments=arguments, checks=checks)
    assert {outcome.status for outcome in report.outcomes} == {"holds"}, report.text()
