"""`AgentRunner`: a model works on one task directory."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING

from agentenv.errors import ConfigError
from agentenv.harness import ToolLoop
from agentenv.rollout import finish
from agentenv.runner.events import ToldHarness
from agentenv.runner.results import RunResult
from agentenv.session import ChatSession
from agentenv.tasks import FailureCause, TaskAgent, load_task, run_task
from agentenv.types import AgentConfig
from agentenv_tools.toolsets import build_registry

if TYPE_CHECKING:
    from agentenv.control.pause import PauseGate
    from agentenv.models.settings import ChatModelSettings
    from agentenv.policy.base import PolicyClient
    from agentenv.runner.events import RunListener
    from agentenv.session import Session
    from agentenv.tasks import RunOptions, SessionRequest, TaskDirectory
    from agentenv.tasks.results import TaskResult
    from agentenv_tools.registry import ToolRegistry

DEFAULT_MODEL = "gemini/gemini-2.5-computer-use-preview-10-2025"
PROVIDERS = ("docker", "local")
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
        listener: RunListener | None = None,
        gate: PauseGate | None = None,
    ) -> None:
        """`provider`: where commands run, `docker` or `local`. `watch`: a live page; this version has none yet.

        `settings` are the model's address, key and patience; `agent` its steps, temperature and prompt; `options` go to
        `run_task`. `policy` stands in for the model's own client: whoever gives it starts and closes it. `listener` is
        told what happens. While `gate` is closed the model is not asked. Raises `ConfigError` for a provider that is
        not offered.
        """
        check_provider(provider)
        if watch:
            raise ConfigError("watch=True: this version has no live page yet; run without it")
        self.task_path = Path(task_path)
        self.model = model
        self.provider = provider
        self.output_dir = Path(output_dir)
        self._settings = settings
        self._agent = agent or AgentConfig(max_steps=MAX_STEPS, system_prompt=SYSTEM_PROMPT)
        self._options = options
        self._policy = policy
        self._listener = listener
        self._gate = gate

    async def run(self) -> RunResult:
        """One run. A task that is not solved, and anything that fails on the way, is in the result.

        Raises `TaskFormatError` for a directory that is no task, `ConfigError` for a model, key or desktop that cannot
        be had, and `OSError` when the outputs cannot be written. Sandboxes are ended and connections closed whatever
        happens, cancellation included.
        """
        task = await asyncio.to_thread(load_task, self.task_path)
        check_task_kind(task)
        if self._policy is not None:
            return await self._run(task, self._policy)
        from agentenv.models import chat_policy  # noqa: PLC0415 - with a policy given, no model is needed

        policy = chat_policy(self.model, self._settings)
        try:
            await policy.start()
            return await self._run(task, policy)
        finally:
            await finish(policy.close())

    async def _run(self, task: TaskDirectory, policy: PolicyClient) -> RunResult:
        done = await run_task(
            task,
            agent=self._task_agent(policy),
            provider=self.provider,
            output_dir=self.output_dir,
            options=self._options,
        )
        return run_result(done)

    def _task_agent(self, policy: PolicyClient) -> TaskAgent:
        def open_session(request: SessionRequest) -> Session:
            return ChatSession(
                policy,
                request.schemas,
                trajectory_id=request.trajectory_id,
                seed=request.seed,
                token_budget=MAX_REPLY_TOKENS,
            )

        loop = ToolLoop(turn_timeout_s=TURN_TIMEOUT_S, gate=self._gate)
        return TaskAgent(
            "agentenv",
            loop if self._listener is None else ToldHarness(loop, self._listener),
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
            f"provider {provider!r} is not offered: sandboxes are those of {' or '.join(PROVIDERS)}"
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
