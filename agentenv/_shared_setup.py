"""`share_workspace_setup`: a group's workspace is set up once, and each of its members starts from a copy.

The set-up runs in a slot of its own, which is frozen and given back, rather than in a member's: a slot ends with its
member, but a member that is drawn again later needs the copy too; and so every member starts in the same way.
"""

from __future__ import annotations

import asyncio
import copy
import logging
from contextvars import copy_context
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from agentenv._hook import run_hook
from agentenv.errors import AgentEnvError, VerifierError
from agentenv_backends.errors import AcquireTimeoutError, InfrastructureError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine

    from agentenv._kept_setups import KeptSetup
    from agentenv.rollout import Workbench
    from agentenv.task import Task, Verifier
    from agentenv.types import Item
    from agentenv_backends.base import Snapshot

logger = logging.getLogger(__name__)


class SharedTrajectoryId(str):
    """The `trajectory_id` of a set-up that is no member's. It can be printed and passed on, but is no key.

    An environment that files something under it would look for it under a member's own id later, and not find it.
    """

    __slots__ = ()

    def __hash__(self) -> int:
        raise TypeError(
            "with share_workspace_setup a set-up belongs to a whole group: its trajectory_id is no member's, so "
            "nothing can be filed under it. Return what verification needs; it comes back as workspace_meta"
        )


@dataclass(frozen=True, slots=True)
class Prepared:
    """What a set-up left. `snapshot` is None when it did nothing in the sandbox."""

    meta: dict[str, Any]
    snapshot: Snapshot | None


class SharedSetup:
    """One group's set-up: run when the first member asks for it, for all of them.

    When it fails, that is the failure of every member that waited for it, as if each had set up by itself; the next
    one to ask runs it again. So does a snapshot that could not be restored. A member asks once an attempt, so there
    are at most as many set-ups as attempts of all members together.
    """

    def __init__(
        self,
        item: Item,
        verifier: Verifier,
        *,
        workbench: Callable[[Task, str], Workbench],
        drop: Callable[[Snapshot], Awaitable[None]],
        timeout_s: float,
        kept: KeptSetup | None = None,
    ) -> None:
        """`workbench(task, id)` gives the tools of the set-up's own trajectory; `drop` lets go of a snapshot; `kept`
        is where the result of an equal set-up is found, and this one's is left for others.
        """
        self.item = item
        """The dataset element the workspace is made for."""
        self._verifier = verifier
        self._workbench = workbench
        self._drop = drop
        self._timeout_s = timeout_s
        self._kept = kept
        self._context = copy_context()
        self._current: asyncio.Task[Prepared] | None = None
        self._snapshots: set[Snapshot] = set()
        self._work: set[asyncio.Task[Any]] = set()
        self._closed = False

    async def enter(self, task: Task, workbench: Workbench) -> dict[str, Any]:
        """Give a member's workbench the prepared workspace, and return what the set-up returned: a copy of its own.

        Raises `InfrastructureError`, `PolicyError` or `VerifierError`, as a set-up of the member's own would.
        """
        if self._closed:
            raise AgentEnvError("the group has ended, and its workspace with it")
        if self._current is None:
            self._current = self._spawn(self._set_up(replace(task, seed=None)))
            self._current.add_done_callback(self._forget_failed)
        current = self._current
        prepared = await asyncio.shield(current)
        if prepared.snapshot is not None:
            try:
                await workbench.restore(prepared.snapshot)
            except AcquireTimeoutError:
                raise
            except InfrastructureError:
                if self._current is current:  # whatever the reason, the next one gets a new copy
                    self._current, self._kept = None, None
                raise
        return _own_copy(prepared.meta)

    async def close(self) -> None:
        """End the set-up if it still runs, and let go of every snapshot. Idempotent."""
        self._closed = True
        if self._current is not None:
            self._current.cancel()
        for snapshot in self._snapshots:
            self._spawn(self._let_go(snapshot))
        self._snapshots = set()
        while self._work:
            await asyncio.wait(self._work)
            for snapshot in self._snapshots:  # taken in the moment of the cancellation
                self._spawn(self._let_go(snapshot))
            self._snapshots = set()

    async def _set_up(self, task: Task) -> Prepared:
        kept = self._kept
        if kept is None:
            return await self._run_set_up(task)
        async with kept.turn:
            if (found := await kept.recall()) is not None:
                if found.snapshot is not None:
                    self._snapshots.add(found.snapshot)
                return found
            prepared = await self._run_set_up(task)
            await kept.remember(prepared)
            return prepared

    async def _run_set_up(self, task: Task) -> Prepared:
        trajectory_id = str(uuid4())
        workbench = self._workbench(task, trajectory_id)
        try:
            meta = await run_hook(
                "workspace set-up",
                lambda exec_tool: self._verifier.prepare(
                    task, trajectory_id=SharedTrajectoryId(trajectory_id), exec_tool=exec_tool
                ),
                workbench,
                self._timeout_s,
            )
            snapshot = await workbench.snapshot()
            if snapshot is not None:
                self._snapshots.add(snapshot)
            return Prepared(meta, snapshot)
        finally:
            self._spawn(workbench.release())  # no member has to wait for that

    def _forget_failed(self, done: asyncio.Task[Prepared]) -> None:
        if (done.cancelled() or done.exception() is not None) and self._current is done:
            self._current = None

    async def _let_go(self, snapshot: Snapshot) -> None:
        try:
            await self._drop(snapshot)
        except Exception:
            logger.warning("snapshot %s was not dropped", snapshot.snapshot_id, exc_info=True)

    def _spawn(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """In the group's context, not in that of the member who happens to ask first."""
        task = asyncio.create_task(work, context=self._context.copy())
        self._work.add(task)
        task.add_done_callback(self._work.discard)
        return task


def _own_copy(meta: dict[str, Any]) -> dict[str, Any]:
    try:
        return copy.deepcopy(meta)
    except Exception as error:
        raise VerifierError(
            "with share_workspace_setup each member gets a copy of what setup_trajectory_workspace returned, and "
            f"this cannot be copied: {type(error).__name__}: {error}"
        ) from error
