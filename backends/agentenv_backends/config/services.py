"""Services that a host has beside its main container. Data; starting them is the Docker backend's."""

from __future__ import annotations

from graphlib import CycleError, TopologicalSorter
from pathlib import Path  # noqa: TC003 - pydantic reads it
from typing import TYPE_CHECKING, Self

from pydantic import BaseModel, ConfigDict, Field, SecretStr, model_validator

if TYPE_CHECKING:
    from collections.abc import Sequence

MAIN = "main"
"""The name under which services reach the container that trajectories work in."""


class _Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class ServiceHealthcheck(_Frozen):
    """How the engine finds out whether a service works."""

    test: tuple[str, ...] = Field(min_length=1)
    """As engines take it: `CMD` and a program's arguments, `CMD-SHELL` and a line for `/bin/sh`, or `NONE` alone."""

    interval_s: float = Field(default=30.0, gt=0, le=3600)
    """Between two tries, and before the first."""

    timeout_s: float = Field(default=30.0, gt=0, le=3600)
    """Of one try."""

    retries: int = Field(default=3, ge=1, le=1000)
    """Failures one after another that make a service unhealthy."""

    start_period_s: float = Field(default=0.0, ge=0, le=3600)
    """Failures within it do not count."""


class ServiceConfig(_Frozen):
    """One service: a container beside the main one, which reaches it by its name."""

    name: str = Field(pattern=r"^[a-zA-Z0-9][a-zA-Z0-9_.-]{0,62}$")
    """What others reach it by."""

    image: str | None = Field(default=None, min_length=1)
    """What its container is made from; or `dockerfile`."""

    dockerfile: Path | None = None
    """Build its image from this file."""

    build_context: Path | None = None
    """Folder whose files the Dockerfile may copy."""

    build_args: dict[str, str] = Field(default={})
    """Values for the Dockerfile's `ARG`s."""

    entrypoint: tuple[str, ...] | None = None
    """Instead of the image's."""

    command: tuple[str, ...] | None = None
    """Instead of the image's."""

    variables: dict[str, SecretStr] = Field(default={})
    """Environment variables."""

    working_dir: str | None = None
    """Instead of the image's."""

    user: str | None = None
    """Instead of the image's."""

    hostname: str | None = None
    """What it calls itself; None: its name."""

    after: tuple[str, ...] = ()
    """Services that are to be ready before it is started."""

    healthcheck: ServiceHealthcheck | None = None
    """Instead of the image's."""

    files: dict[str, Path] = Field(default={})
    """Files of the driver's machine that are copied into it, by their absolute paths there."""

    volumes: tuple[str, ...] = ()
    """Absolute paths that lie on a volume of this container, which goes with it."""

    tmpfs: tuple[str, ...] = ()
    """Absolute paths that are held in memory."""

    read_only_root: bool = False
    """Nothing but volumes and tmpfs can be written."""

    memory_mb: int = Field(default=2048, ge=16)
    """Memory of the container."""

    shm_mb: int = Field(default=64, ge=1)
    """Size of its /dev/shm."""

    cpus: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """Processors; None: as many as the machine has."""

    max_processes: int = Field(default=512, ge=8)
    """Processes and threads."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.name == MAIN:
            raise ValueError(
                f"{MAIN} is the container that trajectories work in: give the service another name"
            )
        if (self.image is None) == (self.dockerfile is None):
            raise ValueError(f"service {self.name}: give either an image or a dockerfile")
        if self.files and self.read_only_root:
            raise ValueError(
                f"service {self.name}: files are copied in, which read_only_root does not let"
            )
        for path in (*self.volumes, *self.tmpfs):
            if ":" in path:
                raise ValueError(
                    f"service {self.name}: {path!r} must be a path alone, without settings"
                )
        for path in (*self.files, *self.volumes, *self.tmpfs):
            if not path.startswith("/") or ".." in path.split("/") or path == "/":
                raise ValueError(f"service {self.name}: {path!r} is no absolute path")
        return self


def order_of(services: Sequence[ServiceConfig]) -> tuple[tuple[str, ...], ...]:
    """Names of services in groups, each of which is started when those before it are ready.

    Raises `ValueError` for names that stand twice or are not there, and for circles.
    """
    names = [service.name for service in services]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"services: {', '.join(twice)} stands twice")
    for service in services:
        if missing := sorted(set(service.after) - set(names)):
            raise ValueError(
                f"service {service.name} waits for {', '.join(missing)}, which is not there"
            )
    sorter = TopologicalSorter({service.name: service.after for service in services})
    try:
        sorter.prepare()
    except CycleError as error:
        raise ValueError(
            f"services wait for each other in a circle: {' -> '.join(error.args[1])}"
        ) from None
    groups = []
    while sorter.is_active():
        ready = sorter.get_ready()
        groups.append(tuple(sorted(ready)))
        sorter.done(*ready)
    return tuple(groups)
