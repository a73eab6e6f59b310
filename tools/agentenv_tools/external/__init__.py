"""Tools that run outside of the sandbox: those of a tool server, and those of MCP servers.

An executor connects to them by itself (`ToolExecutorConfig.tool_server_url`, `mcp_servers`); this is what it uses.
The clients are in modules of their own, because of what they import: `tool_server` (aiohttp, httpx) and `mcp_server`
(the `mcp` extra).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from agentenv_tools.errors import ToolConfigError
from agentenv_tools.external.mcp_config import McpServerConfig
from agentenv_tools.external.source import ExternalTools, ToolSource

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from agentenv_tools.base import Tool

__all__ = [
    "ExternalTools",
    "McpServerConfig",
    "ToolSource",
    "tool_sources",
]

IN_PROCESS = "inprocess"


def tool_sources(
    url: str | None,
    token: str | None,
    mcp_servers: Mapping[str, McpServerConfig],
    served_tools: Sequence[Tool[Any]] = (),
) -> list[ToolSource]:
    """The sources that settings name, not started. `served_tools` are those of the server in this process.

    Raises `ToolConfigError`.
    """
    sources: list[ToolSource] = []
    if url is not None:
        sources.append(_tool_server(url, token, served_tools))
    if mcp_servers:
        sources += _mcp_sources(mcp_servers)
    return sources


def _tool_server(url: str, token: str | None, served_tools: Sequence[Tool[Any]]) -> ToolSource:
    from agentenv_tools.external.tool_server import (  # noqa: PLC0415 - imports HTTP clients
        InProcessToolServer,
        ToolServerClient,
    )

    if url != IN_PROCESS:
        return ToolServerClient(url, token)
    if not served_tools:
        raise ToolConfigError(
            "tool_server_url is `inprocess`, but there are no tools to serve; return them from "
            "AgentEnv.build_server_tools(), or unset tool_server_url"
        )
    return InProcessToolServer.of(served_tools)


def _mcp_sources(servers: Mapping[str, McpServerConfig]) -> list[ToolSource]:
    try:
        from agentenv_tools.external.mcp_server import McpServer  # noqa: PLC0415 - an extra
    except ModuleNotFoundError as error:
        if error.name != "mcp":
            raise
        raise ToolConfigError(
            "mcp_servers needs the `mcp` library; install it with: pip install 'agentenv[mcp]'"
        ) from error
    return [McpServer(name, config) for name, config in servers.items()]
