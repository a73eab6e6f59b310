"""A task's `[environment]` as the configuration of a backend. What a backend cannot give is refused, with the way out.

Nothing of a task is left out silently: what is given in a weaker form than it says is told by `weaker`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from agentenv.tasks.errors import TaskUnsupportedError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from agentenv.tasks.compose import MainService
    from agentenv.tasks.models import EnvironmentTable, User
    from agentenv.tasks.options import RunOptions

LOG_FOLDERS = ("/logs/agent", "/logs/user-agent", "/logs/artifacts")
VERIFIER_LOGS = "/logs/verifier"
TESTS, SOLUTION, RUNTIME = "/tests", "/solution", "/runtime"
FOLDERS = (*LOG_FOLDERS, VERIFIER_LOGS, TESTS, SOLUTION, RUNTIME)
"""What every sandbox of a task has beside its working directory."""
PROVIDERS = ("docker", "local", "nomad", "modal")
"""Backends that tasks run on."""
_DEFAULT_MEMORY_MB = 2048
_DEFAULT_STORAGE_MB = 10_240
_SERVER_MB = 128
_IN_MEMORY_MB = 1024
"""Most of a workspace that is held in memory."""
_MHZ_OF_A_PROCESSOR = 1000
_LONGEST_S = 86_400
_ANY_GPU = "T4"
_BUILD_KEYS = ("dockerfile", "build_context")
_ROOT = (None, 0, "0", "root")
_OF_ROOT = {"HOME": "/root", "USER": "root", "LOGNAME": "root"}
_ACQUIRE_S = {"docker": 60.0, "local": 60.0, "nomad": 180.0, "modal": 180.0}
_CONTAINERS = ("docker", "podman")
_PROGRAMS_OF_NODES = ("exec", "raw_exec")

_NO_NETWORK = (
    "the task says nothing of its network, so its sandbox has none: that of its machine is given to tasks that "
    'say network_mode = "public"'
)
_LESS_STORAGE = (
    f"storage_mb is {{}}, and the workspace, which is held in memory here, has {_IN_MEMORY_MB} MB"
)
_SINGLE_FILES = "storage_mb = {} is the size of a single file here, and nothing limits all of them"
_NO_ROOT = "the task names no user, which in images means root, and its commands ran as an unprivileged one"
_NO_SOCKETS = (
    "without a network, commands in containers of Nomad get no sockets but Unix ones: nothing can listen on the "
    "loopback either"
)
_SHARE = "cpus = {} is what the scheduler sets aside, and not a limit"


@dataclass(frozen=True, slots=True)
class Place:
    """What one sandbox is to be."""

    environment: EnvironmentTable
    variables: Mapping[str, str]
    """Of every command, with templates resolved."""
    user: User | None
    dockerfile: Path | None
    host_image: bool
    """A machine's own programs may stand in for an image."""
    main: MainService | None = None
    """What a compose file says of the sandbox."""
    services: tuple[Mapping[str, Any], ...] = ()
    """Of a compose file, as values of `ServiceConfig`."""

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
    if provider not in _VALUES:
        raise TaskUnsupportedError(
            f"tasks run on the backends {', '.join(PROVIDERS)}; {provider!r} is none of them"
        )
    _check_what_is_not_offered(place, provider)
    place = _as_compose_says(place)
    if "image" in options.backend and provider != "local":
        place = _with_image(place, options.backend["image"])
    values = _VALUES[provider](place, options)
    is_local = provider == "local"
    shared = {
        "type": provider,
        "slots": sandboxes if is_local else 1,
        "warm_slots": 0,
        "max_hosts": 1 if is_local else sandboxes,
        "folders": FOLDERS,
        "acquire_timeout_s": _ACQUIRE_S[provider],
        "max_processes": 512,
        "open_files": 4096,
        "variables": dict(place.variables),
    }
    return {**shared, **values, **options.backend}


def weaker(place: Place, values: Mapping[str, Any]) -> list[str]:
    """What a sandbox of this configuration gives in a weaker form than the task says, a sentence each."""
    environment, provider = place.environment, values["type"]
    in_memory = provider == "local" or _driver(values) in _PROGRAMS_OF_NODES
    in_container = provider == "nomad" and not in_memory
    size_mb = environment.storage_mb or 0
    found: list[tuple[bool, str]] = [
        (in_memory and environment.network_mode is None, _NO_NETWORK),
        (in_memory and size_mb > _IN_MEMORY_MB, _LESS_STORAGE.format(size_mb)),
        (bool(size_mb) and (in_container or provider == "modal"), _SINGLE_FILES.format(size_mb)),
        (place.user is None and provider in ("local", "nomad"), _NO_ROOT),
        (in_container and not values["allow_network"], _NO_SOCKETS),
        (provider == "nomad" and environment.cpus is not None, _SHARE.format(environment.cpus)),
    ]
    return [sentence for holds, sentence in found if holds]


def unlimited_storage(values: Mapping[str, Any], *, disk_limit: bool) -> list[str]:
    """The same of `storage_mb` in containers, once it is known whether the started backend limits what they write."""
    size_mb = values.get("root_disk_mb")
    if size_mb is None or disk_limit:
        return []
    why = "this Docker engine's storage has no quotas (overlay2 on xfs with pquota, btrfs and zfs have)"
    return [f"{_SINGLE_FILES.format(size_mb)}; {why}"]


def _check_what_is_not_offered(place: Place, provider: str) -> None:
    environment = place.environment
    missing = {
        'os = "windows"': environment.os != "linux",
        "a tpu": environment.tpu is not None,
    }
    for what, wanted in missing.items():
        if wanted:
            raise TaskUnsupportedError(
                f"the task's environment wants {what}, which no backend offers"
            )
    if (place.services or place.main is not None) and provider != "docker":
        raise TaskUnsupportedError(
            "the task's environment wants a docker-compose file (several services), which the "
            f"{provider} backend does not offer: run it on docker"
        )
    if place.services and _listed(environment):
        raise TaskUnsupportedError(
            'the task has services and network_mode = "allowlist": services and sandbox are in a network of their own, '
            "which leads out to everywhere (public) or nowhere (no-network)"
        )
    if environment.gpus and provider != "modal":
        raise TaskUnsupportedError(
            f"the task's environment wants gpus = {environment.gpus}, which the {provider} backend does not offer: "
            "run it on modal"
        )


def _with_image(place: Place, image: Any) -> Place:
    """The same in the image that the caller gives in place of the task's."""
    environment = place.environment.model_copy(update={"docker_image": str(image)})
    return replace(place, environment=environment, dockerfile=None, main=None)


def _as_compose_says(place: Place) -> Place:
    """The same with what a compose file says of the sandbox: its image, and its limits where task.toml has none."""
    main, environment = place.main, place.environment
    if main is None:
        return place
    changes: dict[str, Any] = {
        "workdir": environment.workdir or main.working_dir,
        "memory_mb": environment.memory_mb or main.memory_mb,
        "cpus": environment.cpus or main.cpus,
    }
    dockerfile = place.dockerfile
    if main.image is not None or main.dockerfile is not None:
        changes["docker_image"], dockerfile = main.image, main.dockerfile
    return replace(place, environment=environment.model_copy(update=changes), dockerfile=dockerfile)


# ---- the backends ----


def _local_values(place: Place, options: RunOptions) -> dict[str, Any]:
    return {**_values_without_image(place, "local sandboxes"), "cpus": place.environment.cpus}


def _docker_values(place: Place, options: RunOptions) -> dict[str, Any]:
    environment = place.environment
    memory_mb = environment.memory_mb or _DEFAULT_MEMORY_MB
    return {
        **_image_or_build(place),
        **_values_of_user(place),
        "read_only_root": False,
        "workspace": environment.workdir,
        "image_variables": True,
        "memory_mb": memory_mb,
        "container_memory_mb": memory_mb + _SERVER_MB,
        "disk_mb": environment.storage_mb or _DEFAULT_STORAGE_MB,
        "root_disk_mb": environment.storage_mb,
        "cpus": environment.cpus,
        "workspace_images": 0,
        "pull_timeout_s": environment.build_timeout_sec,
        "allow_network": _allows_network(environment),
        **_allow_list(environment, networks=False),
        **_services(place),
    }


def _services(place: Place) -> dict[str, Any]:
    """With services, a sandbox takes as long to start as they take to be ready."""
    if not place.services:
        return {}
    ready_s = place.environment.build_timeout_sec
    return {
        "services": list(place.services),
        "min_hosts": 0,
        "launch_timeout_s": ready_s,
        "acquire_timeout_s": ready_s + _ACQUIRE_S["docker"],
    }


def _modal_values(place: Place, options: RunOptions) -> dict[str, Any]:
    environment = place.environment
    memory_mb = environment.memory_mb or _DEFAULT_MEMORY_MB
    limits = {} if environment.cpus is None else {"cpus": environment.cpus, "max_cpus": environment.cpus}  # fmt: skip
    return {
        **_image_or_build(place),
        **_values_of_user(place),
        "workspace": environment.workdir,
        "min_hosts": 0,
        "memory_mb": memory_mb,
        "sandbox_memory_mb": memory_mb + _SERVER_MB,
        "max_sandbox_memory_mb": memory_mb + _SERVER_MB,
        "disk_mb": environment.storage_mb or _DEFAULT_STORAGE_MB,
        "gpu": _gpu(environment),
        "max_lifetime_s": _LONGEST_S,
        "build_timeout_s": environment.build_timeout_sec,
        "allow_network": _allows_network(environment),
        **limits,
        **_allow_list(environment, networks=True),
    }


def _gpu(environment: EnvironmentTable) -> str | None:
    if not environment.gpus:
        return None
    return f"{(environment.gpu_types or (_ANY_GPU,))[0]}:{environment.gpus}"


def _nomad_values(place: Place, options: RunOptions) -> dict[str, Any]:
    driver = _driver({"type": "nomad", **options.backend})
    environment = place.environment
    shared = {
        "min_hosts": 0,
        **({} if environment.cpus is None else {"cpu_mhz": round(environment.cpus * _MHZ_OF_A_PROCESSOR)}),
    }  # fmt: skip
    if driver in _PROGRAMS_OF_NODES:
        where = f"hosts of Nomad's driver {driver}"
        return {**shared, **_values_without_image(place, where)}
    if driver not in _CONTAINERS:
        known = ", ".join((*_CONTAINERS, *_PROGRAMS_OF_NODES))
        raise TaskUnsupportedError(
            f"tasks run on Nomad's drivers {known}, and `driver` is {driver!r}"
        )
    return {**shared, **_values_in_nodes_containers(place)}


def _values_in_nodes_containers(place: Place) -> dict[str, Any]:
    environment = place.environment
    if environment.docker_image is None:
        raise TaskUnsupportedError(
            "the task is built from a Dockerfile, and Nomad's nodes start images of a registry: build it and push it "
            "to one that they reach, and name it (environment.docker_image, or `image` of the backend)"
        )
    _refuse_root(place, "commands in hosts of Nomad")
    _refuse_allow_list(environment, "Nomad's nodes")
    memory_mb = environment.memory_mb or _DEFAULT_MEMORY_MB
    return {
        "image": environment.docker_image,
        "read_only_root": False,
        "workspace": environment.workdir,
        "image_variables": True,
        "memory_mb": memory_mb,
        "host_memory_mb": memory_mb + _SERVER_MB,
        "disk_mb": environment.storage_mb or _DEFAULT_STORAGE_MB,
        "allow_network": _allows_network(environment),
    }


_VALUES: dict[str, Callable[[Place, RunOptions], dict[str, Any]]] = {
    "docker": _docker_values,
    "local": _local_values,
    "nomad": _nomad_values,
    "modal": _modal_values,
}


# ---- what they have in common ----


def _driver(values: Mapping[str, Any]) -> str:
    """How Nomad starts hosts; empty for other backends."""
    return str(values.get("driver", "docker")) if values["type"] == "nomad" else ""


def _values_without_image(place: Place, where: str) -> dict[str, Any]:
    """Of sandboxes that have the programs of the machine they are on."""
    environment = place.environment
    image = environment.docker_image
    wanted = f"image {image}" if image else "environment/Dockerfile"
    if not place.host_image:
        raise TaskUnsupportedError(
            f"the task wants {wanted}, and {where} have the programs of their machine: run it on docker, or, "
            "if it needs no more than those, accept them (accept_host_image), or have the task say so "
            "([metadata.agentenv] host_image = true)"
        )
    if environment.workdir not in (None, "/workspace"):
        raise TaskUnsupportedError(
            f"the task works in {environment.workdir}, and {where} in /workspace: run it on docker"
        )
    _refuse_root(place, where)
    _refuse_allow_list(environment, where)
    return {
        "memory_mb": environment.memory_mb or _DEFAULT_MEMORY_MB,
        "disk_mb": min(environment.storage_mb or _IN_MEMORY_MB, _IN_MEMORY_MB),
        # The machine's network, its loopback included: only for who asks for it.
        "allow_network": environment.network_mode is not None and _allows_network(environment),
    }


def _refuse_root(place: Place, where: str) -> None:
    if place.user in _ROOT[1:]:
        raise TaskUnsupportedError(
            f"the task wants root, which {where} never have: run it on docker or modal"
        )


def _values_of_user(place: Place) -> dict[str, Any]:
    own = _OF_ROOT if place.as_root else {}
    return {"run_as_root": place.as_root, "variables": {**own, **place.variables}}


def _image_or_build(place: Place) -> dict[str, Any]:
    if place.environment.docker_image:
        return {"image": place.environment.docker_image}
    if place.dockerfile is None:
        raise TaskUnsupportedError(
            "the task names no docker_image, and its environment/ has no Dockerfile: nothing says what to run it in"
        )
    built = {"dockerfile": place.dockerfile, "build_context": place.dockerfile.parent}
    main = place.main
    if main is not None and main.dockerfile == place.dockerfile:
        return {**built, "build_context": main.build_context, "build_args": dict(main.build_args)}
    return built


def _allows_network(environment: EnvironmentTable) -> bool:
    if environment.network == "allowlist":
        return bool(environment.allowed_hosts)
    return environment.network == "public"


def _listed(environment: EnvironmentTable) -> tuple[str, ...]:
    return environment.allowed_hosts or () if environment.network == "allowlist" else ()


def _allow_list(environment: EnvironmentTable, *, networks: bool) -> dict[str, Any]:
    hosts = _listed(environment)
    listed = [] if networks else [host for host in hosts if "/" in host]
    if listed:
        raise TaskUnsupportedError(
            f"allowed_hosts names the network {listed[0]}, and allow-lists of the docker backend take names and "
            "single addresses: list those, or run it on modal"
        )
    return {"network_allow_list": hosts} if hosts else {}


def _refuse_allow_list(environment: EnvironmentTable, where: str) -> None:
    if hosts := _listed(environment):
        raise TaskUnsupportedError(
            f"the task may reach {', '.join(hosts)} and nothing else, which {where} cannot hold it to: run it on "
            "docker or modal"
        )
