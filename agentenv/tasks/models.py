"""The tables of task.toml, frozen: Harbor's schema 1.4 with what `AgentRunner` tasks have on top.

Keys that are not known are kept apart and never fail a load; `unknown_keys` lists them.
"""

from __future__ import annotations

from collections.abc import (
    Iterator,  # noqa: TC003 - pydantic reads the annotations of this module
)
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
    model_validator,
)

from agentenv.tasks import rules

if TYPE_CHECKING:
    from collections.abc import (
        Mapping,
    )

NetworkMode = Literal["public", "no-network", "allowlist"]


def _no_boolean(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError(f"{str(value).lower()} is no number")  # noqa: TRY004 - pydantic reports ValueErrors
    return value


Seconds = Annotated[float, BeforeValidator(_no_boolean), Field(gt=0, allow_inf_nan=False)]
Pause = Annotated[float, BeforeValidator(_no_boolean), Field(ge=0, allow_inf_nan=False)]
Megabytes = Annotated[int, BeforeValidator(_no_boolean), Field(gt=0, le=1 << 30)]
Count = Annotated[int, BeforeValidator(_no_boolean), Field(ge=0)]
User = Annotated[str | int, BeforeValidator(_no_boolean)]
Reward = Annotated[float, BeforeValidator(_no_boolean), Field(allow_inf_nan=False)]
ServiceName = Annotated[str, Field(pattern=rf"^{rules.SERVICE_NAME.pattern}$")]


class Table(BaseModel):
    """A table of task.toml. What is unknown in it is not written out again."""

    model_config = ConfigDict(
        frozen=True, extra="allow", use_attribute_docstrings=True, validate_default=False
    )

    @model_serializer(mode="wrap")
    def _known_only(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        known = type(self).model_fields
        return {name: value for name, value in handler(self).items() if name in known}


def unknown_keys(table: Table, prefix: str = "") -> Iterator[str]:
    """Where task.toml says something that nothing here reads."""
    for name in table.model_extra or {}:
        yield f"{prefix}{name}"
    for name in type(table).model_fields:
        value = getattr(table, name)
        if isinstance(value, Table):
            yield from unknown_keys(value, f"{prefix}{name}.")
        elif isinstance(value, tuple):
            for number, each in enumerate(value):
                if isinstance(each, Table):
                    yield from unknown_keys(each, f"{prefix}{name}.{number}.")


class _Network(Table):
    """Who may be reached, where a table says so."""

    network_mode: NetworkMode | None = None
    """`public`, `no-network` or `allowlist`."""
    allowed_hosts: tuple[str, ...] | None = None
    """With `allowlist`: names, `*.name`, addresses, networks. None of them: nothing may be reached."""

    @field_validator("allowed_hosts")
    @classmethod
    def _check_hosts(cls, hosts: tuple[str, ...] | None) -> tuple[str, ...] | None:
        return None if hosts is None else tuple(rules.checked_host(host) for host in hosts)


class _PhaseNetwork(_Network):
    """A phase's own network, in place of the environment's."""

    @model_validator(mode="after")
    def _check_network(self) -> Self:
        if self.allowed_hosts is not None and self.network_mode != "allowlist":
            raise ValueError('allowed_hosts needs network_mode = "allowlist"')
        return self


class Author(Table):
    """Who wrote a task."""

    name: str
    email: str | None = None


class TaskInfo(Table):
    """`[task]`: what a registry lists."""

    name: Annotated[str, AfterValidator(rules.checked_task_name)]
    """`organisation/name`."""
    version: Annotated[str, Field(min_length=1)] | None = None
    description: str = ""
    authors: tuple[Author, ...] = ()
    keywords: tuple[str, ...] = ()


class AgentTable(_PhaseNetwork):
    """`[agent]`: how the agent runs."""

    timeout_sec: Seconds | None = None
    """None: no limit."""
    user: User | None = None
    """Whom its commands run as; None: the image's default user."""


class CollectHook(Table):
    """A command that runs when the agent is done, before artifacts are taken. Its failure is only noted."""

    command: str
    service: ServiceName = rules.MAIN_SERVICE
    timeout_sec: Seconds = 60.0
    user: User | None = None


class Healthcheck(Table):
    """When an environment is ready: the command's exit code is 0."""

    command: Annotated[str, Field(min_length=1)]
    interval_sec: Pause = 5.0
    timeout_sec: Seconds = 30.0
    start_period_sec: Pause = 0.0
    """Failures this early do not count."""
    start_interval_sec: Pause = 5.0
    """How long to wait after one of those."""
    retries: Annotated[int, BeforeValidator(_no_boolean), Field(ge=1)] = 3
    """Failures in a row, after that, that mean the environment is broken."""


class Tpu(Table):
    """TPU chips: as many as the product of the topology."""

    type: Annotated[str, Field(min_length=1)]
    topology: Annotated[str, Field(pattern=rf"^{rules.TPU_TOPOLOGY.pattern}$")]


class McpServer(Table):
    """An MCP server that the agent is told of."""

    name: str
    transport: Annotated[
        Literal["stdio", "sse", "streamable-http"],
        BeforeValidator(lambda value: "streamable-http" if value == "http" else value),
    ] = "sse"
    url: str | None = None
    command: str | None = None
    args: tuple[str, ...] = ()
    headers: dict[str, str] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.transport == "stdio":
            if not self.command:
                raise ValueError("transport stdio needs a command")
            if self.headers:
                raise ValueError("headers are for servers with a url, not for transport stdio")
        elif not self.url:
            raise ValueError(f"transport {self.transport} needs a url")
        _check_headers(self.headers)
        return self


def _check_headers(headers: Mapping[str, str]) -> None:
    from agentenv.tasks.templates import is_sensitive, is_template  # noqa: PLC0415 - few tasks have any

    for name, value in headers.items():
        secret = is_sensitive(name) or value.lower().startswith(("bearer ", "basic "))
        if secret and not is_template(value):
            raise ValueError(
                f"header {name} holds a credential; write ${{NAME}}, which is read from the caller's environment"
            )


class EnvironmentTable(_Network):
    """`[environment]`: what the sandbox is made of."""

    network_mode: NetworkMode | None = None
    build_timeout_sec: Seconds = 600.0
    """For building the image and starting the sandbox."""
    docker_image: str | None = None
    os: Annotated[
        Literal["linux", "windows"],
        BeforeValidator(lambda value: value.lower() if isinstance(value, str) else value),
    ] = "linux"
    cpus: (
        Annotated[float, BeforeValidator(_no_boolean), Field(gt=0, allow_inf_nan=False)] | None
    ) = None
    memory_mb: Megabytes | None = None
    storage_mb: Megabytes | None = None
    gpus: Count | None = None
    gpu_types: tuple[str, ...] | None = None
    """None: any."""
    tpu: Tpu | None = None
    mcp_servers: tuple[McpServer, ...] = ()
    env: dict[str, str] = Field(default_factory=dict)
    """Variables of every command; values may be templates, see `templates`."""
    skills_dir: str | None = None
    """Where in the image the agent's skills are."""
    healthcheck: Healthcheck | None = None
    workdir: str | None = None
    """Where commands start; None: the image's working directory."""
    gui: bool = False
    """AgentRunner: the image has a desktop."""
    setup_commands: tuple[str, ...] = ()
    """AgentRunner: run before the agent, as the environment's user."""

    @model_validator(mode="before")
    @classmethod
    def _take_legacy_keys(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        values = dict(values)
        for old in ("memory", "storage"):
            _take_legacy_size(values, old)
        if isinstance(values.get("allow_internet"), bool):
            allowed = values.pop("allow_internet")
            if values.get("network_mode") is None and values.get("allowed_hosts") is None:
                values["network_mode"] = "public" if allowed else "no-network"
        return values

    @field_validator("docker_image")
    @classmethod
    def _empty_is_none(cls, image: str | None) -> str | None:
        return image or None

    @field_validator("workdir")
    @classmethod
    def _check_workdir(cls, workdir: str | None) -> str | None:
        if workdir and not workdir.startswith("/"):
            raise ValueError(f"{workdir!r} must be an absolute path in the sandbox")
        return workdir or None

    @model_validator(mode="after")
    def _check_network(self) -> Self:
        # An empty list beside another mode is tolerated here, as the reference does; hosts are not.
        if self.allowed_hosts and self.network_mode != "allowlist":
            raise ValueError('allowed_hosts needs network_mode = "allowlist"')
        return self

    @property
    def network(self) -> NetworkMode:
        """The mode in force."""
        return self.network_mode or "public"


def _take_legacy_size(values: dict[str, Any], old: str) -> None:
    text = values.pop(old, None)
    if text is None:
        return
    if not isinstance(text, str):
        raise ValueError(f"{old} is a text such as 2G; for a number there is {old}_mb")  # noqa: TRY004
    size = rules.megabytes(text)
    if values.get(f"{old}_mb", size) != size:
        raise ValueError(
            f"{old} = {text!r} and {old}_mb = {values[f'{old}_mb']!r} say different things"
        )
    values[f"{old}_mb"] = size


class VerifierTable(_PhaseNetwork):
    """`[verifier]`: how the tests run."""

    timeout_sec: Seconds = 600.0
    env: dict[str, str] = Field(default_factory=dict)
    user: User | None = None
    environment_mode: Literal["shared", "separate"] | None = None
    """`separate`: tests run in a sandbox of their own, with the artifacts. None: `separate` where `environment` is
    given, else `shared`."""
    environment: EnvironmentTable | None = None
    collect: tuple[CollectHook, ...] = ()

    @model_validator(mode="after")
    def _check_mode(self) -> Self:
        if self.environment_mode == "shared" and self.environment is not None:
            raise ValueError(
                'environment_mode = "shared" and an environment of its own exclude each other'
            )
        return self

    @property
    def mode(self) -> Literal["shared", "separate"]:
        """The mode in force."""
        if self.environment_mode is not None:
            return self.environment_mode
        return "shared" if self.environment is None else "separate"


class SolutionTable(Table):
    """`[solution]`: for the oracle."""

    env: dict[str, str] = Field(default_factory=dict)
    """Wins over every other variable."""


class Artifact(Table):
    """What is kept of the sandbox. In task.toml a string stands for its `source`."""

    source: Annotated[str, AfterValidator(rules.checked_source)]
    destination: Annotated[
        str | None, AfterValidator(lambda text: rules.checked_destination(text or ""))
    ] = None
    exclude: tuple[str, ...] = ()
    """Patterns of names that are left out, as tar has them."""
    service: ServiceName | None = None

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, value: Any) -> Any:
        return {"source": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _check_service(self) -> Self:
        if self.service not in (None, rules.MAIN_SERVICE) and not self.source.startswith("/"):
            raise ValueError(f"source {self.source!r} of service {self.service} must be absolute")
        return self


class Step(Table):
    """One of `[[steps]]`."""

    name: Annotated[str, AfterValidator(rules.checked_step_name)]
    agent: AgentTable = AgentTable()
    verifier: VerifierTable = VerifierTable()
    min_reward: Reward | dict[str, Reward] | None = None
    """What the step's rewards must reach for the next step to begin: of `reward`, or of each key."""
    healthcheck: Healthcheck | None = None
    artifacts: tuple[Artifact, ...] = ()


class TaskConfig(Table):
    """The whole of task.toml."""

    schema_version: str = "1.4"
    source: str | None = None
    """Label of the data set."""
    multi_step_reward_strategy: Literal["mean", "final"] | None = None
    artifacts: tuple[Artifact, ...] = ()
    task: TaskInfo | None = None
    metadata: dict[str, Any] = Field(default_factory=dict)
    agent: AgentTable = AgentTable()
    verifier: VerifierTable = VerifierTable()
    environment: EnvironmentTable = EnvironmentTable()
    solution: SolutionTable = SolutionTable()
    steps: tuple[Step, ...] = ()
    """Empty: a single step, with the instruction of the directory itself."""

    @model_validator(mode="before")
    @classmethod
    def _take_legacy_version(cls, values: Any) -> Any:
        if not isinstance(values, dict) or "version" not in values:
            return values
        values = dict(values)
        version = values.pop("version")
        values.setdefault("schema_version", version)
        return values

    @model_validator(mode="after")
    def _check_steps(self) -> Self:
        seen: dict[str, str] = {}
        for step in self.steps:
            name = rules.folded(step.name)
            if name in seen:
                raise ValueError(
                    f"steps {seen[name]!r} and {step.name!r} would share a folder on some systems; rename one"
                )
            seen[name] = step.name
        return self
