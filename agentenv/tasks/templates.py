"""Values of task.toml that stand for the caller's environment variables, and keeping them out of what is saved."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from agentenv.tasks.errors import TaskUnsupportedError

if TYPE_CHECKING:
    from collections.abc import Mapping

_TEMPLATE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)(?::-(.*))?\}", re.DOTALL)
_SENSITIVE = re.compile(r"KEY|SECRET|TOKEN(?!S)|PASSWORD|CREDENTIAL|AUTH", re.IGNORECASE)
_SHOWN_FROM = 9
"""Shorter values are masked whole."""


def is_template(value: str) -> bool:
    """Whether a value is one template as a whole: `${NAME}` or `${NAME:-default}`."""
    return _TEMPLATE.fullmatch(value) is not None


def is_sensitive(name: str) -> bool:
    """Whether a variable of this name holds what must not be written down."""
    return _SENSITIVE.search(name) is not None


def resolved(values: Mapping[str, str], environ: Mapping[str, str], where: str) -> dict[str, str]:
    """The values that the templates stand for. Raises `TaskUnsupportedError` for a variable that is not set."""
    return {name: _resolve(value, environ, f"{where}.{name}") for name, value in values.items()}


def _resolve(value: str, environ: Mapping[str, str], where: str) -> str:
    found = _TEMPLATE.fullmatch(value)
    if found is None:
        return value
    name, default = found[1], found[2]
    if name in environ:
        return environ[name]
    if default is None:
        raise TaskUnsupportedError(
            f"{where} is ${{{name}}}, and no environment variable {name} is set; set it, or give the task a default "
            f"with ${{{name}:-value}}"
        )
    return default


def for_saving(values: Mapping[str, str], environ: Mapping[str, str]) -> dict[str, str]:
    """`values` as they may be written down: templates stay templates, what is sensitive becomes one or is masked."""
    return {name: _saved(name, value, environ) for name, value in values.items()}


def _saved(name: str, value: str, environ: Mapping[str, str]) -> str:
    if not is_sensitive(name) or (is_template(value) and ":-" not in value):
        return value
    found = _TEMPLATE.fullmatch(value)
    if found is not None:
        return f"${{{found[1]}:-{masked(found[2])}}}"
    if environ.get(name) == value:
        return f"${{{name}}}"
    return masked(value)


def masked(value: str) -> str:
    """A secret as it may be shown: its first four and last three characters, or nothing of a short one."""
    if len(value) < _SHOWN_FROM:
        return "****" if value else ""
    return f"{value[:4]}****{value[-3:]}"


def secrets_of(values: Mapping[str, str]) -> tuple[str, ...]:
    """The sensitive ones of resolved values, longest first, to be taken out of logs and results."""
    found = {value for name, value in values.items() if is_sensitive(name) and len(value) >= 4}
    return tuple(sorted(found, key=len, reverse=True))


def without_secrets(text: str, secrets: tuple[str, ...]) -> str:
    """`text` with every secret masked."""
    for secret in secrets:
        text = text.replace(secret, masked(secret))
    return text
