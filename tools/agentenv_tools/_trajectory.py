"""What the executor keeps of one trajectory: its slot, whose turn it is, and whether it is lost."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Self

from agentenv_tools.errors import ToolError, TrajectoryReleasedError

if TYPE_CHECKING:
    from types import TracebackType

    from agentenv_backends.base import Slot
    from agentenv_backends.errors import InfrastructureError
    from agentenv_tools._recordings import RecordingBook
    from agentenv_tools.stats import Counters


class Trajectory:
    """Calls take turns, first come first served. A slot that was lost is never replaced: its files are gone."""

    __slots__ = (
        "acquiring",
        "lost",
        "profile",
        "recordings",
        "released",
        "slot",
        "trajectory_id",
        "turn",
        "turns",
    )

    def __init__(self, trajectory_id: str) -> None:
        self.trajectory_id = trajectory_id
        self.slot: Slot | None = None
        self.profile: str | None = None
        """Kind of slot it is to get; None: the usual one."""
        self.lost: InfrastructureError | None = None
        self.released = False
        self.recordings: RecordingBook | None = None
        """What its terminals recorded; None until it uses one."""
        self.turn = asyncio.Lock()
        self.acquiring = asyncio.Lock()
        self.turns: set[Turn] = set()

    def check(self) -> None:
        """Raise the error that ended this trajectory, if one did."""
        if self.released:
            raise TrajectoryReleasedError(f"trajectory {self.trajectory_id} was released")
        if self.lost is not None:
            raise self.lost.with_traceback(None)

    def interrupt(self) -> None:
        """Cancel every call that waits or runs. They end with `TrajectoryReleasedError`."""
        self.released = True
        for turn in self.turns:
            turn.interrupt()


class Turn:
    """One call's turn, as an async context manager. Leaving it, on whatever path, lets the next one in."""

    __slots__ = ("_cancelling", "_counters", "_interrupted", "_task", "trajectory")

    def __init__(self, trajectory: Trajectory, counters: Counters) -> None:
        task = asyncio.current_task()
        assert task is not None
        self.trajectory = trajectory
        self._counters = counters
        self._task = task
        self._cancelling = task.cancelling()
        self._interrupted = False

    def check(self) -> None:
        """Raise `ToolError` when the call has ended: its context must not be used any more."""
        if self not in self.trajectory.turns:
            raise ToolError(
                f"trajectory {self.trajectory.trajectory_id}: a tool call's context was used after "
                "the call had ended"
            )

    def interrupt(self) -> None:
        """Cancel the call."""
        self._interrupted = True
        self._task.cancel()

    async def __aenter__(self) -> Self:
        self.trajectory.turns.add(self)
        queued_at = asyncio.get_running_loop().time()
        self._counters.waiting += 1
        try:
            await self.trajectory.turn.acquire()
        except asyncio.CancelledError:
            self._leave(may_raise=True)
            raise
        finally:
            self._counters.waiting -= 1
            self._counters.wait_s += asyncio.get_running_loop().time() - queued_at
        try:
            self.trajectory.check()
        except BaseException:
            self.trajectory.turn.release()
            self._leave(may_raise=False)
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.trajectory.turn.release()
        self._leave(may_raise=kind is None or issubclass(kind, asyncio.CancelledError))

    def _leave(self, *, may_raise: bool) -> None:
        self.trajectory.turns.discard(self)
        if not self._interrupted:
            return
        # The cancellation was ours; one from outside on top of it must still be felt.
        if self._task.uncancel() <= self._cancelling and may_raise:
            raise TrajectoryReleasedError(
                f"trajectory {self.trajectory.trajectory_id} was released during the call"
            )
