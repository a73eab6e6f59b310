"""Reading what a docstring says of each parameter: Google style `Args:` sections and `:param name:` fields."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

_SECTION = re.compile(r"(Args|Arguments|Parameters|Returns|Raises|Yields|Examples?|Notes?):\s*$")
_GOOGLE = re.compile(r"\*{0,2}(\w+)\s*(?:\([^)]*\))?:\s*(.*)")
_FIELD = re.compile(r":(\w+)(?:\s+[^:]*?)??(?:\s+(\w+))?:\s*(.*)")


@dataclass(frozen=True, slots=True)
class Documented:
    """A docstring's own text, and its text of each parameter."""

    text: str
    parameters: dict[str, str] = field(default_factory=dict)


def parse_docstring(docstring: str) -> Documented:
    """Split a docstring (already dedented). What is in no known form stays part of the text."""
    text: list[str] = []
    parameters: dict[str, str] = {}
    section = ""
    current: str | None = None
    for line in docstring.splitlines():
        stripped = line.strip()
        if heading := _SECTION.match(line):
            section, current = heading[1], None
        elif stripped.startswith(":") and (entry := _FIELD.match(stripped)):
            section, current = ":", _add(parameters, entry) if entry[1] == "param" else None
        elif not section or (stripped and not line[0].isspace() and section != ":"):
            section = ""
            text.append(line)
        else:
            current = _read_entry(parameters, section, current, line)
    return Documented("\n".join(text).strip(), parameters)


def _add(parameters: dict[str, str], entry: re.Match[str]) -> str | None:
    if entry[2] is None:
        return None
    parameters[entry[2]] = entry[3]
    return entry[2]


def _read_entry(
    parameters: dict[str, str], section: str, current: str | None, line: str
) -> str | None:
    """One line inside a section: a parameter, or more of the one before. Returns the one it belongs to."""
    stripped = line.strip()
    starts_entry = section in ("Args", "Arguments", "Parameters") and _indent(line) <= 4
    if starts_entry and (entry := _GOOGLE.match(stripped)):
        parameters[entry[1]] = entry[2]
        return entry[1]
    if current is not None and stripped:
        parameters[current] = f"{parameters[current]} {stripped}".strip()
    return current


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())
