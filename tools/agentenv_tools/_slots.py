"""The executor's way to the backend: one slot per trajectory, every wait bounded, every failure of one kind."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, TypeVar

from agentenv_backends.errors import (
    AcquireTimeoutError,
    BackendError,
    CapabilityError,
    InfrastructureError,
    SandboxTimeoutError,
)
from agentenv_backends.requests import RecordingRequest, ShellRequest, TmuxRequest
from agentenv_backends.results import RecordingResult, ShellResult, TmuxResult
from agentenv_tools._capabilities import check_policy, check_tools
from agentenv_tools._departures import Departures
from agentenv_tools._recordings import RecordingBook

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from agentenv_backends.base import Backend, Capabilities, Slot, Snapshot
    from agentenv_backends.requests import Request
    from agentenv_backends.results import Result
    from agentenv_tools._trajectory import Trajectory
    from agentenv_tools.config import ToolExecutorConfig
    from agentenv_tools.registry import ToolRegistry
    from agentenv_tools.stats import Counters

logger = logging.getLogger(__name__)

_SLACK_S = 5.0
"""How much later than the backend's own deadline a wait is given up here. Backends keep theirs; this is the net."""
_SNAPSHOT_LIMIT_S = 300.0
"""The same for snapshots, whose own deadlines only the backend knows."""
T = TypeVar("T")


class SlotKeeper:
    """Takes slots, sends requests to them and gives them back."""

    def __init__(
        self,
        backend: Backend,
        registry: ToolRegistry,
        config: ToolExecutorConfig,
        counters: Counters,
    ) -> None:
        self._backend = backend
        self._registry = registry
        self._config = config
        self._counters = counters
        self._departures = Departures(config.max_batch_size, counters)
        self._checked = False

    @property
    def capabilities(self) -> Capabilities:
        """What the backend offers, once it is started."""
        return self._backend.capabilities

    def check_capabilities(self) -> None:
        """Raise `CapabilityError` unless the backend offers what the configuration and the tools require."""
        if self._checked:
            return
        check_policy(self._config, self._backend.capabilities)
        check_tools(self._registry, self._backend.capabilities)
        self._checked = True

    def check_profile(self, profile: str | None) -> None:
        """Raise `CapabilityError` unless the backend has slots of that kind."""
        offered = self._backend.profiles
        if profile is not None and profile not in offered:
            raise CapabilityError(f"no profile {profile!r}; there is: {', '.join(offered)}")

    async def acquire(self, trajectory: Trajectory) -> float:
        """Make sure the trajectory has a slot; returns the seconds this caller waited for it.

        Raises `AcquireTimeoutError`, which a later try may outlive: nothing is lost yet.
        """
        if trajectory.slot is not None:
            return 0.0
        async with trajectory.acquiring:
            trajectory.check()
            if trajectory.slot is not None:
                return 0.0
            self.check_capabilities()
            started = asyncio.get_running_loop().time()
            self._counters.waiting += 1
            try:
                trajectory.slot = await self._acquire_in_time(trajectory)
            finally:
                waited = asyncio.get_running_loop().time() - started
                self._counters.waiting -= 1
                self._counters.wait_s += waited
        if trajectory.released:  # a tool that ignores its cancellation got here after all
            await self.give_back(trajectory)
        trajectory.check()
        return waited

    async def send(self, trajectory: Trajectory, request: Request) -> Result:
        """Carry one request. An `InfrastructureError` here means the trajectory is lost."""
        trajectory.check()
        slot = trajectory.slot
        assert slot is not None
        if isinstance(request, ShellRequest | TmuxRequest) and trajectory.recordings is None:
            trajectory.recordings = RecordingBook(self._config.max_recording_bytes)
        try:
            answer = await self._send_in_time(slot, request)
        except InfrastructureError as error:
            trajectory.lost = trajectory.lost or error
            raise
        if isinstance(answer, ShellResult | TmuxResult) and trajectory.recordings is not None:
            trajectory.recordings.add(answer.recordings)
        return answer

    async def snapshot(self, trajectory: Trajectory) -> Snapshot:
        """Freeze the workspace of the trajectory's slot. An `InfrastructureError` loses the trajectory."""
        return await self._at_start_or_end(trajectory, self._backend.snapshot)

    async def restore(self, trajectory: Trajectory, snapshot: Snapshot) -> None:
        """Start the trajectory's slot from `snapshot`. An `InfrastructureError` loses the trajectory."""
        await self._at_start_or_end(trajectory, lambda slot: self._backend.restore(slot, snapshot))

    async def _at_start_or_end(
        self, trajectory: Trajectory, work: Callable[[Slot], Awaitable[T]]
    ) -> T:
        trajectory.check()
        slot = trajectory.slot
        assert slot is not None
        try:
            return await _in_time(work(slot), slot, "a snapshot", _SNAPSHOT_LIMIT_S)
        except InfrastructureError as error:
            trajectory.lost = trajectory.lost or error
            raise

    async def fetch_recordings(self, trajectory: Trajectory) -> None:
        """Ask the slot for what its terminals recorded and no result carried, if there may be any.

        Raises whatever goes wrong; the trajectory is not lost by it.
        """
        book, slot = trajectory.recordings, trajectory.slot
        if book is None or slot is None or book.full:
            return
        async with asyncio.timeout(self._config.recording_timeout_s):
            answer = await self._send_in_time(slot, RecordingRequest())
        if isinstance(answer, RecordingResult):
            book.add(answer.recordings)

    async def give_back(self, trajectory: Trajectory, *, reset_workspace: bool = True) -> None:
        """Release the trajectory's slot, if it has one. Never raises: a failure is counted and logged."""
        slot, trajectory.slot = trajectory.slot, None
        if slot is None:
            return
        try:
            async with asyncio.timeout(self._config.release_timeout_s):
                await self._backend.release(slot, reset_workspace=reset_workspace)
        except Exception:
            self._counters.cleanup_failures += 1
            logger.warning(
                "slot %s of trajectory %s could not be released",
                slot.slot_id,
                trajectory.trajectory_id,
                exc_info=True,
            )

    async def _acquire_in_time(self, trajectory: Trajectory) -> Slot:
        limit, trajectory_id = self._config.acquire_timeout_s, trajectory.trajectory_id
        kind = {} if trajectory.profile is None else {"profile": trajectory.profile}
        try:
            async with asyncio.timeout(None if limit is None else limit + _SLACK_S):
                return await self._backend.acquire(trajectory_id, timeout_s=limit, **kind)
        except BackendError:
            raise
        except TimeoutError as error:
            raise AcquireTimeoutError(
                f"trajectory {trajectory_id}: neither a slot nor an error within {limit:g}s"
            ) from error
        except Exception as error:
            raise InfrastructureError(f"the backend failed to give a slot: {error!r}") from error

    async def _send_in_time(self, slot: Slot, request: Request) -> Result:
        await self._departures.leave(slot.host_id)
        deadline_s = getattr(request, "timeout_s", self._backend.default_timeout_s)
        limit = deadline_s + self._backend.grace_s + _SLACK_S
        answer = self._backend.execute(slot, request)
        return await _in_time(answer, slot, f"a {type(request).__name__}", limit)


async def _in_time(work: Awaitable[T], slot: Slot, what: str, limit: float) -> T:
    try:
        async with asyncio.timeout(limit):
            return await work
    except BackendError:
        raise
    except TimeoutError as error:
        raise SandboxTimeoutError(
            f"slot {slot.slot_id}: no answer to {what} within {limit:g}s"
        ) from error
    except Exception as error:
        raise InfrastructureError(
            f"slot {slot.slot_id}: the backend failed with {error!r}"
        ) from error
