"""The job whose allocations are hosts: pure functions of the configuration.

One group, `sandbox`, whose count is the number of hosts. A host's main process is the gate (`sandboxd/gate.py`), which
Nomad writes to the task's folder from the job itself; the sandbox server comes from the driver. So images are not built
for it, nothing is downloaded by nodes, and a job stays a few kilobytes.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import agentenv_backends.sandboxd
from agentenv_backends._workspaces import workspace_of
from agentenv_backends.sandboxd.settings import HostSettings

if TYPE_CHECKING:
    from collections.abc import Mapping

    from agentenv_backends.config import NomadConfig
    from agentenv_backends.nomad.knock import Welcome

GROUP = "sandbox"
TASK = "sandboxd"
PORT = "sandboxd"
RUN_KEY = "agentenv.run"
OWNER_KEY = "agentenv.owner"
SPEC_KEY = "agentenv.spec"
PREFIX = "agentenv-"
"""Of the names of jobs that belong to one run."""
CAPABILITIES = ("chown", "dac_override", "fowner", "kill", "setgid", "setuid")
"""What the server in a container needs to keep slots apart by user. Nomad allows all of them by default."""
_SERVER_MB = 64
_SLOT_MB = 32
_SERVER_PROCESSES = 16
_SLOT_PROCESSES = 4
_SECOND_NS = 1_000_000_000
_PATIENCE_LEASES = 2
_KEY_FILE = "secrets/agentenv.key"
_GATE_FILE = "local/gate.py"
_FIRST_UID, _UIDS = 1_000_000, 4096
_NO_SHARED_MEMORY = {
    "kernel.shmmni": "0",
    "kernel.msgmni": "0",
    "kernel.sem": "0 0 0 0",
    "fs.mqueue.queues_max": "0",
}
_SEPARATE_NAMES = "/var/run/nscd"
_NOT_THE_IMAGES = ("NOMAD_", "VAULT_", "CONSUL_")
"""What the cluster puts into a task's environment begins with these."""


@dataclass(frozen=True, slots=True)
class Run:
    """What a job says about whom it is for."""

    job_id: str
    run_id: str
    owner: str
    """See `_owner.Owner`."""
    key: str
    """What driver and hosts show each other that they have."""


def make_job(config: NomadConfig, run: Run, count: int) -> dict[str, Any]:
    """The job as it is registered, with `count` hosts."""
    job: dict[str, Any] = {
        "ID": run.job_id,
        "Name": run.job_id,
        "Type": "service",
        "Priority": config.priority,
        "Datacenters": list(config.datacenters),
        "Constraints": [
            {"LTarget": each.attribute, "Operand": each.operator, "RTarget": each.value}
            for each in config.constraints
        ],
        # No deployments: they would keep the job from being scaled while one is under way.
        "Update": {"MaxParallel": 0},
        "TaskGroups": [_group(config, run, count)],
    }
    if config.node_pool is not None:
        job["NodePool"] = config.node_pool
    meta = {RUN_KEY: run.run_id, OWNER_KEY: run.owner, SPEC_KEY: spec_hash(job)}
    return {**job, "Meta": meta}


def spec_hash(job: Mapping[str, Any]) -> str:
    """Tells jobs apart by what their hosts are like, whoever they are for and however many there are."""
    text = json.dumps(job, sort_keys=True)
    group = job["TaskGroups"][0]
    key = next(
        each["EmbeddedTmpl"]
        for each in group["Tasks"][0]["Templates"]
        if each["DestPath"] == _KEY_FILE
    )
    text = text.replace(json.dumps(key), "").replace(json.dumps(job["ID"]), "")
    text = text.replace(f'"Count": {group["Count"]}', "").replace(
        f'"Max": {group["Scaling"]["Max"]}', ""
    )
    return hashlib.sha256(text.encode("utf-8")).hexdigest()[:16]


def key_of(job: Mapping[str, Any]) -> str | None:
    """The key that a job's hosts have; None when it is not one of ours."""
    for group in job.get("TaskGroups") or ():
        for task in group.get("Tasks") or ():
            for template in task.get("Templates") or ():
                if template.get("DestPath") == _KEY_FILE:
                    return str(template["EmbeddedTmpl"])
    return None


def host_settings(config: NomadConfig, run_id: str, port: int, welcome: Welcome) -> HostSettings:
    """What a host's sandbox server is told. `welcome` is what its gate says, `port` is where it is.

    Raises `BackendUnavailableError` for a working directory of the image that cannot be a workspace.
    """
    isolation = config.slots_isolation
    by_user = isolation in ("user", "auto")
    return HostSettings(
        run_id=run_id,
        isolation=isolation,
        slot_folders=_slot_folders(config, welcome) if by_user else (),
        memory_mb=config.memory_mb,
        disk_mb=config.disk_mb,
        tmp_mb=config.tmp_mb,
        max_processes=config.max_processes,
        open_files=config.open_files,
        folders=config.folders,
        variables=config.plain_variables,
        inherit_env=config.image_variables,
        allow_network=config.allow_network,
        refuse_sockets=by_user and not config.allow_network,
        uid_base=_uid_base(port, welcome.mapped_ids),
        uid_count=_UIDS,
        require=config.require_limits,
        lease_s=config.lease_s,
        max_lifetime_s=config.max_lifetime_s,
    )


def _slot_folders(config: NomadConfig, welcome: Welcome) -> tuple[tuple[str, str], ...]:
    if not config.read_only_root:
        return ((config.workspace or workspace_of(welcome.working_dir), "/tmp"),)  # noqa: S108 - in the container
    paths = [f"{welcome.folder}/slots/{n}" for n in range(config.slots)]
    return tuple((f"{path}/workspace", f"{path}/tmp") for path in paths)  # noqa: S108


def memory_mb(config: NomadConfig) -> int:
    """Memory of a host: what its slots may use, files included, and what the server needs."""
    if config.host_memory_mb is not None:
        return config.host_memory_mb
    files = 0 if config.in_container else config.disk_mb + 2 * config.tmp_mb
    return config.slots * (config.memory_mb + files + _SLOT_MB) + _SERVER_MB


def _uid_base(port: int, mapped_ids: int) -> int:
    """Hosts of one node need users apart, as the kernel counts a user's processes over all of them. No two of them
    have the same port. Where few ids are mapped, a host has those for itself.
    """
    base = _FIRST_UID + port * _UIDS
    return base if base + _UIDS <= mapped_ids else mapped_ids // 2


def _group(config: NomadConfig, run: Run, count: int) -> dict[str, Any]:
    return {
        "Name": GROUP,
        "Count": count,
        "Scaling": {"Enabled": False, "Min": 0, "Max": config.max_hosts},
        "Networks": [{"DynamicPorts": [{"Label": PORT}]}],
        # A task that ends is started again a few times on its node, then elsewhere. Bounded, so that hosts whose run
        # is no more come to an end: each gives up when no driver comes, and is not started again without end.
        "RestartPolicy": {
            "Attempts": 2,
            "Interval": 1800 * _SECOND_NS,
            "Delay": 5 * _SECOND_NS,
            "Mode": "fail",
        },
        "ReschedulePolicy": {
            "Attempts": 5,
            "Interval": 3600 * _SECOND_NS,
            "Delay": 5 * _SECOND_NS,
            "DelayFunction": "exponential",
            "MaxDelay": 60 * _SECOND_NS,
            "Unlimited": False,
        },
        "EphemeralDisk": {"SizeMB": _disk_mb(config)},
        "Tasks": [_task(config, run)],
    }


def _disk_mb(config: NomadConfig) -> int:
    slots = config.slots * (config.disk_mb + config.tmp_mb)
    in_its_folder = config.slots_isolation in ("user", "auto") and config.read_only_root
    return max(300, slots if in_its_folder else 0)


def _task(config: NomadConfig, run: Run) -> dict[str, Any]:
    # Tasks of `exec` run as `nobody`, alone with their secrets.
    key_mode = "0444" if config.driver == "exec" else "0400"
    return {
        "Name": TASK,
        "Driver": "raw_exec" if config.driver == "singularity" else config.driver,
        "User": "root" if config.in_container else "",
        "Config": _driver_config(config),
        "Templates": [
            {
                "DestPath": _GATE_FILE,
                "EmbeddedTmpl": _gate_source(),
                "ChangeMode": "noop",
                "Perms": "0644",
            },
            {
                "DestPath": _KEY_FILE,
                "EmbeddedTmpl": run.key,
                "ChangeMode": "noop",
                "Perms": key_mode,
            },
        ],
        "Resources": {"CPU": config.cpu_mhz, "MemoryMB": memory_mb(config)},
        "KillSignal": "SIGTERM",
        "KillTimeout": 10 * _SECOND_NS,
        "LogConfig": {"MaxFiles": 2, "MaxFileSizeMB": 5},
    }


def _gate_source() -> str:
    folder = Path(agentenv_backends.sandboxd.__file__).parent
    return (folder / "gate.py").read_text(encoding="utf-8")


def _gate_command(config: NomadConfig) -> list[str]:
    patience_s = (
        _PATIENCE_LEASES * config.lease_s if config.purge_job_on_shutdown else config.max_lifetime_s
    )
    # A host on its node's network listens on the address that the scheduler gave it, and on no other.
    bind = "0.0.0.0" if config.in_container else f"${{NOMAD_IP_{PORT}}}"  # noqa: S104 - the container's own
    command = [
        *(config.python, "-I", "-S", "${NOMAD_TASK_DIR}/gate.py"),
        *("--key", "${NOMAD_SECRETS_DIR}/agentenv.key"),
        *("--host", "${NOMAD_ALLOC_ID}"),
        *("--bind", bind),
        *("--port", f"${{NOMAD_PORT_{PORT}}}"),
        *("--folder", "${NOMAD_TASK_DIR}"),
        *("--patience", f"{patience_s:g}"),
    ]
    if config.in_container:
        command += ["--close", "${NOMAD_ALLOC_DIR}", "--close", "${NOMAD_SECRETS_DIR}"]
    if config.image_variables:
        command += [word for name in _NOT_THE_IMAGES for word in ("--drop", name)]
    return command


def _driver_config(config: NomadConfig) -> dict[str, Any]:
    command, *arguments = _gate_command(config)
    if config.driver in ("exec", "raw_exec"):
        return {"command": command, "args": arguments}
    if config.driver == "singularity":
        return _singularity(config, [command, *arguments])
    shared = {
        "image": config.image,
        "force_pull": config.force_pull,
        "ports": [PORT],
        "readonly_rootfs": config.read_only_root,
        "cap_add": list(CAPABILITIES),
        "security_opt": ["no-new-privileges"],
    }
    if config.driver == "podman":
        return {**shared, "command": command, "args": arguments, "cap_drop": ["all"]}
    return {**shared, **_docker(config), "entrypoint": [command], "args": arguments}


def _docker(config: NomadConfig) -> dict[str, Any]:
    options: dict[str, Any] = {
        "cap_drop": ["all"],
        "init": True,
        "pids_limit": config.slots * (config.max_processes + _SLOT_PROCESSES) + _SERVER_PROCESSES,
        "mounts": [
            {"type": "tmpfs", "target": _SEPARATE_NAMES, "tmpfs_options": {"size": 1 << 16}}
        ],
    }
    if config.slots > 1:  # users of one IPC namespace could talk past their folders
        options |= {"ipc_mode": "none", "sysctl": _NO_SHARED_MEMORY}
    return options


def _singularity(config: NomadConfig, command: list[str]) -> dict[str, Any]:
    folders = [
        argument
        for folder in ("${NOMAD_TASK_DIR}", "${NOMAD_SECRETS_DIR}")
        for argument in ("--bind", folder)
    ]
    arguments = ["exec", "--containall", *folders, str(config.singularity_image), *command]
    return {"command": config.singularity_program, "args": arguments}
