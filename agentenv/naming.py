"""What a configuration means by a name: modules, objects in them, and the nearest known name to a mistyped one."""

from __future__ import annotations

import difflib
import importlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agentenv.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from types import ModuleType


def nearest(name: str, known: Iterator[str] | Sequence[str]) -> str:
    """`; did you mean ...?` for a mistyped name, or nothing."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f"; did you mean {close[0]}?" if close else ""


def import_module(wanted: str, module_name: str) -> ModuleType:
    """A module by name, also one in the current folder. Raises `ConfigError` that begins with `wanted`.

    An error inside the module itself passes through.
    """
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)  # an installed command does not look into the folder it is called in
    try:
        return importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name and not (
            module_name == error.name or module_name.startswith(f"{error.name}.")
        ):
            raise
        raise ConfigError(
            f"{wanted}: there is no module {error.name!r} in {here} or among the installed ones"
        ) from error


def load_attribute(wanted: str, path: str) -> Any:
    """What `path`, in the form `module:name`, holds. Raises `ConfigError` that begins with `wanted`.

    Importing runs the module, so a path is to be trusted as code is.
    """
    module_name, _, name = path.partition(":")
    if not module_name or not name:
        raise ConfigError(f"{wanted}: must have the form package.module:name")
    module = import_module(wanted, module_name)
    if not hasattr(module, name):
        raise ConfigError(
            f"{wanted}: {module_name} has no {name}{nearest(name, list(vars(module)))}"
        )
    return getattr(module, name)
