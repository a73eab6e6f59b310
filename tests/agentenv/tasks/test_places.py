import asyncio
from pathlib import Path
from typing import Any

import pytest

from agentenv.tasks import PlacePool, RunOptions, TaskUnsupportedError
from agentenv.tasks.backend_values import (
    FOLDERS,
    Place,
    backend_values,
    unlimited_storage,
    weaker,
)
from agentenv.tasks.models import EnvironmentTable
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
    with pytest.raises(TaskUnsupportedError, match="'elsewhere' is none of them"):
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


def test_a_sandbox_of_modal_is_one_run_of_an_image_or_a_dockerfile(tmp_path):
    values = values_of("modal", docker_image="x", memory_mb=300, cpus=2.0, workdir="/app")
    assert (values["image"], values["slots"], values["max_hosts"]) == ("x", 1, 3)
    assert (values["workspace"], values["run_as_root"], values["variables"]["HOME"]) == (
        "/app",
        True,
        "/root",
    )
    assert (values["sandbox_memory_mb"], values["max_sandbox_memory_mb"]) == (428, 428)
    assert values["max_cpus"] == 2.0
    values = values_of("modal", "nobody", dockerfile=tmp_path / "Dockerfile", gpus=2)
    assert (values["dockerfile"], values["run_as_root"]) == (tmp_path / "Dockerfile", False)
    assert values["gpu"] == "T4:2"
    assert values_of("modal", docker_image="x", gpus=1, gpu_types=["H100"])["gpu"] == "H100:1"


def test_modal_holds_commands_to_names_and_networks():
    hosts = ["a.b", "10.0.0.0/8"]
    values = values_of("modal", docker_image="x", network_mode="allowlist", allowed_hosts=hosts)
    assert (values["allow_network"], values["network_allow_list"]) == (True, tuple(hosts))


def test_a_host_of_nomad_is_one_run_of_an_image():
    values = values_of("nomad", docker_image="x", memory_mb=300, cpus=2.0, workdir="/app")
    assert (values["image"], values["slots"], values["workspace"]) == ("x", 1, "/app")
    assert (values["read_only_root"], values["host_memory_mb"], values["cpu_mhz"]) == (False, 428, 2000)  # fmt: skip


@pytest.mark.parametrize("driver", ["exec", "raw_exec"])
def test_without_containers_nomads_nodes_are_like_this_machine(driver):
    values = values_of("nomad", options=RunOptions(backend={"driver": driver}), storage_mb=2000)
    assert (values["disk_mb"], values["allow_network"], "image" in values) == (1024, False, False)


@pytest.mark.parametrize(
    ("backend", "user", "environment", "way_out"),
    [
        ({}, None, {}, "push it to one that they reach"),
        ({}, "root", {"docker_image": "x"}, "never have: run it on docker or modal"),
        ({}, None, {"docker_image": "x", "network_mode": "allowlist", "allowed_hosts": ["a.b"]}, "docker or modal"),
        ({}, None, {"docker_image": "x", "gpus": 1}, "run it on modal"),
        ({"driver": "singularity"}, None, {"docker_image": "x"}, "docker, podman, exec, raw_exec"),
        ({"driver": "exec"}, None, {"docker_image": "x", "workdir": "/app"}, "works in /app"),
    ],
)  # fmt: skip
def test_what_nomad_cannot_give_is_refused_with_the_way_out(backend, user, environment, way_out):
    with pytest.raises(TaskUnsupportedError, match=way_out):
        values_of("nomad", user, RunOptions(backend=backend), **environment)


@pytest.mark.parametrize(
    ("provider", "environment", "told"),
    [
        ("docker", {"docker_image": "x", "cpus": 1.0}, []),
        ("modal", {"docker_image": "x", "storage_mb": 5000}, ["single file"]),
        ("local", {"storage_mb": 5000}, ["nothing of its network", "1024 MB", "no user"]),
        (
            "nomad",
            {"docker_image": "x", "storage_mb": 5000, "cpus": 1, "network_mode": "no-network"},
            ["single file", "no user", "no sockets", "sets aside"],
        ),
    ],
)
def test_what_is_given_in_a_weaker_form_is_told(provider, environment, told):
    place = Place(EnvironmentTable.model_validate(environment), {}, None, None, host_image=True)  # fmt: skip
    sentences = weaker(place, backend_values(place, provider, RunOptions()))
    assert len(sentences) == len(told)
    assert all(words in sentence for words, sentence in zip(told, sentences, strict=True))


def test_a_size_that_nothing_enforces_is_told():
    values = values_of("docker", docker_image="x", storage_mb=500)
    assert values["root_disk_mb"] == 500
    assert "has no quotas" in unlimited_storage(values, disk_limit=False)[0]
    assert not unlimited_storage(values, disk_limit=True)
    assert not unlimited_storage(values_of("docker", docker_image="x"), disk_limit=False)
