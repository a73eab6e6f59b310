"""Secrets by reference, and keeping them out of what is shown."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

from agentenv_tools.errors import ToolConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

_REFERENCE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")
_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_HEADER_VALUE = re.compile(r"([!-~]([ \t!-~]*[!-~])?)?")
_SHORTEST = 6
"""Shorter values stand in too many innocent texts to be taken out."""


def expanded(values: Mapping[str, str], environ: Mapping[str, str], where: str) -> dict[str, str]:
    """`values` with each `${NAME}` replaced from `environ`. Raises `ToolConfigError` for a name that is not set."""

    def look_up(match: re.Match[str]) -> str:
        try:
            return environ[match[1]]
        except KeyError:
            raise ToolConfigError(
                f"{where}: the environment variable {match[1]} is not set; set it, or take ${{{match[1]}}} out"
            ) from None

    return {name: _REFERENCE.sub(look_up, value) for name, value in values.items()}


def referenced(values: Iterable[str], environ: Mapping[str, str]) -> list[str]:
    """The values that `expanded` would put in."""
    names = {name for value in values for name in _REFERENCE.findall(value)}
    return [environ[name] for name in names if name in environ]


def check_header(name: str, value: str, where: str) -> None:
    """Raise `ToolConfigError`, without the value, for a header that HTTP cannot carry.

    Whoever refuses it later may show what it refuses.
    """
    if not _HEADER_NAME.fullmatch(name) or not _HEADER_VALUE.fullmatch(value):
        raise ToolConfigError(
            f"{where}: not a header that can be sent; its value must be printable ASCII, without blanks or line "
            "breaks at its ends (does a variable or file that it comes from end with one?)"
        )


class Masker:
    """Takes known secrets out of text, in the form they were given and as Python and JSON quote them."""

    def __init__(self, secrets: Iterable[str]) -> None:
        forms = {
            form for s in secrets for form in (s, s.strip(), repr(s)[1:-1], json.dumps(s)[1:-1])
        }
        self._secrets = sorted((s for s in forms if len(s) >= _SHORTEST), key=len, reverse=True)

    def __call__(self, text: str) -> str:
        """`text` with each secret replaced by `***`."""
        for secret in self._secrets:
            text = text.replace(secret, "***")
        return text

    def within(self, value: Any) -> Any:
        """A JSON value with the same done to every text in it, keys included."""
        if isinstance(value, str):
            return self(value)
        if isinstance(value, dict):
            return {self(key): self.within(entry) for key, entry in value.items()}
        return [self.within(entry) for entry in value] if isinstance(value, list) else value
