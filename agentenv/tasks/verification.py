"""Judging one step: hooks, artifacts, then the tests, in the agent's sandbox or in one of their own.

Nothing the agent left decides the reward: its processes are dead, /tests and /logs/verifier are made anew, the tests
arrive only then, and their script runs with a fresh home and temporary folder and with none of the agent's variables.
Not guaranteed in a shared sandbox: that the programs the tests use are the image's, after an agent that was root.
Simple replacements are found (`integrity`).
"""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from agentenv.tasks import rewards
from agentenv.tasks.archives import cleaned
from agentenv.tasks.artifacts import Collection, put_back
from agentenv.tasks.backend_values import LOG_FOLDERS, RUNTIME, TESTS, VERIFIER_LOGS
from agentenv.tasks.errors import (
    AddTestsDirError,
    DownloadVerifierDirError,
    VerifierOutputParseError,
    VerifierTimeoutError,
)
from agentenv.tasks.integrity import changed, programs_of
from agentenv.tasks.models import Artifact
from agentenv.tasks.rules import MAIN_SERVICE
from agentenv.tasks.sandbox import DownloadTooLargeError, SandboxCommandError
from agentenv.tasks.templates import secrets_of
from agentenv.tasks.workspaces import keep_workspace

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from agentenv.tasks.sandbox import TaskSandbox
    from agentenv.tasks.under_way import TaskRun

MAX_LOG_BYTES = 1 << 20
"""Of what a test script prints, half from its start and half from its end."""
MAX_LOGS_BYTES = 24 << 20
"""Of the files in /logs/agent, and of those in /logs/verifier."""
_HOME, _TMP = f"{RUNTIME}/home", f"{RUNTIME}/tmp"  # noqa: S108 - in the sandbox


class Judge:
    """Judges steps. `open_verifier` gives the sandbox of a separate verifier."""

    def __init__(
        self,
        open_verifier: Callable[[TaskRun], AsyncIterator[TaskSandbox]],
        workdir: str,
        *,
        agent_is_root: bool,
    ) -> None:
        self._open_verifier = asynccontextmanager(open_verifier)
        self._workdir = workdir
        self._agent_is_root = agent_is_root
        self._programs: dict[str, str] = {}

    async def look_before(self, sandbox: TaskSandbox) -> None:
        """Note what an agent could change. Call when the sandbox is ready for it. Raises `InfrastructureError`."""
        if self._agent_is_root:
            self._programs = await programs_of(sandbox)

    async def judge(self, run: TaskRun, *, last: bool) -> dict[str, float] | None:
        """The step's rewards; None where there is nothing to judge by. The agent's processes are dead by now.

        Raises `VerifierError` or `InfrastructureError`.
        """
        await self._run_hooks(run)
        await self._keep_logs(run, run.sandbox, "/logs/agent", "agent")
        collection = await self._collected(run)
        if not _is_judged(run):
            return None
        if run.step.verifier.mode != "separate":
            await self._check_programs(run.sandbox)
        if run.options.keep_workspace_bytes and not run.directory.is_multi_step:
            await self._keep_workspace(run, collection)
        return await self._tested(run, collection, last=last)

    async def judge_again(self, run: TaskRun) -> dict[str, float] | None:
        """The rewards of a sandbox that a workspace was put back into (`workspaces`). Raises as `judge` does."""
        collection = await self._collected(run)
        return await self._tested(run, collection, last=True) if _is_judged(run) else None

    async def _collected(self, run: TaskRun) -> Collection:
        collection = Collection(run, self._workdir)
        further = tuple(Artifact(source=source) for source in run.options.artifacts)
        await collection.collect((*run.step.artifacts, *further))
        return collection

    async def _keep_workspace(self, run: TaskRun, collection: Collection) -> None:
        kept = (self._workdir, *LOG_FOLDERS)
        elsewhere = [
            each.path
            for each in collection.collected
            if not any(PurePosixPath(each.path).is_relative_to(folder) for folder in kept)
        ]
        refusal = None
        if elsewhere and run.step.verifier.mode == "separate":
            refusal = f"its tests judge {elsewhere[0]}, which is outside of what is kept"
        await keep_workspace(
            run.sandbox,
            run.folder,
            max_bytes=run.options.keep_workspace_bytes,
            logs=LOG_FOLDERS,
            refusal=refusal,
        )

    async def _tested(
        self, run: TaskRun, collection: Collection, *, last: bool
    ) -> dict[str, float] | None:
        if run.step.verifier.mode != "separate":
            return await self._run_tests(run, run.sandbox, owns_tests=False)
        if last:
            await run.sandbox.release()
        async with self._open_verifier(run) as sandbox:
            await self._as_new_folders(sandbox)
            await put_back(collection.collected, sandbox)
            return await self._run_tests(run, sandbox, owns_tests=run.verifier_owns_tests)

    async def _check_programs(self, sandbox: TaskSandbox) -> None:
        if not self._agent_is_root:
            return
        found = changed(self._programs, await programs_of(sandbox))
        if found:
            raise VerifierOutputParseError(
                f"the agent, which was root, changed programs that tests lean on ({', '.join(found)}): no reward is "
                "taken from tests in such a sandbox; a separate verifier takes one"
            )

    async def _run_hooks(self, run: TaskRun) -> None:
        for hook in run.step.verifier.collect:
            if hook.service != MAIN_SERVICE:
                run.warnings.append(f"collect: nothing is run in service {hook.service}")
                continue
            done = await run.sandbox.run(hook.command, timeout_s=hook.timeout_sec)
            if done.exit_code or done.explanation:
                reason = done.explanation or f"exit code {done.exit_code}"
                run.warnings.append(f"collect {hook.command[:80]!r}: {reason}")

    async def _as_new_folders(self, sandbox: TaskSandbox) -> None:
        await sandbox.empty(*LOG_FOLDERS, mode="0777")

    async def _run_tests(
        self, run: TaskRun, sandbox: TaskSandbox, *, owns_tests: bool
    ) -> dict[str, float]:
        env = run.verifier_env()
        run.folder.know_secrets(secrets_of(env))
        await self._put_tests(run, sandbox, owns_tests=owns_tests)
        timeout_s = run.options.effective_verifier_timeout_s(run.step.verifier.timeout_sec)
        done = await sandbox.run_script(
            f"{TESTS}/{run.step.test_script or 'test.sh'}",
            timeout_s=timeout_s,
            env={**env, "HOME": _HOME, "TMPDIR": _TMP},
            max_output_bytes=MAX_LOG_BYTES,
        )
        found = await self._reward_files(sandbox)
        await self._keep_logs(run, sandbox, VERIFIER_LOGS, "verifier")
        run.tests_said.append(run.folder.masked(done.stdout.text()))
        await run.folder.write_text("verifier/test-stdout.txt", run.tests_said[-1])
        if done.timed_out:
            raise VerifierTimeoutError(f"the test script did not end within {timeout_s:g} s")
        if done.explanation or done.signaled:
            # Whatever ran beside the tests may have written a reward and then ended them.
            how = done.explanation or f"signal {done.exit_code - 128}"
            raise VerifierOutputParseError(
                f"the test script did not end by itself ({how}), so what is in its place is no reward of its"
            )
        return rewards.rewards_from(*found)

    async def _put_tests(self, run: TaskRun, sandbox: TaskSandbox, *, owns_tests: bool) -> None:
        try:
            await sandbox.empty(VERIFIER_LOGS, mode="0777")
            await sandbox.empty(RUNTIME, _HOME, _TMP)
            if not owns_tests:
                await sandbox.empty(TESTS)
                await sandbox.upload(run.step.tests, TESTS)
        except (SandboxCommandError, OSError) as error:
            raise AddTestsDirError(str(error)) from error

    async def _reward_files(self, sandbox: TaskSandbox) -> tuple[bytes | None, bytes | None]:
        most = rewards.MAX_REWARD_BYTES + 1
        try:
            return (
                await sandbox.read_file(f"{VERIFIER_LOGS}/{rewards.REWARD_JSON}", most),
                await sandbox.read_file(f"{VERIFIER_LOGS}/{rewards.REWARD_TEXT}", most),
            )
        except SandboxCommandError as error:
            raise DownloadVerifierDirError(str(error)) from error

    async def _keep_logs(self, run: TaskRun, sandbox: TaskSandbox, folder: str, name: str) -> None:
        """Fetch a folder of logs. What cannot be had is a warning: nothing depends on it."""
        try:
            archive = await sandbox.download(folder, MAX_LOGS_BYTES)
        except (SandboxCommandError, DownloadTooLargeError) as error:
            run.warnings.append(f"{folder}: {error}")
            return
        clean = await asyncio.to_thread(cleaned, archive)
        run.warnings.extend(f"{folder}: left out {reason}" for reason in clean.left_out[:20])
        run.warnings.extend(await run.folder.extract(clean.content, name))


def _is_judged(run: TaskRun) -> bool:
    return run.options.verify and (run.step.test_script is not None or run.verifier_owns_tests)
