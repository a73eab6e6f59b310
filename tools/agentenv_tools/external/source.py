"""Where external tools come from, and how they reach a registry."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any, Protocol

from agentenv_tools.base import ExternalTool
from agentenv_tools.errors import ToolConfigError

if TYPE_CHECKING:
    from collections.abc import Coroutine, Sequence

    from agentenv_tools.registry import ToolRegistry

logger = logging.getLogger(__name__)

OWN_TOOLS = "the environment's own tools"


class ToolSource(Protocol):
    """A tool server or an MCP server, as a client sees it."""

    origin: str
    """What to call it in errors."""

    async def start(self) -> Sequence[ExternalTool]:
        """Connect and ask what tools there are. Bounded. Raises `ToolConfigError` or `ToolServerError`."""
        ...

    async def release(self, trajectory_id: str) -> None:
        """Let go of what belongs to a trajectory that has ended. Bounded; never raises."""
        ...

    async def close(self) -> None:
        """Disconnect, and end what was started. Bounded and idempotent; never raises."""
        ...


class ExternalTools:
    """All sources of one executor."""

    def __init__(self, sources: Sequence[ToolSource]) -> None:
        self._sources = list(sources)
        self._started = False

    async def start(self, registry: ToolRegistry) -> None:
        """Connect to every source at once and register its tools. Does nothing the second time.

        Raises `ToolConfigError` (two tools of one name; what a source offers cannot be used) or `ToolServerError`.
        Every source is closed again then.
        """
        if self._started:
            return
        self._started = True
        try:
            offers = await _all_of([source.start() for source in self._sources])
            for source, tools in zip(self._sources, offers, strict=True):
                for tool in tools:
                    _register(registry, tool)
                logger.info("%s offers %d tools", source.origin, len(tools))
        except BaseException:
            await self.close()
            raise

    async def release(self, trajectory_id: str) -> None:
        """Tell every source that a trajectory has ended."""
        await asyncio.gather(*(source.release(trajectory_id) for source in self._sources))

    async def close(self) -> None:
        """Close every source."""
        await asyncio.gather(*(source.close() for source in self._sources))


async def _all_of(
    starts: Sequence[Coroutine[Any, Any, Sequence[ExternalTool]]],
) -> list[Sequence[ExternalTool]]:
    """The results of all; the first error, once every other has ended too."""
    tasks = [asyncio.ensure_future(start) for start in starts]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _register(registry: ToolRegistry, tool: ExternalTool) -> None:
    name = tool.schema.name
    if (other := registry.get(name)) is not None:
        theirs = other.origin if isinstance(other, ExternalTool) else OWN_TOOLS
        raise ToolConfigError(
            f"two tools are named {name!r}: one of {theirs}, one of {tool.origin}; rename one, or leave it out "
            "(MCP servers: set `prefix` or `tools`; others: disable its toolset)"
        )
    try:
        registry.register(tool)
    except ToolConfigError as error:
        raise ToolConfigError(f"{tool.origin}: {error}") from error
