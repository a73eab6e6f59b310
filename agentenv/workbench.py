"""One trajectory's share of the tool executor."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from agentenv_backends.base import Snapshot
    from agentenv_backends.results import Recording
    from agentenv_tools.executor import ToolExecutor
    from agentenv_tools.schema import ToolCall, ToolResult


class ExecutorWorkbench:
    """`rollout`'s view of a `ToolExecutor`, bound to a trajectory."""

    def __init__(
        self, executor: ToolExecutor, trajectory_id: str, *, working_dir: str | None = None
    ) -> None:
        self._executor = executor
        self._trajectory_id = trajectory_id
        self._working_dir = working_dir

    async def ready(self, call: ToolCall) -> None:
        """Wait for a slot if `call` runs in one."""
        await self._executor.prepare(self._trajectory_id, call)

    async def call(self, call: ToolCall, *, limit_s: float | None) -> ToolResult:
        """Run one call, within its own deadline and `limit_s`."""
        return await self._executor.execute(
            self._trajectory_id, call, limit_s=limit_s, working_dir=self._working_dir
        )

    async def recordings(self) -> tuple[Recording, ...]:
        """What its persistent shells and terminals recorded."""
        return await self._executor.recordings(self._trajectory_id)

    async def quiesce(self) -> None:
        """Kill whatever the agent left running."""
        await self._executor.quiesce(self._trajectory_id)

    async def snapshot(self) -> Snapshot | None:
        """Freeze the workspace; None when no slot was needed so far."""
        return await self._executor.snapshot(self._trajectory_id)

    async def restore(self, snapshot: Snapshot) -> None:
        """Wait for a slot and start from `snapshot` in it."""
        await self._executor.restore(self._trajectory_id, snapshot)

    async def release(self) -> None:
        """Give the slot back, to be reset."""
        await self._executor.release_trajectory(self._trajectory_id, reset_workspace=True)
