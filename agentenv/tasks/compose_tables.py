"""The tables of compose files that are taken, as they are written. What they mean together is `compose`'s."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from agentenv.tasks import compose_values as values

Text = Annotated[str, BeforeValidator(values.text)]
Texts = Annotated[tuple[str, ...], BeforeValidator(values.texts)]
Words = Annotated[tuple[str, ...], BeforeValidator(values.words)]
Megabytes = Annotated[int, BeforeValidator(values.megabytes)]
Processors = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Seconds = Annotated[float, BeforeValidator(values.seconds)]


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class BuildTable(_Table):
    """How an image is built."""

    context: Text = "."
    dockerfile: Text = "Dockerfile"
    args: Annotated[dict[str, Text], BeforeValidator(values.pairs)] = Field(default={})


class HealthcheckTable(_Table):
    """How it is found out whether a service works."""

    test: Any = None
    interval: Seconds = 30.0
    timeout: Seconds = 30.0
    retries: int = 3
    start_period: Seconds = 0.0
    start_interval: Seconds | None = None
    disable: bool = False


class _Limits(_Table):
    cpus: Processors | None = None
    memory: Megabytes | None = None


class _Resources(_Table):
    limits: _Limits = _Limits()
    reservations: Any = None


class _Deploy(_Table):
    resources: _Resources = _Resources()


def _build(value: Any) -> Any:
    return {"context": value} if isinstance(value, str) else value


class ServiceTable(_Table):
    """One of `services`, without what is left out."""

    image: Text | None = None
    build: Annotated[BuildTable | None, BeforeValidator(_build)] = None
    command: Words | None = None
    entrypoint: Words | None = None
    environment: Annotated[dict[str, str], BeforeValidator(values.environment)] = Field(default={})
    working_dir: Text | None = None
    user: Text | None = None
    hostname: Text | None = None
    depends_on: Annotated[tuple[str, ...], BeforeValidator(values.dependencies)] = ()
    healthcheck: HealthcheckTable | None = None
    volumes: list[Any] = Field(default=[])
    tmpfs: Texts = ()
    mem_limit: Megabytes | None = None
    cpus: Processors | None = None
    deploy: _Deploy = _Deploy()
    shm_size: Megabytes | None = None
    read_only: bool = False

    @property
    def memory_mb(self) -> int | None:
        """Its limit, in either place."""
        return self.mem_limit or self.deploy.resources.limits.memory

    @property
    def processors(self) -> float | None:
        """Its limit, in either place."""
        return self.cpus or self.deploy.resources.limits.cpus
