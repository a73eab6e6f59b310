"""What stands behind an environment while it runs: backend, tool executor, policy, renderer; and their teardown."""

from __future__ import annotations

import asyncio
import logging
from functools import partial
from typing import TYPE_CHECKING, Any

from agentenv._kept_setups import KeptSetups
from agentenv._shared_setup import SharedSetup
from agentenv.control.pause import PauseGate
from agentenv.errors import NotStartedError, TokensUnavailableError
from agentenv.harness import ToolLoop
from agentenv.policy import build_policy
from agentenv.policy.base import SharedPolicy
from agentenv.reasoning import chat_options, template_options
from agentenv.rollout import RolloutLimits, cancelled_record, finish, rollout
from agentenv.session import ChatSession, TokenSession
from agentenv.workbench import ExecutorWorkbench
from agentenv_backends.errors import CapabilityError
from agentenv_tools import ToolExecutor, ToolExecutorConfig

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence

    from agentenv.atif.store import TrajectoryLog
    from agentenv.config import AgentEnvConfig
    from agentenv.observer import RolloutObserver
    from agentenv.policy.base import PolicyClient
    from agentenv.policy.config import APIServerConfig
    from agentenv.rollout import RolloutRecord, Workspace
    from agentenv.serve.checkpoint import Checkpoints
    from agentenv.session import Session
    from agentenv.task import Task, Verifier
    from agentenv.tokens.renderer import TokenRenderer
    from agentenv.types import Item
    from agentenv_backends.base import Backend
    from agentenv_tools.base import Tool
    from agentenv_tools.registry import ToolRegistry
    from agentenv_tools.schema import ToolSchema

logger = logging.getLogger(__name__)

RELEASE_PATIENCE_S = 0.5
"""How long work that is cancelled may take to give its slots back before the hosts are ended under it."""
_END_PATIENCE_S = 1.5
"""How long it may take after that."""


class EnvRuntime:
    """Built once per environment; `start` and `stop` bracket its use. Any part can be given, for tests."""

    asks_verifier = True
    """Whether rollouts are judged by the verifier that `run` is given."""

    def __init__(
        self,
        config: AgentEnvConfig,
        server_configs: Sequence[APIServerConfig],
        tools: ToolRegistry,
        *,
        backend: Backend | None = None,
        policy: PolicyClient | None = None,
        renderer: TokenRenderer | None = None,
        served_tools: Sequence[Tool[Any]] = (),
    ) -> None:
        self.config = config
        self.server_configs = list(server_configs)
        self.tools = tools
        self.backend = backend or config.lasting_backend.build()
        self.policy = policy or build_policy(self.server_configs)
        self.on_rollout: Callable[[RolloutRecord], None] = lambda record: None
        """Called with every rollout's record, retried ones included."""
        self.on_metrics: Callable[[Mapping[str, Any]], None] = lambda metrics: None
        """Called with what the environment wants reported beside the framework's own metrics."""
        self.observers: Sequence[RolloutObserver] = ()
        """Told of every rollout while it runs."""
        self.trajectories: TrajectoryLog | None = None
        """Where the trajectory of every rollout is kept, while one is."""
        self.checkpoints: Checkpoints | None = None
        """Where the environment's own state is kept, while a trainer is served."""
        self.gate = PauseGate(limit_s=config.pause_timeout_s)
        """Closed while the policy's weights are exchanged: no group and no turn begins meanwhile."""
        self._renderer = renderer
        self._served_tools = served_tools
        self._executor: ToolExecutor | None = None
        self._stopping: asyncio.Task[None] | None = None
        self._kept_setups = KeptSetups(self.backend)

    @property
    def executor(self) -> ToolExecutor:
        """The tool executor. Raises `NotStartedError` before `start`."""
        if self._executor is None:
            raise NotStartedError("the environment's backend is not started: await setup() first")
        return self._executor

    @property
    def renderer(self) -> TokenRenderer | None:
        """The model family's renderer; None where the policy returns text only."""
        return self._renderer

    async def start(self) -> None:
        """Start the backend, then connect to the policy. What was started is stopped again if anything fails."""
        try:
            await self._start_tools()
            await self.policy.start()
            members = self.config.group_size + self.config.over_provision.extra
            if members > 1:
                self.policy.raise_concurrency(members)
            if self._renderer is None and self.policy.returns_tokens:
                self._renderer = await asyncio.to_thread(self._load_renderer)
        except BaseException:
            await finish(self.stop())
            raise

    async def start_tools(self) -> None:
        """Start the backend and the executor alone, for agents that live elsewhere. Else as `start`."""
        try:
            await self._start_tools()
        except BaseException:
            await finish(self.stop())
            raise

    async def _start_tools(self) -> None:
        await self.backend.start()
        self._check_snapshots()
        self._executor = ToolExecutor(
            self.backend, self.tools, self._executor_config(), served_tools=self._served_tools
        )
        await self._executor.start()

    async def stop(self) -> None:
        """Stop everything. Idempotent, and not to be interrupted: a second caller waits for the first."""
        if self._stopping is None:
            self._stopping = asyncio.ensure_future(self._stop())
        await asyncio.shield(self._stopping)

    async def cancel(self, tasks: Collection[asyncio.Task[Any]]) -> None:
        """Cancel work that uses this runtime, and return when it has ended.

        Whoever is cancelled waits until its slot is reset. Where that takes long, because hosts do not answer, the
        sandboxes are ended under it: only for work after which nothing else is to come. What does not end even then,
        as code of an environment that catches its cancellation, is logged and left.
        """
        for task in tasks:
            task.cancel()
        if not tasks:
            return
        _, unfinished = await asyncio.wait(tasks, timeout=RELEASE_PATIENCE_S)
        if unfinished:
            await self.backend.stop()
            _, left = await asyncio.wait(unfinished, timeout=_END_PATIENCE_S)
            if left:
                logger.warning(
                    "%d of what was under way goes on although it was cancelled, and is left: does the environment "
                    "catch CancelledError?",
                    len(left),
                )

    async def _stop(self) -> None:
        executor, self._executor = self._executor, None
        parts: list[Callable[[], Awaitable[None]]] = [executor.close] if executor else []
        parts += [
            self.policy.close,
            partial(self.backend.stop, purge=self.config.purge_job_on_shutdown),
        ]
        for stop in parts:
            try:
                await stop()
            except Exception:  # every part must be stopped, whatever the one before it did
                logger.exception("stopping the environment's runtime")

    async def run(
        self,
        task: Task,
        verifier: Verifier,
        *,
        trajectory_id: str,
        workspace: Workspace | None = None,
    ) -> RolloutRecord:
        """One rollout of this environment's agent, in a workspace of its own or from one that is given."""
        log = self.trajectories
        if log is None:
            return await self._run(task, verifier, trajectory_id, workspace)
        try:
            record = await self._run(task, verifier, trajectory_id, workspace)
        except asyncio.CancelledError:
            log.add(cancelled_record(trajectory_id), task.instruction)
            raise
        log.add(record, task.instruction)
        await log.room()
        return record

    async def _run(
        self, task: Task, verifier: Verifier, trajectory_id: str, workspace: Workspace | None
    ) -> RolloutRecord:
        return await rollout(
            task,
            harness=ToolLoop(turn_timeout_s=self.config.turn_timeout_s, gate=self.gate),
            session=self._session(task, trajectory_id),
            workbench=self.workbench(task, trajectory_id),
            verifier=verifier,
            limits=self._limits(),
            trajectory_id=trajectory_id,
            workspace=workspace,
            observers=self.observers,
        )

    def shared_setup(
        self, item: Item, verifier: Verifier, key: str | None = None
    ) -> SharedSetup | None:
        """A set-up for all members of a group, to be closed with it; None where each sets up by itself.

        `key` names the workspace among those of all runs; None: it is this group's alone.
        """
        if not self.config.share_workspace_setup:
            return None
        if self.config.group_size == 1 and key is None:
            return None
        return SharedSetup(
            item,
            verifier,
            workbench=self.workbench,
            drop=self.backend.drop_snapshot,
            timeout_s=self.config.verify_timeout_s,
            kept=None if key is None else self._kept_setups.under(key),
        )

    def weigh(self, weight: float) -> None:
        """Use this share of the policy's servers, where several environments can share them."""
        if isinstance(self.policy, SharedPolicy):
            self.policy.weigh(weight)

    def require_tokens(self) -> None:
        """Raise `TokensUnavailableError` unless the policy can be trained on."""
        if not self.policy.returns_tokens:
            raise TokensUnavailableError(
                "this inference server returns text only (server_type='openai'): groups for training need token "
                "ids and log-probs; use server_type 'vllm', 'sglang' or 'transformers', or run `evaluate`"
            )

    def workbench(self, task: Task, trajectory_id: str) -> ExecutorWorkbench:
        """The tools of one trajectory, in the kind of sandbox that its task wants."""
        if task.agent.sandbox_profile is not None:
            self.executor.choose_profile(trajectory_id, task.agent.sandbox_profile)
        return ExecutorWorkbench(self.executor, trajectory_id, working_dir=task.agent.working_dir)

    def _check_snapshots(self) -> None:
        if self.config.share_workspace_setup and not self.backend.capabilities.snapshot:
            raise CapabilityError(
                "share_workspace_setup is True, but this backend takes no snapshots of workspaces; set it to False, "
                "or use a backend that does"
            )

    def _session(
        self, task: Task, trajectory_id: str, schemas: Sequence[ToolSchema] | None = None
    ) -> Session:
        schemas = self.tools.schemas() if schemas is None else schemas
        budget = self.config.max_token_length
        if self._renderer is None or not self.policy.returns_tokens:
            base_url = self.server_configs[0].base_url if self.server_configs else ""
            return ChatSession(
                self.policy,
                schemas,
                extra=chat_options(self.config, base_url),
                trajectory_id=trajectory_id,
                seed=task.seed,
                token_budget=budget,
            )
        return TokenSession(
            self.policy,
            self._renderer,
            schemas,
            trajectory_id=trajectory_id,
            seed=task.seed,
            token_budget=budget,
        )

    def _limits(self) -> RolloutLimits:
        return RolloutLimits(
            rollout_timeout_s=self.config.rollout_timeout_s,
            verify_timeout_s=self.config.verify_timeout_s,
            max_tool_timeout_s=self.config.max_tool_timeout_s,
        )

    def _executor_config(self) -> ToolExecutorConfig:
        config = self.config
        token = config.tool_server_token
        return ToolExecutorConfig(
            batch_window_ms=config.tool_batch_window_ms,
            max_batch_size=config.tool_max_batch_size,
            default_timeout_s=config.tool_timeout_s,
            acquire_timeout_s=config.slot_wait_s,
            max_recording_bytes=config.terminal_recording_bytes,
            allow_network=config.allow_network,
            require_sandbox=config.require_sandbox,
            require_stateful_sandbox=config.require_stateful_sandbox,
            tool_server_url=config.tool_server_url,
            tool_server_token=token.get_secret_value() if token else None,
            mcp_servers=self.config.mcp_servers,
        )

    def _load_renderer(self) -> TokenRenderer:
        from agentenv.tokens.renderer import load_named_renderer  # noqa: PLC0415 - takes seconds to import

        return load_named_renderer(
            self.config.tokenizer_name,
            self.config.renderer,
            setting="env.tokenizer_name",
            chat_template_kwargs=template_options(self.config),
        )
