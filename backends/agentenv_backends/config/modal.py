"""Sandboxes of Modal (modal.com)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path  # noqa: TC003 - pydantic reads it
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import Field, SecretStr, StringConstraints, ValidationError, model_validator

from agentenv_backends._workspaces import DEFAULT_WORKSPACE
from agentenv_backends.config.pool import PoolConfig, needs_extra
from agentenv_backends.config.surroundings import SlotSurroundings

if TYPE_CHECKING:
    from agentenv_backends.pool import SlotPool
    from agentenv_backends.profiles import ProfiledPools
    from agentenv_backends.settings import PoolSettings

Name = Annotated[str, StringConstraints(pattern=r"^[a-zA-Z0-9._-]{1,32}$")]
VariableName = Annotated[str, StringConstraints(pattern=r"^[a-zA-Z_][a-zA-Z0-9_]*$")]
DEFAULT_PROFILE = "default"
_OF_ALL_PROFILES = frozenset({"type", "app_name", "environment_name", "profiles"})
_PING_INTERVAL_S = 2.0
"""How soon a sandbox that is gone is noticed. A check costs the worker a call, the control plane none."""


class ModalConfig(PoolConfig, SlotSurroundings):
    """Sandboxes of Modal; each holds `slots` slots. Token and address of the service are taken from where its own
    client finds them: `modal token new`, or MODAL_TOKEN_ID, MODAL_TOKEN_SECRET and MODAL_SERVER_URL.
    """

    type: Literal["modal"] = "modal"
    """This backend's name."""

    app_name: Name = "agentenv"
    """The app that the sandboxes are in; made if it is missing."""

    environment_name: str | None = None
    """Environment of the workspace that the app is in; None: the configured one."""

    image: str = Field(default="python:3.12-slim", min_length=1)
    """A registry's image, or the id (`im-...`) of one that was built with Modal. It needs python3 (3.8 or newer)
    and sh."""

    dockerfile: Path | None = None
    """Have Modal build the image from this file instead; not again while it and what it needs stay the same."""

    build_context: Path | None = None
    """Folder whose files the Dockerfile may copy (without those in its `.dockerignore`); they are uploaded."""

    build_timeout_s: float = Field(default=1800.0, gt=0)
    """How long pulling the image, or building it, may take."""

    slots: int = Field(default=10, ge=1, le=256)
    """Slots of one sandbox, kept apart by a Unix user and folders each. With 1, every trajectory has a sandbox to
    itself, its workspace at `/workspace`."""

    max_hosts: int = Field(default=5, ge=1)
    """Sandboxes started at most."""

    acquire_timeout_s: float = Field(default=60.0, gt=0)
    """How long a trajectory waits for a slot before that is an error."""

    execution_timeout_s: float = Field(default=30.0, gt=0)
    """Deadline of requests to a slot that carry none of their own (files)."""

    cpus: float = Field(default=1.0, gt=0)
    """Processors reserved for a sandbox, which its slots share."""

    max_cpus: float | None = Field(default=None, gt=0)
    """Processors it may use at most; None: the service's own limit."""

    sandbox_memory_mb: int = Field(default=2048, ge=128)
    """Memory reserved for a sandbox, which its slots share, files in `/dev/shm` included."""

    max_sandbox_memory_mb: int | None = Field(default=None, ge=128)
    """Memory it may use at most; None: the service's own limit."""

    gpu: str | None = None
    """GPU of a sandbox, which its slots share: `T4`, `A10G`, `A100`, `H100`, ..., or several: `H100:2`."""

    region: str | tuple[str, ...] | None = None
    """Region or regions to run in; None: any."""

    cloud: str | None = None
    """Cloud provider to run on; None: any."""

    memory_mb: int = Field(default=512, ge=64)
    """Memory of one process of a slot."""

    disk_mb: int = Field(default=1024, ge=1)
    """Size of one file of a slot, and of a workspace of which a snapshot is taken."""

    max_processes: int = Field(default=128, ge=8)
    """Processes and threads of a slot."""

    open_files: int = Field(default=1024, ge=64)
    """Files a process in a slot may have open."""

    workspace_base: Annotated[str, StringConstraints(pattern=r"^(/[a-zA-Z0-9._-]+)+$")] = "/data"
    """Folder of the sandbox in which slots have theirs."""

    workspace: str | None = DEFAULT_WORKSPACE
    """Where a slot that has its sandbox to itself works. None: in the image's own working directory, with what lies
    there. (An image that names none, or `/`, gives `/workspace`.) With another than `/workspace`, or with `folders`,
    every trajectory gets a fresh sandbox; both need `slots` 1."""

    network_allow_list: tuple[str, ...] = ()
    """What commands may reach, and nothing else, when `allow_network` is true: `example.org`, `*.example.org` (which
    Modal takes for `example.org` too), addresses and networks such as `10.0.0.0/8`. Modal enforces it."""

    run_as_root: bool = False
    """Commands run as root of the sandbox. Every trajectory gets a fresh sandbox; needs `slots` 1."""

    secrets: tuple[str, ...] = ()
    """Names of Modal secrets whose values commands find in their environment."""

    env_vars: dict[VariableName, SecretStr] = Field(default={})
    """Further variables for the environment of commands."""

    idle_timeout_s: int = Field(default=120, ge=1)
    """A sandbox in which nothing runs is ended by the service after so long: one whose driver is gone, after
    `lease_s`."""

    max_lifetime_s: int = Field(default=14_400, ge=60, le=86_400)
    """The service ends a sandbox after so long, whatever goes on in it."""

    trajectory_life_s: float | None = Field(default=None, gt=0)
    """A sandbox that will live shorter than this takes no new trajectories. None: as long as a rollout may take,
    where an environment says so, else a tenth of `max_lifetime_s`."""

    require_limits: tuple[Literal["memory", "processes", "disk", "network"], ...] = ()
    """Limits for each slot without which no sandbox starts."""

    profiles: dict[Name, dict[str, Any]] = Field(default={})
    """Further kinds of sandboxes by name: settings of this config that are different there, as `{gpu: A100, slots: 1}`.
    What an item does not choose one for runs in one of `default`, which is this config itself."""

    @model_validator(mode="after")
    def _check_times(self) -> Self:
        # Between its making and the start of its server a sandbox is idle.
        if self.idle_timeout_s < self.launch_timeout_s:
            raise ValueError(
                f"idle_timeout_s is {self.idle_timeout_s}, less than launch_timeout_s, which is "
                f"{self.launch_timeout_s:g}: the service could end a sandbox that is about to start"
            )
        for name in ("idle_timeout_s", "lease_s", "needed_life_s"):
            if getattr(self, name) >= self.max_lifetime_s:
                raise ValueError(
                    f"max_lifetime_s is {self.max_lifetime_s}, which must be more than "
                    f"{name.replace('needed', 'trajectory')} ({getattr(self, name):g})"
                )
        return self

    @model_validator(mode="after")
    def _check_sizes(self) -> Self:
        for least, most in (("cpus", "max_cpus"), ("sandbox_memory_mb", "max_sandbox_memory_mb")):
            limit = getattr(self, most)
            if limit is not None and limit < getattr(self, least):
                raise ValueError(
                    f"{most} is {limit:g}, less than {least}, which is {getattr(self, least):g}"
                )
        if self.run_as_root and self.slots != 1:
            raise ValueError(
                f"run_as_root true needs slots 1, and slots is {self.slots}: root reaches every slot of its sandbox"
            )
        return self

    @model_validator(mode="after")
    def _check_surroundings(self) -> Self:
        if self.slots != 1 and (self.folders or self.workspace != DEFAULT_WORKSPACE):
            raise ValueError(
                f"folders and workspace need slots 1, and slots is {self.slots}: slots that share a sandbox cannot "
                "have the same path each"
            )
        if self.workspace is not None:
            SlotSurroundings(folders=(self.workspace,))
        if self.build_context is not None and self.dockerfile is None:
            raise ValueError("build_context is for building: say which dockerfile")
        if self.network_allow_list and not self.allow_network:
            raise ValueError(
                "network_allow_list names what commands may reach while allow_network is false: set it to true, or "
                "leave out network_allow_list"
            )
        return self

    @model_validator(mode="after")
    def _check_profiles(self) -> Self:
        for name, changes in self.profiles.items():
            if name == DEFAULT_PROFILE:
                raise ValueError("profiles: `default` is this config itself; set its values there")
            if wrong := _OF_ALL_PROFILES & changes.keys():
                raise ValueError(
                    f"profiles.{name}: {', '.join(sorted(wrong))} is the same for all profiles"
                )
            try:
                whole = self._changed(changes)
            except ValidationError as error:
                faults = (
                    f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors()
                )
                raise ValueError(f"profiles.{name}: {'; '.join(faults)}") from None
            # As they are read here, secrets among them.
            changes.update({key: getattr(whole, key) for key in changes})
        return self

    @property
    def needed_life_s(self) -> float:
        """Seconds a sandbox must have left to take a trajectory."""
        given = self.trajectory_life_s
        return self.max_lifetime_s / 10 if given is None else given

    @property
    def single_use_hosts(self) -> bool:
        """What a trajectory may write outside the folders that are emptied after it goes with its sandbox."""
        return self.run_as_root or bool(self.folders) or self.workspace != DEFAULT_WORKSPACE

    @property
    def prepare_timeout_s(self) -> float:
        """How long getting ready may take, the image included."""
        return self.build_timeout_s + self.launch_timeout_s

    def pool_settings(self) -> PoolSettings:
        """The pool's part of this config."""
        settings = super().pool_settings()
        return replace(
            settings,
            ping_interval_s=_PING_INTERVAL_S,
            default_timeout_s=self.execution_timeout_s,
        )

    def of_profiles(self) -> dict[str, ModalConfig]:
        """The config of each profile, `default` first."""
        changed = {name: self._changed(changes) for name, changes in self.profiles.items()}
        return {DEFAULT_PROFILE: self.model_copy(update={"profiles": {}}), **changed}

    def build(self) -> SlotPool | ProfiledPools:
        """The backend, not started. Checks of the service come with its `start`.

        Raises `BackendUnavailableError` when the client library is not installed.
        """
        from agentenv_backends.pool import SlotPool  # noqa: PLC0415 - when built
        from agentenv_backends.profiles import ProfiledPools  # noqa: PLC0415 - when built

        try:
            from agentenv_backends.modal.provider import ModalProvider  # noqa: PLC0415 - when built
        except ModuleNotFoundError as error:
            raise needs_extra("modal", error.name) from error
        pools = {
            name: SlotPool(ModalProvider(config, name), _settings_of(name, config))
            for name, config in self.of_profiles().items()
        }
        return ProfiledPools(pools) if self.profiles else pools[DEFAULT_PROFILE]

    def _changed(self, changes: dict[str, Any]) -> ModalConfig:
        own = {name: getattr(self, name) for name in self.model_fields_set - {"profiles"}}
        return ModalConfig.model_validate(own | changes)


def _settings_of(profile: str, config: ModalConfig) -> PoolSettings:
    settings = config.pool_settings()
    prefix = "" if profile == DEFAULT_PROFILE else f"{profile}-"
    return replace(settings, limits=replace(settings.limits, host_prefix=prefix))
