"""Where samples come from: tasks, and one attempt at one of them.

`EnvironmentSource` takes them from an environment class, `task_source.TaskDirectorySource` from task directories.
Anything else that has tasks implements `SampleSource`.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from pydantic import ValidationError

from agentenv._hook import describe
from agentenv.errors import ConfigError, SweepError
from agentenv.evaluation.judging import EnvironmentJudge, KeepingVerifier
from agentenv.evaluation.schema import TaskEntry
from agentenv.outcomes import Outcome, StopReason
from agentenv.policy import APIServerConfig, build_policy
from agentenv.rollout import RolloutRecord, finish
from agentenv.task import item_id
from agentenv.types import Usage

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Collection, Mapping

    from agentenv.env import AgentEnv
    from agentenv.evaluation.spec import Arm, ModelConfig, Price, SweepConfig
    from agentenv.observer import RolloutObserver
    from agentenv.policy.base import PolicyClient
    from agentenv.run.record import TrajectoryRecord
    from agentenv.task import Verdict, Verifier
    from agentenv.types import Item
    from agentenv.watch import Watch, WatchedEnvironments

_PREVIEW_CHARS = 240


@dataclass(frozen=True, slots=True)
class SampleResult:
    """What one try at a sample gave."""

    record: RolloutRecord
    usage: Usage = field(default_factory=Usage)
    """What its replies took, with the price applied. Of a try that failed on the way it may be unknown, and is then
    not counted."""
    rewards: Mapping[str, float] = field(default_factory=dict)
    """By name, where there are such."""
    is_final: bool = False
    """Whether another try would end the same, whatever the outcome: what it needs cannot be had."""


class SampleSource(Protocol):
    """The tasks of one arm, and a way to try them. `open` and `close` bracket its use."""

    async def open(self, *, only_judge: bool = False) -> list[TaskEntry]:
        """Start what is needed and name the tasks, each once, the same whenever it is asked.

        `only_judge`: nothing will be run, see `judge`. Raises what makes it impossible.
        """
        ...

    async def run(
        self, task: str, *, seed: int | None, trajectory_id: str, folder: Path
    ) -> SampleResult:
        """One rollout of a task. `folder` does not exist, and may be made for what it leaves beside its record.

        What failed is in the record's outcome. Raises `SweepError` when `folder` cannot be written, and nothing else
        but for cancellation.
        """
        ...

    async def judge(self, task: str, record: TrajectoryRecord, folder: Path | None) -> Verdict:
        """Score a trajectory again, from its record and what was kept of its workspace in its `folder`.

        Raises `WorkspaceGoneError` where the verifier needs a workspace that cannot be had, `VerifierError` where it
        fails.
        """
        ...

    async def cancel(self, work: Collection[asyncio.Task[Any]]) -> None:
        """Cancel rollouts and return when they have ended; nothing else is to come."""
        ...

    async def close(self) -> None:
        """Stop everything. Idempotent."""
        ...


OpenSource = "Callable[[SweepConfig, Arm], SampleSource]"


def open_source(
    config: SweepConfig,
    arm: Arm,
    *,
    watch: Watch | None = None,
    environments: WatchedEnvironments | None = None,
) -> SampleSource:
    """The source that an arm's configuration means. Raises `ConfigError`.

    `watch` observes and pauses its rollouts; `environments` are those whose sandboxes the page counts.
    """
    tasks, model = config.tasks[arm.task_set], config.models[arm.model]
    observer = None if watch is None else _arm_observer(config, arm, watch)
    if tasks.directory is not None:
        return _task_directories(config, arm, watch, observer)
    if model.agent is not None:
        raise ConfigError(
            f"models.{arm.model}: agent {model.agent!r} is for task directories, and tasks.{arm.task_set} is an "
            "environment"
        )

    def make() -> AgentEnv[Any]:
        env = build_arm_environment(config, arm)
        if watch is not None and environments is not None:
            environments.add(env, watch, observer)
        return env

    return EnvironmentSource(
        make,
        count=tasks.count,
        price=model.price,
        concurrency=config.concurrency,
        policy=_chat_policy(model) if model.chat is not None else None,
        keep_workspace_bytes=config.kept_workspace_bytes,
    )


def check_arms(config: SweepConfig) -> None:
    """Raise `ConfigError` for what of a sweep could not be opened later, as far as that can be told beforehand."""
    for arm in config.arms():
        open_source(config, arm)
        if config.tasks[arm.task_set].environment is not None:
            build_arm_environment(config, arm)


def _arm_observer(config: SweepConfig, arm: Arm, watch: Watch) -> RolloutObserver:
    """Tells the page of an arm's rollouts: under its name as far as a sweep has several, at its model's price."""
    from agentenv.watch import ArmObserver  # noqa: PLC0415 - imported already where there is a page

    named = (
        (config.tasks, arm.task_set),
        (config.models, arm.model),
        (config.settings, arm.settings),
    )
    label = ", ".join(name for several, name in named if len(several) > 1)
    price = config.models[arm.model].price
    return ArmObserver(watch.board, label, partial(priced, price=price))


def _task_directories(
    config: SweepConfig, arm: Arm, watch: Watch | None, observer: RolloutObserver | None
) -> SampleSource:
    from agentenv.evaluation.task_source import (  # noqa: PLC0415 - it imports this module
        MODELLESS,
        LateRenderer,
        TaskDirectorySource,
        model_agent,
    )

    tasks, model = config.tasks[arm.task_set], config.models[arm.model]
    observers = () if observer is None else (observer,)
    if model.agent is not None:
        return TaskDirectorySource(
            tasks,
            MODELLESS[model.agent](),
            concurrency=config.concurrency,
            observers=observers,
            keep_workspace_bytes=config.kept_workspace_bytes,
        )
    renderer = None
    if model.chat is not None:
        policy = _chat_policy(model)
    else:
        servers = _servers(model, arm)
        policy = build_policy(servers)
        renderer = LateRenderer(
            servers[0].tokenizer, model.renderer, f"models.{arm.model}.openai.tokenizer_name"
        )
    gate = None if watch is None else watch.gate
    agent = model_agent(policy, config.settings[arm.settings].agent, arm.model, gate, renderer)
    return TaskDirectorySource(
        tasks,
        agent,
        policy=policy,
        renderer=renderer if policy.returns_tokens else None,
        price=model.price,
        concurrency=config.concurrency,
        observers=observers,
        keep_workspace_bytes=config.kept_workspace_bytes,
    )


def _chat_policy(model: ModelConfig) -> PolicyClient:
    from agentenv.models import chat_policy  # noqa: PLC0415 - an extra

    assert model.chat is not None
    return chat_policy(model.chat, **model.chat_settings)


def _servers(model: ModelConfig, arm: Arm) -> list[APIServerConfig]:
    given = model.openai if isinstance(model.openai, list) else [model.openai]
    try:
        return [APIServerConfig.model_validate(server) for server in given]
    except ValidationError as error:
        raise ConfigError(f"models.{arm.model}.openai: {error}") from error


class EnvironmentSource:
    """The items of an environment, judged by its hooks. The environment's own groups, filters and curriculum play no
    part: every item is tried as often as the sweep says.
    """

    def __init__(
        self,
        make: Callable[[], AgentEnv[Any]],
        *,
        count: int | None = None,
        price: Price | None = None,
        concurrency: int = 1,
        policy: PolicyClient | None = None,
        keep_workspace_bytes: int = 0,
    ) -> None:
        """`make` builds the environment, not set up; `policy` takes the place of the one it comes with.

        Workspaces are kept up to `keep_workspace_bytes`.
        """
        self._make = make
        self._count = count
        self._price = price
        self._concurrency = concurrency
        self._policy = policy
        self._keep_workspace_bytes = keep_workspace_bytes
        self._judge = EnvironmentJudge()
        self._env: AgentEnv[Any] | None = None
        self._items: dict[str, Item] = {}

    async def open(self, *, only_judge: bool = False) -> list[TaskEntry]:
        """Set the environment up, or only load its data, and fetch the items."""
        env = self._env = self._make()
        if self._policy is not None:
            env.runtime.policy = self._policy
        if only_judge:
            await env.setup_agent_env()
        else:
            await env.setup()
            env.runtime.policy.raise_concurrency(self._concurrency)
        return await self._fetch(env)

    async def run(
        self, task: str, *, seed: int | None, trajectory_id: str, folder: Path
    ) -> SampleResult:
        """One rollout of an item."""
        env = self._env
        assert env is not None, "open"
        try:
            made = env.task_for(self._items[task], seed)
        except Exception as error:  # noqa: BLE001 - the environment's own code may raise anything
            record = unstarted(trajectory_id, f"build_task raised {describe(error)}")
            return SampleResult(record)
        verifier: Verifier = env.verifier()
        if self._keep_workspace_bytes:
            verifier = KeepingVerifier(verifier, env.runtime, folder, self._keep_workspace_bytes)
        record = await env.runtime.run(made, verifier, trajectory_id=trajectory_id)
        usage = record.result.usage if record.result is not None else Usage()
        return SampleResult(record, priced(usage, self._price))

    async def judge(self, task: str, record: TrajectoryRecord, folder: Path | None) -> Verdict:
        """Call the environment's verification, with the workspace where that was kept, else with the record alone."""
        env = self._env
        assert env is not None, "open"
        return await self._judge.judge(env, self._items[task], record, folder)

    async def cancel(self, work: Collection[asyncio.Task[Any]]) -> None:
        """See `EnvRuntime.cancel`."""
        if self._env is not None:
            await self._env.runtime.cancel(work)

    async def close(self) -> None:
        """Shut the environment down."""
        if self._env is not None:
            await finish(self._env.shutdown())

    async def _fetch(self, env: AgentEnv[Any]) -> list[TaskEntry]:
        entries: list[TaskEntry] = []
        while self._count is None or len(entries) < self._count:
            item = await env.get_next_item()
            if item is None:
                break
            name = self._name(item, len(entries))
            self._items[name] = item
            entries.append(TaskEntry(name, _preview(env, item)))
        if not entries:
            raise SweepError(f"{type(env).__name__} has no tasks: get_next_item() returned None")
        if self._count is not None and len(entries) < self._count:
            raise SweepError(
                f"{type(env).__name__} has {len(entries)} tasks, not count={self._count}"
            )
        return entries

    def _name(self, item: Item, place: int) -> str:
        """The item's own id, or its place in the dataset. One that stands there twice gets a number."""
        own = item_id(item) or str(place)
        name, number = own, 1
        while name in self._items:
            number += 1
            name = f"{own}#{number}"
        return name


def priced(usage: Usage, price: Price | None) -> Usage:
    """Usage with what it cost at a price; as it is, where there is none."""
    if price is None:
        return usage
    cost = price.cost(
        input_tokens=usage.prompt_tokens,
        cached_tokens=usage.cached_tokens,
        output_tokens=usage.completion_tokens,
    )
    return replace(usage, cost_usd=cost)


def _preview(env: AgentEnv[Any], item: Item) -> str:
    try:
        return " ".join(str(env.build_task(item)).split())[:_PREVIEW_CHARS]
    except Exception as error:  # noqa: BLE001 - every sample of this task will say so
        return f"build_task raised {describe(error)}"[:_PREVIEW_CHARS]


def unstarted(trajectory_id: str, cause: str) -> RolloutRecord:
    """The record of a rollout that never began, through no fault of the agent."""
    return RolloutRecord(
        trajectory_id, Outcome.INFRASTRUCTURE_FAILED, StopReason.ERROR, None, None, cause=cause
    )


def build_arm_environment(config: SweepConfig, arm: Arm) -> AgentEnv[Any]:
    """The environment of an arm, not set up. Raises `ConfigError` naming what of the sweep cannot be used."""
    from agentenv.cli.commands import build_environment  # noqa: PLC0415 - settings as the command line resolves them
    from agentenv.cli.environments import load_environment  # noqa: PLC0415
    from agentenv.cli.layers import ConfigFile  # noqa: PLC0415
    from agentenv.cli.settings import merge, resolve, setting_trees  # noqa: PLC0415

    task_set = config.tasks[arm.task_set]
    assert task_set.environment is not None
    env_class = load_environment(task_set.environment)
    env, servers = env_class.config_init()
    over = config.settings[arm.settings].env
    values: dict[str, Any] = {"env": merge(task_set.env, over, setting_trees(env, servers)["env"])}
    if given := config.models[arm.model].openai:
        values["openai"] = given
    where = Path(f"tasks.{arm.task_set}, models.{arm.model}, settings.{arm.settings}")
    file = ConfigFile(where, task_set.environment, values)
    try:
        return build_environment(env_class, resolve(env, servers, file=file, environ=os.environ))
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error
