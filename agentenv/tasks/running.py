"""Running one task once, with what is left of it all in one folder."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

from agentenv.errors import AgentEnvError
from agentenv.rollout import finish
from agentenv.tasks import outputs
from agentenv.tasks.directory import TaskDirectory
from agentenv.tasks.folder import RunFolder
from agentenv.tasks.loader import load_task
from agentenv.tasks.lock import lock_of
from agentenv.tasks.options import RunOptions
from agentenv.tasks.place_pool import PlacePool
from agentenv.tasks.results import TaskResult, Timing, VerifierResult, main_reward
from agentenv.tasks.rolling import TaskRollout
from agentenv.tasks.stepping import now
from agentenv.tasks.trajectory import write_rollout
from agentenv_backends.errors import BackendError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from agentenv.observer import RolloutObserver
    from agentenv.rollout import RolloutRecord
    from agentenv.tasks.agents import TaskAgent
    from agentenv.tasks.results import ExceptionInfo


async def run_task(
    task: TaskDirectory | str | Path,
    *,
    agent: TaskAgent,
    provider: str = "docker",
    output_dir: str | Path = "output",
    folder: str | Path | None = None,
    options: RunOptions | None = None,
    places: PlacePool | None = None,
    observers: Sequence[RolloutObserver] = (),
) -> TaskResult:
    """Let an agent work on a task once, judge what it did, and write all of it into a new folder below `output_dir`, or
    into `folder` itself, which must not exist.

    With `places`, sandboxes come from backends that other runs of the same agent use too, and are kept; None: one is
    started for this run and ended with it. `observers` are told of the rollout, and can withdraw it. Failures of the
    sandbox, the agent, the model or the tests are in the result and raise nothing. Raises `TaskFormatError` for a
    directory that is no task and `OSError` when the folder cannot be written; cancellation passes, after everything was
    ended.
    """
    if not isinstance(task, TaskDirectory):
        task = await asyncio.to_thread(load_task, task)
    if folder is None:
        path = await asyncio.to_thread(outputs.new_folder, Path(output_dir), task)
    else:
        path = await asyncio.to_thread(outputs.make_folder, Path(folder))
    own = None
    if places is None:
        places = own = PlacePool(agent.tools, keep=0)
    options = options or RunOptions()
    run = TaskRollout(
        task,
        agent,
        provider,
        options,
        RunFolder(path),
        places,
        sandboxes=places.sandboxes,
        observers=observers,
    )
    try:
        return await _Attempt(run, options.trajectory_id or str(uuid4())).run()
    finally:
        if own is not None:
            await finish(own.close())


@dataclass(slots=True)
class _Attempt:
    """One run under way, and its records."""

    rollout: TaskRollout
    trajectory_id: str
    log: list[str] = field(default_factory=list)
    record: RolloutRecord | None = None
    failure: BaseException | None = None
    """What kept the rollout from beginning."""
    started_at: datetime = field(default_factory=now)

    async def run(self) -> TaskResult:
        began = time.monotonic()
        run, folder = self.rollout, self.rollout.folder
        config = outputs.saved_config(run)
        run.warnings += run.task.warnings
        self._note("start")
        await folder.make("agent", "verifier", "artifacts")
        await folder.write_json("config.json", config)
        self._note("environment-start")
        try:
            self.record = await run.run(self.trajectory_id)
        except asyncio.CancelledError:
            self._note("cancel")
            await folder.write_text("trial.log", "\n".join([*self.log, ""]))
            raise
        except (AgentEnvError, BackendError, OSError) as error:
            self.failure = error
        self._note("end")
        result = self._result(config, time.monotonic() - began)
        await self._write(result)
        return result

    # ---- what is left ----

    def _note(self, event: str, at: datetime | None = None) -> None:
        self.log.append(f"{(at or now()).isoformat(timespec='milliseconds')} {event}")

    def _exception(self) -> ExceptionInfo | None:
        if self.failure is not None:
            return outputs.exception_info(self.failure)
        assert self.record is not None
        progress = self.rollout.progress
        last = progress.outcomes[-1].failure if progress.outcomes else None
        return outputs.exception_of(self.record, progress.failure or last)

    def _result(self, config: dict[str, object], duration: float) -> TaskResult:
        progress, task = self.rollout.progress, self.rollout.task
        strategy = task.config.multi_step_reward_strategy if task.is_multi_step else None
        judged = any(outcome.judged for outcome in progress.outcomes)
        rewards = progress.rewards(strategy) if judged else None
        exception = self._exception()
        result = self.record.result if self.record is not None else None
        single = progress.outcomes[0] if progress.outcomes and not task.is_multi_step else None
        reward = main_reward(rewards)
        path = self.rollout.folder.path
        return TaskResult(
            success=reward >= 1.0,
            reward=reward,
            duration=duration,
            trajectory=outputs.trajectory_of(result),
            error=f"{exception.exception_type}: {exception.exception_message}"
            if exception
            else None,
            output_dir=path,
            id=str(uuid4()),
            task_name=task.name,
            trial_name=outputs.trial_name(task),
            trial_uri=path.as_uri(),
            task_id={"path": str(task.path)},
            source=task.config.source,
            task_checksum=task.checksum,
            config=config,
            agent_info=outputs.agent_info(self.rollout.agent),
            agent_result=outputs.agent_context(result),
            verifier_result=VerifierResult(rewards=rewards) if judged else None,
            verifier_environment_mode=task.steps[0].verifier.mode,
            exception_info=exception,
            started_at=self.started_at,
            finished_at=now(),
            environment_setup=Timing(started_at=self.started_at, finished_at=progress.prepared_at),
            agent_execution=single.agent_execution if single else None,
            verifier=single.verifier if single else None,
            step_results=[outputs.step_result(outcome) for outcome in progress.outcomes]
            if task.is_multi_step
            else None,
            warnings=list(dict.fromkeys(self.rollout.warnings)),
            record=self.record,
        )

    async def _write(self, result: TaskResult) -> None:
        folder = self.rollout.folder
        for outcome in self.rollout.progress.outcomes:
            for event, at in outcome.events():
                self._note(event, at)
        await folder.write_json("lock.json", lock_of(self.rollout))
        await folder.write_json("result.json", result.model_dump(mode="json"))
        if result.record is not None:
            await write_rollout(folder, self.rollout, result.record)
        # Of one millisecond they stay in the order in which they were noted, and the end is the end.
        events = sorted(self.log, key=lambda line: (line.partition(" ")[0], line.endswith(" end")))
        await folder.write_text("trial.log", "\n".join([*events, *result.warnings, ""]))
        info = result.exception_info
        if info is not None:
            text = info.exception_traceback or f"{info.exception_type}: {info.exception_message}"
            await folder.write_text("exception.txt", text.rstrip("\n") + "\n")
