"""The configuration a command runs with, put together from its four sources.

Precedence: flags over environment variables over the YAML file over what `config_init` returned.
How each is written is told in `layers.py`. What a source does not mention stays as the one below
it left it.

* A nested section whose `type` a source changes starts anew: nothing of the other type is kept.
* `openai` as a mapping is laid over every server; as a list (YAML only) it replaces them all, each
entry standing for
  itself. Flags and variables of `openai` are laid over every server there then is.
* A bare `ServerBaseline` means four local servers, until a source names a `base_url`: then it
means that one.
* Unknown names are refused, with the nearest known one; so are values that do not fit, each with
its path, the value, where
  it came from and what would be accepted. Nothing is ignored.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ValidationError

from agentenv.cli.fields import Setting, input_name, is_tag, settings_of
from agentenv.cli.layers import ConfigFile, Layer, file_layer, flags_layer, variables_layer
from agentenv.cli.validation import Validation
from agentenv.errors import ConfigError
from agentenv.policy.config import APIServerConfig, ServerBaseline, resolve_servers

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

Servers = ServerBaseline | list[APIServerConfig] | tuple[APIServerConfig, ...]
_SWITCHES = ("slurm", "testing")


@dataclass(frozen=True, slots=True)
class Settings:
    """What an environment is built from."""

    env: Any
    """An instance of the environment's `env_config_cls`."""
    servers: list[APIServerConfig]
    slurm: bool = False
    testing: bool = False

    def given(self) -> dict[str, Any]:
        """What was set, as a file that resolves to these settings again would say it. Not masked."""
        servers = [given_values(server) for server in self.servers]
        switches = {name: True for name in _SWITCHES if getattr(self, name)}
        return {"env": given_values(self.env), "openai": servers, **switches}

    def in_force(self) -> dict[str, Any]:
        """Every setting there is, defaults included. Not masked."""
        return {"env": self.env, "openai": self.servers}


def resolve(
    env: BaseModel,
    servers: Servers,
    *,
    file: ConfigFile | None = None,
    environ: Mapping[str, str] | None = None,
    flags: Sequence[str] = (),
) -> Settings:
    """The settings that all sources together make. `env` and `servers` are what `config_init`
    returned.

    Raises `ConfigError` that lists everything which is wrong.
    """
    trees = setting_trees(env, servers)
    layers = [] if file is None else [file_layer(file, trees)]
    layers += [variables_layer(environ or {}, trees), flags_layer(flags, trees)]
    _refuse([problem for layer in layers for problem in layer.problems])
    env_values = given_values(env)
    for layer in layers:
        env_values = merge(env_values, layer.values.get("env") or {}, trees["env"])
    check = Validation(layers, trees)
    chosen = Settings(
        env=check.build(type(env), env_values, "env"),
        servers=[check.build(*entry) for entry in _server_values(servers, layers, trees["openai"])],
        slurm=check.switch("slurm"),
        testing=check.switch("testing"),
    )
    _refuse(check.problems)
    return chosen


def setting_trees(env: BaseModel, servers: Servers) -> dict[str, Setting]:
    """Every setting there is, by section."""
    first = servers if isinstance(servers, ServerBaseline) else next(iter(servers), None)
    server_class = type(first) if isinstance(first, APIServerConfig) else APIServerConfig
    return {"env": settings_of(type(env), env), "openai": settings_of(server_class, first)}


def given_values(model: BaseModel) -> dict[str, Any]:
    """What was set on a model, as nested dicts.

    Its own defaults are left out, and so is a nested model that follows from the rest: it would
    contradict a source that says the same thing in other words.
    """
    values: dict[str, Any] = {}
    for name, info in type(model).model_fields.items():
        if name in model.model_fields_set or is_tag(info):
            value = getattr(model, name)
            nested = isinstance(value, BaseModel)
            values[input_name(name, info)] = given_values(value) if nested else value
    return {name: value for name, value in values.items() if not _follows(model, name, values)}


def _follows(model: BaseModel, name: str, values: dict[str, Any]) -> bool:
    held = getattr(model, name, None)
    if not isinstance(held, BaseModel):
        return False
    try:
        rest = {key: value for key, value in values.items() if key != name}
        return bool(getattr(type(model).model_validate(rest), name) == held)
    except ValidationError:
        return False


def merge(base: Mapping[str, Any], over: Mapping[str, Any], tree: Setting) -> dict[str, Any]:
    """`over` laid over `base`: groups of settings are joined, anything else is replaced."""
    if any(tag in over and tag in base and over[tag] != base[tag] for tag in tree.tags):
        return dict(over)
    merged = dict(base)
    for name, value in over.items():
        child, held = tree.children.get(name), merged.get(name)
        grouped = child is not None and child.children and isinstance(held, dict)
        if child is not None and grouped and isinstance(value, dict):
            merged[name] = merge(held or {}, value, child)
        else:
            merged[name] = value
    return merged


def _server_values(
    servers: Servers, layers: Sequence[Layer], tree: Setting
) -> list[tuple[type[BaseModel], dict[str, Any], str]]:
    """Each server's class, values, and name in messages."""
    over = [layer.values["openai"] for layer in layers if layer.values.get("openai")]
    entries = [given_values(server) for server in _base_servers(servers, over)]
    for values in over:
        if isinstance(values, list):
            entries = list(values)
        else:
            entries = [merge(entry, values, tree) for entry in entries or [{}]]
    first = servers[0] if isinstance(servers, list | tuple) and servers else None
    server_class = type(first) if first else APIServerConfig
    return [
        (server_class, entry, "openai" if len(entries) == 1 else f"openai[{number}]")
        for number, entry in enumerate(entries)
    ]


def _base_servers(servers: Servers, over: Sequence[Any]) -> Sequence[BaseModel]:
    if isinstance(servers, APIServerConfig) or not isinstance(servers, ServerBaseline):
        return resolve_servers(servers)
    named = any(
        "base_url" in values or values.get("server_type") == "transformers"
        for values in over
        if isinstance(values, dict)
    )
    return [servers] if named else resolve_servers(servers)


def _refuse(problems: Sequence[str]) -> None:
    if problems:
        count = "1 setting" if len(problems) == 1 else f"{len(problems)} settings"
        raise ConfigError(
            f"{count} cannot be used:" + "".join(f"\n  {problem}" for problem in problems)
        )
