"""What a slot answers. Frozen data; the only logic is reading it as text."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Literal


class ExecStatus(StrEnum):
    """How a command ended. Exactly one holds."""

    EXITED = "exited"
    """The main process returned `exit_code`."""
    SIGNALED = "signaled"
    """A signal nobody here sent ended the main process; `exit_code` is 128 + signal, as a shell reports it."""
    TIMED_OUT = "timed_out"
    """The deadline passed; the whole process tree was killed; what it had written is kept."""
    OUT_OF_MEMORY = "out_of_memory"
    """The kernel killed it for going over the slot's memory limit."""
    CANCELLED = "cancelled"
    """The caller withdrew the request; the whole process tree was killed."""


class FailureKind(StrEnum):
    """Why a request could not be done, where that is the requester's doing."""

    BAD_REQUEST = "bad_request"
    OUTSIDE_WORKSPACE = "outside_workspace"
    NOT_FOUND = "not_found"
    IS_A_DIRECTORY = "is_a_directory"
    NOT_A_DIRECTORY = "not_a_directory"
    NOT_A_FILE = "not_a_file"
    PERMISSION_DENIED = "permission_denied"
    TOO_LARGE = "too_large"
    NO_SPACE = "no_space"
    CANNOT_START = "cannot_start"
    """The slot's own limits (processes, memory) kept the command from starting."""
    NO_MATCH = "no_match"
    """`EditRequest`: the file does not hold the old text."""
    SEVERAL_MATCHES = "several_matches"
    """`EditRequest`: the file holds the old text more than once."""
    NOT_TEXT = "not_text"
    """The file is no text (it holds a NUL byte, or bytes that are not UTF-8)."""
    TIMED_OUT = "timed_out"
    """A search did not end before its deadline."""
    NO_SESSION = "no_session"
    """`TmuxRequest`: there is no terminal; `start` one."""
    NOT_INSTALLED = "not_installed"
    """A program that the request needs (`tmux`, `bash`) is missing in the slot."""


@dataclass(frozen=True, slots=True)
class Capture:
    """One stream of a command: its first and last bytes, and how many there were in all."""

    head: bytes
    tail: bytes = b""
    total_bytes: int = 0

    @property
    def truncated(self) -> bool:
        """Whether bytes between `head` and `tail` were dropped."""
        return self.total_bytes > len(self.head) + len(self.tail)

    def text(self) -> str:
        """The stream as text: invalid UTF-8 replaced, and a line saying what was dropped where it was."""
        if not self.truncated:
            return (self.head + self.tail).decode("utf-8", "replace")
        dropped = self.total_bytes - len(self.head) - len(self.tail)
        # A character cut in half at either edge of the gap would show as a replacement mark nobody wrote.
        head = (
            self.head.decode("utf-8", "ignore")
            if self.head[-1:] >= b"\x80"
            else self._decode(self.head)
        )
        tail = self._decode(self.tail.lstrip(bytes(range(0x80, 0xC0)))) if self.tail else ""
        return f"{head}\n... {dropped} of {self.total_bytes} bytes dropped ...\n{tail}"

    @staticmethod
    def _decode(data: bytes) -> str:
        return data.decode("utf-8", "replace")


@dataclass(frozen=True, slots=True)
class ExecResult:
    """What a command did."""

    status: ExecStatus
    exit_code: int
    stdout: Capture
    stderr: Capture
    duration_s: float
    killed_processes: int = 0
    """Background processes that were still alive when the main process had exited, and were killed."""


@dataclass(frozen=True, slots=True)
class ReadResult:
    """Bytes of a file."""

    content: bytes
    file_size: int
    truncated: bool
    sha256: str | None = None


@dataclass(frozen=True, slots=True)
class WriteResult:
    """A file was written whole."""

    bytes_written: int


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry of a folder. `path` is relative to the workspace; bytes that are not UTF-8 are surrogate-escaped."""

    path: str
    kind: str
    """`file`, `directory`, `link` or `other`."""
    size: int
    mtime: float

    @property
    def is_dir(self) -> bool:
        """Whether it is a folder (a link to one is not)."""
        return self.kind == "directory"


@dataclass(frozen=True, slots=True)
class ListResult:
    """Entries in the order of their paths."""

    entries: tuple[Entry, ...]
    truncated: bool


@dataclass(frozen=True, slots=True)
class ArchiveResult:
    """A packed folder."""

    content: bytes
    archive_format: str
    entry_count: int


@dataclass(frozen=True, slots=True)
class KillResult:
    """How many processes were killed."""

    killed_processes: int


@dataclass(frozen=True, slots=True)
class ViewResult:
    """What is to be seen of a file."""

    content: bytes
    """UTF-8 text, or the image's bytes."""
    media_type: str
    """`text/plain`, or `image/png` and the like: told by the first bytes alone."""
    file_size: int
    first_line: int = 0
    lines: int = 0
    """Lines of text in `content`."""
    more: bool = False
    """The file goes on after `content`."""
    line_cut: bool = False
    """The one line in `content` is not whole."""


@dataclass(frozen=True, slots=True)
class EditResult:
    """A file was edited."""

    replacements: int
    bytes_written: int


@dataclass(frozen=True, slots=True)
class GlobResult:
    """Paths relative to the workspace, sorted. A name that is not UTF-8 has its odd bytes as lone surrogates."""

    paths: tuple[str, ...]
    truncated: bool


@dataclass(frozen=True, slots=True)
class GrepMatch:
    """A line that matches; `line` counts from 1. Long lines are cut."""

    path: str
    line: int
    text: str
    before: tuple[str, ...] = ()
    """Lines just above, as many as were asked for and exist."""
    after: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class GrepResult:
    """Matches in the order of paths and lines."""

    matches: tuple[GrepMatch, ...]
    truncated: bool
    skipped_files: int = 0
    """Files that were no text, too large, or could not be read."""


@dataclass(frozen=True, slots=True)
class TerminalEvent:
    """A moment of a recording, as asciinema's v2 format has it."""

    at_s: float
    """Seconds since the shell or terminal was started."""
    kind: Literal["o", "i", "r"]
    """Output, input, or a new size (`COLUMNSxROWS`)."""
    data: str


@dataclass(frozen=True, slots=True)
class Recording:
    """Events of one shell or terminal since they were last handed out."""

    session: str
    """`shell-1`, `tmux-2`: the kind, and which of the slot's sessions it is."""
    width: int
    height: int
    events: tuple[TerminalEvent, ...]
    dropped_bytes: int = 0
    """Output beyond what a slot keeps of a recording."""


@dataclass(frozen=True, slots=True)
class ShellResult:
    """What a command in the persistent shell did."""

    status: ExecStatus
    exit_code: int
    stdout: Capture
    """Also what background jobs of the shell wrote since the last request."""
    stderr: Capture
    duration_s: float
    shell_ended: bool = False
    """The shell is gone (it left by itself, was killed, or did not come back at the deadline): the next request
    starts a new one, with nothing of the old."""
    recordings: tuple[Recording, ...] = ()


@dataclass(frozen=True, slots=True)
class TmuxResult:
    """The terminal after an action."""

    running: bool
    screen: str = ""
    """What is to be seen, without trailing blank lines; for `capture` and a `send_keys` that waited."""
    output: bytes = b""
    """`stream`: what was written to the terminal from `offset` on, raw."""
    next_offset: int = 0
    timed_out: bool = False
    """`block` did not see the end."""
    recordings: tuple[Recording, ...] = ()


@dataclass(frozen=True, slots=True)
class RecordingResult:
    """Recordings that no other result has carried."""

    recordings: tuple[Recording, ...]


@dataclass(frozen=True, slots=True)
class OpFailure:
    """The request could not be done, through no fault of the sandbox. `message` is fit for the model to read."""

    kind: FailureKind
    message: str


Result = (
    ExecResult
    | ReadResult
    | WriteResult
    | ListResult
    | ArchiveResult
    | KillResult
    | ViewResult
    | EditResult
    | GlobResult
    | GrepResult
    | ShellResult
    | TmuxResult
    | RecordingResult
    | OpFailure
)
