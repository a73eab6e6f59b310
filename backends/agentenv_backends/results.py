"""What a slot answers. Frozen data; the only logic is reading it as text."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


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
class OpFailure:
    """The request could not be done, through no fault of the sandbox. `message` is fit for the model to read."""

    kind: FailureKind
    message: str


Result = ExecResult | ReadResult | WriteResult | ListResult | ArchiveResult | KillResult | OpFailure
