"""What services' containers, their network, and what ends them are created with. Pure functions of the configuration.

The profile is that of hosts: the six capabilities that entrypoints need to become another user, no new privileges, the
engine's seccomp filter, no swap, bounded memory and processes, no log on disk. Their root can be written, as images of
services expect, and goes with them.

An image of a service holds no program of ours that could end it when its driver is gone. So services are in the process
namespace of one more container, the keeper, which ends with the driver's stream, or when its lease or its lifetime runs
out: the kernel then ends every process in that namespace. The main container is not in it.
"""

from __future__ import annotations

import io
import tarfile
from typing import TYPE_CHECKING, Any

from agentenv_backends.config.services import MAIN
from agentenv_backends.docker.containers import (
    CAPABILITIES,
    NO_LIBRARIES_OF_THE_IMAGE,
    cpu_share,
    quota,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from agentenv_backends.config import DockerConfig
    from agentenv_backends.config.services import ServiceConfig, ServiceHealthcheck

_MB = 1 << 20
_SECOND_NS = 1_000_000_000
_KEEPER_MB = 64
_KEEPER = """
import os, select, sys, time
lease, end = float(sys.argv[1]), time.monotonic() + float(sys.argv[2])
while time.monotonic() < end:
    ready = select.select([0], [], [], min(lease, max(end - time.monotonic(), 0)))[0]
    if not ready or not os.read(0, 4096):
        break
"""
_NO_DNS = ("127.0.0.1",)
"""Names of services are the engine's own; whatever else is looked up gets no answer, also none by way of the engine."""


def network_options(config: DockerConfig, name: str, labels: Mapping[str, str]) -> dict[str, Any]:
    """Of the network of one host. Without `allow_network` nothing leads out of it, and the machine is not in it."""
    closed = {"com.docker.network.bridge.inhibit_ipv4": "true"}
    return {
        "Name": name,
        "Driver": "bridge",
        "CheckDuplicate": True,
        "Internal": not config.allow_network,
        "EnableIPv6": False,
        "Options": {} if config.allow_network else closed,
        "Labels": dict(labels),
    }


def joined(
    options: Mapping[str, Any], config: DockerConfig, network: str, alias: str = MAIN
) -> dict[str, Any]:
    """A container's options with the host's network, where it is called `alias`."""
    dns = {} if config.allow_network else {"Dns": list(_NO_DNS)}
    return {
        **options,
        "HostConfig": {**options["HostConfig"], "NetworkMode": network, **dns},
        "NetworkingConfig": {"EndpointsConfig": {network: {"Aliases": [alias]}}},
    }


def keeper_options(
    config: DockerConfig, image_id: str, labels: Mapping[str, str], python: Sequence[str]
) -> dict[str, Any]:
    """Of the container whose end is the services' end."""
    lease = (str(config.lease_s), str(config.max_lifetime_s))
    return {
        "Image": image_id,
        "Entrypoint": [*python, "-I", "-S", "-c", _KEEPER.strip(), *lease],
        "Cmd": [],
        "Env": list(NO_LIBRARIES_OF_THE_IMAGE),
        "User": "65534:65534",
        "WorkingDir": "/",
        "Labels": dict(labels),
        "OpenStdin": True,
        "StdinOnce": True,
        "AttachStdin": True,
        "Healthcheck": {"Test": ["NONE"]},
        "HostConfig": {
            **_confined(_KEEPER_MB, 16),
            "Init": True,  # takes up what services leave behind
            "NetworkMode": "none",
            "ReadonlyRootfs": True,
            "CapAdd": [],
        },
    }


def service_options(
    config: DockerConfig, service: ServiceConfig, image_id: str, labels: Mapping[str, str]
) -> dict[str, Any]:
    """Of one service, before `joined` and without its keeper."""
    options: dict[str, Any] = {
        "Image": image_id,
        "Env": [f"{name}={value.get_secret_value()}" for name, value in service.variables.items()],
        "Hostname": service.hostname or service.name,
        "Labels": dict(labels),
        "Volumes": {path: {} for path in service.volumes},
        "HostConfig": {
            **_confined(service.memory_mb, service.max_processes),
            "ReadonlyRootfs": service.read_only_root,
            "ShmSize": service.shm_mb * _MB,
            "Tmpfs": dict.fromkeys(service.tmpfs, f"exec,nosuid,nodev,size={service.memory_mb}m"),
            **quota(config.root_disk_mb),
            **cpu_share(service.cpus),
        },
    }
    own = {
        "Entrypoint": service.entrypoint and list(service.entrypoint),
        "Cmd": service.command and list(service.command),
        "WorkingDir": service.working_dir,
        "User": service.user,
        "Healthcheck": service.healthcheck and _healthcheck(service.healthcheck),
    }
    return options | {name: value for name, value in own.items() if value is not None}


def kept_by(options: Mapping[str, Any], keeper: str) -> dict[str, Any]:
    """A service's options with the namespace that it ends with."""
    return {**options, "HostConfig": {**options["HostConfig"], "PidMode": f"container:{keeper}"}}


def packed(files: Mapping[str, Path]) -> bytes:
    """Files by their absolute paths as an archive for the root of a container. Raises `OSError`."""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for place, path in sorted(files.items()):
            member = tarfile.TarInfo(place.lstrip("/"))
            content = path.read_bytes()
            member.size = len(content)
            member.mode = 0o755 if path.stat().st_mode & 0o100 else 0o644
            tar.addfile(member, io.BytesIO(content))
    return archive.getvalue()


def _healthcheck(check: ServiceHealthcheck) -> dict[str, Any]:
    return {
        "Test": list(check.test),
        "Interval": int(check.interval_s * _SECOND_NS),
        "Timeout": int(check.timeout_s * _SECOND_NS),
        "Retries": check.retries,
        "StartPeriod": int(check.start_period_s * _SECOND_NS),
    }


def _confined(memory_mb: int, processes: int) -> dict[str, Any]:
    return {
        "AutoRemove": True,
        "CapDrop": ["ALL"],
        "CapAdd": list(CAPABILITIES),
        "SecurityOpt": ["no-new-privileges"],
        "LogConfig": {"Type": "none", "Config": {}},
        "PidsLimit": processes,
        "Memory": memory_mb * _MB,
        "MemorySwap": memory_mb * _MB,  # as much, so none of it is swap
        "IpcMode": "private",
        "Ulimits": [{"Name": "core", "Soft": 0, "Hard": 0}],
    }
