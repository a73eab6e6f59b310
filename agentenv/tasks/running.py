"""Running one task once: its sandbox, the agent, the tests, and what is left of it all in one folder."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

from agentenv.errors import AgentEnvError
from agentenv.rollout import RolloutLimits, RolloutRecord, rollout
from agentenv.task import Task
from agentenv.tasks import outputs
from agentenv.tasks.agents import SessionRequest, TaskAgent
from agentenv.tasks.directory import TaskDirectory
from agentenv.tasks.errors import TaskUnsupportedError
from agentenv.tasks.folder import RunFolder
from agentenv.tasks.loader import load_task
from agentenv.tasks.options import LONGEST_S, RunOptions
from agentenv.tasks.places import Place, backend_values, opened
from agentenv.tasks.preparation import working_directory
from agentenv.tasks.results import TaskResult, Timing, VerifierResult, main_reward
from agentenv.tasks.sandbox import TaskSandbox
from agentenv.tasks.stepping import (
    Progress,
    SteppingHarness,
    TaskVerifier,
    TaskWorkbench,
    instruction_of,
    now,
)
from agentenv.tasks.templates import resolved, secrets_of
from agentenv.tasks.under_way import TaskRun
from agentenv.tasks.verification import Judge
from agentenv_backends.errors import BackendError
from agentenv_tools.registry import ToolRegistry

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping
    from datetime import datetime

    from agentenv.tasks.directory import StepInput
    from agentenv.tasks.results import ExceptionInfo

logger = logging.getLogger(__name__)

_HOOK_MARGIN_S = 3600.0
"""Everything in preparation and verification has a deadline of its own; this one only bounds their sum."""


async def run_task(
    task: TaskDirectory | str | Path,
    *,
    agent: TaskAgent,
    provider: str = "docker",
    output_dir: str | Path = "output",
    options: RunOptions | None = None,
) -> TaskResult:
    """Let an agent work on a task once, judge what it did, and write all of it below a new folder of `output_dir`.

    Failures of the sandbox, the agent, the model or the tests are in the result and raise nothing. Raises
    `TaskFormatError` for a directory that is no task and `OSError` when the folder cannot be written; cancellation
    passes, after everything was ended.
    """
    if not isinstance(task, TaskDirectory):
        task = await asyncio.to_thread(load_task, task)
    path = await asyncio.to_thread(outputs.new_folder, Path(output_dir), task)
    attempt = _Attempt(task, agent, provider, options or RunOptions(), RunFolder(path))
    return await attempt.run()


@dataclass(slots=True)
class _Attempt:
    """One run under way."""

    task: TaskDirectory
    agent: TaskAgent
    provider: str
    options: RunOptions
    folder: RunFolder
    progress: Progress = field(default_factory=Progress)
    warnings: list[str] = field(default_factory=list)
    log: list[str] = field(default_factory=list)
    record: RolloutRecord | None = None
    failure: BaseException | None = None
    """What kept the rollout from beginning."""
    started_at: datetime = field(default_factory=now)

    async def run(self) -> TaskResult:
        began = time.monotonic()
        environ = self._environ()
        config = outputs.saved_config(self.task, self.agent, self.provider, self.options, environ)
        self.warnings += self.task.warnings
        self._note("start")
        await self.folder.make("agent", "verifier", "artifacts")
        await self.folder.write_json("config.json", config)
        try:
            await self._run(environ)
        except asyncio.CancelledError:
            self._note("cancel")
            raise
        except (AgentEnvError, BackendError, OSError) as error:
            self.failure = error
        self._note("end")
        result = self._result(config, time.monotonic() - began)
        await self._write(result)
        return result

    # ---- running ----

    async def _run(self, environ: Mapping[str, str]) -> None:
        variables = resolved(self.task.config.environment.env, environ, "environment.env")
        self.folder.know_secrets(secrets_of(variables))
        self._check_agent()
        values = backend_values(self._place(variables), self.provider, self.options)
        registry = self.agent.tools()
        timeout_s = self.task.config.environment.build_timeout_sec
        self._note("environment-start")
        async with opened(values, registry, timeout_s) as executor:
            trajectory_id = str(uuid4())
            workbench = TaskWorkbench(executor, trajectory_id, tuple(registry.schemas()))
            sandbox = TaskSandbox(executor, trajectory_id)
            try:
                workdir = await working_directory(sandbox)
            except BaseException:
                await workbench.release()
                raise
            await self._roll_out(workbench, sandbox, workdir, trajectory_id)

    async def _roll_out(
        self, workbench: TaskWorkbench, sandbox: TaskSandbox, workdir: str, trajectory_id: str
    ) -> None:
        runs = [self._task_run(step, sandbox) for step in self.task.steps]
        judge = Judge(self._open_verifier, workdir)
        self.record = await rollout(
            Task(
                instruction=instruction_of(runs[0]),
                item=runs[0],
                agent=self.agent.config,
                seed=self.options.seed,
                metadata={"trajectory_id": trajectory_id},
            ),
            harness=SteppingHarness(self.agent, runs, judge, self.progress, workbench),
            session=self.agent.open_session(
                SessionRequest(trajectory_id, workbench.schemas, self.options.seed)
            ),
            workbench=workbench,
            verifier=TaskVerifier(runs[0], judge, self.progress),
            limits=self._limits(),
            trajectory_id=trajectory_id,
        )

    def _limits(self) -> RolloutLimits:
        steps = self.task.steps
        agent_s = (self.options.effective_agent_timeout_s(s.agent.timeout_sec) for s in steps)
        verifier_s = sum(
            self.options.effective_verifier_timeout_s(s.verifier.timeout_sec) for s in steps
        )
        build_s = self.task.config.environment.build_timeout_sec
        commands = 2 + len(self.task.config.environment.setup_commands)
        judging_s = verifier_s if self.task.is_multi_step else 0.0
        return RolloutLimits(
            rollout_timeout_s=min(sum(agent_s) + judging_s, LONGEST_S),
            verify_timeout_s=verifier_s + commands * build_s + _HOOK_MARGIN_S,
        )

    def _task_run(self, step: StepInput, sandbox: TaskSandbox) -> TaskRun:
        folder = self.folder if step.name is None else self.folder.below(f"steps/{step.name}")
        return TaskRun(self.task, step, sandbox, folder, self.options, self.warnings)

    async def _open_verifier(self, run: TaskRun) -> AsyncIterator[TaskSandbox]:
        """The sandbox of a separate verifier."""
        table = run.step.verifier.environment
        environment = table or self.task.config.environment
        variables = resolved(environment.env, run.environ, "verifier.environment.env")
        run.folder.know_secrets(secrets_of(variables))
        own = self.task.path / "tests" / "Dockerfile"
        dockerfile = own if table is not None and own.is_file() else self.task.dockerfile
        place = Place(
            environment,
            variables,
            run.step.verifier.user,
            None if environment.docker_image else dockerfile,
            None,
            self._host_image_accepted(),
        )
        values = backend_values(place, self.provider, self.options)
        async with opened(values, ToolRegistry(()), environment.build_timeout_sec) as executor:
            sandbox = TaskSandbox(executor, f"verifier-{uuid4()}")
            try:
                yield sandbox
            finally:
                await sandbox.release()

    # ---- what is asked for ----

    def _environ(self) -> Mapping[str, str]:
        return os.environ if self.options.environ is None else self.options.environ

    def _place(self, variables: Mapping[str, str]) -> Place:
        environment = self.task.config.environment
        self._check_phases()
        return Place(
            environment,
            variables,
            self.task.steps[0].agent.user,
            None if environment.docker_image else self.task.dockerfile,
            self.task.compose_file,
            self._host_image_accepted(),
        )

    def _host_image_accepted(self) -> bool:
        said = self.task.config.metadata.get("agentenv")
        return self.options.accept_host_image or (
            isinstance(said, dict) and said.get("host_image") is True
        )

    def _check_phases(self) -> None:
        """A sandbox keeps its network and its user for its whole life."""
        environment = self.task.config.environment
        for step in self.task.steps:
            for what, table in (("agent", step.agent), ("verifier", step.verifier)):
                own = table.network_mode is not None and step.verifier.mode == "shared"
                if own and (table.network_mode, table.allowed_hosts or ()) != (
                    environment.network,
                    environment.allowed_hosts or (),
                ):
                    raise TaskUnsupportedError(
                        f"{what}.network_mode is {table.network_mode} in an environment that is {environment.network}: "
                        "no backend changes the network of a running sandbox; use a separate verifier environment"
                    )
            user = step.verifier.user
            if step.verifier.mode == "shared" and user not in (None, step.agent.user):
                raise TaskUnsupportedError(
                    f"verifier.user is {user!r} and agent.user {step.agent.user!r}: a sandbox has one user; give the "
                    'verifier its own with environment_mode = "separate"'
                )

    def _check_agent(self) -> None:
        prior = self.task.prior_trajectory
        agent = self.agent
        if prior is not None and not (
            agent.takes_prior_trajectory or agent.ignores_prior_trajectory
        ):
            raise TaskUnsupportedError(
                f"the task goes on from {prior.name}, which agent {agent.name} cannot load"
            )
        if agent.needs_solution and any(step.solution_script is None for step in self.task.steps):
            raise TaskUnsupportedError(
                f"the task has no solution/solve.sh (for every step), which agent {agent.name} runs"
            )

    # ---- what is left ----

    def _note(self, event: str) -> None:
        self.log.append(f"{now().isoformat(timespec='milliseconds')} {event}")

    def _exception(self) -> ExceptionInfo | None:
        if self.failure is not None:
            return outputs.exception_info(self.failure)
        assert self.record is not None
        last = self.progress.outcomes[-1].failure if self.progress.outcomes else None
        return outputs.exception_of(self.record, self.progress.failure or last)

    def _result(self, config: dict[str, object], duration: float) -> TaskResult:
        progress, task = self.progress, self.task
        strategy = task.config.multi_step_reward_strategy if task.is_multi_step else None
        judged = any(outcome.judged for outcome in progress.outcomes)
        rewards = progress.rewards(strategy) if judged else None
        exception = self._exception()
        result = self.record.result if self.record is not None else None
        single = progress.outcomes[0] if progress.outcomes and not task.is_multi_step else None
        name = outputs.trial_name(task)
        reward = main_reward(rewards)
        return TaskResult(
            success=reward >= 1.0,
            reward=reward,
            duration=duration,
            trajectory=outputs.trajectory_of(result),
            error=None if exception is None else _error_text(exception),
            output_dir=self.folder.path,
            id=str(uuid4()),
            task_name=task.name,
            trial_name=name,
            trial_uri=self.folder.path.as_uri(),
            task_id={"path": str(task.path)},
            source=task.config.source,
            task_checksum=task.checksum,
            config=config,
            agent_info=outputs.agent_info(self.agent),
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
            warnings=list(dict.fromkeys(self.warnings)),
            record=self.record,
        )

    async def _write(self, result: TaskResult) -> None:
        await self.folder.write_json("result.json", result.model_dump(mode="json"))
        await self.folder.write_text("trial.log", "\n".join([*self.log, *result.warnings, ""]))
        info = result.exception_info
        if info is not None:
            text = info.exception_traceback or f"{info.exception_type}: {info.exception_message}"
            await self.folder.write_text("exception.txt", text.rstrip("\n") + "\n")


def _error_text(info: ExceptionInfo) -> str:
    return f"{info.exception_type}: {info.exception_message}"
