"""One rollout of a task: what it needs is checked, a sandbox is had, steps are worked on and judged."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from agentenv.observer import Observation
from agentenv.rollout import RolloutLimits, RolloutRecord, finish, rollout
from agentenv.task import Task
from agentenv.tasks.agents import SessionRequest
from agentenv.tasks.backend_values import Place, backend_values, unlimited_storage, weaker
from agentenv.tasks.compose import COMPOSE_FILES
from agentenv.tasks.errors import TaskUnsupportedError
from agentenv.tasks.options import LONGEST_S
from agentenv.tasks.preparation import prepare_sandbox, working_directory
from agentenv.tasks.sandbox import TaskSandbox
from agentenv.tasks.stepping import (
    Progress,
    SteppingHarness,
    TaskVerifier,
    TaskWorkbench,
    instruction_of,
)
from agentenv.tasks.task_mcp import mcp_servers_of
from agentenv.tasks.templates import resolved, secrets_of
from agentenv.tasks.under_way import TaskRun
from agentenv.tasks.verification import Judge
from agentenv.tasks.workspaces import put_workspace_back

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence

    from agentenv.observer import RolloutObserver
    from agentenv.tasks.agents import TaskAgent
    from agentenv.tasks.directory import StepInput, TaskDirectory
    from agentenv.tasks.folder import RunFolder
    from agentenv.tasks.options import RunOptions
    from agentenv.tasks.place_pool import PlacePool
    from agentenv.tasks.workspaces import KeptWorkspace
    from agentenv_tools.executor import ToolExecutor
    from agentenv_tools.external import McpServerConfig
    from agentenv_tools.schema import ToolSchema

_HOOK_MARGIN_S = 3600.0
"""Everything in preparation and verification has a deadline of its own; this one only bounds their sum."""


_ROOT_IS_JUDGED = (
    "the agent was root of the sandbox that the tests then ran in: the programs they used may have been changed by it "
    "(another agent.user, or a separate verifier, excludes that)"
)


@dataclass(slots=True)
class TaskRollout:
    """One rollout of a task by an agent, on a backend of some kind. Serves once."""

    task: TaskDirectory
    agent: TaskAgent
    provider: str
    options: RunOptions
    folder: RunFolder
    places: PlacePool
    sandboxes: int = 1
    """How many there may be at once, of all runs that share `places`."""
    observers: Sequence[RolloutObserver] = ()
    progress: Progress = field(default_factory=Progress)
    warnings: list[str] = field(default_factory=list)
    values: dict[str, Any] | None = None
    """The configuration of the backend it ran on; None before that is known."""
    schemas: tuple[ToolSchema, ...] = ()
    """Of the tools that the agent may call, once they are known."""

    @property
    def environ(self) -> Mapping[str, str]:
        """What templates in task.toml are looked up in."""
        return os.environ if self.options.environ is None else self.options.environ

    def backend_values(self) -> dict[str, Any]:
        """The configuration of the backend it needs. Raises `TaskUnsupportedError`: for the task, or for the agent."""
        environment = self.task.config.environment
        variables = resolved(environment.env, self.environ, "environment.env")
        compose = self.task.compose
        if compose is not None:
            variables = {**compose.main.variables(self.environ), **variables}
        services = compose.service_values(self.environ) if compose is not None else ()
        for service in services:
            self.folder.know_secrets(secrets_of(service["variables"]))
        self.folder.know_secrets(secrets_of(variables))
        self._check_agent()
        self._check_phases()
        self._mcp_servers()
        place = Place(
            environment,
            variables,
            self.task.steps[0].agent.user,
            None if environment.docker_image else self.task.dockerfile,
            self._host_image_accepted(),
            compose.main if compose is not None else None,
            services,
        )
        values = backend_values(place, self.provider, self.options, sandboxes=self.sandboxes)
        shared = any(step.verifier.mode == "shared" and step.tests for step in self.task.steps)
        if values.get("run_as_root") and shared:
            self.warnings.append(_ROOT_IS_JUDGED)
        self.warnings += weaker(place, values)
        return values

    async def run(self, trajectory_id: str) -> RolloutRecord:
        """Roll out. Raises `TaskUnsupportedError`, `BackendError` or `TaskError` when no sandbox could be had."""
        timeout_s = self.task.config.environment.build_timeout_sec
        values = self.values = self.backend_values()
        as_root = values.get("run_as_root", False)
        servers = self._mcp_servers()
        async with self.places.use(values, timeout_s, mcp_servers=servers) as executor:
            self.schemas = tuple(executor.schemas())
            limited = executor.capabilities.disk_limit
            self.warnings += unlimited_storage(values, disk_limit=limited)
            return await self._run_in(executor, trajectory_id, agent_is_root=as_root)

    async def judge_again(self, kept: KeptWorkspace) -> dict[str, float] | None:
        """The rewards of a workspace that was kept: put back into a sandbox that is prepared as it was for the agent,
        and judged by the tests as they are now. What they print goes where it goes in a run.

        Raises `VerifierError`; `TaskError`, `BackendError` or `OSError` when there can be no such sandbox.
        """
        timeout_s = self.task.config.environment.build_timeout_sec
        values = self.backend_values()
        async with self.places.use(values, timeout_s) as executor:
            sandbox = TaskSandbox(executor, f"again-{uuid4()}")
            try:
                run = self._task_run(self.task.steps[0], sandbox)
                await prepare_sandbox(run)
                await put_workspace_back(kept, sandbox)
                await sandbox.kill_everything()
                workdir = await working_directory(sandbox)
                judge = Judge(self._open_verifier, workdir, agent_is_root=False)
                return await judge.judge_again(run)
            finally:
                await finish(sandbox.release())

    async def _run_in(
        self, executor: ToolExecutor, trajectory_id: str, *, agent_is_root: bool
    ) -> RolloutRecord:
        workbench = TaskWorkbench(executor, trajectory_id, self.schemas)
        sandbox = TaskSandbox(executor, trajectory_id)
        try:
            workdir = await working_directory(sandbox)
        except BaseException:
            await workbench.release()
            raise
        runs = [self._task_run(step, sandbox) for step in self.task.steps]
        judge = Judge(self._open_verifier, workdir, agent_is_root=agent_is_root)
        told = Observation(trajectory_id, self.observers)
        return await rollout(
            Task(
                instruction=instruction_of(runs[0]),
                item=runs[0],
                agent=self.agent.config,
                seed=self.options.seed,
                metadata={"trajectory_id": trajectory_id, "name": self.task.name},
            ),
            harness=SteppingHarness(self.agent, runs, judge, self.progress, workbench, told),
            session=self.agent.open_session(
                SessionRequest(trajectory_id, workbench.schemas, self.options.seed)
            ),
            workbench=workbench,
            verifier=TaskVerifier(runs[0], judge, self.progress, told),
            limits=self._limits(),
            trajectory_id=trajectory_id,
            observers=self.observers,
        )

    def _mcp_servers(self) -> dict[str, McpServerConfig]:
        """Those that the task names, for an agent that calls tools. Raises `TaskUnsupportedError`."""
        if self.agent.session is None:
            return {}
        servers = mcp_servers_of(self.task.config.environment, self.provider, self.environ)
        for server in servers.values():
            self.folder.know_secrets(tuple(server.headers.values()))
        return servers

    def _limits(self) -> RolloutLimits:
        options, steps = self.options, self.task.steps
        agent_s = sum(options.effective_agent_timeout_s(s.agent.timeout_sec) for s in steps)
        verifier_s = sum(
            options.effective_verifier_timeout_s(s.verifier.timeout_sec) for s in steps
        )
        build_s = self.task.config.environment.build_timeout_sec
        commands = 2 + len(self.task.config.environment.setup_commands)
        # Steps but the last are judged while the rollout's clock runs; each has a clock of its own for its agent.
        judging_s = verifier_s + _HOOK_MARGIN_S if self.task.is_multi_step else 0.0
        return RolloutLimits(
            rollout_timeout_s=min(agent_s + judging_s, LONGEST_S),
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
        main = self.task.compose.main if self.task.compose is not None and table is None else None
        if main is not None:
            variables = {**main.variables(run.environ), **variables}
        run.folder.know_secrets(secrets_of(variables))
        dockerfile = run.verifier_dockerfile or self.task.dockerfile
        place = Place(
            environment,
            variables,
            run.step.verifier.user,
            None if environment.docker_image else dockerfile,
            self._host_image_accepted(),
            main,
        )
        options = self.options
        if table is not None and "image" in options.backend:
            own = {key: value for key, value in options.backend.items() if key != "image"}
            options = replace(options, backend=own)
        values = backend_values(place, self.provider, options, sandboxes=self.sandboxes)
        timeout_s = environment.build_timeout_sec
        async with self.places.use(values, timeout_s, role="verifier") as executor:
            sandbox = TaskSandbox(executor, f"verifier-{uuid4()}")
            try:
                yield sandbox
            finally:
                await sandbox.release()

    # ---- what is refused before anything starts ----

    def _host_image_accepted(self) -> bool:
        said = self.task.config.metadata.get("agentenv")
        return self.options.accept_host_image or (
            isinstance(said, dict) and said.get("host_image") is True
        )

    def _check_phases(self) -> None:
        """A sandbox keeps its network and its user for its whole life."""
        environment = self.task.config.environment
        network = (environment.network, environment.allowed_hosts or ())
        for step in self.task.steps:
            shared = step.verifier.mode == "shared"
            phases = [("agent", step.agent)] + ([("verifier", step.verifier)] if shared else [])
            for what, table in phases:
                own = (table.network_mode, table.allowed_hosts or ())
                if table.network_mode is not None and own != network:
                    raise TaskUnsupportedError(
                        f"{what}.network_mode is {table.network_mode} in an environment that is {network[0]}: no "
                        "backend changes the network of a running sandbox; give the verifier an environment of its own"
                    )
            self._check_verifier_services(step)
            user = step.verifier.user
            if shared and user not in (None, step.agent.user):
                raise TaskUnsupportedError(
                    f"verifier.user is {user!r} and agent.user {step.agent.user!r}: a sandbox has one user; give the "
                    'verifier its own with environment_mode = "separate"'
                )
            if step.agent.user != self.task.steps[0].agent.user:
                raise TaskUnsupportedError(
                    "steps name different agent.users: a sandbox has one user for its whole life"
                )

    def _check_verifier_services(self, step: StepInput) -> None:
        tests = self.task.path / "tests"
        own = [name for name in COMPOSE_FILES if (tests / name).is_file()]
        if own and step.verifier.environment is not None:
            raise TaskUnsupportedError(
                f"tests/{own[0]} gives the verifier services of its own, which no backend offers: build what the tests "
                "need into tests/Dockerfile, or start it in tests/test.sh"
            )

    def _check_agent(self) -> None:
        prior, agent = self.task.prior_trajectory, self.agent
        takes = agent.takes_prior_trajectory or agent.ignores_prior_trajectory
        if prior is not None and not takes:
            raise TaskUnsupportedError(
                f"the task goes on from {prior.name}, which agent {agent.name} cannot load"
            )
        if agent.needs_solution and any(step.solution_script is None for step in self.task.steps):
            raise TaskUnsupportedError(
                f"the task has no solution/solve.sh (for every step), which agent {agent.name} runs"
            )
