"""A backend with a tool executor on it, as the sections use them."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from agentenv_backends.config import LocalConfig
from agentenv_backends.requests import ExecRequest
from agentenv_backends.results import ExecResult
from agentenv_tools import ToolCall, ToolExecutor, ToolExecutorConfig
from agentenv_tools.toolsets import build_registry
from tests.benchmarks.floors import COMMAND

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from agentenv_backends.base import Backend
    from agentenv_backends.config import AnyBackendConfig
    from agentenv_tools import ToolResult

_OPEN_WITHIN_S = 90.0


@dataclass(frozen=True, slots=True)
class Sandboxes:
    """An executor over the slots of a backend."""

    executor: ToolExecutor
    backend: Backend

    async def shell(self, trajectory: int, command: str) -> ToolResult:
        """A `terminal` call of a trajectory, which must succeed."""
        result = await self.executor.execute(
            f"t{trajectory}", ToolCall("terminal", {"command": command})
        )
        if not result.success:
            raise RuntimeError(f"{command!r} in trajectory {trajectory}: {result.error}")
        return result

    async def program(self, trajectory: int) -> None:
        """`true` in a trajectory's slot, without a shell; it must succeed."""
        result = await self.executor.execute_request(f"t{trajectory}", ExecRequest((COMMAND,)))
        if not isinstance(result, ExecResult) or result.exit_code != 0:
            raise RuntimeError(f"{COMMAND!r} in trajectory {trajectory}: {result}")

    async def warm_up(self, trajectories: int) -> None:
        """A first call of each trajectory, which opens its slot."""
        async with asyncio.TaskGroup() as group:
            for number in range(trajectories):
                group.create_task(self.shell(number, "true"))


@asynccontextmanager
async def local(slots: int, *, toolsets: Sequence[str] = ("default",)) -> AsyncIterator[Sandboxes]:
    """Bubblewrap slots on this machine; everything is gone at the end."""
    config = LocalConfig(slots=slots, acquire_timeout_s=_OPEN_WITHIN_S)
    async with running(config, toolsets=toolsets) as sandboxes:
        yield sandboxes


@asynccontextmanager
async def running(
    config: AnyBackendConfig, *, toolsets: Sequence[str] = ("default",)
) -> AsyncIterator[Sandboxes]:
    """Start a backend; everything is gone at the end."""
    async with over(config.build(), toolsets=toolsets) as sandboxes:
        yield sandboxes


@asynccontextmanager
async def over(
    backend: Backend, *, toolsets: Sequence[str] = ("default",)
) -> AsyncIterator[Sandboxes]:
    """The same with a backend that is made already."""
    await backend.start()
    try:
        executor = ToolExecutor(
            backend, build_registry(toolsets), ToolExecutorConfig(acquire_timeout_s=_OPEN_WITHIN_S)
        )
        try:
            yield Sandboxes(executor, backend)
        finally:
            await executor.close()
    finally:
        await backend.stop()
