"""MCP servers as sources of external tools."""

from __future__ import annotations

import asyncio
import logging
import os
import re
from functools import partial
from typing import TYPE_CHECKING, Any

from mcp.shared.exceptions import McpError
from mcp.types import INVALID_PARAMS

from agentenv_tools.arguments import parameters_of
from agentenv_tools.base import ExternalTool
from agentenv_tools.errors import (
    ToolConfigError,
    ToolServerError,
    ToolServerUnavailableError,
)
from agentenv_tools.external.mcp_http import http_streams
from agentenv_tools.external.mcp_results import tool_result
from agentenv_tools.external.mcp_session import McpSession
from agentenv_tools.external.mcp_stdio import TOO_LARGE, environment, stdio_streams
from agentenv_tools.external.secrets import Masker, check_header, expanded, referenced
from agentenv_tools.schema import ToolResult, ToolSchema

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from mcp import types

    from agentenv_tools.base import ToolContext
    from agentenv_tools.external.mcp_config import McpServerConfig
    from agentenv_tools.external.mcp_session import Connect

logger = logging.getLogger(__name__)

_NO_NAME = re.compile(r"[^A-Za-z0-9_-]")
_MAX_DESCRIPTION_CHARS = 8_000
_FIRST_PAUSE_S = 0.2
_LONGEST_PAUSE_S = 5.0
_COOL_DOWN_S = 30.0
_REFUSALS = frozenset({INVALID_PARAMS, TOO_LARGE})
"""JSON-RPC errors that are about what was asked. Any other says that the server is at fault."""


class McpServer:
    """A `ToolSource`: the tools of one MCP server.

    What a tool answers, its errors included, is a result, and so are refused arguments and a call that overruns
    its deadline while the server still answers pings. A server that is gone, hangs, or reports an error of its own
    raises `ToolServerError`.

    With scope `run` one session serves all; after a crash the next call starts another. A server that has failed
    `restart_limit` times in a row is left alone for half a minute, in which calls fail at once; then it gets one
    more try. With scope `trajectory` a session that is lost stays lost, and so its state.
    The tools are those listed at the start: changes announced later are ignored.
    """

    def __init__(
        self, name: str, config: McpServerConfig, environ: Mapping[str, str] | None = None
    ) -> None:
        """Raises `ToolConfigError` for an environment variable that is not set, or a header that cannot be sent."""
        environ = os.environ if environ is None else environ
        self.origin = f"the MCP server {name!r}"
        self._config = config
        given = [*config.env.values(), *config.headers.values()]
        self._mask = Masker([*referenced(given, environ), *config.headers.values()])
        connect = _connector(name, config, environ, self._mask)
        self._sessions = _Sessions(self.origin, config, connect, self._mask)

    async def start(self) -> Sequence[ExternalTool]:
        """See `ToolSource.start`."""
        timeout_s = self._config.start_timeout_s
        session = await self._sessions.first()
        try:
            listed = await session.list_tools(timeout_s)
        finally:
            if self._config.scope == "trajectory":
                await session.close()
        return self._offered(listed)

    async def release(self, trajectory_id: str) -> None:
        """See `ToolSource.release`."""
        if self._config.scope == "trajectory":
            await self._sessions.close(trajectory_id)

    async def close(self) -> None:
        """See `ToolSource.close`."""
        await self._sessions.close_all()

    async def prepare(self, trajectory_id: str) -> None:
        """Have the session a trajectory's calls need. Raises `ToolServerError`."""
        await self._sessions.get(trajectory_id)

    async def call(self, tool: str, arguments: dict[str, Any], ctx: ToolContext) -> ToolResult:
        """Carry out one call. Raises `ToolServerError`."""
        session = await self._sessions.get(ctx.trajectory_id)
        try:
            async with asyncio.timeout(ctx.timeout_s):
                answer = await session.call(tool, arguments)
        except McpError as error:
            self._sessions.answered()
            return self._refusal(tool, error)
        except ToolServerError:
            raise
        except TimeoutError:
            await session.must_answer()
            return ToolResult(
                success=False,
                error=f"Tool timed out after {ctx.timeout_s:g}s",
                metadata={"timeout": True},
            )
        self._sessions.answered()
        return tool_result(answer, self._mask)

    # ---- machinery ----

    def _refusal(self, tool: str, error: McpError) -> ToolResult:
        message = self._mask(error.error.message)[:2_000]
        if error.error.code in _REFUSALS:
            return ToolResult(success=False, error=message)
        raise ToolServerError(
            f"{self.origin} failed at {tool} with error {error.error.code}: {message}"
        ) from error

    def _offered(self, listed: Sequence[types.Tool]) -> list[ExternalTool]:
        wanted = self._config.tools
        names = {tool.name for tool in listed}
        if missing := [name for name in wanted or [] if name not in names]:
            raise ToolConfigError(
                f"{self.origin} has no tool {missing[0]!r}; it has: {', '.join(sorted(names)) or 'none'}"
            )
        chosen = [tool for tool in listed if wanted is None or tool.name in wanted]
        return [_McpTool(self._schema(tool), tool.name, self) for tool in chosen]

    def _schema(self, tool: types.Tool) -> ToolSchema:
        try:
            parameters, required = parameters_of(tool.inputSchema)
        except ToolConfigError as error:
            raise ToolConfigError(
                f"{self.origin}: tool {tool.name!r}: {error}; leave it out with `tools`"
            ) from error
        name = self._config.prefix + _NO_NAME.sub("_", tool.name)
        description = (tool.description or tool.title or "")[:_MAX_DESCRIPTION_CHARS]
        return ToolSchema(name, description, parameters, required)


class _McpTool(ExternalTool):
    def __init__(self, schema: ToolSchema, name: str, server: McpServer) -> None:
        super().__init__(schema, server.origin)
        self._name = name
        self._server = server

    async def prepare(self, trajectory_id: str) -> None:
        """See `ExternalTool.prepare`."""
        await self._server.prepare(trajectory_id)

    async def run(self, arguments: dict[str, Any], ctx: ToolContext) -> ToolResult:
        """See `Tool.run`."""
        return await self._server.call(self._name, arguments, ctx)


class _Sessions:
    """One session for the run, or one for each trajectory; opened when first needed."""

    def __init__(
        self,
        origin: str,
        config: McpServerConfig,
        connect: Connect,
        mask: Callable[[str], str],
    ) -> None:
        self._origin = origin
        self._config = config
        self._new = partial(McpSession, origin, connect, mask)
        self._shared = config.scope == "run"
        self._open: dict[str, McpSession] = {}
        self._locks: dict[str, asyncio.Lock] = {}
        self._failures = 0
        self._last = ""
        self._try_again_at = 0.0
        self._closed = False

    async def first(self) -> McpSession:
        """A session to ask what tools there are. One failure is enough to give up. Raises `ToolServerError`."""
        session = self._new()
        await session.open(self._config.start_timeout_s)
        if self._shared:
            self._open[""] = session
        return session

    async def get(self, trajectory_id: str) -> McpSession:
        """The live session for a trajectory's calls. Raises `ToolServerError`."""
        key = "" if self._shared else trajectory_id
        session = self._open.get(key)
        if session is not None and session.alive:
            return session
        async with self._locks.setdefault(key, asyncio.Lock()):
            return await self._get_locked(key)

    def answered(self) -> None:
        """A call was answered, so the server works."""
        self._failures = 0

    async def close(self, key: str) -> None:
        """Close one session, if it is open."""
        self._locks.pop(key, None)
        session = self._open.pop(key, None)
        if session is not None:
            await session.close()

    async def close_all(self) -> None:
        """Close every session and open no more."""
        self._closed = True
        await asyncio.gather(*(self.close(key) for key in list(self._open)))

    async def _get_locked(self, key: str) -> McpSession:
        session = self._open.get(key)
        if session is not None and session.alive:
            return session
        if session is not None:
            if not self._shared:
                raise session.lost()  # never a second, empty session under the same name
            await self._bury(key, session)
        return await self._reopen(key)

    async def _bury(self, key: str, session: McpSession) -> None:
        self._failed(session.lost())
        logger.warning("%s", session.lost())
        del self._open[key]
        await session.close()

    async def _reopen(self, key: str) -> McpSession:
        pause_s = _FIRST_PAUSE_S
        while True:
            self._check()
            session = self._new()
            try:
                await session.open(self._config.start_timeout_s)
            except ToolServerError as error:
                logger.warning("%s", error)
                self._failed(error)
                self._check()
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
            else:
                if self._closed:
                    await session.close()
                    self._check()
                self._open[key] = session
                return session

    def _check(self) -> None:
        """Raise unless a session may be opened now."""
        if self._closed:
            raise ToolServerUnavailableError(f"{self._origin} is closed")
        if self._failures <= self._config.restart_limit:
            return
        if asyncio.get_running_loop().time() < self._try_again_at:
            raise ToolServerUnavailableError(
                f"{self._origin} failed {self._failures} times in a row and is left alone for a while; "
                f"the last time: {self._last}"
            )

    def _failed(self, error: ToolServerError) -> None:
        self._failures += 1
        self._last = str(error)
        self._try_again_at = asyncio.get_running_loop().time() + _COOL_DOWN_S


def _connector(
    name: str, config: McpServerConfig, environ: Mapping[str, str], mask: Masker
) -> Connect:
    if config.command is not None:
        env = environment(expanded(config.env, environ, f"mcp_servers.{name}.env"), environ)
        command = [config.command, *config.args]
        return partial(stdio_streams, command, env, config.cwd, mask)
    assert config.url is not None
    where = f"mcp_servers.{name}.headers"
    headers = expanded(config.headers, environ, where)
    for header, value in headers.items():
        check_header(header, value, f"{where}.{header}")
    return partial(http_streams, config.url, headers)
