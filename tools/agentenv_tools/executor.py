"""Carries tool calls of many trajectories to their slots."""

from __future__ import annotations

import asyncio
import logging
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from agentenv_backends.errors import InfrastructureError
from agentenv_backends.requests import (
    DEFAULT_MAX_ARTIFACT_BYTES,
    DEFAULT_MAX_ENTRIES,
    ArchiveRequest,
    KillRequest,
    ListRequest,
    ReadRequest,
)
from agentenv_backends.results import ArchiveResult, KillResult, ListResult, OpFailure, ReadResult
from agentenv_tools._calls import RejectedError, run_tool, tool_code
from agentenv_tools._policy import granted_s, without_policy
from agentenv_tools._slots import SlotKeeper
from agentenv_tools._trajectory import Trajectory, Turn
from agentenv_tools.base import ExternalTool, SandboxTool, ToolContext, expect
from agentenv_tools.config import ToolExecutorConfig
from agentenv_tools.errors import (
    ExecutorClosedError,
    NoActiveSlotError,
)
from agentenv_tools.external import ExternalTools, tool_sources
from agentenv_tools.schema import ToolResult
from agentenv_tools.stats import CallError, Counters

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from agentenv_backends.base import Backend, Capabilities, Snapshot
    from agentenv_backends.requests import Request
    from agentenv_backends.results import Recording, Result
    from agentenv_tools.base import Tool
    from agentenv_tools.registry import ToolRegistry
    from agentenv_tools.schema import ToolCall, ToolSchema
    from agentenv_tools.stats import ExecutorStats

logger = logging.getLogger(__name__)

ResultT = TypeVar("ResultT")


class ToolExecutor:
    """Runs the tool calls of many trajectories over one backend.

    * Calls of one trajectory run one at a time, in the order `execute` was called. Calls of
      different trajectories never wait for each other, except for a free slot.
    * A trajectory takes a slot on its first request to the sandbox and keeps it until
      `release_trajectory`.
    * What the agent did wrong (malformed call, unknown tool, bad arguments, failing command,
      overrun deadline) is a `ToolResult`. What the infrastructure did wrong is an
      `InfrastructureError`. The two are never exchanged.
    * A trajectory whose sandbox failed in the middle is lost: its later calls raise the same error.
      It never gets a second, empty slot.
    * Cancelling `execute` withdraws the call: no place in a queue and no running command is left.
    * The model can choose a timeout (clamped to 1-600 s) and nothing else of how its call runs.

    Why there is no batch queue: `Backend.execute_batch` answers when its slowest request has, so a
    batch made here would let one slow call hold up everybody in it. Each request goes to the
    backend by itself, within the caller's own task, and many are under way at once over each host's
    one connection; requests that leave in the same turn of the event loop are what that connection
    can write in one piece. So a call waits for no window (`batch_window_ms` is kept as an upper
    bound), and `max_batch_size` bounds a burst.

    Not guaranteed: anything about time beyond the deadlines; that a sync function tool stops at its
    deadline (threads cannot be ended).
    """

    def __init__(
        self,
        backend: Backend,
        registry: ToolRegistry,
        config: ToolExecutorConfig | None = None,
        *,
        served_tools: Sequence[Tool[Any]] = (),
    ) -> None:
        """`served_tools` are those of the tool server in this process, for `tool_server_url: inprocess`.

        Raises `ToolConfigError` when the configured servers of external tools cannot be used.
        """
        self._registry = registry
        self._config = config or ToolExecutorConfig()
        self._counters = Counters()
        self._slots = SlotKeeper(backend, registry, self._config, self._counters)
        self._external = ExternalTools(
            tool_sources(
                self._config.tool_server_url,
                self._config.tool_server_token,
                self._config.mcp_servers,
                served_tools,
            )
        )
        self._trajectories: dict[str, Trajectory] = {}
        self._teardowns: dict[str, asyncio.Task[None]] = {}
        self._closed = False

    # ---- life ----

    @property
    def capabilities(self) -> Capabilities:
        """What the backend offers, once it is started."""
        return self._slots.capabilities

    async def start(self) -> None:
        """Check that the started backend offers what configuration and tools require; connect to external tools.

        A first request to the sandbox checks it too, so forgetting this fails later but fails closed.
        Without it no external tool is in the registry. Raises `CapabilityError`, `ToolConfigError` (two tools of
        one name) or `ToolServerError`.
        """
        self._slots.check_capabilities()
        await self._external.start(self._registry)

    async def release_trajectory(self, trajectory_id: str, reset_workspace: bool = False) -> None:
        """End a trajectory: cancel its calls, which raise `TrajectoryReleasedError`, and give its slot back.

        Idempotent, and unknown ids are fine. A failing cleanup is counted and logged, never raised.
        Cancelling this does not stop the release; `close` still waits for it.
        """
        trajectory = self._trajectories.pop(trajectory_id, None)
        if trajectory is not None:
            previous = self._teardowns.get(trajectory_id)
            teardown = asyncio.create_task(
                self._tear_down(trajectory, previous, reset_workspace=reset_workspace)
            )
            self._teardowns[trajectory_id] = teardown
            teardown.add_done_callback(lambda task: self._forget(trajectory_id, task))
        if under_way := self._teardowns.get(trajectory_id):
            await asyncio.shield(under_way)

    async def close(self) -> None:
        """Release every trajectory and take no more calls. Idempotent. The backend is the caller's to stop."""
        self._closed = True
        names = [*self._trajectories, *self._teardowns]
        await asyncio.gather(*(self.release_trajectory(name) for name in dict.fromkeys(names)))
        await self._external.close()

    # ---- calls ----

    async def execute(
        self,
        trajectory_id: str,
        call: ToolCall,
        timeout_s: float | None = None,
        *,
        limit_s: float | None = None,
        working_dir: str | None = None,
    ) -> ToolResult:
        """Carry out one call and return what the model gets to read.

        The deadline is `timeout_s`, else the call's own `timeout` argument, else
        `default_timeout_s`, at most `limit_s`, clamped to 1-600 s. It starts when the call does: waiting for a turn or
        a slot is not counted. `working_dir`, relative to the workspace, is where commands start.

        Raises `InfrastructureError` (the trajectory is then lost, unless it is an
        `AcquireTimeoutError`), `CapabilityError`, `TrajectoryReleasedError` or
        `ExecutorClosedError`.
        """
        counters = self._counters
        counters.active += 1
        counters.requests += 1
        started = asyncio.get_running_loop().time()
        try:
            result = await self._answer(
                self._trajectory(trajectory_id), call, (timeout_s, limit_s), working_dir
            )
            if not result.success:
                counters.errors[CallError.FAILED] += 1
        except RejectedError as rejected:
            counters.errors[rejected.kind] += 1
            result = ToolResult(success=False, error=str(rejected))
        except asyncio.CancelledError:
            counters.cancelled += 1
            raise
        except Exception:
            counters.failures += 1
            raise
        finally:
            counters.active -= 1
            counters.finished += 1
            counters.latency_s += asyncio.get_running_loop().time() - started
        return replace(result, uniq_id=call.uniq_id)

    def choose_profile(self, trajectory_id: str, profile: str | None) -> None:
        """Say of which kind the slot is to be that the trajectory gets, before it has one; None: the usual.

        Raises `CapabilityError` when the backend has no such kind.
        """
        self._slots.check_profile(profile)
        self._trajectory(trajectory_id).profile = profile

    async def prepare(self, trajectory_id: str, call: ToolCall) -> None:
        """Have what `call` will need: the trajectory's slot, or its session with an external server.

        For callers that count the time waiting for a slot apart from the call's. Raises as `execute` does.
        """
        trajectory = self._trajectory(trajectory_id)
        tool = self._registry.get(call.name) if call.error is None else None
        if isinstance(tool, SandboxTool):
            await self._slots.acquire(trajectory)
        elif isinstance(tool, ExternalTool):
            await tool.prepare(trajectory_id)
            if trajectory.released:  # meanwhile, and without what was just prepared for it
                await self._external.release(trajectory_id)
                trajectory.check()

    async def execute_request(self, trajectory_id: str, request: Request) -> Result:
        """Carry one request to the trajectory's slot, in turn with its calls. For hooks and verifiers.

        Raises as `execute` does.
        """
        trajectory = self._trajectory(trajectory_id)
        async with self._turn(trajectory):
            await self._slots.acquire(trajectory)
            return await self._slots.send(trajectory, request)

    async def quiesce(self, trajectory_id: str) -> int:
        """Kill every process in the trajectory's slot, after its calls; how many there were. No slot: 0.

        For use before verification, so that nothing the agent left can interfere. Raises as
        `execute` does.
        """
        trajectory = self._trajectories.get(trajectory_id)
        if trajectory is None or trajectory.slot is None:
            return 0
        answer = expect(await self.execute_request(trajectory_id, KillRequest()), KillResult)
        if isinstance(answer, OpFailure):
            raise InfrastructureError(f"the slot's processes could not be killed: {answer.message}")
        return answer.killed_processes

    async def snapshot(self, trajectory_id: str) -> Snapshot | None:
        """Freeze the trajectory's workspace, after its calls; None when it holds no slot. Kills what runs there.

        The snapshot is the caller's to drop, at the backend. Raises as `execute` does.
        """
        trajectory = self._trajectories.get(trajectory_id)
        if trajectory is None or trajectory.slot is None:
            return None
        async with self._turn(trajectory):
            return await self._slots.snapshot(trajectory)

    async def restore(self, trajectory_id: str, snapshot: Snapshot) -> None:
        """Take the trajectory's slot and give it the contents of `snapshot`, before it has made any call.

        Raises as `execute` does, and `SlotStateError` when something was done in the slot already.
        """
        trajectory = self._trajectory(trajectory_id)
        async with self._turn(trajectory):
            await self._slots.acquire(trajectory)
            await self._slots.restore(trajectory, snapshot)

    async def recordings(self, trajectory_id: str) -> tuple[Recording, ...]:
        """What the trajectory's persistent shells and terminals recorded so far, one recording a session.

        Asks the slot for the rest, after the trajectory's calls; a slot that does not answer costs only that
        rest. Empty, and nothing is asked, where no such tool was used. Ask before `quiesce` and `release_trajectory`.
        """
        trajectory = self._trajectories.get(trajectory_id)
        if trajectory is None or trajectory.recordings is None:
            return ()
        if trajectory.lost is None:
            await self._fetch_recordings(trajectory)
        return trajectory.recordings.recordings()

    def schemas(self) -> list[ToolSchema]:
        """What a model is to be told of the tools; those of external servers once `start` has connected to them."""
        return self._registry.schemas()

    def stats(self) -> ExecutorStats:
        """The counts as of now."""
        return self._counters.snapshot()

    # ---- artifacts ----

    async def read_artifact(
        self,
        trajectory_id: str,
        path: str,
        *,
        max_bytes: int = DEFAULT_MAX_ARTIFACT_BYTES,
        include_sha256: bool = False,
    ) -> ReadResult | OpFailure:
        """Bytes of a file in the trajectory's workspace. Raises `NoActiveSlotError`, else as `execute` does."""
        request = ReadRequest(path, max_bytes=max_bytes, with_sha256=include_sha256)
        return await self._artifact(trajectory_id, request, ReadResult)

    async def list_artifacts(
        self,
        trajectory_id: str,
        path: str = ".",
        *,
        recursive: bool = False,
        max_entries: int = DEFAULT_MAX_ENTRIES,
    ) -> ListResult | OpFailure:
        """Entries of a folder in the trajectory's workspace. Raises as `read_artifact` does."""
        request = ListRequest(path, recursive=recursive, max_entries=max_entries)
        return await self._artifact(trajectory_id, request, ListResult)

    async def archive_artifacts(
        self,
        trajectory_id: str,
        path: str = ".",
        *,
        archive_format: Literal["tar.gz"] = "tar.gz",
        max_bytes: int = DEFAULT_MAX_ARTIFACT_BYTES,
        max_entries: int = DEFAULT_MAX_ENTRIES,
    ) -> ArchiveResult | OpFailure:
        """A folder of the trajectory's workspace, packed. Raises as `read_artifact` does."""
        request = ArchiveRequest(path, archive_format, max_bytes, max_entries)
        return await self._artifact(trajectory_id, request, ArchiveResult)

    # ---- machinery ----

    @asynccontextmanager
    async def _turn(self, trajectory: Trajectory) -> AsyncIterator[None]:
        """A turn among the trajectory's calls, for what is none."""
        self._counters.active += 1
        try:
            async with Turn(trajectory, self._counters):
                yield
        finally:
            self._counters.active -= 1

    def _trajectory(self, trajectory_id: str) -> Trajectory:
        if self._closed:
            raise ExecutorClosedError(
                f"the executor is closed; trajectory {trajectory_id} cannot call tools"
            )
        trajectory = self._trajectories.get(trajectory_id)
        if trajectory is None:
            trajectory = self._trajectories[trajectory_id] = Trajectory(trajectory_id)
        trajectory.check()
        return trajectory

    async def _answer(
        self,
        trajectory: Trajectory,
        call: ToolCall,
        deadline: tuple[float | None, float | None],
        working_dir: str | None,
    ) -> ToolResult:
        tool = self._tool_for(call)
        with tool_code():
            asked, arguments = without_policy(tool, call)
            validated = tool.validate(arguments)
            if asked is None and isinstance(tool, SandboxTool):
                asked = tool.asked_s(validated)
        timeout_s = granted_s(asked, *deadline, default_s=self._config.default_timeout_s)
        async with Turn(trajectory, self._counters) as turn:
            return await self._run(turn, tool, validated, timeout_s, working_dir)

    def _tool_for(self, call: ToolCall) -> Tool[Any]:
        if call.error is not None:
            raise RejectedError(CallError.MALFORMED, call.error)
        tool = self._registry.get(call.name)
        if tool is None:
            raise RejectedError(CallError.UNKNOWN_TOOL, self._registry.unknown(call.name))
        self._counters.by_tool[call.name] += 1
        if tool.schema.external and not isinstance(tool, ExternalTool):
            message = f"External tool not available (ToolServer not configured): {call.name}"
            raise RejectedError(CallError.UNAVAILABLE, message)
        with tool_code():
            available, reason = tool.is_available()
        if not available:
            raise RejectedError(
                CallError.UNAVAILABLE,
                f"Tool not available: {call.name}: {reason or 'no reason given'}",
            )
        return tool

    async def _run(
        self,
        turn: Turn,
        tool: Tool[Any],
        arguments: Any,
        timeout_s: float,
        working_dir: str | None,
    ) -> ToolResult:
        trajectory = turn.trajectory

        async def acquire() -> float:
            turn.check()
            return await self._slots.acquire(trajectory)

        async def send(request: Request) -> Result:
            turn.check()
            return await self._slots.send(trajectory, request)

        ctx = ToolContext(
            trajectory.trajectory_id,
            timeout_s,
            acquire=acquire,
            send=send,
            working_dir=working_dir,
        )
        result = await run_tool(tool, arguments, ctx)
        if not isinstance(tool, SandboxTool):
            trajectory.check()  # a tool may have caught its sandbox's failure, which is no answer
        return result

    async def _fetch_recordings(self, trajectory: Trajectory) -> None:
        self._counters.active += 1
        try:
            async with Turn(trajectory, self._counters):
                await self._slots.fetch_recordings(trajectory)
        except Exception as error:  # noqa: BLE001 - losing a recording's end must cost nothing else
            logger.warning(
                "the end of what the terminals of trajectory %s recorded is lost: %r",
                trajectory.trajectory_id,
                error,
            )
        finally:
            self._counters.active -= 1

    async def _artifact(
        self, trajectory_id: str, request: Request, kind: type[ResultT]
    ) -> ResultT | OpFailure:
        trajectory = self._trajectories.get(trajectory_id)
        if trajectory is None or trajectory.slot is None:
            raise NoActiveSlotError(
                f"trajectory {trajectory_id} holds no slot: it was released, or has called no "
                "sandbox tool yet"
            )
        return expect(await self.execute_request(trajectory_id, request), kind)

    async def _tear_down(
        self,
        trajectory: Trajectory,
        previous: asyncio.Task[None] | None,
        *,
        reset_workspace: bool,
    ) -> None:
        trajectory.interrupt()
        try:
            async with asyncio.timeout(self._config.release_timeout_s), trajectory.turn:
                pass  # every interrupted call has ended
        except TimeoutError:
            logger.warning("a call of trajectory %s ignores its end", trajectory.trajectory_id)
        await self._slots.give_back(trajectory, reset_workspace=reset_workspace)
        await self._external.release(trajectory.trajectory_id)
        if previous is not None:
            await previous

    def _forget(self, trajectory_id: str, teardown: asyncio.Task[None]) -> None:
        if self._teardowns.get(trajectory_id) is teardown:
            del self._teardowns[trajectory_id]
