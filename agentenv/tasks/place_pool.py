"""Sandboxes that several runs share: backends kept started for as long as tasks want what they offer."""

from __future__ import annotations

import asyncio
import json
import logging
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from agentenv.rollout import finish
from agentenv.tasks.places import executor_config, opened

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping, Sequence

    from agentenv_tools.base import Tool
    from agentenv_tools.config import ToolExecutorConfig
    from agentenv_tools.executor import ToolExecutor
    from agentenv_tools.external import McpServerConfig
    from agentenv_tools.registry import ToolRegistry

logger = logging.getLogger(__name__)


@dataclass(eq=False, slots=True)
class _Open:
    stack: AsyncExitStack = field(default_factory=AsyncExitStack)
    starting: asyncio.Lock = field(default_factory=asyncio.Lock)
    executor: ToolExecutor | None = None
    users: int = 0


class PlacePool:
    """Started backends by their configuration. Those that nobody uses are ended when there are more than `keep`.

    Every executor has tools of its own, made by `tools`. Not for several event loops.
    """

    def __init__(
        self,
        tools: Callable[[], ToolRegistry],
        *,
        keep: int = 4,
        config: ToolExecutorConfig | None = None,
        served_tools: Sequence[Tool[Any]] = (),
        sandboxes: int = 1,
    ) -> None:
        """`config` and `served_tools` are those of each `ToolExecutor`; `sandboxes` is how many of one configuration
        `run_task` has at once, of all runs that share the pool.
        """
        self.sandboxes = sandboxes
        self._tools = tools
        self._served_tools = served_tools
        self._keep = keep
        self._config = config
        self._open: dict[str, _Open] = {}
        """Least recently used first."""
        self._closed = False

    @asynccontextmanager
    async def use(
        self,
        values: Mapping[str, Any],
        timeout_s: float,
        *,
        role: str = "agent",
        mcp_servers: Mapping[str, McpServerConfig] | None = None,
    ) -> AsyncIterator[ToolExecutor]:
        """An executor over a backend of this configuration, shared within a role. Raises as `opened` does.

        With `mcp_servers` it has their tools too, and is shared by those who want the same ones.
        Whoever holds a sandbox of one role can wait for one of another without waiting for itself.
        """
        servers = dict(mcp_servers or {})
        plain = {name: server.model_dump() for name, server in servers.items()}
        key = json.dumps([role, values, plain], sort_keys=True, default=str)
        entry = self._open.pop(key, None) or _Open()
        self._open[key] = entry
        entry.users += 1
        try:
            yield await self._started(entry, values, timeout_s, servers)
        finally:
            entry.users -= 1
            await finish(self._end_unused())

    async def close(self) -> None:
        """End every backend. Idempotent; whoever still uses one is cut off."""
        self._closed = True
        entries, self._open = list(self._open.values()), {}
        for entry in entries:
            await self._end(entry)

    async def _started(
        self,
        entry: _Open,
        values: Mapping[str, Any],
        timeout_s: float,
        mcp_servers: dict[str, McpServerConfig],
    ) -> ToolExecutor:
        async with entry.starting:
            if entry.executor is None:
                config = self._config or executor_config(values)
                if mcp_servers:
                    all_servers = {**config.mcp_servers, **mcp_servers}
                    config = replace(config, mcp_servers=all_servers)
                backend = opened(values, self._tools(), timeout_s, config, self._served_tools)
                entry.executor = await entry.stack.enter_async_context(backend)
            return entry.executor

    async def _end_unused(self) -> None:
        unused = [key for key, entry in self._open.items() if not entry.users]
        failed = [key for key in unused if self._open[key].executor is None]
        beyond = len(unused) if self._closed else max(0, len(unused) - self._keep)
        for key in dict.fromkeys([*failed, *unused[:beyond]]):
            await self._end(self._open.pop(key))

    async def _end(self, entry: _Open) -> None:
        try:
            await entry.stack.aclose()
        except Exception:  # the others are to be ended whatever this one does
            logger.exception("ending a task's sandboxes")
