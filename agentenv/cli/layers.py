"""Where settings come from: a YAML file, environment variables, flags. Each becomes one layer of
nested dicts.

    YAML                        env: {group_size: 8, backend: {type: local}}
    environment variable        AGENTENV_ENV__GROUP_SIZE=8, AGENTENV_ENV__BACKEND__TYPE=local
    flag                        --env.group_size 8, --env.group_size=8, --env.backend.type local

Text, from variables and flags, is read by what the setting is: a list is several words, `a,b`, or
JSON (`["a"]`); a switch needs no value (`--env.include_messages`) but takes one; `null` is none,
where a setting may have none; an object is JSON. A value that starts with `--` is written with
`=`. A flag given twice counts once, the last time.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from agentenv.cli.fields import Kind, Setting
from agentenv.errors import ConfigError
from agentenv.naming import nearest
from agentenv.yaml_file import load_yaml

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

ENV_PREFIX = "AGENTENV_"
SECTIONS = ("env", "openai")
_FILE_KEYS = ("environment", *SECTIONS, "slurm", "testing")


@dataclass(slots=True)
class Layer:
    """Values by section, where each came from, and what could not be used."""

    values: dict[str, Any] = field(default_factory=dict)
    origins: dict[str, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def put(self, path: Sequence[str], value: Any, origin: str) -> None:
        """Set one value."""
        *parents, name = path
        target = self.values
        for parent in parents:
            inner = target.setdefault(parent, {})
            if not isinstance(inner, dict):
                inner = target[parent] = {}
            target = inner
        target[name] = value
        self.origins[".".join(path)] = origin


@dataclass(frozen=True, slots=True)
class ConfigFile:
    """A YAML file, read."""

    path: Path
    environment: str | None
    """`package.module:Class`, or a registered short name."""
    values: dict[str, Any]


def load_config_file(path: Path) -> ConfigFile:
    """Read a YAML file. Raises `ConfigError` when it cannot be read or is no mapping with the
    known top keys.
    """
    content = load_yaml(path)
    if not isinstance(content, dict):
        raise ConfigError(
            f"configuration file {path} must hold a mapping with the keys {', '.join(_FILE_KEYS)}"
        )
    for key in content:
        if key not in _FILE_KEYS:
            known = f"known are {', '.join(_FILE_KEYS)}"
            raise ConfigError(
                f"{path}: unknown key {key!r}{nearest(str(key), _FILE_KEYS)}; {known}"
            )
    environment = content.pop("environment", None)
    if environment is not None and not isinstance(environment, str):
        raise ConfigError(
            f"{path}: environment must be text like package.module:Class, not {environment!r}"
        )
    return ConfigFile(path, environment, content)


def file_layer(file: ConfigFile, trees: Mapping[str, Setting]) -> Layer:
    """The layer of a YAML file."""
    layer = Layer()
    for section, value in file.values.items():
        layer.values[section] = value
        layer.origins[section] = str(file.path)
        if section in trees:
            entries = value if isinstance(value, list) and section == "openai" else [value]
            for number, entry in enumerate(entries):
                where = f"{section}[{number}]" if entries is value else section
                _check_names(layer, trees[section], entry, where, str(file.path))
    return layer


def _check_names(layer: Layer, tree: Setting, value: Any, path: str, origin: str) -> None:
    """Note every name below `value` that no setting has."""
    if not isinstance(value, dict):
        if "." not in path:
            layer.problems.append(f"{path} = {value!r} (from {origin}): a mapping is expected")
        return
    for name, inner in value.items():
        child = tree.children.get(name)
        if child is not None:
            if child.children and isinstance(inner, dict):
                _check_names(layer, child, inner, f"{path}.{name}", origin)
        elif not tree.open_ended:
            layer.problems.append(_unknown(f"{path}.{name}", path, tree, name, origin))


def _unknown(given: str, prefix: str, tree: Setting, name: object, origin: str) -> str:
    close = nearest(str(name), list(tree.children))
    if not close:
        close = f"; known are {', '.join(tree.children)}" if len(tree.children) < 15 else ""
    suggestion = close.replace("did you mean ", f"did you mean {prefix}.") if prefix else close
    return f"{given} (from {origin}): unknown{suggestion}"


def variables_layer(environ: Mapping[str, str], trees: Mapping[str, Setting]) -> Layer:
    """The layer of environment variables. Those that do not start with a section's prefix are not
    ours.
    """
    layer = Layer()
    for variable in sorted(environ):
        section, *names = variable.removeprefix(ENV_PREFIX).lower().split("__")
        if variable.upper().startswith(ENV_PREFIX) and section in trees and names:
            _put_text(layer, trees, (section, *names), [environ[variable]], variable)
    return layer


def flags_layer(tokens: Sequence[str], trees: Mapping[str, Setting]) -> Layer:
    """The layer of `--section.name value` flags; `tokens` starts with a flag."""
    layer = Layer()
    index = 0
    while index < len(tokens):
        flag, given, value = tokens[index].partition("=")
        index += 1
        words = [value] if given else []
        while not given and index < len(tokens) and not tokens[index].startswith("--"):
            words.append(tokens[index])
            index += 1
        path = flag.removeprefix("--").replace("-", "_").split(".")
        _put_text(layer, trees, tuple(path), words, flag)
    return layer


def split_flags(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """The command's own words, and the flags of settings with their values."""
    own: list[str] = []
    flags: list[str] = []
    target = own
    for token in argv:
        if token.startswith("--"):
            ours = token.startswith(tuple(f"--{section}." for section in SECTIONS))
            target = flags if ours else own
        target.append(token)
    return own, flags


def _put_text(
    layer: Layer, trees: Mapping[str, Setting], path: tuple[str, ...], words: list[str], origin: str
) -> None:
    section, *names = path
    setting, walked = trees[section], section
    for name in names:
        child = setting.children.get(name)
        if child is None:
            layer.problems.append(_unknown(".".join(path), walked, setting, name, origin))
            return
        setting, walked = child, f"{walked}.{name}"
    try:
        layer.put(path, read_text(setting, words), origin)
    except ValueError as error:
        layer.problems.append(f"{walked} (from {origin}): {error}")


def read_text(setting: Setting, words: Sequence[str]) -> Any:
    """Words as the value they mean, still to be validated. Raises `ValueError` for too many or too
    few.
    """
    if setting.optional and list(words) == ["null"]:
        return None
    if setting.kind is Kind.LIST:
        return _read_list(words)
    if setting.kind is Kind.FLAG and not words:
        return True
    if len(words) != 1:
        expected = f"one value is expected ({setting.accepts or 'JSON object'})"
        hint = "; the configuration file comes before the flags" if _has_file(words) else ""
        raise ValueError(
            f"{expected}, not {len(words)}: {' '.join(words)}{hint}" if words else expected
        )
    return _json(words[0], dict) if setting.kind is Kind.OBJECT else words[0]


def _has_file(words: Sequence[str]) -> bool:
    return any(word.endswith((".yaml", ".yml")) for word in words)


def _read_list(words: Sequence[str]) -> list[Any]:
    if len(words) != 1:
        return list(words)
    word = words[0].strip()
    if word.startswith("["):
        return list(_json(word, list))
    return [part.strip() for part in word.split(",")] if word else []


def _json(word: str, expected: type[list[Any] | dict[str, Any]]) -> Any:
    kind = "list" if expected is list else "object"
    try:
        value = json.loads(word)
    except ValueError as error:
        raise ValueError(f"a JSON {kind} is expected, not {word!r}: {error}") from None
    if isinstance(value, expected):
        return value
    raise ValueError(f"a JSON {kind} is expected, not {word!r}")
