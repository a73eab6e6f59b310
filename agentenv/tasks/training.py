"""Task directories in training: an environment's runtime whose rollouts are those of `run_task`, without its folder."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from agentenv._hook import describe
from agentenv.harness import ToolLoop
from agentenv.outcomes import Outcome, StopReason
from agentenv.rollout import RolloutRecord
from agentenv.runtime import EnvRuntime
from agentenv.tasks.agents import SessionRequest, TaskAgent
from agentenv.tasks.errors import TaskError
from agentenv.tasks.folder import NoFolder
from agentenv.tasks.options import RunOptions
from agentenv.tasks.place_pool import PlacePool
from agentenv.tasks.rolling import TaskRollout
from agentenv_backends.base import Capabilities, PoolStats
from agentenv_backends.errors import BackendError, CapabilityError
from agentenv_tools.base import ExternalTool
from agentenv_tools.registry import ToolRegistry

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from agentenv.config import AgentEnvConfig
    from agentenv.policy.config import APIServerConfig
    from agentenv.rollout import Workspace
    from agentenv.session import Session
    from agentenv.task import Task, Verifier
    from agentenv.tasks.directory import TaskDirectory
    from agentenv.types import Item

_OURS = frozenset({"type", "slots", "max_hosts", "min_hosts", "folders", "variables"})
"""Keys of a backend's config that tasks decide, or that mean how many sandboxes there may be."""


class TaskRuntime(EnvRuntime):
    """Runs each item's task in the sandbox that the task itself asks for.

    `backend` of the environment's config says which kind of backend, how many sandboxes of one kind there may be at
    once (`slots` of the local backend, `max_hosts` of others), and whatever of its keys is set wins over the tasks'.
    Nothing is written to disk. Verification is the tasks' own: the environment's hooks are not called.
    """

    asks_verifier = False

    def __init__(
        self,
        config: AgentEnvConfig,
        server_configs: Sequence[APIServerConfig],
        tools: ToolRegistry,
        *,
        find: Callable[[Item], TaskDirectory],
        options: RunOptions | None = None,
        places_kept: int = 8,
        **parts: Any,
    ) -> None:
        """`find` gives an item's task; `places_kept` bounds the backends kept started; `parts` are `EnvRuntime`'s."""
        backend = config.backend
        own = backend.model_dump(exclude_unset=True)
        chosen = {key: value for key, value in own.items() if key not in _OURS}
        options = options or RunOptions()
        self.options = replace(options, backend={**options.backend, **chosen})
        self._provider = backend.type
        self._sandboxes = backend.slots if backend.type == "local" else backend.max_hosts
        self._find = find
        self._places_kept = places_kept
        self._places: PlacePool | None = None
        super().__init__(config, server_configs, tools, backend=_NoBackend(self), **parts)

    def check(self, task: TaskDirectory) -> None:
        """Raise `TaskUnsupportedError` for a task that cannot run here."""
        self._rollout(task, self._agent(None)).backend_values()

    async def run(
        self,
        task: Task,
        verifier: Verifier,
        *,
        trajectory_id: str,
        workspace: Workspace | None = None,
    ) -> RolloutRecord:
        """One rollout of the item's task. `verifier` and `workspace` are not used."""
        directory = self._find(task.item)
        rollout = self._rollout(directory, self._agent(task), task)
        try:
            record = await rollout.run(trajectory_id)
        except (TaskError, BackendError) as error:
            return RolloutRecord(
                trajectory_id,
                Outcome.INFRASTRUCTURE_FAILED,
                StopReason.ERROR,
                None,
                None,
                cause=describe(error),
            )
        notes = {"task": directory.name, "warnings": rollout.warnings[:20]}
        return replace(record, score_metadata={**record.score_metadata, **notes})

    async def close_places(self) -> None:
        """End every sandbox. Idempotent."""
        places, self._places = self._places, None
        if places is not None:
            await places.close()

    def _started_places(self) -> PlacePool:
        if self._places is None:
            tools = (self.tools.get(name) for name in self.tools.names())
            # Each executor connects to the servers of external tools itself.
            own = [tool for tool in tools if tool and not isinstance(tool, ExternalTool)]
            self._places = PlacePool(
                partial(ToolRegistry, own),
                keep=self._places_kept,
                config=self._executor_config(),
                served_tools=self._served_tools,
            )
        return self._places

    def _rollout(
        self, directory: TaskDirectory, agent: TaskAgent, task: Task | None = None
    ) -> TaskRollout:
        options = replace(
            self.options,
            seed=task.seed if task is not None else None,
            max_agent_timeout_s=self.config.rollout_timeout_s,
            max_verifier_timeout_s=self.config.verify_timeout_s,
        )
        places, sandboxes = self._started_places(), self._sandboxes
        return TaskRollout(
            directory,
            agent,
            self._provider,
            options,
            NoFolder(),
            places,
            sandboxes=sandboxes,
            observers=self.observers,
        )

    def _agent(self, task: Task | None) -> TaskAgent:
        def session(request: SessionRequest) -> Session:
            assert task is not None
            own = replace(task, seed=request.seed)
            return self._session(own, request.trajectory_id, request.schemas)

        harness = ToolLoop(turn_timeout_s=self.config.turn_timeout_s, gate=self.gate)
        agent = TaskAgent("policy", harness, session)
        return agent if task is None else replace(agent, config=task.agent)


class _NoBackend:
    """Stands where an environment has its one backend: each task has its own. Implements `Backend`."""

    default_timeout_s = 30.0
    grace_s = 5.0
    profiles = ("default",)
    capabilities = Capabilities(
        isolation="container",
        network_control=True,
        memory_limit=True,
        process_limit=True,
        disk_limit=True,
        stateful_terminals=True,
        tmux=True,
    )
    """Those of the tasks' own backends count, and are checked when they start."""

    def __init__(self, runtime: TaskRuntime) -> None:
        self._runtime = runtime

    async def start(self) -> None:
        """Tasks start what they need."""

    async def stop(self, *, purge: bool = False) -> None:
        """End every task's sandboxes."""
        await self._runtime.close_places()

    async def _refuse(self, *args: Any, **kwargs: Any) -> Any:
        raise CapabilityError(
            "an environment of task directories has no sandbox but those of its tasks"
        )

    acquire = release = execute = execute_batch = _refuse
    snapshot = restore = drop_snapshot = recall_snapshot = remember_snapshot = _refuse

    def stats(self) -> PoolStats:
        """Nothing of its own."""
        return PoolStats(0, 0, 0, 0, 0, 0, 0, 0)
