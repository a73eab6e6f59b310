"""What a container of ours is created with. Pure functions of the configuration.

The profile: no capability but the six that the sandbox server needs to keep slots apart by user, no new privileges, the
engine's own seccomp filter, a root file system that cannot be written, tmpfs of fixed size for the slots, no swap, no
log on disk, no shared memory between slots, a network only where asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from agentenv_backends._workspaces import DEFAULT_WORKSPACE
from agentenv_backends.docker.boot import IMAGES_PYTHON, boot_command
from agentenv_backends.docker.egress import PROXY_URL
from agentenv_backends.sandboxd import names
from agentenv_backends.sandboxd.settings import HostSettings

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from agentenv_backends.config import DockerConfig

CAPABILITIES = ("CHOWN", "DAC_OVERRIDE", "FOWNER", "KILL", "SETGID", "SETUID")
"""What the server needs to give each slot a user, folders of its own, and an end."""
NO_LIBRARIES_OF_THE_IMAGE = ("LD_PRELOAD=", "LD_LIBRARY_PATH=", "LD_AUDIT=")
"""For a server whose Python was brought along: what the image says of its own libraries is not for ours."""
_SERVER_MB = 64
_PROXY_MB = 64
_SLOT_MB = 32
"""What the server and a slot's own init take beside what runs in the slot."""
_SERVER_PROCESSES = 16
_SLOT_PROCESSES = 4
_SERVER_FILES = 1024
_FILES_PER_SLOT = 8
_INODES_PER_MB = 256
_MB = 1 << 20
_SECOND_NS = 1_000_000_000
_NO_SHARED_MEMORY = {
    "kernel.shmmni": "0",
    "kernel.msgmni": "0",
    "kernel.sem": "0 0 0 0",
    "fs.mqueue.queues_max": "0",
}
"""Without these, users of one IPC namespace could talk past their folders."""


def slot_folders(config: DockerConfig) -> tuple[tuple[str, str], ...]:
    """Workspace and folder for temporary files of each slot."""
    if config.slots == 1:
        return ((config.workspace or DEFAULT_WORKSPACE, "/tmp"),)  # noqa: S108 - in the container
    return tuple((f"/slots/{n}/workspace", f"/slots/{n}/tmp") for n in range(config.slots))  # noqa: S108


def host_settings(
    config: DockerConfig,
    run_id: str,
    uid_base: int,
    uid_count: int,
    python: Sequence[str] = IMAGES_PYTHON,
) -> HostSettings:
    """What the sandbox server in the container is told."""
    own = python != IMAGES_PYTHON
    return HostSettings(
        python=python[-1] if own else "",
        python_loader=tuple(python[:-1]),
        run_id=run_id,
        isolation="user",
        run_as_root=config.run_as_root,
        slot_folders=slot_folders(config),
        memory_mb=config.memory_mb,
        disk_mb=config.disk_mb,
        tmp_mb=config.tmp_mb,
        max_processes=config.max_processes,
        open_files=config.open_files,
        folders=config.folders,
        variables=config.plain_variables,
        allow_network=config.open_network or bool(config.services),
        proxy=PROXY_URL if config.network_allow_list else "",
        uid_base=uid_base,
        uid_count=uid_count,
        lease_s=config.lease_s,
        max_lifetime_s=config.max_lifetime_s,
    )


def create_options(
    config: DockerConfig,
    image_id: str,
    labels: Mapping[str, str],
    python: Sequence[str] = IMAGES_PYTHON,
) -> dict[str, Any]:
    """The body of the engine's `create` call. `python` is what starts an interpreter in the container.

    With services, `service_options.joined` puts it into their network.
    """
    return {
        "Image": image_id,
        "Entrypoint": list(boot_command(python)),
        "Env": list(NO_LIBRARIES_OF_THE_IMAGE if python != IMAGES_PYTHON else ()),
        "Cmd": [],
        "User": "0:0",
        "WorkingDir": "/",
        "Hostname": "sandbox",
        "Labels": dict(labels),
        # One stream, whose end is the end of the main process: so ends a container whose driver is gone.
        "OpenStdin": True,
        "StdinOnce": True,
        "AttachStdin": True,
        "AttachStdout": True,
        "AttachStderr": True,
        "Tty": False,
        # The server answers to the driver's own checks; this one tells an engine's operator whether processes start.
        "Healthcheck": {
            "Test": ["CMD", *python, "-I", "-S", "-c", "pass"],
            "Interval": 300 * _SECOND_NS,
            "Timeout": 30 * _SECOND_NS,
            "Retries": 3,
        },
        "HostConfig": _host_config(config),
    }


def _host_config(config: DockerConfig) -> dict[str, Any]:
    memory = container_memory_mb(config) * _MB
    files = max(config.open_files, _SERVER_FILES + _FILES_PER_SLOT * config.slots)
    return {
        # A root that takes the server's id could kill it, and so have its trajectory tried again: pid 1 it cannot.
        "Init": not config.run_as_root,
        "AutoRemove": True,
        "NetworkMode": config.network_mode,
        "CapDrop": ["ALL"],
        "CapAdd": list(CAPABILITIES),
        "SecurityOpt": ["no-new-privileges"],
        "ReadonlyRootfs": config.read_only_root,
        "LogConfig": {"Type": "none", "Config": {}},
        "PidsLimit": config.slots * (config.max_processes + _SLOT_PROCESSES) + _SERVER_PROCESSES,
        "Memory": memory,
        "MemorySwap": memory,  # as much, so none of it is swap
        "Ulimits": [
            {"Name": "nofile", "Soft": files, "Hard": files},
            {"Name": "core", "Soft": 0, "Hard": 0},
        ],
        "Tmpfs": _tmpfs(config),
        **quota(config.root_disk_mb),
        **cpu_share(config.cpus),
        **_ipc(config),
    }


def container_memory_mb(config: DockerConfig) -> int:
    """Memory of a container: what its slots may use, files included, and what the server needs."""
    if config.container_memory_mb is not None:
        return config.container_memory_mb
    of_its_folders = (2 + len(config.folders)) * config.tmp_mb
    of_a_slot = config.memory_mb + config.disk_mb + of_its_folders + _SLOT_MB
    of_the_proxy = _PROXY_MB if config.network_allow_list else 0
    return config.slots * of_a_slot + _SERVER_MB + of_the_proxy


def _tmpfs(config: DockerConfig) -> dict[str, str]:
    if not config.read_only_root:
        return {}
    # Where users of slots get their names from, as nothing can be written to /etc.
    mounts = {names.PLACE: "noexec,nosuid,nodev,mode=0755,size=64k,nr_inodes=8"}
    if config.slots > 1:
        # What is above the slots' folders, for the server to open to one user each.
        mounts["/slots"] = (
            f"noexec,nosuid,nodev,mode=0755,size=1m,nr_inodes={4 * config.slots + 16}"
        )
    sizes = {workspace: config.disk_mb for workspace, _ in slot_folders(config)}
    sizes |= {path: config.tmp_mb for _, path in slot_folders(config)}
    sizes |= dict.fromkeys(config.folders, config.tmp_mb)
    for path, size_mb in sizes.items():
        inodes = size_mb * _INODES_PER_MB
        mounts[path] = f"exec,nosuid,nodev,mode=0700,size={size_mb}m,nr_inodes={inodes}"
    return mounts


def quota(root_disk_mb: int | None) -> dict[str, Any]:
    """What a container may write to its own file system, where the engine's storage has quotas."""
    return {} if root_disk_mb is None else {"StorageOpt": {"size": f"{root_disk_mb}m"}}


def cpu_share(cpus: float | None) -> dict[str, int]:
    """Processors of a container; None: a share of all."""
    return {"CpuShares": 1024} if cpus is None else {"NanoCpus": int(cpus * _SECOND_NS)}


def _ipc(config: DockerConfig) -> dict[str, Any]:
    """A slot that has the container to itself has /dev/shm; slots that share it have nothing in common."""
    if config.slots == 1:
        return {"IpcMode": "private", "ShmSize": config.tmp_mb * _MB}
    return {"IpcMode": "none", "Sysctls": _NO_SHARED_MEMORY}
