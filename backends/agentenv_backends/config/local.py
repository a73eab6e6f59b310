"""The config of the local backend."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, Self

from pydantic import Field, model_validator

from agentenv_backends.config.pool import PoolConfig
from agentenv_backends.config.surroundings import SlotSurroundings

if TYPE_CHECKING:
    from agentenv_backends.pool import SlotPool


class LocalConfig(PoolConfig, SlotSurroundings):
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
        if self.isolation == "none" and self.folders:
            raise ValueError(
                "isolation 'none' has no folders of a slot's own at fixed paths: leave out folders, or use isolation "
                "'bubblewrap'"
            )
        return self

    def build(self) -> SlotPool:
        """The backend, not started. Checks of the machine come with its `start`."""
        from agentenv_backends.local import LocalProvider  # noqa: PLC0415 - when built
        from agentenv_backends.pool import SlotPool  # noqa: PLC0415 - when built

        return SlotPool(LocalProvider(self), self.pool_settings())
