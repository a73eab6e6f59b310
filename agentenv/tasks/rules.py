"""Rules for single values of task.toml: names, hosts, sizes, paths of artifacts. Each raises `ValueError`."""

from __future__ import annotations

import ipaddress
import math
import re
import unicodedata
from pathlib import PurePosixPath

TASK_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9._-]*/[a-zA-Z0-9][a-zA-Z0-9._-]*")
SERVICE_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]*")
TPU_TOPOLOGY = re.compile(r"[1-9][0-9]*(x[1-9][0-9]*)+")
MAIN_SERVICE = "main"
_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_SIZE = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([GMK])B?\s*", re.IGNORECASE)
_MB_PER_UNIT = {"G": 1024.0, "M": 1.0, "K": 1.0 / 1024.0}
_MAX_NAME_BYTES = 255
_RESERVED_CHARACTERS = frozenset('<>:"/\\|?*')
_DEVICES = frozenset(
    ["con", "prn", "aux", "nul", *(f"{name}{n}" for name in ("com", "lpt") for n in range(1, 10))]
)


def checked_task_name(name: str) -> str:
    """`organisation/name`."""
    if not TASK_NAME.fullmatch(name) or ".." in name:
        raise ValueError(
            f"{name!r} is no task name; write organisation/name, of letters, digits, '.', '_' and '-'"
        )
    return name


def checked_host(text: str) -> str:
    """A host of `allowed_hosts` in plain form: a name, `*.name`, an address, or a network without host bits."""
    host = text.strip().lower().removesuffix(".")
    name = host.removeprefix("*.")
    if _is_address(host) or _is_network(host):
        return host
    labels = name.split(".")
    named = len(name) <= 253 and all(_LABEL.fullmatch(label) for label in labels)
    if not named or labels[-1].isdigit():
        raise ValueError(
            f"{text!r} is no host; write a name, *.name, an address, or a network such as 10.0.0.0/8 - without "
            "scheme, port or path"
        )
    return host


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return "%" not in text


def _is_network(text: str) -> bool:
    if "/" not in text:
        return False
    try:
        ipaddress.ip_network(text, strict=True)
    except ValueError:
        return False
    return True


def megabytes(text: str) -> int:
    """A legacy size such as `1G`, `512M` or `2048K`, in whole megabytes, at least 1."""
    found = _SIZE.fullmatch(text)
    if not found:
        raise ValueError(f"{text!r} is no size; write a number with G, M or K, such as 2G")
    return max(1, math.floor(float(found[1]) * _MB_PER_UNIT[found[2].upper()]))


def checked_step_name(name: str) -> str:
    """A name that is a folder's on every system."""
    if not name or name in (".", "..") or len(name.encode("utf-8", "replace")) > _MAX_NAME_BYTES:
        raise ValueError(
            f"{name[:80]!r} cannot be a folder's name: give 1 to {_MAX_NAME_BYTES} bytes"
        )
    odd = sorted(c for c in set(name) if c in _RESERVED_CHARACTERS or not c.isprintable())
    if odd:
        raise ValueError(f"{name!r} holds {odd!r}, which no folder's name may on every system")
    if name[-1] in ". ":
        raise ValueError(f"{name!r} ends with a dot or space, which some systems drop")
    if name.partition(".")[0].casefold() in _DEVICES:
        raise ValueError(f"{name!r} is a device on Windows; choose another name")
    return name


def folded(name: str) -> str:
    """The form in which two names of steps must differ."""
    return unicodedata.normalize("NFC", name).casefold()


def checked_destination(text: str) -> str | None:
    """A place below artifacts/; None for an empty one."""
    if not text:
        return None
    path = PurePosixPath(text)
    if path.is_absolute() or "\\" in text or ".." in path.parts or "\0" in text:
        raise ValueError(f"{text!r} must be a relative path with forward slashes and without '..'")
    if path.parts in ((), ("manifest.json",)):
        raise ValueError(f"{text!r} is where the manifest goes, or nowhere; choose another place")
    return str(path)


def checked_source(text: str) -> str:
    """A path in the sandbox without `..`."""
    if not text or "\0" in text or ".." in PurePosixPath(text).parts:
        raise ValueError(f"{text!r} is no source: it must be a path without '..'")
    return text
