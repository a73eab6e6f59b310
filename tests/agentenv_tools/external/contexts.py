"""Running external tools without an executor, and looking for what they leave."""

import asyncio
import os
from contextlib import asynccontextmanager
from typing import Any, NoReturn

from agentenv_tools import ToolContext, ToolResult
from agentenv_tools.external import ToolSource
from tests.processes import descendants
from tests.waiting import WITHIN_S


async def _no_slot(*_: object) -> NoReturn:
    raise AssertionError("an external tool asked for a slot")


def context(timeout_s: float = WITHIN_S, trajectory: str = "t") -> ToolContext:
    return ToolContext(trajectory, timeout_s, acquire=_no_slot, send=_no_slot)


class Source:
    """A started source, and its tools by name."""

    def __init__(self, source: ToolSource, tools: dict[str, Any]) -> None:
        self.source = source
        self.tools = tools

    async def call(
        self, _name: str, _timeout_s: float = WITHIN_S, _trajectory: str = "t", **arguments: Any
    ) -> ToolResult:
        tool = self.tools[_name]
        ctx = context(_timeout_s, _trajectory)
        result = await tool.run(tool.validate(arguments), ctx)
        assert isinstance(result, ToolResult)
        return result


@asynccontextmanager
async def started(source: ToolSource):
    tasks = asyncio.all_tasks()
    processes = descendants(os.getpid())
    try:
        tools = {tool.schema.name: tool for tool in await source.start()}
        yield Source(source, tools)
    finally:
        await source.close()
        await source.close()
    assert descendants(os.getpid()) <= processes
    await asyncio.sleep(0)
    assert asyncio.all_tasks() <= tasks
