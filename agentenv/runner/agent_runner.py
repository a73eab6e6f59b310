"""`AgentRunner`: a model works on one task directory."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING

from agentenv.errors import ConfigError
from agentenv.harness import ToolLoop
from agentenv.rollout import finish
from agentenv.runner.results import RunResult
from agentenv.session import ChatSession
from agentenv.tasks import FailureCause, TaskAgent, load_task, run_task
from agentenv.tasks.backend_values import PROVIDERS
from agentenv.types import AgentConfig
from agentenv_tools.toolsets import build_registry

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from agentenv.control.pause import PauseGate
    from agentenv.models.settings import ChatModelSettings
    from agentenv.observer import RolloutObserver
    from agentenv.policy.base import PolicyClient
    from agentenv.session import Session
    from agentenv.tasks import RunOptions, SessionRequest, TaskDirectory
    from agentenv.tasks.results import TaskResult
    from agentenv_tools.registry import ToolRegistry

DEFAULT_MODEL = "gemini/gemini-2.5-computer-use-preview-10-2025"
MAX_STEPS = 100
MAX_REPLY_TOKENS = 8192
"""Tokens of one reply, where `AgentConfig` says nothing."""
TURN_TIMEOUT_S = 1200.0
SYSTEM_PROMPT = """\
You work on a task in a sandbox, on your own: nobody answers questions. Use the tools to look around, to do what is \
asked, and to check it. When it is done, say so in a short reply without calling a tool."""


class AgentRunner:
    """Lets a model work on a task, judges what it did, and leaves all of it in a folder.

    result = await AgentRunner("tasks/sort-lines", model="claude-sonnet-4-20250514").run()
    print(result.success, result.reward, result.output_dir)
    """

    def __init__(  # noqa: PLR0913 - the documented signature, and what tests and commands need besides
        self,
        task_path: str | Path,
        model: str = DEFAULT_MODEL,
        provider: str = "docker",
        output_dir: str | Path = "output",
        watch: bool = False,
        *,
        settings: ChatModelSettings | None = None,
        agent: AgentConfig | None = None,
        options: RunOptions | None = None,
        policy: PolicyClient | None = None,
        observers: Sequence[RolloutObserver] = (),
        gate: PauseGate | None = None,
        announce: Callable[[str], None] | None = None,
    ) -> None:
        """`provider`: where commands run, `docker`, `local`, `nomad` or `modal`. `watch`: serve a live page on this
        machine, on port 8080 or the next free one; `announce` is called with its address, else that is logged.

        `settings` are the model's address, key and patience; `agent` its steps, temperature and prompt; `options` go to
        `run_task`. `policy` stands in for the model's own client: whoever gives it starts and closes it.
        `observers` are told what happens. While `gate` is closed the model is not asked. Raises `ConfigError` for a
        provider that is not offered.
        """
        check_provider(provider)
        self.task_path = Path(task_path)
        self.model = model
        self.provider = provider
        self.output_dir = Path(output_dir)
        self._settings = settings
        self._agent = agent or AgentConfig(max_steps=MAX_STEPS, system_prompt=SYSTEM_PROMPT)
        self._options = options
        self._policy = policy
        self._observers = tuple(observers)
        self._gate = gate
        self._watch = watch
        self._announce = announce

    async def run(self) -> RunResult:
        """One run. A task that is not solved, and anything that fails on the way, is in the result.

        Raises `TaskFormatError` for a directory that is no task, `ConfigError` for a model, key or desktop that cannot
        be had, and `OSError` when the outputs cannot be written. Sandboxes are ended and connections closed whatever
        happens, cancellation included.
        """
        task = await asyncio.to_thread(load_task, self.task_path)
        check_task_kind(task)
        if not self._watch:
            return await self._run_task(task, self._observers, self._gate)
        from agentenv.watch import watching  # noqa: PLC0415 - a server, which few runs need

        async with watching(gate=self._gate, announce=self._announce) as watch:
            return await self._run_task(task, (*self._observers, watch.board), watch.gate)

    async def _run_task(
        self, task: TaskDirectory, observers: Sequence[RolloutObserver], gate: PauseGate | None
    ) -> RunResult:
        if self._policy is not None:
            return await self._run(task, self._task_agent(self._policy, gate), observers)
        from agentenv.models import chat_policy  # noqa: PLC0415 - with a policy given, no model is needed

        policy = chat_policy(self.model, self._settings)
        try:
            await policy.start()
            return await self._run(task, self._task_agent(policy, gate), observers)
        finally:
            await finish(policy.close())

    async def _run(
        self, task: TaskDirectory, agent: TaskAgent, observers: Sequence[RolloutObserver]
    ) -> RunResult:
        done = await run_task(
            task,
            agent=agent,
            provider=self.provider,
            output_dir=self.output_dir,
            options=self._options,
            observers=observers,
        )
        return run_result(done)

    def _task_agent(self, policy: PolicyClient, gate: PauseGate | None) -> TaskAgent:
        def open_session(request: SessionRequest) -> Session:
            return ChatSession(
                policy,
                request.schemas,
                trajectory_id=request.trajectory_id,
                seed=request.seed,
                token_budget=MAX_REPLY_TOKENS,
            )

        return TaskAgent(
            "agentenv",
            ToolLoop(turn_timeout_s=TURN_TIMEOUT_S, gate=gate),
            open_session,
            config=self._agent,
            tools=agent_tools,
            model=self.model,
        )


def agent_tools() -> ToolRegistry:
    """What an agent may call: `bash` and `editor`."""
    return build_registry(["agent_runner"])


def check_provider(provider: str) -> None:
    """Raises `ConfigError` for a provider of sandboxes that is not offered."""
    if provider not in PROVIDERS:
        raise ConfigError(
            f"provider {provider!r} is not offered: sandboxes are those of {', '.join(PROVIDERS)}"
        )


def check_task_kind(task: TaskDirectory) -> None:
    """Raises `ConfigError` for a task that needs what no agent has here."""
    if task.config.environment.gui:
        raise ConfigError(
            f"task {task.name} wants a desktop (environment.gui = true), and agents here have `bash` and `editor` only"
        )


def run_result(done: TaskResult) -> RunResult:
    """A run as `AgentRunner` returns it."""
    return RunResult(
        success=done.success,
        reward=done.reward,
        duration=done.duration,
        trajectory=list(done.trajectory),
        error=done.error,
        output_dir=done.output_dir,
        counts=done.counts and done.failure_cause is not FailureCause.MODEL_PROVIDER_FAILED,
        details=done,
    )
