"""Where a task's commands run: its `[environment]` as the configuration of a backend, and that backend in use.

What a backend cannot give is refused before anything starts. Nothing of a task is left out silently.
"""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from agentenv.rollout import finish
from agentenv.tasks.errors import (
    EnvironmentStartTimeoutError,
    SandboxBuildFailedError,
    TaskUnsupportedError,
)
from agentenv_backends.config import parse_backend_config
from agentenv_backends.errors import (
    BackendConfigError,
    BackendUnavailableError,
    HostStartError,
)
from agentenv_tools.config import ToolExecutorConfig
from agentenv_tools.executor import ToolExecutor

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence
    from pathlib import Path

    from agentenv.tasks.models import EnvironmentTable, User
    from agentenv.tasks.options import RunOptions
    from agentenv_tools.base import Tool
    from agentenv_tools.registry import ToolRegistry

LOG_FOLDERS = ("/logs/agent", "/logs/user-agent", "/logs/artifacts")
VERIFIER_LOGS = "/logs/verifier"
TESTS, SOLUTION, RUNTIME = "/tests", "/solution", "/runtime"
FOLDERS = (*LOG_FOLDERS, VERIFIER_LOGS, TESTS, SOLUTION, RUNTIME)
"""What every sandbox of a task has beside its working directory."""
_DEFAULT_MEMORY_MB = 2048
_DEFAULT_STORAGE_MB = 10_240
_SERVER_MB = 128
_LOCAL_STORAGE_MB = 1024
"""A local workspace is held in memory."""
_BUILD_KEYS = ("dockerfile", "build_context")
_ROOT = (None, 0, "0", "root")
_ACQUIRE_S = 60.0


@dataclass(frozen=True, slots=True)
class Place:
    """What one sandbox is to be."""

    environment: EnvironmentTable
    variables: Mapping[str, str]
    """Of every command, with templates resolved."""
    user: User | None
    dockerfile: Path | None
    compose_file: Path | None
    host_image: bool
    """The local backend may stand in for an image."""

    @property
    def as_root(self) -> bool:
        """Whether commands run as root, which is what images say that say nothing."""
        return self.user in _ROOT


def backend_values(
    place: Place, provider: str, options: RunOptions, *, sandboxes: int = 1
) -> dict[str, Any]:
    """The backend's configuration for a place, of which there may be so many at once.

    Raises `TaskUnsupportedError` naming what is not offered.
    """
    _check_what_none_offers(place)
    if provider == "local":
        values = _local_values(place)
    elif provider == "docker":
        values = _docker_values(place)
    else:
        raise TaskUnsupportedError(
            f"tasks run on the backends local and docker; {provider!r} is neither"
        )
    is_local = provider == "local"
    shared = {
        "type": provider,
        "slots": sandboxes if is_local else 1,
        "warm_slots": 0,
        "max_hosts": 1 if is_local else sandboxes,
        "folders": FOLDERS,
        "acquire_timeout_s": _ACQUIRE_S,
        "max_processes": 512,
        "open_files": 4096,
    }
    if "image" in options.backend:
        values = {key: value for key, value in values.items() if key not in _BUILD_KEYS}
    return {**shared, **values, **options.backend}


def _check_what_none_offers(place: Place) -> None:
    environment = place.environment
    missing = {
        'os = "windows"': environment.os != "linux",
        f"gpus = {environment.gpus}": bool(environment.gpus),
        "a tpu": environment.tpu is not None,
        "a docker-compose file (several services)": place.compose_file is not None,
    }
    for what, wanted in missing.items():
        if wanted:
            raise TaskUnsupportedError(
                f"the task's environment wants {what}, which no backend offers"
            )


def _local_values(place: Place) -> dict[str, Any]:
    environment = place.environment
    wanted = (
        f"image {environment.docker_image}"
        if environment.docker_image
        else "environment/Dockerfile"
    )
    if not place.host_image:
        raise TaskUnsupportedError(
            f"the task wants {wanted}, and the local backend has the programs of this machine: run it on docker, or, "
            "if it needs no more than those, accept them (accept_host_image), or have the task say so "
            "([metadata.agentenv] host_image = true)"
        )
    if environment.workdir not in (None, "/workspace"):
        raise TaskUnsupportedError(
            f"the task works in {environment.workdir}, and local sandboxes in /workspace: run it on docker"
        )
    if place.user in _ROOT[1:]:
        raise TaskUnsupportedError(
            "the task wants root, which local sandboxes never have: run it on docker"
        )
    return {
        "memory_mb": environment.memory_mb or _DEFAULT_MEMORY_MB,
        "disk_mb": min(environment.storage_mb or _LOCAL_STORAGE_MB, _LOCAL_STORAGE_MB),
        "cpus": environment.cpus,
        "variables": dict(place.variables),
        # This machine's network, its loopback included: only for who asks for it.
        "allow_network": environment.network_mode is not None and _allows_network(environment),
        **_allowed_hosts(environment, "local"),
    }


def _docker_values(place: Place) -> dict[str, Any]:
    environment = place.environment
    memory_mb = environment.memory_mb or _DEFAULT_MEMORY_MB
    variables = dict(place.variables)
    if place.as_root:
        variables = {"HOME": "/root", "USER": "root", "LOGNAME": "root", **variables}
    return {
        **_image_values(place),
        "run_as_root": place.as_root,
        "read_only_root": False,
        "workspace": environment.workdir,
        "image_variables": True,
        "variables": variables,
        "memory_mb": memory_mb,
        "container_memory_mb": memory_mb + _SERVER_MB,
        "disk_mb": environment.storage_mb or _DEFAULT_STORAGE_MB,
        "cpus": environment.cpus,
        "workspace_images": 0,
        "pull_timeout_s": environment.build_timeout_sec,
        "allow_network": _allows_network(environment),
        **_allowed_hosts(environment, "docker"),
    }


def _image_values(place: Place) -> dict[str, Any]:
    if place.environment.docker_image:
        return {"image": place.environment.docker_image}
    if place.dockerfile is None:
        raise TaskUnsupportedError(
            "the task names no docker_image, and its environment/ has no Dockerfile: nothing says what to run it in"
        )
    return {"dockerfile": place.dockerfile, "build_context": place.dockerfile.parent}


def _allows_network(environment: EnvironmentTable) -> bool:
    if environment.network == "allowlist":
        return bool(environment.allowed_hosts)
    return environment.network == "public"


def _allowed_hosts(environment: EnvironmentTable, provider: str) -> dict[str, Any]:
    hosts = environment.allowed_hosts or ()
    if environment.network != "allowlist" or not hosts:
        return {}
    if provider != "docker":
        raise TaskUnsupportedError(
            f"the task may reach {', '.join(hosts)} and nothing else, which the {provider} backend cannot hold it to: "
            "run it on docker"
        )
    networks = [host for host in hosts if "/" in host]
    if networks:
        raise TaskUnsupportedError(
            f"allowed_hosts names the network {networks[0]}, and allow-lists of the docker backend take names and "
            "single addresses: list those"
        )
    return {"network_allow_list": hosts}


@asynccontextmanager
async def opened(
    values: Mapping[str, Any],
    registry: ToolRegistry,
    timeout_s: float,
    config: ToolExecutorConfig | None = None,
    served_tools: Sequence[Tool[Any]] = (),
) -> AsyncIterator[ToolExecutor]:
    """A started backend with its executor; both are ended whatever happens.

    Raises `TaskUnsupportedError`, `SandboxBuildFailedError` or `EnvironmentStartTimeoutError`.
    """
    try:
        backend = parse_backend_config(values).build()
    except BackendConfigError as error:
        raise TaskUnsupportedError(str(error)) from error
    except BackendUnavailableError as error:
        raise SandboxBuildFailedError(str(error)) from error
    executor = None
    try:
        await _started(backend, timeout_s)
        config = config or ToolExecutorConfig(acquire_timeout_s=_ACQUIRE_S)
        executor = ToolExecutor(backend, registry, config, served_tools=served_tools)
        await executor.start()
        yield executor
    finally:
        if executor is not None:
            await finish(executor.close())
        await finish(backend.stop(purge=True))


async def _started(backend: Any, timeout_s: float) -> None:
    try:
        async with asyncio.timeout(timeout_s):
            await backend.start()
    except TimeoutError as error:
        raise EnvironmentStartTimeoutError(
            f"the sandbox was not there within build_timeout_sec = {timeout_s:g}"
        ) from error
    except BackendConfigError as error:
        raise TaskUnsupportedError(str(error)) from error
    except (BackendUnavailableError, HostStartError) as error:
        raise SandboxBuildFailedError(str(error)) from error
