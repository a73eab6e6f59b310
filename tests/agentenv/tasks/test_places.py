import asyncio
from pathlib import Path
from typing import Any

import pytest

from agentenv.tasks import PlacePool, RunOptions, TaskUnsupportedError
from agentenv.tasks.models import EnvironmentTable
from agentenv.tasks.places import FOLDERS, Place, backend_values
from agentenv_backends.config import parse_backend_config
from agentenv_backends.errors import BackendError
from agentenv_tools import ToolRegistry


def values_of(
    provider: str = "docker",
    user: str | int | None = None,
    options: RunOptions | None = None,
    *,
    dockerfile: Path | None = None,
    **environment: Any,
) -> dict[str, Any]:
    place = Place(
        EnvironmentTable.model_validate(environment),
        {"COLOUR": "red"},
        user,
        dockerfile,
        None,
        host_image=True,
    )
    values = backend_values(place, provider, options or RunOptions(), sandboxes=3)
    parse_backend_config(values)  # it is one
    return values


def test_an_image_is_a_container_of_its_own_for_each_run():
    values = values_of(docker_image="x", memory_mb=300, cpus=2.0)
    assert (values["type"], values["image"], values["slots"], values["max_hosts"]) == (
        "docker",
        "x",
        1,
        3,
    )
    assert (values["run_as_root"], values["read_only_root"], values["workspace"]) == (
        True,
        False,
        None,
    )
    assert values["folders"] == FOLDERS
    assert values["variables"] == {
        "HOME": "/root",
        "USER": "root",
        "LOGNAME": "root",
        "COLOUR": "red",
    }
    assert (values["memory_mb"], values["cpus"]) == (300, 2.0)


@pytest.mark.parametrize(
    ("user", "as_root"), [(None, True), (0, True), ("0", True), ("root", True), ("nobody", False), (1000, False)]
)  # fmt: skip
def test_whoever_is_not_root_gets_no_root(user, as_root):
    assert values_of(docker_image="x", user=user)["run_as_root"] is as_root


@pytest.mark.parametrize(
    ("environment", "network", "allowed"),
    [
        ({}, True, None),
        ({"network_mode": "public"}, True, None),
        ({"network_mode": "no-network"}, False, None),
        ({"allow_internet": False}, False, None),
        ({"allow_internet": False, "network_mode": "public"}, True, None),
        ({"network_mode": "allowlist"}, False, None),
        ({"network_mode": "allowlist", "allowed_hosts": ["A.b.", "*.c.d", "::1"]}, True, ("a.b", "*.c.d", "::1")),
    ],
)  # fmt: skip
def test_the_network_is_what_the_task_says(environment, network, allowed):
    values = values_of(docker_image="x", **environment)
    assert (values["allow_network"], values.get("network_allow_list")) == (network, allowed)


def test_this_machines_network_is_for_tasks_that_ask_for_it():
    assert values_of("local")["allow_network"] is False
    assert values_of("local", network_mode="public")["allow_network"] is True


def test_networks_cannot_be_listed():
    with pytest.raises(TaskUnsupportedError, match=r"names the network 10\.0\.0\.0/8"):
        values_of(docker_image="x", network_mode="allowlist", allowed_hosts=["10.0.0.0/8"])


def test_a_dockerfile_is_built_unless_an_image_is_given_instead(tmp_path):
    dockerfile = tmp_path / "environment" / "Dockerfile"
    values = values_of(dockerfile=dockerfile)
    assert (values["dockerfile"], values["build_context"]) == (dockerfile, dockerfile.parent)
    values = values_of(dockerfile=dockerfile, options=RunOptions(backend={"image": "other"}))
    assert (values["image"], "dockerfile" in values) == ("other", False)


def test_a_backend_without_such_sandboxes_is_refused():
    with pytest.raises(TaskUnsupportedError, match="'elsewhere' is neither"):
        values_of("elsewhere")


def test_local_sandboxes_are_slots_of_one_host():
    values = values_of("local", storage_mb=50_000)
    assert (values["slots"], values["max_hosts"], values["disk_mb"]) == (3, 1, 1024)


@pytest.mark.sandbox
async def test_a_pool_shares_what_is_started_within_a_role_and_ends_it():
    pool = PlacePool(lambda: ToolRegistry(()), keep=1)
    values = {"type": "local", "warm_slots": 0}
    try:
        async with pool.use(values, 60) as one, pool.use(dict(values), 60) as other:
            assert one is other
            async with pool.use(values, 60, role="verifier") as third:
                assert third is not one
        async with pool.use(values, 60) as again:  # kept as the most recent of those nobody used
            assert await again.recordings("x") == ()
    finally:
        await pool.close()
    await pool.close()


@pytest.mark.sandbox
async def test_what_did_not_start_is_tried_again_by_the_next():
    pool = PlacePool(lambda: ToolRegistry(()))
    wrong = {"type": "docker", "docker_host": "unix:///nowhere/at/all.sock"}

    async def use() -> None:
        async with pool.use(wrong, 60):
            raise AssertionError("it started")

    results = await asyncio.gather(use(), use(), return_exceptions=True)
    assert all(isinstance(result, BackendError) for result in results)
    await pool.close()
