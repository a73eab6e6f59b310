"""What can be asked of a slot. Frozen data, no behaviour.

Paths are relative to the slot's workspace; an absolute path is accepted when it lies below the workspace. Nothing here
lets a model choose network, isolation or limits: those belong to the host and are fixed when it starts.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

DEFAULT_TIMEOUT_S = 30.0
DEFAULT_MAX_OUTPUT_BYTES = 50_000
DEFAULT_MAX_FILE_BYTES = 100_000
DEFAULT_MAX_IMAGE_BYTES = 3_500_000
DEFAULT_MAX_ARTIFACT_BYTES = 5_000_000
DEFAULT_MAX_ENTRIES = 5_000


@dataclass(frozen=True, slots=True)
class ExecRequest:
    """Run `command`: a text in a fresh shell, or a program with its arguments and no shell in between.

    A program without a slash in its name is looked for in the `PATH` of its environment. One that is not there exits
    with 127, one that cannot be run with 126, as in a shell, and standard error says why.

    Standard input is `stdin` (empty: the command reads end-of-file at once). After the command's main process has
    exited, or at the deadline, every process it left in the slot is killed: nothing outlives a call.
    """

    command: str | Sequence[str]
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


@dataclass(frozen=True, slots=True)
class ViewRequest:
    """Look at a file as a person would: lines of a text, or an image (PNG, JPEG, GIF, WebP, told by content) whole.

    Anything else is refused as `NOT_TEXT`.
    """

    path: str
    first_line: int = 0
    """Counted from 0."""
    max_lines: int | None = None
    max_bytes: int = DEFAULT_MAX_FILE_BYTES
    """Of text: whole lines up to so many bytes, unless the first line alone is longer."""
    max_image_bytes: int = DEFAULT_MAX_IMAGE_BYTES


@dataclass(frozen=True, slots=True)
class EditRequest:
    """Replace `old_text` by `new_text` in a text file, which must hold it exactly once (or `replace_all`).

    The file is replaced whole or not at all; its mode and owner stay. In a file whose lines all end with CRLF, the line
    ends of both texts count as CRLF.
    """

    path: str
    old_text: str
    new_text: str
    replace_all: bool = False


@dataclass(frozen=True, slots=True)
class GlobRequest:
    """Files whose path below `cwd` matches `pattern`: `*`, `?`, `[...]` within one name, `**` for any folders.

    A pattern without `/` matches names at any depth. Names that begin with a dot are names like others. Links are
    listed, not followed; folders are not listed.
    """

    pattern: str
    cwd: str = "."
    ignore: tuple[str, ...] = ()
    """Patterns of files and folders to leave out."""
    max_results: int = 1_000


@dataclass(frozen=True, slots=True)
class GrepRequest:
    """Lines of text files below `cwd` (or of that one file) in which the regular expression `pattern` is found.

    `pattern` is in the syntax of Python's `re`, applied to one line at a time, without its line end.
    """

    pattern: str
    cwd: str = "."
    include: tuple[str, ...] = ()
    """Only files that match one of these, by the rules of `GlobRequest`."""
    max_results: int = 100
    context_lines: int = 0
    timeout_s: float = DEFAULT_TIMEOUT_S
    """The search runs in a process of its own, which a pattern that takes for ever cannot outlive."""


@dataclass(frozen=True, slots=True)
class ShellRequest:
    """Run `command` in the slot's own persistent shell, starting it first where there is none.

    Working directory, variables, functions and background jobs stay for the next such request. At the deadline the
    command is interrupted; a shell that does not come back from it is ended, with all its jobs. Its options -e, -v and
    -x hold for one request. Standard input is at its end.
    What runs there is spared when an `ExecRequest` ends, and killed by a `KillRequest`.
    """

    command: str
    timeout_s: float = DEFAULT_TIMEOUT_S
    max_output_bytes: int = DEFAULT_MAX_OUTPUT_BYTES


@dataclass(frozen=True, slots=True)
class TmuxRequest:
    """Drive a terminal: `tmux` in the slot, of which there is at most one session.

    `start` begins it (an existing one is ended when `reset`, else kept), `send_keys` types, `capture` returns the
    screen, `stream` what was written since `offset`, `stop` ends it.
    """

    action: Literal["start", "send_keys", "capture", "stream", "stop"]
    keys: tuple[str, ...] = ()
    """Each is a key name of tmux (`Enter`, `C-c`, `Up`) or text typed as it is."""
    block: bool = False
    """Wait until the shell in the terminal has finished what the keys started."""
    min_wait_s: float = 0.0
    """How long to wait before the screen is looked at."""
    timeout_s: float = DEFAULT_TIMEOUT_S
    """How long the request may take, `min_wait_s` and the waiting of `block` included. Reaching it ends nothing."""
    offset: int = 0
    max_bytes: int = DEFAULT_MAX_OUTPUT_BYTES
    reset: bool = False
    width: int = 120
    height: int = 40
    history: bool = False
    """`capture` the whole scrollback rather than the screen."""


@dataclass(frozen=True, slots=True)
class RecordingRequest:
    """What the slot's persistent shell and terminal recorded and no result has carried yet."""


Request = (
    ExecRequest
    | ReadRequest
    | WriteRequest
    | ListRequest
    | ArchiveRequest
    | KillRequest
    | ViewRequest
    | EditRequest
    | GlobRequest
    | GrepRequest
    | ShellRequest
    | TmuxRequest
    | RecordingRequest
)
