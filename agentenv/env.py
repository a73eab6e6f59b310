"""`AgentEnv`: subclass it, say what a task is and what a result is worth, and run it.

class WordCount(AgentEnv[WordCountConfig]):
    env_config_cls = WordCountConfig

    async def setup_agent_env(self): ...
    async def get_next_item(self): ...
    def build_task(self, item): ...
    async def score_trajectory(self, item, final_response): ...

if __name__ == "__main__":
    WordCount.cli()
"""

from __future__ import annotations

import asyncio
import logging
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar
from uuid import uuid4

from agentenv._collect import collect_group, collect_member
from agentenv.config import AgentEnvConfig
from agentenv.errors import AgentEnvError, NotStartedError
from agentenv.hooks import HookVerifier, NullVerifier, announce_task
from agentenv.policy.config import APIServerConfig, ServerBaseline, resolve_servers
from agentenv.runtime import EnvRuntime
from agentenv.task import Task
from agentenv.types import AgentConfig, AgentResult, Item, ScoredDataGroup, ScoredDataItem
from agentenv_tools.toolsets import build_registry

if TYPE_CHECKING:
    from collections.abc import Sequence

    from agentenv.collector import Collector
    from agentenv.task import ExecTool
    from agentenv_tools.base import Tool
    from agentenv_tools.registry import ToolRegistry

logger = logging.getLogger(__name__)

ConfigT = TypeVar("ConfigT", bound=AgentEnvConfig)

CLEANUP_TIMEOUT_S = 60.0
"""How long an environment's `cleanup` may take."""


class AgentEnv(ABC, Generic[ConfigT]):
    """An RL environment for an agent that uses tools in a sandbox."""

    name: ClassVar[str | None] = None
    """Name in reports; None: the class's name."""
    env_config_cls: ClassVar[type[AgentEnvConfig]] = AgentEnvConfig
    """The class of `config`."""

    config: ConfigT
    tools: ToolRegistry
    """What the agent may call."""
    curr_step: int = 0
    """The trainer's step, while one is served."""
    evaluation_logged: bool = False
    """Whether `evaluate_log` was called."""

    # ---------------------------------------------------------------------------------- override these

    @classmethod
    def config_init(cls) -> tuple[AgentEnvConfig, list[APIServerConfig] | ServerBaseline]:
        """The defaults that a YAML file, environment variables and the command line then change."""
        return cls.env_config_cls(), [APIServerConfig()]

    @abstractmethod
    async def setup_agent_env(self) -> None:
        """Load data. Runs once, after the backend has started."""

    @abstractmethod
    async def get_next_item(self) -> Item | None:
        """The next element of the dataset, or None when there is none."""

    @abstractmethod
    def build_task(self, item: Item) -> str:
        """What the agent is told to do."""

    @abstractmethod
    async def score_trajectory(self, item: Item, final_response: str) -> float:
        """What the agent's last reply is worth: a finite number.

        Anything else, or an exception, means that no reward exists: the trajectory is dropped and counted, never
        scored 0.
        """

    async def setup_trajectory_workspace(
        self, item: Item, *, trajectory_id: str, exec_tool: ExecTool
    ) -> dict[str, Any]:
        """Prepare a trajectory's workspace before the agent starts. What is returned comes back at verification.

        With `share_workspace_setup` it runs once for a group, in a sandbox that no member gets, and each member starts
        from a copy of the workspace folder: nothing outside of that folder and no process is copied. Each gets a
        copy of what is returned, which must be copyable. `trajectory_id` is then no member's, and using it as a key
        raises `TypeError`. When the set-up fails, it fails for every member that waited for it, and is tried again.
        """
        return {}

    def workspace_key(self, item: Item) -> str | None:
        """What the set-up of this item's workspace depends on, for `share_workspace_setup`; None: it is made anew for
        each group.

        Items with equal keys share one prepared workspace: later groups and, where the backend keeps them (Docker),
        later runs from the same image. So the key must name all that `setup_trajectory_workspace` depends on, a version
        of its own code included, and the set-up must do nothing but prepare the workspace: where a kept one is found,
        it does not run. What it returns is kept too, so it must survive JSON, and neither it nor the workspace may hold
        secrets: whoever may use the engine can read both.
        """
        return None

    async def verify_and_score_trajectory(
        self,
        item: Item,
        final_response: str,
        *,
        trajectory_id: str,
        exec_tool: ExecTool,
        agent_result: AgentResult | None = None,
        workspace_meta: dict[str, Any] | None = None,
    ) -> tuple[float, dict[str, Any]]:
        """Judge a trajectory inside its own workspace, with the agent's processes dead; (score, metadata).

        `metadata["verification_messages"]`, a list of {role, content}, is appended to the group's messages.
        """
        return await self.score_trajectory(item, final_response), {}

    def build_agent_config(self, item: Item) -> AgentConfig:
        """How the agent works on this item."""
        return AgentConfig(
            temperature=self.config.agent_temperature,
            max_tokens=self.config.agent_max_tokens,
            max_steps=self.config.agent_max_steps,
            tool_delay_s=self.config.agent_tool_delay_s,
        )

    def build_tools(self) -> ToolRegistry:
        """The agent's tools: by default those of the configured toolsets. Called once, by the constructor."""
        return build_registry(self.config.enabled_toolsets, self.config.disabled_toolsets)

    def build_server_tools(self) -> Sequence[Tool[Any]]:
        """The tools of the tool server in this process, for `tool_server_url: inprocess`. Called once, like
        `build_tools`.
        """
        return ()

    async def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Measure the policy; returns metrics by name."""
        return {}

    async def evaluate_log(
        self,
        metrics: dict[str, Any],
        task_name: str | None = None,
        model_name: str | None = None,
        start_time: float | None = None,
        end_time: float | None = None,
        generation_parameters: dict[str, Any] | None = None,
        samples: list[dict[str, Any]] | None = None,
        verbose: bool = True,
    ) -> None:
        """Write an evaluation to `data_dir_to_save_evals`, as Atropos does: `metrics.json`, and `samples.jsonl` where
        there are samples. For use in `evaluate`. Times are in seconds. `verbose` logs the metrics.

        Without that directory only a warning says so. Raises `RunDirectoryError` when it cannot be written.
        """
        from agentenv.evaluation.atropos_log import (  # noqa: PLC0415 - only evaluations need it
            EvaluationLog,
            write_evaluation,
        )

        self.evaluation_logged = True
        if verbose:
            logger.info("evaluation of %s: %s", self.display_name, metrics)
        directory = self.config.data_dir_to_save_evals
        if directory is None:
            logger.warning("data_dir_to_save_evals is not set: the evaluation is not written")
            return
        known = start_time is not None and end_time is not None
        servers = self.server_configs
        log = EvaluationLog(
            metrics=metrics,
            task_name=task_name or self.display_name,
            model_name=model_name or (servers[0].model_name if servers else ""),
            seconds=(end_time or 0.0) - (start_time or 0.0) if known else None,
            generation_parameters={
                "max_new_tokens": self.config.max_token_length,
                **(generation_parameters or {}),
            },
            samples=samples or (),
        )
        await asyncio.to_thread(write_evaluation, directory, log)

    async def postprocess_histories(self, group: ScoredDataGroup) -> ScoredDataGroup:
        """Change a group before it is written or sent."""
        return group

    def checkpoint_state(self) -> dict[str, Any] | None:
        """What `restore_state` needs to go on from here, as JSON knows it: the position in the dataset, for one.

        Kept beside the trainer's own checkpoints while a trainer is served. None: there is nothing to keep.
        """
        return None

    def restore_state(self, state: dict[str, Any]) -> None:
        """Go on from a `checkpoint_state`. Runs after `setup`. By default each entry becomes an attribute."""
        for name, value in state.items():
            if hasattr(AgentEnv, name):
                raise AgentEnvError(
                    f"a checkpoint must not replace {name}, which every environment has"
                )
            setattr(self, name, value)

    async def wandb_log(self, wandb_metrics: dict[str, Any] | None = None) -> None:
        """Report metrics of a training step. Override it to add your own, and call this with them."""
        self.runtime.on_metrics(wandb_metrics or {})

    async def cleanup(self) -> None:
        """Release what `setup_agent_env` took. Runs once, after the last rollout and before the backend stops.

        It has a minute; then the backend is stopped without it.
        """

    # ---------------------------------------------------------------------- machinery: call, do not override

    def __init__(
        self,
        config: ConfigT,
        server_configs: Sequence[APIServerConfig] | ServerBaseline,
        slurm: bool = False,
        testing: bool = False,
        *,
        runtime: EnvRuntime | None = None,
    ) -> None:
        """Build the tools at once; nothing is started. Raises `ConfigError` or `ToolConfigError`.

        `slurm` and `testing` are accepted for the predecessor's callers and change nothing.
        """
        servers = resolve_servers(server_configs)
        self.config = config
        self.server_configs = servers
        self.tools = self.build_tools()
        self.runtime = runtime or self.build_runtime()
        self._started = False

    def build_runtime(self) -> EnvRuntime:
        """What stands behind this environment, not started. For environments with another way to run a rollout."""
        return EnvRuntime(
            self.config, self.server_configs, self.tools, served_tools=self.build_server_tools()
        )

    async def setup(self) -> None:
        """Start the backend and the policy, raise the servers' concurrency to the group size, then load data.

        If any of it fails, what was started is stopped before the error is raised.
        """
        await self.runtime.start()
        try:
            await self.setup_agent_env()
        except BaseException:
            await self.shutdown()
            raise
        self._started = True

    async def shutdown(self) -> None:
        """Stop everything `setup` started. Idempotent. Raises what `cleanup` raises, when all is stopped."""
        started, self._started = self._started, False
        try:
            if started:
                await self._clean_up()
        finally:
            await self.runtime.stop()

    async def collect_trajectory(self, item: Item) -> tuple[ScoredDataItem | None, list[Item]]:
        """One scored trajectory, and what should be tried again.

        Infrastructure failures are retried in a fresh slot up to `policy_retry_limit` attempts; then the item comes
        back in the second element. Raises `NotStartedError` before `setup`.
        """
        self._require_started()
        return await collect_member(self, item)

    async def collect_trajectories(self, item: Item) -> tuple[ScoredDataGroup | None, list[Item]]:
        """A complete group of `group_size` trajectories, or (None, [item]) when it cannot be completed."""
        self._require_started()
        return await collect_group(self, item)

    async def run_agent(
        self, task: str, *, trajectory_id: str | None = None
    ) -> tuple[str, dict[str, Any]]:
        """Let the agent work on a text, unscored: (final response, {success, error, tool_calls})."""
        self._require_started()
        record = await self.runtime.run(
            Task(instruction=task, item=None, agent=self.build_agent_config(None)),
            NullVerifier(),
            trajectory_id=trajectory_id or str(uuid4()),
        )
        result = record.result
        summary = {
            "success": result is not None and result.success,
            "error": record.cause,
            "tool_calls": result.total_tool_calls if result else 0,
        }
        return result.final_response if result else "", summary

    def save_checkpoint(self, step: int, data: dict[str, Any] | None = None) -> None:
        """Keep `data`, or what `checkpoint_state` gives, as the state at `step`. Nothing where there is none to keep.

        Raises `CheckpointError` for what JSON does not know. It is written in the background.
        """
        state = self.checkpoint_state() if data is None else data
        if state is not None and self.runtime.checkpoints is not None:
            self.runtime.checkpoints.save(step, state)

    def load_checkpoint(self) -> None:
        """Go on from the latest state that is not after `curr_step`, if there is one. Raises `CheckpointError`."""
        store = self.runtime.checkpoints
        found = None if store is None else store.load(self.curr_step)
        if found is not None:
            self.restore_state(found[1])

    async def env_manager(self) -> None:
        """Feed the trainer behind `rollout_server_url` until it has enough; the backend is stopped whatever happens.

        The run directory is `data_path_to_save_groups`, or a new one under `runs/`.
        """
        from agentenv.cli.commands import serve_quietly  # noqa: PLC0415 - only a run needs it

        await serve_quietly(self)

    async def process_manager(self) -> None:
        """Collect `total_steps` groups into a run directory; the backend is stopped whatever happens.

        The directory is `data_path_to_save_groups`, or a new one under `runs/`.
        """
        from agentenv.cli.commands import process_quietly  # noqa: PLC0415 - only a run needs it

        await process_quietly(self)

    @classmethod
    def cli(cls, argv: Sequence[str] | None = None) -> None:
        """The command line: `process`, `evaluate`, `serve`. Exits the interpreter with its status."""
        from agentenv.cli.main import run_cli  # noqa: PLC0415 - only the command line needs it

        raise SystemExit(run_cli(cls, argv))

    def task_for(self, item: Item, seed: int | None = None) -> Task:
        """The task of an item, announced to the log."""
        instruction = self.build_task(item)
        announce_task(self.display_name, instruction)
        return Task(
            instruction=instruction, item=item, agent=self.build_agent_config(item), seed=seed
        )

    def verifier(self) -> HookVerifier:
        """This environment's hooks as a verifier."""
        return HookVerifier(self)

    def groups(self, total: int | None = None, *, workers: int | None = None) -> Collector:
        """Groups as a stream, for a trainer in this process, see `Collector`. `setup` comes before, `shutdown` after.

        `total` bounds how many are collected; None: until the dataset ends. `workers` bounds those under way and those
        that are finished and wait for you; None: as configured. Raises `NotStartedError`.
        """
        from agentenv.collector import collect_groups  # noqa: PLC0415 - only a run needs it

        self._require_started()
        return collect_groups(self, total, workers=workers or self.workers)

    @property
    def workers(self) -> int:
        """Groups under way at once, as configured."""
        config = self.config
        if config.max_num_workers > 0:
            return config.max_num_workers
        return config.max_num_workers_per_node * max(1, len(self.server_configs))

    @property
    def display_name(self) -> str:
        """Name in reports."""
        return self.config.wandb_name or self.name or type(self).__name__

    async def _clean_up(self) -> None:
        try:
            async with asyncio.timeout(CLEANUP_TIMEOUT_S) as deadline:
                await self.cleanup()
        except TimeoutError as error:
            if not deadline.expired():
                raise
            raise AgentEnvError(
                f"{type(self).__name__}.cleanup() did not end within {CLEANUP_TIMEOUT_S:g} s"
            ) from error

    def _require_started(self) -> None:
        if not self._started:
            raise NotStartedError(f"{type(self).__name__} is not set up: await setup() first")
