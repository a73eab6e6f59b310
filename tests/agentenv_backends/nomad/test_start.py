"""What cannot work is refused at the start, within seconds, with the setting that is about it; and nothing stays."""
# mypy: disable-error-code="no-untyped-call"

import asyncio

import pytest
from aiohttp import web

from agentenv_backends.config import NomadConfig
from agentenv_backends.errors import BackendConfigError, BackendUnavailableError
from agentenv_backends.nomad.provider import NomadProvider
from agentenv_backends.pool import SlotPool
from tests.agentenv_backends.nomad.cluster import SMALL, WITHIN_S, pool_of, small
from tests.emulators.nomad.faults import RouteFault
from tests.emulators.nomad.server import running_nomad

pytestmark = [pytest.mark.slow]


@pytest.fixture
async def nomad():
    async with running_nomad(nodes=1, token="right") as running:
        yield running


async def refusal(config):
    """Why a backend does not start. Most of the time until then is the emulator's: images are pulled for real."""
    pool = SlotPool(NomadProvider(config), config.pool_settings())
    with pytest.raises(BackendUnavailableError) as caught:
        async with asyncio.timeout(WITHIN_S):
            await pool.start()
    await pool.stop()
    return str(caught.value)


@pytest.mark.parametrize(
    ("settings", "reasons"),
    [
        ({"token": "wrong"}, ["ACL token not found", "token (NOMAD_TOKEN) is not accepted"]),
        ({"token": ""}, ["Permission denied", "no token was given", "submit-job"]),
        (
            {"host_memory_mb": 9_000_000},
            ["no room for 1 hosts", "memory is used up on 1 nodes", "`host_memory_mb`"],
        ),
        ({"cpu_mhz": 9_000_000}, ["cpu is used up", "`cpu_mhz`"]),
        ({"datacenters": ["moon"]}, ["no node in datacenters moon", "`datacenters`"]),
        ({"driver": "podman"}, ["missing drivers rules out 1 nodes", "`driver`"]),
        (
            {"constraints": [{"attribute": "${attr.cpu.arch}", "value": "riscv"}]},
            ["${attr.cpu.arch} = riscv rules out 1 nodes", "`constraints`"],
        ),
        (
            {"driver": "docker", "image": "no-such-image:1"},
            ["`image` cannot be had", "Driver Failure", "manifest unknown"],
        ),
        ({"python": "no-such-python"}, ["hosts do not stay up", "no-such-python"]),
        ({"python": "false"}, ["hosts do not stay up", "Exit Code: 1"]),
    ],
)
async def test_what_cannot_work_is_refused_with_what_to_change(nomad, settings, reasons):
    told = await refusal(small(nomad, **settings))
    for reason in reasons:
        assert reason in told
    assert "right" not in told
    assert nomad.cluster.state.jobs == {}
    assert nomad.cluster.pids == []


async def test_an_address_where_nothing_listens_is_named():
    told = await refusal(NomadConfig(**SMALL, address="http://127.0.0.1:1"))
    assert "http://127.0.0.1:1 cannot be reached" in told
    assert "`address` (NOMAD_ADDR)" in told


async def _no_nomad(_request):
    return web.Response(text="<html>hello</html>")


async def test_an_address_where_something_else_listens_is_named():
    app = web.Application()
    app.router.add_get("/v1/status/leader", _no_nomad)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        url = "http://{}:{}".format(*runner.addresses[0])
        assert f"{url}: the answer to GET status/leader makes no sense" in await refusal(
            NomadConfig(**SMALL, address=url)
        )
    finally:
        await runner.cleanup()


async def test_a_cluster_without_a_leader_is_refused(nomad):
    nomad.faults.no_leader = True
    assert "has no leader" in await refusal(small(nomad))


async def test_certificates_that_are_not_there_are_named():
    values = {**SMALL, "address": "https://127.0.0.1:1", "ca_cert": "/no/such/ca.pem"}
    config = NomadConfig.model_validate(values)
    pool = SlotPool(NomadProvider(config), config.pool_settings())
    with pytest.raises(BackendConfigError, match=r"ca_cert.*/no/such/ca.pem cannot be used"):
        await pool.start()


async def test_settings_come_from_the_environment_where_none_are_given(nomad, monkeypatch):
    monkeypatch.setenv("NOMAD_ADDR", nomad.url + "/")
    monkeypatch.setenv("NOMAD_TOKEN", "right")
    pool, provider = pool_of(nomad, address=None, token=None)
    async with pool:
        assert provider.job_id in nomad.cluster.state.jobs


async def test_a_server_that_fails_for_a_moment_is_told_from_one_that_refuses(nomad):
    nomad.faults.routes.append(RouteFault("POST /v1/jobs", 500, "rpc error: disk on fire"))
    assert "disk on fire" in await refusal(small(nomad))
