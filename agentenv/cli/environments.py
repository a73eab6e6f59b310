"""Finding the environment class that a configuration file names.

`package.module:Class`, or a short name: an entry point of the group `agentenv.environments`, or a module of
`agentenv_environments` that defines one environment.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import pkgutil
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any

from agentenv.env import AgentEnv
from agentenv.errors import ConfigError
from agentenv.naming import load_attribute, nearest

if TYPE_CHECKING:
    from types import ModuleType

ENTRY_POINTS = "agentenv.environments"
_BUNDLED = "agentenv_environments"


def load_environment(name: str) -> type[AgentEnv[Any]]:
    """The class meant by `name`. Raises `ConfigError`; an error inside the module itself passes through."""
    if ":" in name:
        return _checked(name, load_attribute(f"environment {name!r}", name))
    for point in entry_points(group=ENTRY_POINTS, name=name):
        return _checked(name, point.load())
    if name.isidentifier() and importlib.util.find_spec(_BUNDLED) is not None:
        for bundled in (f"{_BUNDLED}.{name}.environment", f"{_BUNDLED}.{name}"):
            if _exists(bundled):
                return _only_environment(name, importlib.import_module(bundled))
    known = registered_names()
    raise ConfigError(
        f"environment {name!r} is not known{nearest(name, known)}; write package.module:Class, "
        f"or one of: {', '.join(known)}"
    )


def registered_names() -> list[str]:
    """The short names there are."""
    names = {point.name for point in entry_points(group=ENTRY_POINTS)}
    spec = importlib.util.find_spec(_BUNDLED)
    for location in (spec.submodule_search_locations or []) if spec else []:
        names |= {entry.name for entry in pkgutil.iter_modules([location])}
    return sorted(name for name in names if not name.startswith("_"))


def _exists(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def _checked(name: str, found: object) -> type[AgentEnv[Any]]:
    if isinstance(found, type) and issubclass(found, AgentEnv):
        return found
    raise ConfigError(f"environment {name!r} is no subclass of AgentEnv but {found!r}")


def _only_environment(name: str, module: ModuleType) -> type[AgentEnv[Any]]:
    found = [
        value
        for value in vars(module).values()
        if isinstance(value, type)
        and issubclass(value, AgentEnv)
        and value.__module__.startswith(module.__name__)
        and not inspect.isabstract(value)
    ]
    if len(found) != 1:
        names = ", ".join(f"{cls.__module__}:{cls.__name__}" for cls in found) or "none"
        raise ConfigError(f"environment {name!r} must define one environment; it has {names}")
    return found[0]
