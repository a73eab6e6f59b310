"""The predecessor's flat names, where they speak of a Nomad cluster."""
# mypy: disable-error-code="no-untyped-call"

import pytest
from pydantic import ValidationError

from agentenv import AgentEnvConfig
from agentenv_backends.config import LocalConfig, NomadConfig


def backend_of(**flat):
    return AgentEnvConfig(**flat).backend


def test_flat_names_describe_a_job():
    backend = backend_of(
        tool_pool_mode="nomad",
        nomad_address="http://nomad.example.org:4646",
        sandbox_job_id="tools",
        sandbox_image="tools:1",
        slots_per_container=4,
        min_containers=2,
        max_containers=3,
        purge_job_on_start=True,
        purge_job_on_shutdown=False,
        allow_network=True,
    )
    assert backend == NomadConfig(
        address="http://nomad.example.org:4646",
        job_id="tools",
        image="tools:1",
        slots=4,
        min_hosts=2,
        max_hosts=3,
        purge_job_on_start=True,
        purge_job_on_shutdown=False,
    )


def test_flat_names_describe_a_singularity_image():
    backend = backend_of(
        tool_pool_mode="nomad", driver="singularity", singularity_image="/images/tools.sif"
    )
    assert (backend.driver, backend.singularity_image) == ("singularity", "/images/tools.sif")


def test_a_cluster_named_flat_is_of_no_interest_to_other_backends():
    assert isinstance(backend_of(nomad_address="http://nomad.example.org:4646"), LocalConfig)


def test_two_addresses_are_a_contradiction():
    nested = {"type": "nomad", "address": "http://one.example.org:4646"}
    with pytest.raises(ValidationError, match=r"nomad_address='.*' contradicts backend\.address"):
        backend_of(backend=nested, nomad_address="http://two.example.org:4646")
