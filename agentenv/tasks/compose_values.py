"""Values of compose files in their several spellings, brought to one.

Each function raises `ValueError`, also for a value of a wrong kind: so do validators.
"""

from __future__ import annotations

import re
import shlex
from typing import Any

from agentenv.tasks.templates import is_template

_DURATION = re.compile(
    r"(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m(?!s))?(?:(\d+(?:\.\d+)?)s)?(?:(\d+(?:\.\d+)?)ms)?"
)
_SECONDS = (3600.0, 60.0, 1.0, 0.001)
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([bkmg]?)(?:i?b)?", re.IGNORECASE)
_BYTES = {"": 1, "b": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30}
_MB = 1 << 20
_DOLLAR = re.compile(r"\$\$|\$(?=[A-Za-z_{])")
_LONGEST = 200


def text(value: Any) -> str:
    """A value without variables: `$$` stands for a dollar sign."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError(f"{shown(value)} is no text")  # noqa: TRY004 - see above

    def plain(found: re.Match[str]) -> str:
        if found[0] == "$$":
            return "$"
        raise ValueError(
            f"{shown(value)} holds a variable, which is looked up only where it is the whole value of an environment "
            "variable; for a dollar sign write $$"
        )

    return _DOLLAR.sub(plain, str(value))


def words(value: Any) -> tuple[str, ...]:
    """A command: a list, or a line that is split as a shell would."""
    if isinstance(value, str):
        return tuple(shlex.split(text(value)))
    return texts(value)


def texts(value: Any) -> tuple[str, ...]:
    """One text, or a list of some."""
    if isinstance(value, str):
        return (text(value),)
    if not isinstance(value, list):
        raise ValueError(f"{shown(value)} is no list of texts")  # noqa: TRY004 - see above
    return tuple(text(each) for each in value)


def pairs(value: Any) -> dict[str, Any]:
    """A mapping, or a list of NAME=value."""
    if isinstance(value, dict):
        return {text(name): each for name, each in value.items()}
    if not isinstance(value, list):
        raise ValueError(f"{shown(value)} is neither a mapping nor a list of NAME=value")  # noqa: TRY004 - see above
    found: dict[str, Any] = {}
    for each in value:
        name, equals, own = each.partition("=") if isinstance(each, str) else ("", "", "")
        if not name or name in found:
            raise ValueError(f"{shown(each)} is no NAME=value, or its name stands twice")
        found[name] = own if equals else None
    return found


def environment(value: Any) -> dict[str, str]:
    """Variables, with templates as they are written; `resolve` looks them up."""
    found = {}
    for name, each in pairs(value).items():
        if each is None:
            raise ValueError(
                f"{name} has no value: give it one, or say ${{{name}}} for that of the caller's environment"
            )
        if not name or "=" in name or "\0" in f"{name}{each}":
            raise ValueError(f"{name!r} cannot be an environment variable")
        own = str(each).lower() if isinstance(each, bool) else each
        if not (isinstance(own, str) and is_template(own)):
            text(own)
        found[name] = str(own)
    return found


def seconds(value: Any) -> float:
    """A duration such as `1m30s` or `500ms`."""
    found = _DURATION.fullmatch(value) if isinstance(value, str) and value else None
    if found is None:
        raise ValueError(f"{shown(value)} is no duration; write one such as 1m30s or 500ms")
    return sum(
        float(part) * unit for part, unit in zip(found.groups(), _SECONDS, strict=True) if part
    )


def megabytes(value: Any) -> int:
    """A size such as `512m`, or a number of bytes, in megabytes, rounded up."""
    plain = str(value) if isinstance(value, int) and not isinstance(value, bool) else value
    found = _SIZE.fullmatch(plain.strip()) if isinstance(plain, str) else None
    if found is None:
        raise ValueError(f"{shown(value)} is no size; write one such as 512m or 2g")
    return -int(-float(found[1]) * _BYTES[found[2].lower()] // _MB)


def dependencies(value: Any) -> tuple[str, ...]:
    """The names in `depends_on`. Each is waited for until it is healthy, or runs where it has no check."""
    if not isinstance(value, dict):
        return texts(value)
    for name, each in value.items():
        condition = each.get("condition", "service_started") if isinstance(each, dict) else each
        odd = set(each) - {"condition", "required", "restart"} if isinstance(each, dict) else set()
        if condition not in ("service_started", "service_healthy") or odd:
            raise ValueError(
                f"{name}: {shown(each)} is not offered: say condition: service_started or service_healthy (a service "
                "that does its work and ends belongs into an image, or another's entrypoint)"
            )
    return tuple(text(name) for name in value)


def mounted(mount: Any) -> tuple[str, str]:
    """Source and target of one of `volumes`; no source where the volume has no name."""
    if isinstance(mount, dict):
        odd = set(mount) - {"type", "source", "target", "read_only"}
        if odd or mount.get("type") not in ("bind", "volume"):
            raise ValueError(f"{shown(sorted(map(str, odd)) or mount.get('type'))} is not offered")
        source = text(mount.get("source", ""))
        if mount["type"] == "bind" and not source.startswith((".", "/", "~")):
            source = f"./{source}"
        return source, text(mount.get("target", ""))
    source, colon, rest = text(mount).partition(":")
    if not colon:
        return "", source
    target, _, mode = rest.partition(":")
    if mode not in ("", "ro", "rw"):
        raise ValueError(f"{shown(mount)}: {mode!r} is not offered; ro and rw are")
    return source, target


def shown(value: Any) -> str:
    """A value for an error's message."""
    said = (
        repr(value)
        if isinstance(value, str | int | float | bool | None)
        else f"a {type(value).__name__}"
    )
    return said if len(said) <= _LONGEST else f"{said[:_LONGEST]}..."
