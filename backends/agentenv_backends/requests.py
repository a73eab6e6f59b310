"""What can be asked of a slot. Frozen data, no behaviour.

Paths are relative to the slot's workspace; an absolute path is accepted when it lies below the workspace. Nothing here
lets a model choose network, isolation or limits: those belong to the host and are fixed when it starts.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping

DEFAULT_TIMEOUT_S = 30.0
DEFAULT_MAX_OUTPUT_BYTES = 50_000
DEFAULT_MAX_FILE_BYTES = 100_000
DEFAULT_MAX_ARTIFACT_BYTES = 5_000_000
DEFAULT_MAX_ENTRIES = 5_000


@dataclass(frozen=True, slots=True)
class ExecRequest:
    """Run `command` in a fresh shell.

    Standard input is `stdin` (empty: the command reads end-of-file at once). After the command's main process has
    exited, or at the deadline, every process it left in the slot is killed: nothing outlives a call.
    """

    command: str
    timeout_s: float = DEFAULT_TIMEOUT_S
    cwd: str = "."
    env: Mapping[str, str] = field(default_factory=dict)
    stdin: bytes = b""
    max_output_bytes: int = DEFAULT_MAX_OUTPUT_BYTES
    """Bytes kept of each stream, half from its start and half from its end. The rest is read and dropped."""


@dataclass(frozen=True, slots=True)
class ReadRequest:
    """Read up to `max_bytes` bytes of a regular file, from byte `offset` on."""

    path: str
    offset: int = 0
    max_bytes: int = DEFAULT_MAX_FILE_BYTES
    with_sha256: bool = False
    """Also hash the whole file (only if it is at most 100 MB)."""


@dataclass(frozen=True, slots=True)
class WriteRequest:
    """Write `content` to a file, making its parent folders; the file appears whole or not at all."""

    path: str
    content: bytes
    append: bool = False


@dataclass(frozen=True, slots=True)
class ListRequest:
    """List the entries below `path`, without following links."""

    path: str = "."
    recursive: bool = False
    max_entries: int = DEFAULT_MAX_ENTRIES


@dataclass(frozen=True, slots=True)
class ArchiveRequest:
    """Pack `path` as a tar.gz. Links are stored as links, devices and sockets are left out."""

    path: str = "."
    archive_format: Literal["tar.gz"] = "tar.gz"
    max_bytes: int = DEFAULT_MAX_ARTIFACT_BYTES
    max_entries: int = DEFAULT_MAX_ENTRIES


@dataclass(frozen=True, slots=True)
class KillRequest:
    """Kill every process in the slot except its init, so that what follows runs undisturbed (verification)."""


Request = ExecRequest | ReadRequest | WriteRequest | ListRequest | ArchiveRequest | KillRequest
