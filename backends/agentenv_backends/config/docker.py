"""The config of the Docker backend."""

from __future__ import annotations

from pathlib import Path  # noqa: TC003 - pydantic reads it
from typing import TYPE_CHECKING, Literal, Self

from pydantic import Field, field_validator, model_validator

from agentenv_backends.config.pool import PoolConfig, needs_extra
from agentenv_backends.config.services import ServiceConfig, order_of
from agentenv_backends.config.surroundings import SlotSurroundings

if TYPE_CHECKING:
    from agentenv_backends.pool import SlotPool


class DockerConfig(PoolConfig, SlotSurroundings):
    """Containers of a Docker engine; each holds `slots` slots."""

    type: Literal["docker"] = "docker"
    """This backend's name."""

    slots: int = Field(default=10, ge=1, le=256)
    """Slots of one container, kept apart by a Unix user and folders each. With 1, every trajectory
    has a container to itself, its workspace at `/workspace`, and `/dev/shm`."""

    max_hosts: int = Field(default=10, ge=1)
    """Containers started at most."""

    image: str = Field(default="python:3.12-slim", min_length=1)
    """What containers are made from. It needs sh."""

    python: Literal["auto", "image", "bring"] = "auto"
    """What the sandbox server runs by: `image`, the image's python3 (3.8 or newer); `bring`, a copy of this machine's
    own Python, added to the image; `auto`, the image's where there is a usable one, else a copy."""

    pull: Literal["missing", "always", "never"] = "missing"
    """When to fetch the image from its registry; with `dockerfile`: `always` builds anew."""

    dockerfile: Path | None = None
    """Build the image from this file instead; not again while it and what it needs stay the same."""

    build_context: Path | None = None
    """Folder whose files the Dockerfile may copy (without those in its `.dockerignore`)."""

    build_args: dict[str, str] = Field(default={})
    """Values for the Dockerfile's `ARG`s."""

    pull_timeout_s: float = Field(default=1800.0, gt=0)
    """How long pulling or building may take."""

    docker_host: str | None = None
    """Address of the engine, such as `unix:///run/docker.sock` or `tcp://...`; None: as the `docker`
    command finds it."""

    network: str | None = None
    """Network of the engine that containers join when `allow_network` is true; None: `bridge`."""

    network_allow_list: tuple[str, ...] = ()
    """What commands may reach, and nothing else, when `allow_network` is true: `example.org`, `*.example.org`,
    `example.org:8443`, an address, or `*` for every public name. By HTTP(S) through a proxy; ports 80 and 443 where
    none is given."""

    read_only_root: bool = True
    """Only the workspace and `/tmp` can be written. With false, every trajectory gets a fresh
    container in which the rest can be written too, on a disk without limit; needs `slots` 1."""

    run_as_root: bool = False
    """Commands run as root of the container, with a few capabilities. Every trajectory gets a fresh
    container; needs `slots` 1."""

    workspace: str | None = "/workspace"
    """Where a slot that has its container to itself works. None: in the image's own working directory, with what lies
    there; needs `read_only_root` false. (An image that names none, or `/`, gives `/workspace`.)"""

    image_variables: bool = False
    """Commands get the environment variables of the image too, and not only its PATH."""

    root_disk_mb: int | None = Field(default=None, ge=1)
    """With `read_only_root` false: how much a container may write outside of its memory, where the engine's storage
    can hold it to that (overlay2 on xfs with pquota, btrfs, zfs); elsewhere it starts without, unless `require_limits`
    names `disk`. None: not limited."""

    memory_mb: int = Field(default=512, ge=64)
    """Memory of the processes of a slot; files in its workspace and `/tmp` come on top."""

    container_memory_mb: int | None = Field(default=None, ge=128)
    """Memory of a container; None: as much as its slots may have together."""

    disk_mb: int = Field(default=256, ge=1)
    """Size of a slot's workspace, which is held in memory."""

    tmp_mb: int = Field(default=64, ge=1)
    """Size of a slot's `/tmp`, held in memory too."""

    max_processes: int = Field(default=128, ge=8)
    """Processes and threads of a slot."""

    open_files: int = Field(default=1024, ge=64)
    """Files a process in a slot may have open."""

    cpus: float | None = Field(default=None, gt=0)
    """Processors of a container, which its slots share; None: as many as the machine has."""

    services: tuple[ServiceConfig, ...] = ()
    """Containers beside each main one, in a network that they have to themselves: without `allow_network` nothing else
    is in reach. Each trajectory gets its own; needs `slots` 1, and `read_only_root` false or `run_as_root` true."""

    workspace_images: int = Field(default=32, ge=0)
    """Prepared workspaces (`AgentEnv.workspace_key`) that the engine keeps for later runs; those not used for longest
    go first. 0: none are kept."""

    workspace_images_mb: int = Field(default=4096, ge=1)
    """Size of all of them together."""

    require_limits: tuple[Literal["memory", "processes", "disk", "network"], ...] = ()
    """Limits without which no container starts, rather than running with what the engine offers."""

    max_lifetime_s: float = Field(default=86_400.0, ge=60)
    """A container ends itself after so long, whatever its driver does."""

    trajectory_life_s: float | None = Field(default=None, ge=0)
    """A container that will live shorter than this takes no new trajectories. None: as long as a rollout may take,
    where an environment says so, else 0."""

    @model_validator(mode="after")
    def _check_what_slots_share(self) -> Self:
        for name, price in (("read_only_root", False), ("run_as_root", True)):
            if getattr(self, name) is price and self.slots != 1:
                raise ValueError(
                    f"{name} {str(price).lower()} needs slots 1, and slots is {self.slots}: slots that "
                    "share a container must have nothing else in common that they can write"
                )
        return self

    @model_validator(mode="after")
    def _check_surroundings(self) -> Self:
        if self.slots != 1 and (self.folders or self.workspace != "/workspace"):
            raise ValueError(
                f"folders and workspace need slots 1, and slots is {self.slots}: slots that share a container cannot "
                "have the same path each"
            )
        if self.workspace is None and self.read_only_root:
            raise ValueError(
                "workspace null is the image's own directory, which cannot be written while read_only_root is true"
            )
        if self.workspace is not None:
            SlotSurroundings(folders=(self.workspace,))
        return self

    @model_validator(mode="after")
    def _check_root_disk(self) -> Self:
        if self.root_disk_mb is not None and self.read_only_root:
            raise ValueError(
                "root_disk_mb is the size of what is written to a root file system, which read_only_root true does "
                "not let: leave out one of them"
            )
        return self

    @model_validator(mode="after")
    def _check_network(self) -> Self:
        network = self.network or "bridge"
        if network == "host" or network.startswith("container:"):
            raise ValueError(
                f"network {network!r} shows this machine's own services, or another container's, to "
                "commands: use bridge, or make a network with `docker network create`"
            )
        if self.network not in (None, "none") and not self.allow_network:
            raise ValueError(
                f"network is {network!r} while allow_network is false: set it to true, or leave out "
                "network"
            )
        return self

    @field_validator("network_allow_list")
    @classmethod
    def _check_allow_list(cls, rules: tuple[str, ...]) -> tuple[str, ...]:
        from agentenv_backends.allow_list import Rule  # noqa: PLC0415 - when there is one

        for rule in rules:
            Rule.parse(rule)
        return rules

    @model_validator(mode="after")
    def _check_what_the_list_needs(self) -> Self:
        if self.network_allow_list and not self.allow_network:
            raise ValueError(
                "network_allow_list names what commands may reach while allow_network is false: set it to true, or "
                "leave out network_allow_list"
            )
        if self.network_allow_list and self.network is not None:
            raise ValueError(
                f"network_allow_list and network {self.network!r}: with a list, containers are in no network at all; "
                "leave out one of them"
            )
        return self

    @model_validator(mode="after")
    def _check_services(self) -> Self:
        if not self.services:
            return self
        order_of(self.services)
        if not self.single_use_hosts:
            raise ValueError(
                "services need a container for each trajectory, or the next would find what the last did to them: set "
                "slots 1, and read_only_root false or run_as_root true"
            )
        if self.network is not None or self.network_allow_list:
            raise ValueError(
                "services are in a network of their own: leave out network and network_allow_list"
            )
        return self

    @model_validator(mode="after")
    def _check_build(self) -> Self:
        for name in ("build_context", "build_args"):
            if getattr(self, name) and self.dockerfile is None:
                raise ValueError(f"{name} is for building: say which dockerfile")
        return self

    @property
    def single_use_hosts(self) -> bool:
        """What a trajectory may write outside its folders goes with its container."""
        return self.run_as_root or not self.read_only_root

    @property
    def needed_life_s(self) -> float:
        """Seconds a container must have left to take a trajectory."""
        return self.trajectory_life_s or 0.0

    @property
    def prepare_timeout_s(self) -> float:
        """How long getting ready may take, the image included."""
        return self.pull_timeout_s + self.launch_timeout_s

    @property
    def network_mode(self) -> str:
        """The engine's name for the network that containers are in."""
        return (self.network or "bridge") if self.open_network else "none"

    @property
    def open_network(self) -> bool:
        """Whether commands are in a network, and not only given a proxy."""
        return self.allow_network and not self.network_allow_list

    def build(self) -> SlotPool:
        """The backend, not started. Checks of the engine come with its `start`.

        Raises `BackendUnavailableError` when the client library is not installed.
        """
        from agentenv_backends.pool import SlotPool  # noqa: PLC0415 - when built

        try:
            from agentenv_backends.docker.provider import DockerProvider  # noqa: PLC0415 - when built
        except ModuleNotFoundError as error:
            raise needs_extra("docker", error.name) from error
        return SlotPool(DockerProvider(self), self.pool_settings())
