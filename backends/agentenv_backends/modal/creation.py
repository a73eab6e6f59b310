"""What a sandbox of ours is created with, and what its server is told. Pure functions of the configuration."""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING, Any

import modal

from agentenv_backends._workspaces import DEFAULT_WORKSPACE, workspace_of
from agentenv_backends.sandboxd.settings import HostSettings

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from agentenv_backends.config import ModalConfig

_TMP = "tmp"
_FIRST_UID, _UIDS = 20_000, 1024
_UID_RANGES = 40
"""All below 65,536: there need not be more users in a sandbox. Sandboxes do not share theirs; that neighbours get other
ranges is for servers that run several on one kernel."""
_LAST_MOMENT_S = 5.0
"""How much earlier than the service would the server in a sandbox ends it, and says so."""


def slot_folders(
    config: ModalConfig, working_dir: str = DEFAULT_WORKSPACE
) -> tuple[tuple[str, str], ...]:
    """Workspace and folder for temporary files of each slot. `working_dir` is the image's own."""
    base = config.workspace_base
    if config.slots == 1:
        return ((config.workspace or workspace_of(working_dir), f"{base}/{_TMP}"),)
    return tuple((f"{base}/{n}/workspace", f"{base}/{n}/{_TMP}") for n in range(config.slots))


def host_settings(
    config: ModalConfig,
    run_id: str,
    number: int,
    life_s: float,
    working_dir: str = DEFAULT_WORKSPACE,
) -> HostSettings:
    """What the server in a sandbox is told, that has `life_s` to live.

    Raises `BackendUnavailableError` for a working directory of the image that cannot be a workspace.
    """
    return HostSettings(
        run_id=run_id,
        isolation="user",
        run_as_root=config.run_as_root,
        slot_folders=slot_folders(config, working_dir),
        memory_mb=config.memory_mb,
        disk_mb=config.disk_mb,
        max_processes=config.max_processes,
        open_files=config.open_files,
        folders=config.folders,
        variables=config.plain_variables,
        allow_network=config.allow_network,
        network_kept_shut=True,
        uid_base=_FIRST_UID + _UIDS * (number % _UID_RANGES),
        uid_count=_UIDS,
        inherit_env=True,
        hidden_env=("MODAL_",),
        lease_s=config.lease_s,
        max_lifetime_s=max(round(life_s - _LAST_MOMENT_S), 1),
    )


def create_options(
    config: ModalConfig,
    *,
    name: str,
    app: Any,
    image: Any,
    secrets: Sequence[Any],
    tags: Mapping[str, str],
) -> dict[str, Any]:
    """The arguments of `modal.Sandbox.create`. No command: all it does is hold the server that is started in it."""
    values = {name: value.get_secret_value() for name, value in config.env_vars.items()}
    return {
        "app": app,
        "name": name,
        "image": image,
        "tags": dict(tags),
        "timeout": config.max_lifetime_s,
        "idle_timeout": config.idle_timeout_s,
        # None: the image's own, to be looked up.
        "workdir": None if config.workspace is None else "/",
        "cpu": _request(config.cpus, config.max_cpus),
        "memory": _request(config.sandbox_memory_mb, config.max_sandbox_memory_mb),
        "gpu": config.gpu,
        "region": list(config.region) if isinstance(config.region, tuple) else config.region,
        "cloud": config.cloud,
        "secrets": [*secrets, *([modal.Secret.from_dict(dict(values))] if values else [])],
        "block_network": not config.allow_network,
        **_allowed(config.network_allow_list),
    }


def _allowed(hosts: Sequence[str]) -> dict[str, Any]:
    if not hosts:
        return {}
    networks = {host: _as_network(host) for host in hosts}
    return {
        "outbound_domain_allowlist": [host for host, network in networks.items() if not network],
        "outbound_cidr_allowlist": [network for network in networks.values() if network],
    }


def _as_network(host: str) -> str:
    """An address or a network as a network; empty for a name."""
    try:
        return str(ipaddress.ip_network(host))
    except ValueError:
        return ""


def _request(reserved: float, most: float | None) -> Any:
    return reserved if most is None else (reserved, most)
