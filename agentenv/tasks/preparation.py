"""Getting a sandbox ready for an agent: files, health, set-up commands."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from agentenv.tasks.backend_values import LOG_FOLDERS, RUNTIME, VERIFIER_LOGS
from agentenv.tasks.errors import HealthcheckError, SetupCommandError

if TYPE_CHECKING:
    from agentenv.tasks.models import Healthcheck
    from agentenv.tasks.sandbox import Done, TaskSandbox
    from agentenv.tasks.under_way import TaskRun

_SKILLS = f"{RUNTIME}/skills"


async def prepare_sandbox(run: TaskRun) -> None:
    """What comes before the first step. Raises `InfrastructureError`."""
    environment = run.directory.config.environment
    sandbox = run.sandbox
    await sandbox.empty(*LOG_FOLDERS, mode="0777")
    await sandbox.empty(VERIFIER_LOGS)
    if run.directory.uploads_environment:
        await sandbox.upload(run.directory.environment_files, await working_directory(sandbox))
    if environment.healthcheck is not None:
        await wait_until_healthy(sandbox, environment.healthcheck)
    for command in environment.setup_commands:
        done = await sandbox.run(command, timeout_s=environment.build_timeout_sec)
        _require(done, f"setup_commands: {command[:200]!r}")
    if environment.skills_dir is not None:
        done = await sandbox.run(
            f'mkdir -p {_SKILLS} && cp -R "$SKILLS/." {_SKILLS}',
            env={"SKILLS": environment.skills_dir},
        )
        _require(done, f"skills_dir {environment.skills_dir}")


async def prepare_step(run: TaskRun) -> None:
    """What comes before a step of a task with several. Raises `InfrastructureError`."""
    step, sandbox = run.step, run.sandbox
    if step.workdir:
        place = await working_directory(sandbox)
        await sandbox.upload(step.workdir, place)
        if step.setup_script is not None:
            # By its full path: it is the step's script, whatever else has its name.
            timeout_s = run.directory.config.environment.build_timeout_sec
            done = await sandbox.run(
                f"exec /bin/bash {place}/{step.setup_script}", timeout_s=timeout_s
            )
            _require(done, f"steps/{step.name}/workdir/{step.setup_script}")
    if step.healthcheck is not None:
        await wait_until_healthy(sandbox, step.healthcheck)


async def working_directory(sandbox: TaskSandbox) -> str:
    """Where commands start. Raises `InfrastructureError`."""
    done = await sandbox.run("pwd -P")
    _require(done, "pwd")
    return done.stdout.text().rstrip("\n")


async def wait_until_healthy(sandbox: TaskSandbox, check: Healthcheck) -> None:
    """Return once the command's exit code is 0. Raises `HealthcheckError`, or another `InfrastructureError`."""
    started = time.monotonic()
    failures = 0
    while True:
        began_early = time.monotonic() - started < check.start_period_sec
        done = await sandbox.run(check.command, timeout_s=check.timeout_sec)
        if not done.exit_code and not done.explanation:
            return
        if began_early:
            await asyncio.sleep(check.start_interval_sec)
            continue
        failures += 1
        if failures >= check.retries:
            raise HealthcheckError(
                f"{check.command[:200]!r} failed {failures} times in a row: {_reason(done)}"
            )
        await asyncio.sleep(check.interval_sec)


def _require(done: Done, what: str) -> None:
    if done.exit_code or done.explanation:
        raise SetupCommandError(f"{what} failed: {_reason(done)}")


def _reason(done: Done) -> str:
    output = (done.stdout.text() + done.stderr.text()).strip()[-1000:]
    return f"{done.explanation or f'exit code {done.exit_code}'}: {output}"
