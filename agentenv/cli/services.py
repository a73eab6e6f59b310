"""`agentenv tool-server` and `agentenv executor`: tools behind HTTP, until a signal ends them."""

from __future__ import annotations

import asyncio
import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agentenv.cli.commands import OK, build_environment
from agentenv.config import AgentEnvConfig
from agentenv.env import AgentEnv
from agentenv.errors import ConfigError
from agentenv.naming import load_attribute
from agentenv.policy.config import APIServerConfig
from agentenv.rollout import finish
from agentenv_tools import Tool, ToolRegistry

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

    from rich.console import Console

    from agentenv.cli.settings import Settings
    from agentenv_tools.serving import ServeSettings

_TOOL_SERVER_HELP = """
MODULE:TOOLS names, in a module that can be imported from here, a tool, a list of tools, a ToolRegistry, or a function
that returns one of these:

    # my_tools.py
    from agentenv import tool

    @tool
    async def lookup(word: str) -> str:
        \"\"\"Look a word up in our dictionary.\"\"\"
        ...

    TOOLS = [lookup]

    TOOL_SERVER_TOKEN=... agentenv tool-server my_tools:TOOLS --port 9002
    agentenv process CONFIG.yaml --env.tool_server_url http://127.0.0.1:9002     (with env.tool_server_token)

Environment variables, where the option is not given: TOOL_SERVER_HOST, TOOL_SERVER_PORT, TOOL_SERVER_TOKEN,
TOOL_SERVER_ALLOWED_HOSTS (by comma), TOOL_SERVER_MAX_CONCURRENCY. An address that others can reach needs a token.
SIGINT or SIGTERM: calls under way may end first; a second signal ends them at once.
"""

_EXECUTOR_HELP = """
CONFIG.yaml may name an environment, whose tools are then served, or only settings.
Environment variables, where the option is not given: TOOL_EXECUTOR_HOST, TOOL_EXECUTOR_PORT, TOOL_EXECUTOR_TOKEN,
TOOL_EXECUTOR_ALLOWED_HOSTS (by comma). An address that others can reach needs a token. POST /execute with
{trajectory_id, tool: {name, arguments}, timeout_s?}, and /release when a trajectory has ended.
"""


_NO_ENGINE = APIServerConfig(server_type="openai", base_url="http://no-engine.invalid/v1")
"""The executor's agents bring their own policy; an environment's runtime wants one, and never starts it here."""


class ToolsOnly(AgentEnv[AgentEnvConfig]):
    """The tools and sandboxes of a configuration that names no environment."""

    async def setup_agent_env(self) -> None:
        """Nothing to load."""

    async def get_next_item(self) -> None:
        """No tasks."""

    def build_task(self, item: object) -> str:
        """No tasks."""
        raise ConfigError("this configuration names no environment, so it has no tasks")

    async def score_trajectory(self, item: object, final_response: str) -> float:
        """No tasks."""
        raise ConfigError("this configuration names no environment, so it has no tasks")


def add_tool_server_parser(chosen: Any) -> None:
    """The parser of `tool-server`."""
    parser: argparse.ArgumentParser = chosen.add_parser(
        "tool-server",
        help="serve tools that must not run in a sandbox",
        description="Serve tools that must not run in a sandbox, over HTTP.",
        epilog=_TOOL_SERVER_HELP,
    )
    parser.add_argument("tools", metavar="MODULE:TOOLS", help="the tools to serve")
    add_address(parser, 9002)
    _add_token(parser)
    parser.add_argument(
        "--max-concurrency", type=int, metavar="N", help="calls that run at once (default: 16)"
    )
    parser.add_argument("-v", "--verbose", action="store_true", help="log what is being done")


def add_executor_options(parser: argparse.ArgumentParser) -> None:
    """The options of `executor`, beside the settings."""
    parser.epilog = _EXECUTOR_HELP
    add_address(parser, 9001)
    _add_token(parser)
    parser.add_argument(
        "--idle-s",
        type=float,
        default=1_800.0,
        metavar="SECONDS",
        help="release a trajectory nobody has spoken of for so long (default: 1800)",
    )


def _add_token(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--token-file", metavar="FILE", help="file that holds the token callers must send"
    )


def add_address(parser: argparse.ArgumentParser, port: int) -> None:
    """The options of a service's address."""
    parser.add_argument("--host", help="address to listen on (default: 127.0.0.1)")
    parser.add_argument(
        "--port", type=int, help=f"port to listen on; 0: a free one (default: {port})"
    )
    parser.add_argument(
        "--allow-host",
        action="append",
        metavar="NAME",
        help="a name callers reach this by, beside localhost and bare addresses; may be repeated",
    )
    parser.add_argument(
        "--stop-grace-s",
        type=float,
        metavar="SECONDS",
        help="how long calls under way may go on after a signal (default: 10)",
    )


def run_tool_server(options: argparse.Namespace, console: Console) -> int:
    """Serve tools until a signal."""
    from agentenv_tools.serving import ToolServer, serve_until_stopped  # noqa: PLC0415 - imports a server
    from agentenv_tools.serving.tool_server import (  # noqa: PLC0415
        DEFAULT_PORT,
        ENV_PREFIX,
        max_concurrency_from,
    )

    tools = load_tools(options.tools)
    limit = options.max_concurrency
    server = ToolServer(
        tools,
        _settings(options, ENV_PREFIX, DEFAULT_PORT),
        max_concurrency=max_concurrency_from(os.environ) if limit is None else limit,
    )
    names = ", ".join(tool.schema.name for tool in tools)
    asyncio.run(serve_until_stopped(server, announcer(console, f"tools: {names}")))
    return OK


def run_executor(
    env_class: type[AgentEnv[Any]],
    settings: Settings,
    options: argparse.Namespace,
    console: Console,
) -> int:
    """Serve an environment's tools and sandboxes until a signal."""
    from agentenv_tools.serving.executor_server import DEFAULT_PORT, ENV_PREFIX  # noqa: PLC0415 - imports a server

    address = _settings(options, ENV_PREFIX, DEFAULT_PORT)
    env = build_environment(env_class, replace(settings, servers=[_NO_ENGINE]))
    asyncio.run(_serve_executor(env, address, options.idle_s, console))
    return OK


async def _serve_executor(
    env: AgentEnv[Any], address: ServeSettings, idle_s: float, console: Console
) -> None:
    from agentenv_tools.serving import (  # noqa: PLC0415
        ExecutorServer,
        ExecutorServerLimits,
        serve_until_stopped,
    )

    runtime = env.runtime
    limits = ExecutorServerLimits(idle_s=idle_s)
    await runtime.start_tools()
    try:
        server = ExecutorServer(runtime.executor, runtime.backend, address, limits)
        names = ", ".join(runtime.tools.names())
        await serve_until_stopped(server, announcer(console, f"tools: {names}"))
    finally:
        await finish(runtime.stop())


def load_tools(name: str) -> list[Tool[Any]]:
    """The tools that `module:name` holds or returns. Raises `ConfigError`."""
    found = load_attribute(f"tools {name!r}", name)
    if callable(found) and not isinstance(found, Tool):
        found = found()
    if isinstance(found, ToolRegistry):
        found = [found.get(tool) for tool in found.names()]
    tools = [found] if isinstance(found, Tool) else found
    if not isinstance(tools, list | tuple) or not all(isinstance(tool, Tool) for tool in tools):
        raise ConfigError(
            f"tools {name!r}: must be a tool, a list of tools, a ToolRegistry, or a function that returns one; "
            "make a function a tool with @tool"
        )
    return list(tools)


def _settings(options: argparse.Namespace, prefix: str, default_port: int) -> ServeSettings:
    from agentenv_tools.serving import ServeSettings  # noqa: PLC0415 - imports a server

    port = options.port
    if port is None and not os.environ.get(f"{prefix}PORT"):
        port = default_port
    return ServeSettings.from_environment(
        prefix,
        os.environ,
        host=options.host,
        port=port,
        token=read_token("--token-file", options.token_file),
        allowed_hosts=tuple(options.allow_host) if options.allow_host else None,
        stop_grace_s=options.stop_grace_s,
    )


def read_token(option: str, path: str | None) -> str | None:
    """What a file holds, without the white space around it. Raises `ConfigError`."""
    if path is None:
        return None
    try:
        return Path(path).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{option} {path}: cannot be read ({error})") from error


def announcer(console: Console, what: str) -> Callable[[str], None]:
    """Prints where a service is served."""

    def announce(url: str) -> None:
        console.print(f"serving on {url} ({what}); Ctrl-C ends it", markup=False, soft_wrap=True)

    return announce
