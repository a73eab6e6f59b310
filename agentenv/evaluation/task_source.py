"""Samples of task directories: each in the sandbox its task asks for, judged by the task's own tests."""

from __future__ import annotations

import asyncio
import tempfile
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agentenv._hook import describe
from agentenv.errors import AgentEnvError, ConfigError, SweepError, VerifierError
from agentenv.evaluation.rescoring import WorkspaceGoneError
from agentenv.evaluation.schema import TaskEntry
from agentenv.evaluation.sources import SampleResult, priced, unstarted
from agentenv.harness import ToolLoop
from agentenv.rollout import finish
from agentenv.session import ChatSession, TokenSession
from agentenv.task import Verdict
from agentenv.tasks import (
    PlacePool,
    RunOptions,
    TaskAgent,
    discover_tasks,
    load_task,
    nop_agent,
    oracle_agent,
    run_task,
)
from agentenv.tasks.folder import RunFolder
from agentenv.tasks.results import main_reward
from agentenv.tasks.rolling import TaskRollout
from agentenv.tasks.workspaces import WorkspaceNotKeptError, kept_workspace
from agentenv.types import AgentConfig, Usage
from agentenv_backends.errors import BackendError
from agentenv_tools.toolsets import build_registry

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from agentenv.control.pause import PauseGate
    from agentenv.evaluation.spec import AgentSettings, Price, TaskSetConfig
    from agentenv.observer import RolloutObserver
    from agentenv.policy.base import PolicyClient
    from agentenv.run.record import TrajectoryRecord
    from agentenv.session import Session
    from agentenv.tasks import SessionRequest, TaskDirectory
    from agentenv.tasks.results import TaskResult
    from agentenv.tokens.renderer import TokenRenderer

_TESTS_SAID = "verifier/test-stdout.txt"
_MAX_SAID_CHARS = 200_000
_PREVIEW_CHARS = 240
_LET_GO_S = 0.5
"""How long cancelled runs may take to give their sandboxes back before those are ended under them."""


class TaskDirectorySource:
    """Task directories below a folder. What the tests printed is kept with the trajectory too.

    A task that its sandboxes cannot run is lost to infrastructure, with the reason, and counts in no score.
    """

    def __init__(
        self,
        tasks: TaskSetConfig,
        agent: TaskAgent,
        *,
        policy: PolicyClient | None = None,
        renderer: LateRenderer | None = None,
        price: Price | None = None,
        concurrency: int = 1,
        observers: Sequence[RolloutObserver] = (),
        keep_workspace_bytes: int = 0,
    ) -> None:
        """`policy`, where the agent has one, is started and closed with the source; `renderer` is loaded with it."""
        self._config = tasks
        self._agent = agent
        self._policy = policy
        self._renderer = renderer
        self._price = price
        self._concurrency = concurrency
        self._observers = observers
        self._tasks: dict[str, TaskDirectory] = {}
        self._places = PlacePool(agent.tools, sandboxes=concurrency)
        self._options = RunOptions(
            accept_host_image=tasks.accept_host_image,
            backend=dict(tasks.backend),
            keep_workspace_bytes=keep_workspace_bytes,
        )

    async def open(self, *, only_judge: bool = False) -> list[TaskEntry]:
        """Load the tasks, and connect to the policy."""
        await asyncio.to_thread(self._load)
        if self._policy is not None and not only_judge:
            await self._policy.start()
            self._policy.raise_concurrency(self._concurrency)
            if self._renderer is not None:
                await asyncio.to_thread(self._renderer.load)
        return [TaskEntry(name, _preview(task)) for name, task in self._tasks.items()]

    async def run(
        self, task: str, *, seed: int | None, trajectory_id: str, folder: Path
    ) -> SampleResult:
        """One run of a task, into `folder`."""
        try:
            result = await run_task(
                self._tasks[task],
                agent=self._agent,
                provider=self._config.provider,
                folder=folder,
                options=replace(self._options, seed=seed, trajectory_id=trajectory_id),
                places=self._places,
                observers=self._observers,
            )
            said = await asyncio.to_thread(_tests_said, folder)
        except OSError as error:
            raise SweepError(
                f"{folder} cannot take what a sample left ({error.strerror or error}): make room, and go on"
            ) from error
        return self._sample(result, trajectory_id, said)

    async def judge(self, task: str, record: TrajectoryRecord, folder: Path | None) -> Verdict:
        """Run the tests, as they are now, over what was kept of the workspace."""
        directory = self._tasks[task]
        if directory.is_multi_step:
            raise WorkspaceGoneError(
                "a task with steps is judged step by step, and is not judged again"
            )
        try:
            kept = await asyncio.to_thread(kept_workspace, folder)
            with tempfile.TemporaryDirectory(prefix="agentenv-again-") as place:
                rewards = await self._rollout(directory, Path(place)).judge_again(kept)
                said = await asyncio.to_thread(_tests_said, Path(place))
        except WorkspaceNotKeptError as error:
            raise WorkspaceGoneError(
                f"the tests of a task directory need its sandbox: {error}"
            ) from error
        except VerifierError:
            raise
        except (AgentEnvError, BackendError, OSError) as error:
            raise WorkspaceGoneError(
                f"its workspace could not be put back: {describe(error)[:300]}"
            ) from error
        return Verdict(main_reward(rewards), {"rewards": rewards, **said})

    def _rollout(self, task: TaskDirectory, place: Path) -> TaskRollout:
        return TaskRollout(
            task,
            self._agent,
            self._config.provider,
            self._options,
            RunFolder(place),
            self._places,
            sandboxes=self._places.sandboxes,
        )

    async def cancel(self, work: Collection[asyncio.Task[Any]]) -> None:
        """Cancel runs; sandboxes that do not come back are ended under them."""
        for task in work:
            task.cancel()
        if work:
            _, left = await asyncio.wait(work, timeout=_LET_GO_S)
            if left:
                await self._places.close()
                await asyncio.wait(left, timeout=_LET_GO_S)

    async def close(self) -> None:
        """End the sandboxes, and let go of the policy."""
        try:
            await finish(self._places.close())
        finally:
            if self._policy is not None:
                await finish(self._policy.close())

    def _load(self) -> None:
        root = Path(str(self._config.directory))
        paths = discover_tasks(root, self._config.pattern)[: self._config.count]
        wanted = self._config.count or 1
        if len(paths) < wanted:
            raise SweepError(
                f"{root} has {len(paths)} task directories that match {self._config.pattern!r}, not {wanted}"
            )
        for path in paths:
            task = load_task(path)
            self._tasks[_relative(path, root)] = task

    def _sample(self, result: TaskResult, trajectory_id: str, said: dict[str, str]) -> SampleResult:
        record = result.record
        if record is None:
            return SampleResult(
                unstarted(trajectory_id, result.error or "the run never began"),
                is_final=not result.should_retry,
            )
        record = replace(record, score_metadata={**record.score_metadata, **said})
        usage = record.result.usage if record.result is not None else Usage()
        verdict = result.verifier_result
        rewards = (verdict.rewards if verdict is not None else None) or {}
        return SampleResult(
            replace(record, trajectory_id=trajectory_id),
            priced(usage, self._price),
            rewards,
        )


class LateRenderer:
    """A model family's renderer, which takes seconds to load: loaded with the source that needs it."""

    def __init__(self, tokenizer: str, family: str, setting: str) -> None:
        """`setting` names where the tokenizer was given."""
        self._tokenizer = tokenizer
        self._family = family
        self._setting = setting
        self._loaded: TokenRenderer | None = None

    @property
    def loaded(self) -> TokenRenderer:
        """The renderer, once `load` has returned."""
        assert self._loaded is not None, "load"
        return self._loaded

    def load(self) -> None:
        """Load it. Blocking; raises `ConfigError`."""
        from agentenv.tokens.renderer import load_named_renderer  # noqa: PLC0415 - takes seconds to import

        self._loaded = load_named_renderer(self._tokenizer, self._family, setting=self._setting)


def model_agent(
    policy: PolicyClient,
    settings: AgentSettings,
    name: str,
    gate: PauseGate | None = None,
    renderer: LateRenderer | None = None,
) -> TaskAgent:
    """A model that calls tools in a loop: in exact tokens with a policy that returns them, else in chat messages.

    Raises `ConfigError` for a policy with tokens and no `renderer`.
    """
    if policy.returns_tokens and renderer is None:
        raise ConfigError(f"models.{name} returns tokens, and nothing says what they are made with")

    def open_session(request: SessionRequest) -> Session:
        if renderer is not None and policy.returns_tokens:
            return TokenSession(
                policy,
                renderer.loaded,
                request.schemas,
                trajectory_id=request.trajectory_id,
                seed=request.seed,
                token_budget=settings.max_token_length,
            )
        return ChatSession(
            policy,
            request.schemas,
            trajectory_id=request.trajectory_id,
            seed=request.seed,
            token_budget=settings.max_tokens,
        )

    return TaskAgent(
        "agentenv",
        ToolLoop(turn_timeout_s=settings.turn_timeout_s, gate=gate),
        open_session,
        config=AgentConfig(
            temperature=settings.temperature,
            max_tokens=settings.max_tokens,
            max_steps=settings.max_steps,
            system_prompt=settings.system_prompt,
        ),
        tools=lambda: build_registry(settings.toolsets),
        model=name,
    )


MODELLESS = {"oracle": oracle_agent, "nop": nop_agent}
"""Agents that need no model: one runs a task's own solution, one does nothing."""


def _tests_said(folder: Path) -> dict[str, str]:
    """What the tests printed, those of each step by its folder; of more than is shown, the end."""
    found = {}
    for file in sorted(folder.glob(f"**/{_TESTS_SAID}")):
        name = (file.parent.parent / file.name).relative_to(folder).as_posix()
        with suppress(OSError):
            found[name] = file.read_text("utf-8", "replace")[-_MAX_SAID_CHARS:]
    return found


def _preview(task: TaskDirectory) -> str:
    return " ".join(task.steps[0].instruction.split())[:_PREVIEW_CHARS]


def _relative(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix() if path != root else path.name
