"""What the configs of all backends with a pool of slots have in common."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from agentenv_backends.errors import BackendUnavailableError

if TYPE_CHECKING:
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
    """Free slots kept ready for whoever asks next, on all hosts together. As they are taken further
    ones are opened, and hosts started ahead, as far as `slots` and `max_hosts` go. 0: none."""

    acquire_timeout_s: float = Field(default=30.0, gt=0)
    """How long a trajectory waits for a slot before that is an error."""

    launch_timeout_s: float = Field(default=60.0, gt=0)
    """How long a host may take to start."""

    idle_host_s: float = Field(default=60.0, gt=0)
    """Hosts above `min_hosts` that nobody needed for so long are ended."""

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

    @property
    def prepare_timeout_s(self) -> float:
        """How long checking the machine may take, once, before the first host."""
        return self.launch_timeout_s

    @property
    def single_use_hosts(self) -> bool:
        """Whether a host serves one trajectory and is then ended; see `settings.Limits`."""
        return False

    @property
    def needed_life_s(self) -> float:
        """Seconds a host must have left to take a trajectory."""
        return 0.0

    def pool_settings(self) -> PoolSettings:
        """The pool's part of this config."""
        from agentenv_backends.settings import Limits, PoolSettings  # noqa: PLC0415 - when built

        return PoolSettings(
            limits=Limits(
                slots_per_host=self.slots,
                min_hosts=self.min_hosts,
                max_hosts=self.max_hosts,
                warm_slots=self.warm_slots,
                single_use_hosts=self.single_use_hosts,
                idle_host_s=self.idle_host_s,
                trajectory_life_s=self.needed_life_s,
            ),
            acquire_timeout_s=self.acquire_timeout_s,
            launch_timeout_s=self.launch_timeout_s,
            prepare_timeout_s=self.prepare_timeout_s,
        )


def needs_extra(backend: str, missing: str | None) -> BackendUnavailableError:
    """The error for a backend whose client library, of the extra of the same name, is not installed."""
    return BackendUnavailableError(
        f"the {backend} backend needs {missing}: `pip install 'agentenv[{backend}]'`"
    )
