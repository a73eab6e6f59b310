"""What can be told of a cluster before a run."""

from __future__ import annotations

from pathlib import Path

from agentenv_backends.config import NomadConfig
from agentenv_backends.doctor import InForce, Protection, examine_nomad
from tests.agentenv_backends.nomad.cluster import small
from tests.emulators.nomad.server import running_nomad


def _in_force(found: list[Protection]) -> list[bool]:
    return [finding.in_force is InForce.YES for finding in found]


async def test_where_all_is_well_nothing_is_lacking():
    async with running_nomad(nodes=1, token="right") as nomad:
        found = await examine_nomad(small(nomad))
        assert nomad.cluster.state.jobs == {}
    assert _in_force(found) == [True, True]
    assert nomad.url in found[0].means


async def test_a_token_that_is_not_taken_is_told_and_not_shown():
    async with running_nomad(nodes=1, token="right") as nomad:
        found = await examine_nomad(small(nomad, token="hunter2"))
    assert not all(_in_force(found))
    assert "NOMAD_TOKEN" in found[-1].means
    assert "hunter2" not in str(found)


async def test_where_nobody_answers_the_one_finding_says_where_and_what_to_do():
    (only,) = await examine_nomad(NomadConfig(address="http://127.0.0.1:9"))
    assert only.in_force is InForce.NO
    assert "http://127.0.0.1:9 cannot be reached" in only.means
    assert "NOMAD_ADDR" in only.way_out


async def test_a_certificate_that_cannot_be_read_is_a_finding():
    config = NomadConfig(address="https://127.0.0.1:9", ca_cert=Path("/nowhere/ca.pem"))
    (only,) = await examine_nomad(config)
    assert only.in_force is InForce.NO
    assert "/nowhere/ca.pem" in only.means


async def test_a_password_in_the_address_is_not_shown():
    (only,) = await examine_nomad(NomadConfig(address="http://me:hunter2@127.0.0.1:9"))
    assert "http://127.0.0.1:9 cannot be reached" in only.means
    assert "hunter2" not in str(only)
