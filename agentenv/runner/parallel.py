"""`ParallelRunner`: a model works on many task directories, several at once."""

from __future__ import annotations

import asyncio
import logging
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agentenv.errors import AgentEnvError
from agentenv.rollout import finish
from agentenv.runner.agent_runner import DEFAULT_MODEL, AgentRunner, check_provider
from agentenv.runner.results import BatchResult, TaskResult
from agentenv.tasks.failures import failure_policy

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from agentenv.models.settings import ChatModelSettings
    from agentenv.policy.base import PolicyClient
    from agentenv.runner.results import RunResult
    from agentenv.watch import Slots

logger = logging.getLogger(__name__)


class ParallelRunner:
    """Lets a model work on tasks, `n_concurrent` at once, and adds up what came of it.

    batch = await ParallelRunner(discover_tasks("tasks"), n_concurrent=8, model="claude-sonnet-4-20250514").run()
    print(batch.passed, batch.mean_reward)
    """

    def __init__(  # noqa: PLR0913 - the documented signature
        self,
        task_paths: Sequence[str | Path],
        n_concurrent: int = 2,
        model: str = DEFAULT_MODEL,
        provider: str = "docker",
        output_dir: str | Path = "output",
        quiet: bool = False,
        on_complete: Callable[[TaskResult], None] | None = None,
        *,
        n_attempts: int = 1,
        settings: ChatModelSettings | None = None,
        policy: PolicyClient | None = None,
        watch: bool = False,
        announce: Callable[[str], None] | None = None,
        **runner: Any,
    ) -> None:
        """`on_complete` is called with each result as it comes; what it raises is logged. `quiet`: single tasks are not
        logged. `n_attempts`: runs of each task. `watch`: one live page for all of them, told to `announce`, see
        `AgentRunner`. `runner`: further arguments of that.

        Raises `ConfigError` for a provider that is not offered, `ValueError` for numbers below 1.
        """
        check_provider(provider)
        for name, number in (("n_concurrent", n_concurrent), ("n_attempts", n_attempts)):
            if number < 1:
                raise ValueError(f"{name} must be at least 1, not {number}")
        self.task_paths = [Path(path) for path in task_paths]
        self.n_concurrent = n_concurrent
        self.model = model
        self.provider = provider
        self.output_dir = Path(output_dir)
        self._quiet = quiet
        self._on_complete = on_complete
        self._n_attempts = n_attempts
        self._settings = settings
        self._policy = policy
        self._watch = watch
        self._announce = announce
        self._runner = runner
        self._under_way = 0

    async def run(self) -> BatchResult:
        """Every task, `n_attempts` times. One that cannot even begin is a result with an `error`, and ends no other.

        Each run's folder is `{output_dir}/batch_{timestamp}/{task}_{timestamp}`. Raises `ConfigError` when the model
        cannot be had. Cancelled, it ends what is under way before it raises.
        """
        if not self._watch:
            return await self._run_all(self._runner)
        from agentenv.watch import watching  # noqa: PLC0415 - a server, which few runs need

        gate, observers = self._runner.get("gate"), self._runner.get("observers", ())
        async with watching(gate=gate, slots=self._slots, announce=self._announce) as watch:
            watched = {"gate": watch.gate, "observers": (*observers, watch.board)}
            return await self._run_all(self._runner | watched)

    def _slots(self) -> Slots:
        from agentenv.watch import Slots  # noqa: PLC0415 - asked only where it was imported

        return Slots(self.n_concurrent, self._under_way)

    async def _run_all(self, runner: dict[str, Any]) -> BatchResult:
        if self._policy is not None:
            return await self._run(self._policy, runner)
        from agentenv.models import chat_policy  # noqa: PLC0415 - with a policy given, no model is needed

        policy = chat_policy(self.model, self._settings)
        try:
            await policy.start()
            policy.raise_concurrency(self.n_concurrent)
            return await self._run(policy, runner)
        finally:
            await finish(policy.close())

    async def _run(self, policy: PolicyClient, runner: dict[str, Any]) -> BatchResult:
        started = time.monotonic()
        stamp = datetime.now(UTC).strftime("%Y%m%d_%H%M%S")
        folder = await asyncio.to_thread(_new_folder, self.output_dir, f"batch_{stamp}")
        permits = asyncio.Semaphore(self.n_concurrent)

        async def one(path: Path, attempt: int) -> TaskResult:
            async with permits:
                self._under_way += 1
                try:
                    result = await self._attempt(path, attempt, folder, policy=policy, **runner)
                finally:
                    self._under_way -= 1
            self._tell(result)
            return result

        async with asyncio.TaskGroup() as group:
            runs = [
                group.create_task(one(path, attempt))
                for path in self.task_paths
                for attempt in range(1, self._n_attempts + 1)
            ]
        return batch_result([run.result() for run in runs], time.monotonic() - started, folder)

    async def _attempt(
        self, path: Path, attempt: int, folder: Path, **runner_arguments: Any
    ) -> TaskResult:
        began = time.monotonic()
        runner = AgentRunner(
            path,
            model=self.model,
            provider=self.provider,
            output_dir=folder,
            **runner_arguments,
        )
        try:
            return _task_result(path, attempt, await runner.run())
        except (AgentEnvError, OSError) as error:
            return TaskResult(
                path,
                success=False,
                reward=0.0,
                duration=time.monotonic() - began,
                error=f"{type(error).__name__}: {error}",
                attempt=attempt,
                counts=failure_policy(type(error).__name__).grade,
            )

    def _tell(self, result: TaskResult) -> None:
        if not self._quiet:
            logger.info("%s: %s", result.task_path, result.error or f"reward {result.reward:g}")
        if self._on_complete is None:
            return
        try:
            self._on_complete(result)
        except Exception:  # what a caller does with a result must not end the batch
            logger.exception("on_complete raised for %s", result.task_path)


def batch_result(tasks: list[TaskResult], duration: float, output_dir: Path) -> BatchResult:
    """The results of a batch, added up."""
    counted = [task for task in tasks if task.counts]
    passed = sum(task.success for task in counted)
    return BatchResult(
        total_tasks=len(tasks),
        passed=passed,
        failed=len(counted) - passed,
        mean_reward=sum(task.reward for task in counted) / len(counted) if counted else 0.0,
        duration=duration,
        tasks=tasks,
        not_counted=len(tasks) - len(counted),
        output_dir=output_dir,
    )


def _task_result(path: Path, attempt: int, run: RunResult) -> TaskResult:
    return TaskResult(
        path,
        success=run.success,
        reward=run.reward,
        duration=run.duration,
        error=run.error,
        output_dir=run.output_dir,
        attempt=attempt,
        counts=run.counts,
        result=run,
    )


def _new_folder(output_dir: Path, name: str) -> Path:
    output_dir.mkdir(parents=True, exist_ok=True)
    for number in range(1, 1000):
        path = output_dir / (name if number == 1 else f"{name}-{number}")
        try:
            path.mkdir()
        except FileExistsError:
            continue
        return path.resolve()
    raise FileExistsError(f"{output_dir / name} exists, and so do others like it")
