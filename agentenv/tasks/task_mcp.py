"""A task's `mcp_servers`, as the executor of an agent connects to them: those with an address, over streamable HTTP.

Such a server's tools are called from the driver's side, so whether the task's own network leads there decides.
"""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from pydantic import ValidationError

from agentenv.tasks.errors import TaskUnsupportedError
from agentenv.tasks.templates import resolved
from agentenv_tools.external import McpServerConfig

if TYPE_CHECKING:
    from collections.abc import Mapping

    from agentenv.tasks.models import EnvironmentTable, McpServer


def mcp_servers_of(
    environment: EnvironmentTable, provider: str, environ: Mapping[str, str]
) -> dict[str, McpServerConfig]:
    """The servers by name, with the templates of their headers resolved.

    Raises `TaskUnsupportedError` for one that no agent here can be connected to, with the reason.
    """
    servers: dict[str, McpServerConfig] = {}
    for server in environment.mcp_servers:
        where = f"mcp_servers: {server.name}"
        if server.name in servers:
            raise TaskUnsupportedError(f"{where}: two servers have this name")
        _check(server, environment, provider, where)
        headers = resolved(server.headers, environ, f"{where}.headers")
        try:
            servers[server.name] = McpServerConfig(
                url=server.url, headers=headers, scope="trajectory"
            )
        except ValidationError as error:
            raise TaskUnsupportedError(f"{where}: {error.errors()[0]['msg']}") from error
    return servers


def _check(server: McpServer, environment: EnvironmentTable, provider: str, where: str) -> None:
    if server.transport != "streamable-http":
        raise TaskUnsupportedError(
            f"{where}: transport {server.transport} is not offered: agents here reach servers by streamable HTTP (a "
            'server of that kind is named with transport = "streamable-http" and its url)'
        )
    host = urlsplit(server.url or "").hostname or ""
    if environment.network == "no-network":
        raise TaskUnsupportedError(
            f"{where}: it is reached by the network, which the task has none of (network_mode)"
        )
    if environment.network == "allowlist" and not _is_listed(host, environment.allowed_hosts or ()):
        raise TaskUnsupportedError(f"{where}: {host} is not in allowed_hosts")
    if _is_loopback(host) and provider != "local":
        raise TaskUnsupportedError(
            f"{where}: {host} is the sandbox itself, whose servers agents here cannot reach: give it an address of its "
            "own"
        )


def _is_listed(host: str, allowed: tuple[str, ...]) -> bool:
    return any(
        host == rule or (rule.startswith("*.") and host.endswith(rule[1:])) for rule in allowed
    )


def _is_loopback(host: str) -> bool:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
    return address.is_loopback or address.is_unspecified
