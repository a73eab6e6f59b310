"""What a sweep measures, as configuration: task sets x models x settings x seeds x attempts, and its bounds.

    tasks:                      # what is tried, by a name of yours
      shell: {environment: shell_tasks, env: {split: held_out}, count: 20}
      ours: {directory: tasks, provider: docker}
    models:                     # by whom; empty: the servers that the environment itself comes with
      tiny: {}
      claude: {chat: claude-sonnet-4-20250514}
      big: {openai: {base_url: "http://localhost:8000/v1", model_name: big, server_type: vllm}}
    settings:                   # how; laid over `env` of the tasks
      cold: {env: {agent_temperature: 0.0}}
    seeds: [0]
    attempts: 4

A sample is one attempt at one task by one model under one of the settings with one seed. Its random numbers depend on
seed, task and attempt alone: two models are given the same, and a comparison of them is paired.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from agentenv.run.masking import mask_secrets

if TYPE_CHECKING:
    from collections.abc import Iterator

Name = Annotated[
    str, StringConstraints(pattern=r"^[A-Za-z0-9_.][A-Za-z0-9_.:/+ \-]{0,99}$", strict=True)
]
"""Of a task set, a model or settings: no `@`, which divides them in `agentenv compare`."""


class _Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class TaskSetConfig(_Frozen):
    """Tasks of one kind: the items of an environment, or task directories."""

    environment: str | None = None
    """An environment's short name, or `package.module:Class`. Its items are the tasks."""
    env: dict[str, Any] = {}
    """Its settings, as under `env:` of `agentenv process`."""
    directory: str | None = None
    """A folder with task directories below it, in place of `environment`. Run by chat models, or without a model."""
    pattern: str = "**/task.toml"
    """Which files below `directory` mark a task."""
    provider: str = "docker"
    """Where task directories run: `docker`, `local`, `nomad` or `modal`."""
    accept_host_image: bool = False
    """Let `local` run tasks that want an image in the programs of this machine instead."""
    backend: dict[str, Any] = {}
    """Keys of the backend's configuration that win over what a task directory asks for."""
    count: int | None = Field(default=None, ge=1)
    """The first so many tasks; None: all, which must come to an end."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.environment is None) == (self.directory is None):
            raise ValueError("give either `environment` or `directory`")
        if self.directory is not None and self.env:
            raise ValueError(
                "`env` is for an environment; how agents work in task directories is `settings.*.agent`"
            )
        return self


class Price(_Frozen):
    """What tokens cost, in US dollars a million."""

    input: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    cached_input: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    """None: as `input`."""
    output: float = Field(default=0.0, ge=0, allow_inf_nan=False)

    def cost(self, *, input_tokens: int, cached_tokens: int, output_tokens: int) -> float:
        """In US dollars. `cached_tokens` are among the `input_tokens`."""
        cached_price = self.input if self.cached_input is None else self.cached_input
        fresh = max(0, input_tokens - cached_tokens)
        spent = fresh * self.input + cached_tokens * cached_price + output_tokens * self.output
        return spent / 1e6


class ModelConfig(_Frozen):
    """A model to be measured. Empty: the servers that the environment itself comes with."""

    openai: dict[str, Any] | list[dict[str, Any]] = {}
    """Its servers, as under `openai:` of `agentenv process`."""
    chat: str | None = None
    """A chat model of any provider by name, such as `claude-sonnet-4-20250514`, in place of `openai`. Needs the extra
    `models`."""
    chat_settings: dict[str, Any] = {}
    """Its address, key and patience: fields of `ChatModelSettings`."""
    agent: Literal["oracle", "nop"] | None = None
    """No model, for task directories: `oracle` runs each task's own solution, `nop` does nothing."""
    price: Price | None = None
    """None: what a reply is said to cost, where that is known."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        given = [name for name in ("openai", "chat", "agent") if getattr(self, name)]
        if len(given) > 1:
            raise ValueError(f"give one of {', '.join(given)}")
        if self.chat_settings and self.chat is None:
            raise ValueError("`chat_settings` are those of `chat`")
        return self

    def known_cost(self) -> bool:
        """Whether a sample's cost can be known: by a price, from a provider, or because there is no model."""
        return self.price is not None or self.chat is not None or self.agent is not None


class AgentSettings(_Frozen):
    """How an agent works in a task directory."""

    temperature: float = Field(default=0.7, ge=0, allow_inf_nan=False)
    max_steps: int = Field(default=100, ge=1)
    """Replies of the model for one task."""
    max_tokens: int = Field(default=8_192, ge=1)
    """Tokens of one reply."""
    system_prompt: str | None = None
    toolsets: list[str] = ["default"]
    turn_timeout_s: float = Field(default=1_200.0, gt=0, allow_inf_nan=False)
    """Deadline of one reply."""


class SettingsConfig(_Frozen):
    """A way in which the tasks are tried."""

    env: dict[str, Any] = {}
    """Laid over the `env` of environments."""
    agent: AgentSettings = AgentSettings()
    """For task directories."""


class Budget(_Frozen):
    """What a sweep may use. When one of them is spent no further sample is begun."""

    tokens: int | None = Field(default=None, ge=1)
    """Read and written, retries included. Samples under way still end, so a little more may be used."""
    cost_usd: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """The same in US dollars. Needs models whose cost is known."""
    wall_s: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """Seconds of one run of the command. Samples under way have a few seconds to end, and are repeated later if not."""


class Retry(_Frozen):
    """What happens after an infrastructure failure. Nothing else is tried again."""

    attempts: int = Field(default=3, ge=1)
    """Tries of one sample, all with the same random numbers."""
    wait_s: float = Field(default=1.0, ge=0, allow_inf_nan=False)
    """Before the second try, doubled for each further one."""
    max_wait_s: float = Field(default=60.0, ge=0, allow_inf_nan=False)


class SweepConfig(_Frozen):
    """A sweep."""

    name: str = "sweep"
    """Title of its report."""
    tasks: dict[Name, TaskSetConfig] = Field(min_length=1)
    models: dict[Name, ModelConfig] = Field(min_length=1)
    settings: dict[Name, SettingsConfig] = Field(
        default={"default": SettingsConfig()}, min_length=1
    )
    seeds: list[Annotated[int, Field(ge=0)] | None] = Field(default=[0], min_length=1)
    """None: the engine decides."""
    attempts: int = Field(default=1, ge=1)
    """At each task, with each seed."""
    concurrency: int = Field(default=8, ge=1)
    """Samples under way at once. Results do not depend on it."""
    budget: Budget = Budget()
    retry: Retry = Retry()
    success_at: float = Field(default=1.0, allow_inf_nan=False)
    """The least reward that counts as solved."""
    keep_tokens: bool = False
    """Keep token ids and log-probs of trajectories too, which take most of their room."""
    keep_outputs: bool | Literal["failed"] = True
    """Keep what samples of task directories left in files: logs, artifacts, output of tests. `failed`: of those that
    are not solved."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if len(set(self.seeds)) != len(self.seeds):
            raise ValueError(f"seeds {self.seeds}: each once; more attempts are `attempts`")
        if self.budget.cost_usd is not None:
            unknown = [name for name, model in self.models.items() if not model.known_cost()]
            if unknown:
                raise ValueError(f"budget.cost_usd needs a `price` for {', '.join(unknown)}")
        return self

    def arms(self) -> Iterator[Arm]:
        """Every model under every setting on every task set."""
        for task_set in self.tasks:
            for model in self.models:
                for settings in self.settings:
                    yield Arm(task_set, model, settings)

    def draws(self) -> Iterator[tuple[int | None, int]]:
        """Seed and attempt (from 1) of each sample of one task."""
        for attempt in range(1, self.attempts + 1):
            for seed in self.seeds:
                yield seed, attempt


@dataclass(frozen=True, slots=True, order=True)
class Arm:
    """One model under one of the settings on one task set."""

    task_set: str
    model: str
    settings: str


@dataclass(frozen=True, slots=True)
class SampleKey:
    """Which sample. Two sweeps name the same sample the same."""

    arm: Arm
    task: str
    seed: int | None
    attempt: int
    """From 1."""

    @property
    def id(self) -> str:
        """Stable, and safe as a name."""
        arm = self.arm
        return _digest(
            [arm.task_set, arm.model, arm.settings, self.task, self.seed, self.attempt], 12
        ).hex()

    @property
    def rollout_seed(self) -> int | None:
        """The seed of its completions: the same for every model and all settings."""
        if self.seed is None:
            return None
        parts = [self.seed, self.arm.task_set, self.task, self.attempt]
        return int.from_bytes(_digest(parts, 8))


def _digest(parts: list[Any], size: int) -> bytes:
    text = json.dumps(parts, ensure_ascii=True, separators=(",", ":"))
    return hashlib.blake2b(text.encode(), digest_size=size).digest()


# ---------------------------------------------------------------------------------------- what may change


_IDENTITY = ("tasks", "models", "settings")


def stored_form(config: SweepConfig) -> dict[str, Any]:
    """A sweep as it is kept beside its samples, secrets masked; of tasks, models and settings what was given, so that
    a later version's new fields change nothing.
    """
    given = config.model_dump(mode="json", exclude_defaults=True, include=set(_IDENTITY))
    values = config.model_dump(mode="json", exclude=set(_IDENTITY))
    sections = {section: given.get(section, {"default": {}}) for section in _IDENTITY}
    plain: dict[str, Any] = mask_secrets({"name": values.pop("name"), **sections, **values})
    return plain


def changes(stored: dict[str, Any], config: SweepConfig) -> list[str]:
    """What of a sweep differs in a way that would mix samples of two. Tasks, models, settings, seeds and attempts may
    be added; budgets, prices, concurrency, retries and `success_at` may change.
    """
    now = stored_form(config)
    found = [
        problem
        for section in _IDENTITY
        for name, entry in stored[section].items()
        if (problem := _changed(section, name, entry, now[section].get(name)))
    ]
    if missing := [seed for seed in stored["seeds"] if seed not in now["seeds"]]:
        found.append(f"seeds: {missing} are gone")
    if now["attempts"] < stored["attempts"]:
        found.append(f"attempts: {now['attempts']} instead of {stored['attempts']}")
    return found


def _changed(section: str, name: str, before: dict[str, Any], now: dict[str, Any] | None) -> str:
    if now is None:
        return f"{section}.{name}: is gone"
    for key in before.keys() | now.keys():
        old, new = before.get(key), now.get(key)
        if old == new or key == "price" or (key == "count" and _more(old, new)):
            continue
        return f"{section}.{name}.{key}: {json.dumps(new)} instead of {json.dumps(old)}"
    return ""


def _more(old: int | None, new: int | None) -> bool:
    return old is not None and (new is None or new > old)
