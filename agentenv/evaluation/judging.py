"""Environments whose verification needs a workspace: it is kept when they judge, and put back when they judge again."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from agentenv._hook import describe, run_hook
from agentenv.errors import VerifierError
from agentenv.evaluation.rescoring import (
    GoneMapping,
    WorkspaceGoneError,
    agent_result,
    no_workspace,
)
from agentenv.rollout import finish, finite_reward
from agentenv.task import Verdict
from agentenv.tasks.folder import RunFolder
from agentenv.tasks.sandbox import TaskSandbox
from agentenv.tasks.workspaces import (
    WorkspaceNotKeptError,
    keep_workspace,
    kept_workspace,
    put_workspace_back,
)
from agentenv_backends.errors import BackendError

if TYPE_CHECKING:
    from pathlib import Path

    from agentenv.env import AgentEnv
    from agentenv.run.record import TrajectoryRecord
    from agentenv.runtime import EnvRuntime
    from agentenv.task import ExecTool, Task, Verifier
    from agentenv.tasks.workspaces import KeptWorkspace
    from agentenv.types import AgentResult, Item


class KeepingVerifier:
    """A verifier before which the workspace is kept as the agent left it. Implements `Verifier`; serves one rollout."""

    def __init__(self, inner: Verifier, runtime: EnvRuntime, folder: Path, max_bytes: int) -> None:
        self._inner = inner
        self._runtime = runtime
        self._folder = folder
        self._max_bytes = max_bytes

    async def prepare(
        self, task: Task, *, trajectory_id: str, exec_tool: ExecTool
    ) -> dict[str, Any]:
        """As the verifier does."""
        return await self._inner.prepare(task, trajectory_id=trajectory_id, exec_tool=exec_tool)

    async def verify(
        self,
        task: Task,
        result: AgentResult,
        *,
        trajectory_id: str,
        exec_tool: ExecTool,
        workspace_meta: dict[str, Any],
    ) -> Verdict:
        """Keep the workspace, then judge."""
        await keep_workspace(
            TaskSandbox(self._runtime.executor, trajectory_id),
            RunFolder(self._folder),
            max_bytes=self._max_bytes,
            meta=workspace_meta,
        )
        return await self._inner.verify(
            task,
            result,
            trajectory_id=trajectory_id,
            exec_tool=exec_tool,
            workspace_meta=workspace_meta,
        )


class EnvironmentJudge:
    """Asks an environment's verification again, about trajectories that ended long ago. For one environment."""

    def __init__(self) -> None:
        self._starting = asyncio.Lock()
        self._started = False

    async def judge(
        self, env: AgentEnv[Any], item: Item, record: TrajectoryRecord, folder: Path | None
    ) -> Verdict:
        """The verdict. The environment's data are loaded; its sandboxes are started when the first is needed.

        Raises `WorkspaceGoneError` or `VerifierError`.
        """
        if not env.runtime.asks_verifier:
            raise WorkspaceGoneError(
                "tasks of this environment are judged in their own sandboxes: sweep their folder "
                "(`directory:`) with `keep_workspaces` to be able to judge them again"
            )
        try:
            kept = await asyncio.to_thread(kept_workspace, folder)
        except WorkspaceNotKeptError as error:
            return await self._from_record(env, item, record, str(error))
        try:
            return await self._in_workspace(env, item, record, kept)
        except (BackendError, OSError) as error:
            raise WorkspaceGoneError(
                f"its workspace could not be put back: {describe(error)[:300]}"
            ) from error

    async def _from_record(
        self, env: AgentEnv[Any], item: Item, record: TrajectoryRecord, reason: str
    ) -> Verdict:
        result = agent_result(record)
        try:
            async with asyncio.timeout(env.config.verify_timeout_s):
                reward, metadata = await env.verify_and_score_trajectory(
                    item,
                    result.final_response,
                    trajectory_id=record.trajectory_id,
                    exec_tool=no_workspace(reason),
                    agent_result=result,
                    workspace_meta=_meta(env),
                )
        except (WorkspaceGoneError, VerifierError):
            raise
        except Exception as error:  # the environment's own code may raise anything
            raise VerifierError(f"verification raised {describe(error)}") from error
        return Verdict(finite_reward(reward), metadata if isinstance(metadata, dict) else {})

    async def _in_workspace(
        self, env: AgentEnv[Any], item: Item, record: TrajectoryRecord, kept: KeptWorkspace
    ) -> Verdict:
        async with self._starting:
            if not self._started:
                await env.runtime.start_tools()
                self._started = True
        task = env.task_for(item)
        trajectory_id = f"again-{uuid4()}"
        workbench = env.runtime.workbench(task, trajectory_id)
        meta = _meta(env) if kept.meta is None else kept.meta
        try:
            await put_workspace_back(kept, TaskSandbox(env.runtime.executor, trajectory_id))
            verdict = await run_hook(
                "verification",
                lambda exec_tool: env.verifier().verify(
                    task,
                    agent_result(record),
                    trajectory_id=record.trajectory_id,
                    exec_tool=exec_tool,
                    workspace_meta=meta,
                ),
                workbench,
                env.config.verify_timeout_s,
            )
        finally:
            await finish(workbench.release())
        return Verdict(finite_reward(verdict.reward), verdict.metadata)


def _meta(env: AgentEnv[Any]) -> dict[str, Any]:
    """What the set-up returned, as far as that is known of one that ran long ago: nothing where there is no set-up."""
    from agentenv.env import AgentEnv  # noqa: PLC0415 - an import at the top would be a circle

    own = type(env).setup_trajectory_workspace
    return {} if own is AgentEnv.setup_trajectory_workspace else GoneMapping()
