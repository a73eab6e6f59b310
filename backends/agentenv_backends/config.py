"""Which backend, and how: small configs told apart by a literal `type`. Unknown keys are refused.

    parse_backend_config({"type": "local", "slots": 8}).build()

A new backend is one class here, added to `_OFFERED` and to `BackendConfig`: its `build` imports
what it needs, so nobody pays for a backend that is not used.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from agentenv_backends.errors import BackendConfigError

if TYPE_CHECKING:
    from agentenv_backends.pool import SlotPool
    from agentenv_backends.settings import PoolSettings


class PoolConfig(BaseModel):
    """What every backend with a pool of slots has in common."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    slots: int = Field(default=64, ge=1, le=4096)
    """Slots of one host: how many trajectories it may run at the same time."""

    min_hosts: int = Field(default=1, ge=0)
    """Hosts kept running."""

    max_hosts: int = Field(default=1, ge=1)
    """Hosts started at most, when trajectories wait and every slot is taken."""

    warm_slots: int = Field(default=1, ge=0)
    """Slots a host opens before anybody asks. Further ones are opened on demand, and kept."""

    acquire_timeout_s: float = Field(default=30.0, gt=0)
    """How long a trajectory waits for a slot before that is an error."""

    launch_timeout_s: float = Field(default=60.0, gt=0)
    """How long a host may take to start."""

    idle_host_s: float = Field(default=60.0, gt=0)
    """Hosts above `min_hosts` that were not used for so long are ended."""

    lease_s: float = Field(default=120.0, ge=30)
    """A host that has not heard from its driver for so long ends itself and all it holds."""

    allow_network: bool = False
    """Whether commands may use the network."""

    @model_validator(mode="after")
    def _check_hosts(self) -> Self:
        if self.min_hosts > self.max_hosts:
            raise ValueError(
                f"min_hosts is {self.min_hosts}, above max_hosts, which is {self.max_hosts}: "
                "lower the one or raise the other"
            )
        return self

    def pool_settings(self) -> PoolSettings:
        """The pool's part of this config."""
        from agentenv_backends.settings import Limits, PoolSettings  # noqa: PLC0415 - when built

        return PoolSettings(
            limits=Limits(
                slots_per_host=self.slots,
                min_hosts=self.min_hosts,
                max_hosts=self.max_hosts,
                warm_slots=self.warm_slots,
                idle_host_s=self.idle_host_s,
            ),
            acquire_timeout_s=self.acquire_timeout_s,
            launch_timeout_s=self.launch_timeout_s,
        )


class LocalConfig(PoolConfig):
    """Sandboxes on this machine."""

    type: Literal["local"] = "local"
    """This backend's name."""

    isolation: Literal["bubblewrap", "none"] = "bubblewrap"
    """How slots are confined. `none` runs commands as the user who runs this program, who sees all
    its files and processes: only for code that is trusted as one's own."""

    memory_mb: int = Field(default=512, ge=64)
    """Memory of the processes of a slot; files in its workspace and `/tmp` come on top."""

    disk_mb: int = Field(default=256, ge=1)
    """Size of a slot's workspace, which is held in memory."""

    tmp_mb: int = Field(default=64, ge=1)
    """Size of a slot's `/tmp`, held in memory too."""

    max_processes: int = Field(default=128, ge=8)
    """Processes and threads of a slot."""

    open_files: int = Field(default=1024, ge=64)
    """Files a process in a slot may have open."""

    cpus: float | None = Field(default=None, gt=0)
    """Processors of a slot; None: as many as the machine has."""

    require_limits: tuple[Literal["memory", "processes", "disk", "network"], ...] = ()
    """Limits without which no host starts, rather than running with what this machine offers."""

    @model_validator(mode="after")
    def _check_what_none_gives_up(self) -> Self:
        if self.isolation == "none" and not self.allow_network:
            raise ValueError(
                "isolation 'none' cannot keep commands from the network: set allow_network to true "
                "to accept that, or use isolation 'bubblewrap'"
            )
        return self

    def build(self) -> SlotPool:
        """The backend, not started. Checks of the machine come with its `start`."""
        from agentenv_backends.local import LocalProvider  # noqa: PLC0415 - when built
        from agentenv_backends.pool import SlotPool  # noqa: PLC0415 - when built

        return SlotPool(LocalProvider(self), self.pool_settings())


_OFFERED: dict[str, type[LocalConfig]] = {"local": LocalConfig}


def _refuse_unknown_type(value: Any) -> Any:
    wanted = value.get("type", "local") if isinstance(value, Mapping) else None
    if wanted is not None and wanted not in _OFFERED:
        raise BackendConfigError(
            f"backend type {wanted!r} is not offered; there is: {', '.join(sorted(_OFFERED))}"
        )
    return value


BackendConfig = Annotated[LocalConfig, BeforeValidator(_refuse_unknown_type)]
"""Any backend's config; a mapping without `type` is a local one. With a second class this becomes
`Annotated[LocalConfig | Other, Field(discriminator="type"), BeforeValidator(...)]`."""


def parse_backend_config(values: Mapping[str, Any]) -> LocalConfig:
    """The config that `values` describe. Raises `BackendConfigError` naming each key and value
    that is wrong.
    """
    _refuse_unknown_type(values)
    try:
        return _OFFERED[values.get("type", "local")].model_validate(dict(values))
    except ValidationError as error:
        raise BackendConfigError("; ".join(_sentence(fault) for fault in error.errors())) from None


def _sentence(fault: Any) -> str:
    key = ".".join(str(part) for part in fault["loc"])
    if not key:
        return f"backend: {fault['msg']}"
    return f"backend.{key} = {fault['input']!r}: {fault['msg']}"
