"""The predecessor's flat names, where they speak of containers."""
# mypy: disable-error-code="no-untyped-call"

import pytest
from pydantic import ValidationError

from agentenv import AgentEnvConfig
from agentenv_backends.config import DockerConfig, LocalConfig


def backend_of(**flat):
    return AgentEnvConfig(**flat).backend


def test_flat_names_describe_containers():
    backend = backend_of(
        tool_pool_mode="docker",
        sandbox_image="tools:1",
        slots_per_container=4,
        min_containers=2,
        max_containers=3,
        acquire_timeout_s=5,
    )
    assert backend == DockerConfig(
        image="tools:1", slots=4, min_hosts=2, max_hosts=3, acquire_timeout_s=5
    )


def test_without_numbers_there_are_as_many_containers_and_slots_as_there_were():
    backend = backend_of(tool_pool_mode="docker")
    assert (backend.slots, backend.min_hosts, backend.max_hosts) == (10, 1, 10)


def test_an_image_is_of_no_interest_to_other_backends():
    assert isinstance(backend_of(sandbox_image="tools:1"), LocalConfig)


def test_two_images_are_a_contradiction():
    nested = {"type": "docker", "image": "tools:1"}
    assert backend_of(backend=nested, sandbox_image="tools:1").image == "tools:1"
    with pytest.raises(
        ValidationError, match=r"sandbox_image='tools:2' contradicts backend\.image"
    ):
        backend_of(backend=nested, sandbox_image="tools:2")


def test_permitting_a_network_does_not_open_one():
    assert backend_of(tool_pool_mode="docker", allow_network=True).network_mode == "none"
    opened = backend_of(backend={"type": "docker", "allow_network": True}, allow_network=True)
    assert opened.network_mode == "bridge"
