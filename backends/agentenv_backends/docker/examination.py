"""What an engine, an image and a trial container tell about what can be promised. Pure functions of their answers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import SecretStr

from agentenv_backends._workspaces import workspace_of
from agentenv_backends.base import Capabilities
from agentenv_backends.errors import BackendUnavailableError, CapabilityError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from agentenv_backends.config import DockerConfig
    from agentenv_backends.sandboxd.settings import HostFacts

_LEAST_API = (1, 40)
_ABSENT = ("exec python3 failed", '"python3": executable file not found')
_ON_XFS = ["Backing Filesystem", "xfs"]
_NO_QUOTAS = ("--storage-opt is", "storage-opt size", "doesn't support storage-opt", "storage opt")
_NO_SHELL = "no bash and no /bin/sh in the slot"
_NO_PYTHON = (
    *_ABSENT,
    "is too old: the sandbox server needs",
    "ModuleNotFoundError: No module named",
    "ended with exit code 126",
    "ended with exit code 127",
)


def check_engine(name: str, version: Mapping[str, Any], info: Mapping[str, Any]) -> None:
    """Raise `BackendUnavailableError` when the engine is too old, or runs no Linux containers."""
    api = tuple(int(part) for part in version["ApiVersion"].split("."))
    if api < _LEAST_API:
        least = ".".join(map(str, _LEAST_API))
        raise BackendUnavailableError(
            f"{name} speaks version {version['ApiVersion']} of its interface; {least} is needed "
            "(Docker 19.03 or newer)"
        )
    if info["OSType"] != "linux":
        raise BackendUnavailableError(f"{name} runs {info['OSType']} containers, not Linux ones")


def check_image(config: DockerConfig, image: Mapping[str, Any]) -> None:
    """Raise `BackendUnavailableError` for an image whose containers cannot be kept clean."""
    volumes = ", ".join(sorted((image.get("Config") or {}).get("Volumes") or ()))
    if volumes and not config.single_use_hosts:
        raise BackendUnavailableError(
            f"{_image(config)} declares volumes ({volumes}): what one trajectory writes there would reach the "
            "next; set slots: 1 and read_only_root: false, for a fresh container each, or use another image"
        )


def as_the_image_says(config: DockerConfig, image: Mapping[str, Any]) -> DockerConfig:
    """The configuration with what it leaves to the image: working directory and variables.

    Raises `BackendUnavailableError` for a working directory that cannot be a workspace.
    """
    described = image.get("Config") or {}
    changes: dict[str, Any] = {}
    if config.workspace is None:
        changes["workspace"] = workspace_of(described.get("WorkingDir") or "/")
    if config.image_variables:
        pairs = (text.partition("=") for text in described.get("Env") or ())
        own = {name: SecretStr(value) for name, _, value in pairs}
        changes["variables"] = {**own, **config.variables}
    return config.model_copy(update=changes)


def missing_protections(info: Mapping[str, Any]) -> list[str]:
    """What this engine cannot enforce or does not offer, a sentence each."""
    security = " ".join(info.get("SecurityOptions") or ())
    checks = {
        "the engine cannot limit memory": info.get("MemoryLimit"),
        "the engine cannot limit the number of processes": info.get("PidsLimit"),
        "the engine has no seccomp filter": "name=seccomp" in security,
    }
    return [sentence for sentence, holds in checks.items() if not holds]


def gives_up(config: DockerConfig, facts: HostFacts) -> list[str]:
    """What containers of this configuration do not protect, a sentence each."""
    lost = {
        "There is no /dev/shm in a container that slots share.": config.slots > 1,
        "Files outside the workspace are limited by the engine's disk alone.": not config.read_only_root
        and config.root_disk_mb is None,
        f"Commands reach whatever the network {config.network_mode} reaches.": config.open_network,
    }
    return [*facts.gives_up, *(sentence for sentence, holds in lost.items() if holds)]


def maps_users(info: Mapping[str, Any]) -> bool:
    """Whether users in containers are not the machine's (rootless, or user namespaces)."""
    security = " ".join(info.get("SecurityOptions") or ())
    return "name=rootless" in security or "name=userns" in security


def capabilities(config: DockerConfig, info: Mapping[str, Any], facts: HostFacts) -> Capabilities:
    """What this backend promises, given what holds in a trial container. Raises `CapabilityError`
    when that is less than `require_limits` asks for.
    """
    alone = config.slots == 1
    offered = Capabilities(
        isolation="container" if alone else "user",
        network_control=True,
        memory_limit=alone and bool(info.get("MemoryLimit")),
        process_limit=bool(info.get("PidsLimit") if alone else facts.process_limit),
        disk_limit=config.read_only_root or config.root_disk_mb is not None,
        stateful_terminals=bool(facts.bash),
        tmux=bool(facts.tmux),
        snapshot=True,
        network_allow_list=True,
    )
    if lacking := offered.lacking(config.require_limits):
        raise CapabilityError(
            f"require_limits: {', '.join(lacking)} cannot be limited for each slot here; with slots: 1 and "
            "read_only_root: true (or root_disk_mb, where the engine's storage has quotas), the container's own limits "
            "are the slot's"
        )
    return offered


def may_have_quotas(info: Mapping[str, Any]) -> bool:
    """Whether this engine's storage may be able to limit what a container writes; it says so when it is not."""
    driver, status = info.get("Driver"), info.get("DriverStatus") or ()
    return driver in ("btrfs", "zfs") or (driver == "overlay2" and _ON_XFS in status)


def lacks_quotas(reason: str) -> bool:
    """Whether an engine refused a container because its storage cannot limit its size."""
    return any(sign in reason for sign in _NO_QUOTAS)


def lacks_python(reason: str) -> bool:
    """Whether a container failed to start because its image has no python3, or none that can be used."""
    return any(sign in reason for sign in _NO_PYTHON)


def lacks_shell(reason: str) -> bool:
    """Whether slots failed to start because the image has no shell."""
    return _NO_SHELL in reason


def way_out_without_shell(config: DockerConfig) -> str:
    """What to tell then."""
    return f"{_image(config)} has no /bin/sh (nor bash) to run commands with: take another image, or add a shell to it"


def told_of_bringing(config: DockerConfig) -> str:
    """What to tell when the driver's Python is brought along."""
    why = "python is bring" if config.python == "bring" else "no usable python3 there"
    return f"containers of {_image(config)} run their server by a copy of this machine's Python ({why})"


def way_out_without_python(config: DockerConfig, reason: str) -> str:
    """What to tell then."""
    absent = any(sign in reason for sign in _ABSENT)
    return (
        f"{_image(config)} has no {'' if absent else 'usable '}python3, which the sandbox server in a container needs "
        f"(3.8 or newer){'' if absent else ': ' + reason}. Set python: bring (or auto), for a copy of this machine's "
        "own; or take another image, or add Python to this one in a Dockerfile (`RUN apt-get install -y python3`, "
        "`RUN apk add python3`) and set `dockerfile`"
    )


def _image(config: DockerConfig) -> str:
    return f"the image of {config.dockerfile}" if config.dockerfile else f"image {config.image}"
