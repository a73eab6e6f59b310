"""What the predecessor called the settings of Modal sandboxes: flat names, variables of the environment, YAML profiles.

modal_image: python:3.11                            in a config, of the default profile
ATROPOS_MODAL_IMAGE                                 of every profile, where nothing else says so
ATROPOS_MODAL_PROFILES=default,big                  profiles there are, each with
ATROPOS_MODAL_PROFILE_BIG_MEMORY                    values of its own
ATROPOS_MODAL_PROFILES_FILE                         a YAML file instead: {profiles: {big: {memory: 16384}}}
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

PREFIX = "ATROPOS_MODAL_"
_DEFAULT = "default"


def _names(value: Any) -> Any:
    """`a, b` as a list; what is one already stays."""
    if not isinstance(value, str):
        return value
    return [name.strip() for name in value.split(",") if name.strip()]


def _pairs(value: Any) -> Any:
    """`K=V;K=V` as a dict; what is one already stays. Raises `ValueError` without showing a value."""
    if not isinstance(value, str):
        return value
    pairs = [pair.partition("=") for pair in value.split(";") if pair.strip()]
    if not all(equals and name.strip() for name, equals, _ in pairs):
        raise ValueError("modal_env_vars: write it as NAME=value;NAME=value")
    return {name.strip(): value.strip() for name, _, value in pairs}


def _or_none(value: Any) -> Any:
    return value or None


def _same(value: Any) -> Any:
    return value


# the predecessor's name -> (our field, how a value is read, its documented default)
_SETTINGS: dict[str, tuple[str, Callable[[Any], Any], Any]] = {
    "app_name": ("app_name", _same, "atropos-sandbox"),
    "image": ("image", _same, "python:3.11"),
    "gpu": ("gpu", _or_none, None),
    "cpu": ("cpus", _same, 1.0),
    "memory": ("sandbox_memory_mb", _same, 2048),
    "slots_per_sandbox": ("slots", _same, 10),
    "min_sandboxes": ("min_hosts", _same, 1),
    "max_sandboxes": ("max_hosts", _same, 5),
    "idle_timeout": ("idle_timeout_s", _same, 120),
    "max_lifetime": ("max_lifetime_s", _same, 3600),
    "acquire_timeout": ("acquire_timeout_s", _same, 60.0),
    "execution_timeout": ("execution_timeout_s", _same, 30.0),
    "secrets": ("secrets", _names, ""),
    "env_vars": ("env_vars", _pairs, ""),
    "workspace_base": ("workspace_base", _same, "/data"),
}
_IN_FILES = _SETTINGS | {
    f"{name}_s": _SETTINGS[name] for name in ("acquire_timeout", "execution_timeout")
}


def modal_values(values: Mapping[str, Any]) -> list[tuple[str, str, Any, Any]]:
    """(flat name, our field, value, documented default) of every flat `modal_` name among `values`."""
    return [
        (f"modal_{name}", field, read(values[f"modal_{name}"]), read(default))
        for name, (field, read, default) in _SETTINGS.items()
        if f"modal_{name}" in values
    ]


def add_surroundings(chosen: dict[str, Any], environment: Mapping[str, str]) -> None:
    """Add to a nested config what variables and the file they name say, where it says nothing itself.

    Raises `ValueError` for a file that cannot be read, or a setting in it that there is not.
    """
    path = environment.get(f"{PREFIX}PROFILES_FILE")
    found = _from_file(Path(path)) if path else _from_variables(environment)
    for field, value in found.pop(_DEFAULT, {}).items():
        chosen.setdefault(field, value)
    if found:
        chosen["profiles"] = found | dict(chosen.get("profiles") or {})


def _from_variables(environment: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    shared = _with_prefix(environment, PREFIX)
    names = _names(environment.get(f"{PREFIX}PROFILES", ""))
    found = {_DEFAULT: shared}
    for name in names:
        own = _with_prefix(environment, f"{PREFIX}PROFILE_{name.upper().replace('-', '_')}_")
        found[name] = (shared if name == _DEFAULT else {}) | own
    return found


def _with_prefix(environment: Mapping[str, str], prefix: str) -> dict[str, Any]:
    return {
        field: read(environment[prefix + name.upper()])
        for name, (field, read, _) in _SETTINGS.items()
        if prefix + name.upper() in environment
    }


def _from_file(path: Path) -> dict[str, dict[str, Any]]:
    where = f"{PREFIX}PROFILES_FILE={path}"
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        profiles = content["profiles"]
        return {str(name): _of_profile(where, name, dict(each)) for name, each in profiles.items()}
    except (OSError, yaml.YAMLError) as error:
        raise ValueError(f"{where} cannot be read: {error}") from error
    except (TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{where}: write it as {{profiles: {{name: {{image: ...}}}}}}") from error


def _of_profile(where: str, name: str, settings: dict[str, Any]) -> dict[str, Any]:
    if unknown := settings.keys() - _IN_FILES.keys():
        raise ValueError(
            f"{where}: profile {name} has no {', '.join(sorted(unknown))}; there is: {', '.join(_IN_FILES)}"
        )
    return {_IN_FILES[key][0]: _IN_FILES[key][1](value) for key, value in settings.items()}
