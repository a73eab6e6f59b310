"""The config of the Nomad backend."""

from __future__ import annotations

import os
from pathlib import Path  # noqa: TC003 - pydantic reads it
from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, SecretStr, StringConstraints, model_validator

from agentenv_backends._workspaces import DEFAULT_WORKSPACE
from agentenv_backends.config.pool import PoolConfig
from agentenv_backends.config.surroundings import SlotSurroundings

if TYPE_CHECKING:
    from agentenv_backends.pool import SlotPool

_CONTAINERS = ("docker", "podman")
_ISOLATION = {"docker": "user", "podman": "user", "singularity": "auto"}


class NomadConstraint(BaseModel):
    """A condition on the nodes that hosts may run on, as in a job file."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    attribute: str = Field(min_length=1)
    """What is looked at: `${attr.cpu.arch}`, `${meta.rack}`, `${node.class}`."""
    operator: str = "="
    """How it is compared: `=`, `!=`, `>`, `regexp`, `set_contains`, `is_set`, ..."""
    value: str = ""
    """With what."""


class NomadConfig(PoolConfig, SlotSurroundings):
    """Allocations of a job in a Nomad cluster; each holds `slots` slots."""

    type: Literal["nomad"] = "nomad"
    """This backend's name."""

    # --- the cluster -------------------------------------------------------------------------------

    address: str | None = None
    """The cluster's API, such as `https://nomad.example.org:4646`; None: NOMAD_ADDR, else http://127.0.0.1:4646."""

    token: SecretStr | None = None
    """ACL token; None: NOMAD_TOKEN, else none is sent. It needs `submit-job`, `scale-job` and `read-job`."""

    namespace: str | None = None
    """Namespace of the job; None: NOMAD_NAMESPACE, else `default`."""

    region: str | None = None
    """Region of the job; None: NOMAD_REGION, else that of the agent."""

    ca_cert: Path | None = None
    """Certificates that the API's is checked against; None: NOMAD_CACERT, else the system's."""

    client_cert: Path | None = None
    """Our certificate for the API; None: NOMAD_CLIENT_CERT, else none."""

    client_key: Path | None = None
    """Its key; None: NOMAD_CLIENT_KEY."""

    tls_server_name: str | None = None
    """Name the API's certificate must have; None: NOMAD_TLS_SERVER_NAME, else that of the address."""

    # --- the job -----------------------------------------------------------------------------------

    job_id: Annotated[str, StringConstraints(pattern=r"^[\w.-]{1,100}$")] | None = None
    """Name of the job; None: one of its own for each run. With a name, a run takes over the job that an earlier one
    left (`purge_job_on_shutdown` false) if it is the same; two runs at once need two names."""

    datacenters: tuple[str, ...] = Field(default=("*",), min_length=1)
    """Where hosts may run."""

    node_pool: str | None = None
    """Node pool; None: the namespace's."""

    constraints: tuple[NomadConstraint, ...] = ()
    """Further conditions on nodes."""

    priority: int = Field(default=50, ge=1, le=100)
    """Priority of the job among others."""

    driver: Literal["docker", "podman", "exec", "raw_exec", "singularity"] = "docker"
    """How hosts run on their node. `singularity`: by `apptainer` or `singularity`, started by `raw_exec`."""

    image: str = Field(default="python:3.12-slim", min_length=1)
    """For `docker` and `podman`: what containers are made from. It needs python3 (3.8 or newer) and sh."""

    force_pull: bool = False
    """Ask the registry for the image even where a node has it."""

    singularity_image: str | None = None
    """For `singularity`: the image, a path on the nodes (`/images/tools.sif`) or an address (`docker://...`)."""

    singularity_program: str = Field(default="apptainer", min_length=1)
    """For `singularity`: the program's name or path on the nodes."""

    python: str = Field(default="python3", min_length=1)
    """The interpreter that runs the sandbox server: its name or path there, 3.8 or newer."""

    isolation: Literal["bubblewrap", "user", "auto", "none"] | None = None
    """How slots of a host are kept apart; None: by a Unix user each in containers, by bubblewrap elsewhere. `none` runs
    commands as whoever the host runs as."""

    cpu_mhz: int = Field(default=500, ge=1)
    """Processor share of a host that the scheduler sets aside."""

    host_memory_mb: int | None = Field(default=None, ge=64)
    """Memory of a host; None: as much as its slots may have together."""

    purge_job_on_start: bool = False
    """End the job of that name first, whoever started it, instead of taking it over."""

    purge_job_on_shutdown: bool = True
    """End the job with the run. With false its hosts stay and wait for a next run, for at most `max_lifetime_s`."""

    scale_cooldown_s: float = Field(default=10.0, ge=0)
    """How long there must have been more hosts than are needed before the job is scaled down."""

    read_only_root: bool = True
    """For `docker` and `podman`: nothing of a container can be written but its slots' own folders. With false, every
    trajectory gets a fresh host in which whatever the image lets its users write can be written, on its node's disk;
    needs `slots` 1."""

    workspace: str | None = DEFAULT_WORKSPACE
    """With `read_only_root` false: where the slot works. None: in the image's own working directory, with what lies
    there. (An image that names none, or `/`, gives `/workspace`.)"""

    image_variables: bool = False
    """For `docker` and `podman`: commands get the environment variables of the image too, and not only its PATH."""

    # --- slots -------------------------------------------------------------------------------------

    slots: int = Field(default=10, ge=1, le=256)
    """Slots of one host."""

    max_hosts: int = Field(default=10, ge=1)
    """Hosts started at most."""

    launch_timeout_s: float = Field(default=120.0, gt=0)
    """How long a host may take to start, its image included."""

    memory_mb: int = Field(default=512, ge=64)
    """Memory of the processes of a slot; files in its workspace and `/tmp` come on top."""

    disk_mb: int = Field(default=256, ge=1)
    """Size of a slot's workspace; with isolation `user` it is not limited."""

    tmp_mb: int = Field(default=64, ge=1)
    """Size of a slot's `/tmp`; with isolation `user` it is not limited."""

    max_processes: int = Field(default=128, ge=8)
    """Processes and threads of a slot."""

    open_files: int = Field(default=1024, ge=64)
    """Files a process in a slot may have open."""

    require_limits: tuple[Literal["memory", "processes", "disk", "network"], ...] = ()
    """Limits without which no host starts, rather than running with what nodes offer."""

    max_lifetime_s: float = Field(default=86_400.0, ge=60)
    """A host ends its slots after so long, whatever its driver does."""

    @model_validator(mode="after")
    def _check_driver(self) -> Self:
        if self.driver == "singularity" and not self.singularity_image:
            raise ValueError("driver is singularity: say which singularity_image")
        if self.driver != "singularity" and self.singularity_image:
            raise ValueError(
                f"singularity_image is {self.singularity_image!r} while driver is {self.driver}: set driver to "
                "singularity, or leave out singularity_image"
            )
        return self

    @model_validator(mode="after")
    def _check_network(self) -> Self:
        if not self.allow_network and self.isolation == "none":
            raise ValueError(
                "isolation 'none' cannot keep commands from the network: set allow_network to true to accept that, or "
                "leave out isolation"
            )
        return self

    @model_validator(mode="after")
    def _check_surroundings(self) -> Self:
        if self.in_container and self.folders and self.read_only_root:
            raise ValueError(
                "folders cannot be made in a container while read_only_root is true: set it to false"
            )
        if not self.in_container and (not self.read_only_root or self.image_variables):
            raise ValueError(
                f"read_only_root and image_variables are for the drivers docker and podman, and driver is {self.driver}"
            )
        if self.read_only_root and self.workspace != DEFAULT_WORKSPACE:
            raise ValueError(
                f"workspace is {self.workspace!r}, which needs read_only_root false and slots 1"
            )
        if not self.read_only_root and self.slots != 1:
            raise ValueError(
                f"read_only_root false needs slots 1, and slots is {self.slots}: slots that share a container must "
                "have nothing else in common that they can write"
            )
        if self.folders and self.slots != 1 and self.slots_isolation != "bubblewrap":
            raise ValueError(
                f"folders need slots 1 with isolation {self.slots_isolation}, and slots is {self.slots}"
            )
        if self.workspace is not None:
            SlotSurroundings(folders=(self.workspace,))
        return self

    @model_validator(mode="after")
    def _check_what_stays(self) -> Self:
        if not self.purge_job_on_shutdown and self.job_id is None:
            raise ValueError(
                "purge_job_on_shutdown is false, and without job_id no later run could find the job: give it a name"
            )
        return self

    @model_validator(mode="after")
    def _check_tls(self) -> Self:
        if (self.client_cert is None) != (self.client_key is None):
            raise ValueError("client_cert and client_key go together: give both or neither")
        return self

    @property
    def single_use_hosts(self) -> bool:
        """What a trajectory may write outside its folders goes with its host."""
        return not self.read_only_root

    @property
    def prepare_timeout_s(self) -> float:
        """How long getting ready may take: ending what is there, and a first host."""
        return 2 * self.launch_timeout_s

    @property
    def slots_isolation(self) -> str:
        """How slots are kept apart."""
        return self.isolation or _ISOLATION.get(self.driver, "bubblewrap")

    @property
    def in_container(self) -> bool:
        """Whether hosts have a network address of their own."""
        return self.driver in _CONTAINERS

    @property
    def url(self) -> str:
        """The API's address, without a slash at its end."""
        return (self.address or os.environ.get("NOMAD_ADDR") or "http://127.0.0.1:4646").rstrip("/")

    def build(self) -> SlotPool:
        """The backend, not started. Checks of the cluster come with its `start`."""
        from agentenv_backends.nomad.provider import NomadProvider  # noqa: PLC0415 - when built
        from agentenv_backends.pool import SlotPool  # noqa: PLC0415 - when built

        return SlotPool(NomadProvider(self), self.pool_settings())
