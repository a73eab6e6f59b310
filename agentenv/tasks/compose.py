"""environment/docker-compose.yaml: the services of a task. Reading it; starting them is the Docker backend's.

What is taken is a part of the Compose format: services of a task run beside its sandbox in a network of their own, and
nothing in the file leads out of there. What could is refused, and so is what would be left out without a word.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from agentenv.tasks import compose_values as values
from agentenv.tasks.compose_tables import ServiceTable
from agentenv.tasks.errors import TaskFormatError
from agentenv.tasks.files import MAX_FILE_BYTES, files_below, read_text
from agentenv.tasks.rules import MAIN_SERVICE, SERVICE_NAME
from agentenv.tasks.templates import is_template, resolved
from agentenv.yaml_file import parse_yaml
from agentenv_backends.config.services import ServiceConfig, order_of

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from agentenv.tasks.compose_tables import BuildTable, HealthcheckTable

COMPOSE_FILES = ("docker-compose.yaml", "docker-compose.yml")
MAX_VALUES = 20_000
"""Of a compose file, anchors laid out."""
MAX_SERVICES = 16
MAX_COPIED_BYTES = 64 << 20
"""Of all files that one service is given."""
_FOLDER = "environment"

_IGNORED = {
    "ports": "nothing is published on the machine: services are reached by their names",
    "networks": "all services of a task are in one network",
    "restart": "a service that ends fails the run, which is tried again",
    "container_name": "containers are named by run",
    "labels": "it says nothing to a task",
    "logging": "the end of a service's output is kept for errors",
    "stop_grace_period": "services are killed when the run is over",
    "stop_signal": "services are killed when the run is over",
    "pull_policy": "it is the backend's `pull`",
}
_SILENT = frozenset({"expose", "stdin_open", "tty"})
"""What says nothing that does not hold anyway."""
_MAIN_KEYS = frozenset(
    {"image", "build", "environment", "working_dir", "depends_on"}
    | {"mem_limit", "cpus", "deploy", "command", "entrypoint"}
)
_REASONS = {
    "privileged": "it would give the service the machine",
    "cap_add": "it would give the service rights over the machine",
    "devices": "it would give the service the machine's devices",
    "network_mode": "services are in a network of their own",
    "pid": "it would show the service other processes",
    "ipc": "it would let services share memory",
    "security_opt": "it would take off what confines the service",
    "extends": "a task is what is in its own file",
    "env_file": "write the variables into `environment`",
    "profiles": "every service of a task is started",
}


@dataclass(frozen=True, slots=True)
class ComposeService:
    """One service beside the sandbox."""

    name: str
    values: Mapping[str, Any]
    """Of its `ServiceConfig`, but for `variables`."""
    environment: Mapping[str, str]
    """Its variables, with templates as they are written."""


@dataclass(frozen=True, slots=True)
class MainService:
    """What the file says of the sandbox itself. It wins over task.toml's image; task.toml's limits win over it."""

    image: str | None = None
    dockerfile: Path | None = None
    build_context: Path | None = None
    build_args: Mapping[str, str] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    working_dir: str | None = None
    memory_mb: int | None = None
    cpus: float | None = None

    def variables(self, environ: Mapping[str, str]) -> dict[str, str]:
        """Those of every command. Raises `TaskUnsupportedError` for a template of a variable that is not set."""
        return _resolved(self.environment, environ, MAIN_SERVICE)


@dataclass(frozen=True, slots=True)
class Compose:
    """A valid compose file."""

    main: MainService
    services: tuple[ComposeService, ...]
    warnings: tuple[str, ...]

    def service_values(self, environ: Mapping[str, str]) -> tuple[dict[str, Any], ...]:
        """Values of each `ServiceConfig`. Raises `TaskUnsupportedError` for a template of what is not set."""
        return tuple(
            {**each.values, "variables": _resolved(each.environment, environ, each.name)}
            for each in self.services
        )


def _resolved(
    written: Mapping[str, str], environ: Mapping[str, str], service: str
) -> dict[str, str]:
    templates = {name: value for name, value in written.items() if is_template(value)}
    plain = {name: values.text(value) for name, value in written.items() if name not in templates}
    return {**plain, **resolved(templates, environ, f"services.{service}.environment")}


def read_compose(root: Path, name: str) -> Compose:
    """The compose file `name` of the task directory `root`, which is a real path.

    Raises `TaskFormatError` with everything that is wrong with it.
    """
    return _Reading(root, name).compose()


class _Reading:
    """One file being read."""

    def __init__(self, root: Path, name: str) -> None:
        self._root = root
        self._name = name
        self._problems: list[str] = []
        self._warnings: list[str] = []
        self._volumes: dict[str, str] = {}
        """The service that has a named volume."""

    def compose(self) -> Compose:
        found = self._services(self._content())
        for name, service in found.items():
            for other in sorted(set(service.depends_on) - set(found)):
                self._problem(f"services.{name}.depends_on", f"there is no service {other}")
        self._raise_problems()
        main = self._main(found.pop(MAIN_SERVICE, ServiceTable()))
        services = tuple(self._service(name, each) for name, each in found.items())
        if not self._problems:
            self._check_together(services)
        self._raise_problems()
        return Compose(main, services, tuple(dict.fromkeys(self._warnings)))

    # ---- the text ----

    def _content(self) -> dict[str, Any]:
        text = read_text(self._root, self._name) or ""
        try:
            content = parse_yaml(text, most_values=MAX_VALUES)
        except ValueError as error:
            raise TaskFormatError([f"{self._name}: {error}"]) from error
        if not isinstance(content, dict) or not isinstance(content.get("services"), dict):
            raise TaskFormatError([f"{self._name}: services: there are none"])
        for key in content:
            if key in ("services", "version", "name") or str(key).startswith("x-"):
                continue
            if key == "networks":
                self._warn("networks", _IGNORED["networks"])
            elif key == "volumes":
                self._check_volumes(content[key])
            else:
                self._problem(str(key), f"is not offered{_because(str(key))}")
        return content

    def _check_volumes(self, volumes: Any) -> None:
        for name, each in volumes.items() if isinstance(volumes, dict) else ():
            if each:
                self._problem(
                    f"volumes.{name}",
                    "takes no settings: a volume is new in each run, and goes with it",
                )

    def _services(self, content: dict[str, Any]) -> dict[str, ServiceTable]:
        services = content["services"]
        if len(services) > MAX_SERVICES:
            self._problem(
                "services", f"there are {len(services)}; at most {MAX_SERVICES} are taken"
            )
            return {}
        found = {}
        for name, table in services.items():
            if not isinstance(name, str) or not SERVICE_NAME.fullmatch(name):
                self._problem(f"services.{name}", "is no service's name")
            elif not isinstance(table, dict | None):
                self._problem(f"services.{name}", "is no mapping")
            else:
                service = self._validated(name, table or {})
                found.update({name: service} if service is not None else {})
        return found

    def _validated(self, name: str, table: dict[Any, Any]) -> ServiceTable | None:
        own = {str(key): each for key, each in table.items()}
        aliases = own.get("networks")
        if isinstance(aliases, dict) and any(aliases.values()):
            self._problem(f"services.{name}.networks", "takes no settings: a service has its name")
        for key in list(own):
            if key in _IGNORED:
                if own[key] not in ("no", False):
                    self._warn(f"services.{name}.{key}", _IGNORED[key])
                del own[key]
            elif key in _SILENT:
                del own[key]
            elif (
                name == MAIN_SERVICE and key not in _MAIN_KEYS and key in ServiceTable.model_fields
            ):
                self._problem(
                    f"services.{name}.{key}",
                    "is not offered for the sandbox itself: say it in task.toml, or in its Dockerfile",
                )
        try:
            return ServiceTable.model_validate(own)
        except ValidationError as error:
            for fault in error.errors(include_url=False, include_input=False):
                place = ".".join(("services", name, *map(str, fault["loc"])))
                is_unknown = fault["type"] == "extra_forbidden"
                reason = (
                    f"is not offered{_because(str(fault['loc'][-1]))}"
                    if is_unknown
                    else fault["msg"]
                )
                self._problem(place, reason.removeprefix("Value error, "))
            return None

    # ---- the services ----

    def _main(self, service: ServiceTable) -> MainService:
        place = f"services.{MAIN_SERVICE}"
        build = self._built(place, service.build) if service.build is not None else {}
        return MainService(
            image=service.image if service.build is None else None,
            dockerfile=build.get("dockerfile"),
            build_context=build.get("build_context"),
            build_args=build.get("build_args", {}),
            environment=service.environment,
            working_dir=service.working_dir,
            memory_mb=service.memory_mb,
            cpus=service.processors,
        )

    def _service(self, name: str, service: ServiceTable) -> ComposeService:
        place = f"services.{name}"
        if service.build is None and service.image is None:
            self._problem(place, "has neither image nor build")
        if MAIN_SERVICE in service.depends_on:
            self._problem(
                f"{place}.depends_on", f"{MAIN_SERVICE} is started when all services are ready"
            )
        own: dict[str, Any] = {
            "name": name,
            "after": service.depends_on,
            "hostname": service.hostname,
            "entrypoint": service.entrypoint,
            "command": service.command,
            "working_dir": service.working_dir,
            "user": service.user,
            "read_only_root": service.read_only,
            "tmpfs": service.tmpfs,
            "memory_mb": service.memory_mb,
            "shm_mb": service.shm_size,
            "cpus": service.processors,
            "healthcheck": self._healthcheck(f"{place}.healthcheck", service.healthcheck),
            **(
                self._built(f"{place}.build", service.build)
                if service.build
                else {"image": service.image}
            ),
            **self._mounts(f"{place}.volumes", name, service.volumes),
        }
        given = {key: value for key, value in own.items() if value is not None}
        return ComposeService(name, given, service.environment)

    def _healthcheck(self, place: str, check: HealthcheckTable | None) -> dict[str, Any] | None:
        if check is None:
            return None
        if check.disable:
            return {"test": ("NONE",)}
        test = check.test
        try:
            found = (
                ("CMD-SHELL", values.text(test)) if isinstance(test, str) else values.texts(test)
            )
        except ValueError as error:
            self._problem(f"{place}.test", str(error))
            return None
        if found[:1] == ("NONE",):
            return {"test": ("NONE",)}
        if found[:1] not in (("CMD",), ("CMD-SHELL",)) or len(found) < 2:
            self._problem(
                f"{place}.test", "must be a line, or a list that begins with CMD or CMD-SHELL"
            )
            return None
        return {
            "test": found,
            "interval_s": check.interval or 30.0,
            "timeout_s": check.timeout or 30.0,
            "retries": check.retries,
            "start_period_s": check.start_period,
        }

    def _built(self, place: str, build: BuildTable) -> dict[str, Any]:
        context = self._inside(f"{place}.context", build.context)
        if context is None:
            return {}
        if not context.is_dir():
            self._problem(f"{place}.context", f"{build.context!r} is no folder")
            return {}
        dockerfile = self._inside(f"{place}.dockerfile", f"{build.context}/{build.dockerfile}")
        if dockerfile is None:
            return {}
        if not dockerfile.is_file():
            self._problem(f"{place}.dockerfile", f"{build.dockerfile!r} is no file")
            return {}
        return {"dockerfile": dockerfile, "build_context": context, "build_args": dict(build.args)}

    def _inside(self, place: str, path: str) -> Path | None:
        """What a path leads to, if that is in environment/."""
        folder = self._root / _FOLDER
        if path.startswith("/") or "\0" in path:
            self._problem(place, f"{path!r} must be relative to {_FOLDER}/")
            return None
        try:
            real = (folder / path).resolve(strict=True)
        except (OSError, RuntimeError):
            self._problem(place, f"{path!r}: there is no such file or folder in {_FOLDER}/")
            return None
        if not real.is_relative_to(folder.resolve()):
            self._problem(place, f"{path!r} leads out of {_FOLDER}/")
            return None
        return real

    # ---- mounts ----

    def _mounts(self, place: str, service: str, mounts: list[Any]) -> dict[str, Any]:
        files: dict[str, Path] = {}
        volumes = []
        for number, mount in enumerate(mounts):
            here = f"{place}[{number}]"
            try:
                source, target = values.mounted(mount)
            except ValueError as error:
                self._problem(here, str(error))
                continue
            if source.startswith((".", "/", "~")):
                files |= self._copied(here, source, target)
                continue
            volumes.append(target)
            if source and self._volumes.setdefault(source, service) != service:
                self._problem(
                    here,
                    f"volume {source} is {self._volumes[source]}'s already: services share no volumes",
                )
        if sum(path.stat().st_size for path in files.values()) > MAX_COPIED_BYTES:
            self._problem(
                place, f"more than {MAX_COPIED_BYTES} bytes are copied in: build them into an image"
            )
        return {"files": files, "volumes": tuple(volumes)}

    def _copied(self, place: str, source: str, target: str) -> dict[str, Path]:
        real = self._inside(place, source)
        if real is None:
            return {}
        if real.is_file():
            return {target: real}
        found, problems = files_below(self._root, real, max_file_bytes=MAX_FILE_BYTES)
        self._problems += problems
        return {str(PurePosixPath(target) / each.name): each.path for each in found}

    # ---- all of them ----

    def _check_together(self, services: tuple[ComposeService, ...]) -> None:
        configs = []
        for service in services:
            try:
                configs.append(ServiceConfig.model_validate(dict(service.values)))
            except ValidationError as error:
                for fault in error.errors(include_url=False, include_input=False):
                    place = ".".join(("services", service.name, *map(str, fault["loc"])))
                    self._problem(place, fault["msg"].removeprefix("Value error, "))
        try:
            if len(configs) == len(services):
                order_of(configs)
        except ValueError as error:
            self._problem("services", str(error))

    def _problem(self, place: str, reason: str) -> None:
        self._problems.append(f"{self._name}: {place}: {reason}")

    def _warn(self, place: str, reason: str) -> None:
        self._warnings.append(f"{self._name}: {place} is left out: {reason}")

    def _raise_problems(self) -> None:
        if self._problems:
            raise TaskFormatError(list(dict.fromkeys(self._problems)))


def _because(key: str) -> str:
    reason = _REASONS.get(key)
    return f": {reason}" if reason else ""
