"""The tools that work in a trajectory's slot: `terminal`, `bash`, `read_file`, `write_file`."""

from __future__ import annotations

import codecs
from typing import TYPE_CHECKING, Annotated, Any, assert_never

from pydantic import Field, field_validator

from agentenv_backends.requests import (
    DEFAULT_MAX_FILE_BYTES,
    ExecRequest,
    ReadRequest,
    Request,
    WriteRequest,
)
from agentenv_backends.results import (
    ExecResult,
    ExecStatus,
    FailureKind,
    OpFailure,
    ReadResult,
    WriteResult,
)
from agentenv_tools.arguments import ToolArguments
from agentenv_tools.base import SandboxTool, expect
from agentenv_tools.schema import ToolResult

if TYPE_CHECKING:
    from agentenv_backends.results import Capture, Result

ACCESS_DENIED = "Access denied: path outside workspace"


class BashArguments(ToolArguments):
    """Arguments of `bash`."""

    command: Annotated[str, Field(description="The command to run.", min_length=1)]


class TerminalArguments(BashArguments):
    """Arguments of `terminal`."""

    timeout: Annotated[int | None, Field(description="Seconds the command may take.", ge=1)] = None
    background: Annotated[
        bool, Field(description="Not supported: every process ends with its call.")
    ] = False

    @field_validator("background")
    @classmethod
    def _no_background(cls, value: bool) -> bool:
        if value:
            raise ValueError(
                "background commands are not supported; every process a command starts is killed "
                "when it ends"
            )
        return value


class ReadFileArguments(ToolArguments):
    """Arguments of `read_file`."""

    path: Annotated[
        str, Field(description="Path of the file, relative to the workspace.", min_length=1)
    ]


class WriteFileArguments(ReadFileArguments):
    """Arguments of `write_file`."""

    content: Annotated[str, Field(description="The whole new content of the file, as text.")]

    @field_validator("content")
    @classmethod
    def _not_too_large(cls, value: str) -> str:
        size = len(value.encode())
        if size > DEFAULT_MAX_FILE_BYTES:
            raise ValueError(
                f"{size} bytes, but at most {DEFAULT_MAX_FILE_BYTES} can be written at once"
            )
        return value


class BashTool(SandboxTool[BashArguments]):
    """A command in a fresh shell; files persist, processes and shell variables do not."""

    name = "bash"
    description = (
        "Run a shell command in the workspace. Each call is a fresh shell: files persist; "
        "variables, the working directory and background processes do not."
    )
    arguments_model: type[BashArguments] = BashArguments

    def request(self, arguments: BashArguments, timeout_s: float) -> Request:
        """See `SandboxTool.request`."""
        return ExecRequest(command=arguments.command, timeout_s=timeout_s)

    def result(self, arguments: BashArguments, result: Result, timeout_s: float) -> ToolResult:
        """Standard output, then standard error under `[stderr]`; what went wrong is the `error`."""
        answer = expect(result, ExecResult)
        return (
            failure_result(answer)
            if isinstance(answer, OpFailure)
            else command_result(answer, timeout_s)
        )


class TerminalTool(BashTool):
    """`bash` with a timeout of the model's choice."""

    name = "terminal"
    arguments_model = TerminalArguments


class ReadFileTool(SandboxTool[ReadFileArguments]):
    """A text file, up to 100,000 bytes of it."""

    name = "read_file"
    description = (
        f"Read a text file of the workspace (at most its first {DEFAULT_MAX_FILE_BYTES} bytes)."
    )
    arguments_model = ReadFileArguments

    def request(self, arguments: ReadFileArguments, timeout_s: float) -> Request:
        """See `SandboxTool.request`."""
        return ReadRequest(path=arguments.path)

    def result(self, arguments: ReadFileArguments, result: Result, timeout_s: float) -> ToolResult:
        """The content, with a last line that says what is missing."""
        answer = expect(result, ReadResult)
        if isinstance(answer, OpFailure):
            return failure_result(answer)
        # A character cut in half by the limit would show as a replacement mark nobody wrote.
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        text = decoder.decode(answer.content, final=not answer.truncated)
        if not answer.truncated:
            return ToolResult(success=True, output=text)
        kept = len(answer.content)
        notice = f"\n... file truncated: first {kept} of {answer.file_size} bytes shown ..."
        sizes = {"total_bytes": answer.file_size, "kept_bytes": kept}
        return ToolResult(
            success=True, output=text + notice, metadata={"truncated": {"content": sizes}}
        )


class WriteFileTool(SandboxTool[WriteFileArguments]):
    """Writes a whole text file, making its parent folders."""

    name = "write_file"
    description = (
        "Write a text file in the workspace, replacing what it held. Parent folders are made. "
        f"At most {DEFAULT_MAX_FILE_BYTES} bytes."
    )
    arguments_model = WriteFileArguments

    def request(self, arguments: WriteFileArguments, timeout_s: float) -> Request:
        """See `SandboxTool.request`."""
        return WriteRequest(path=arguments.path, content=arguments.content.encode())

    def result(self, arguments: WriteFileArguments, result: Result, timeout_s: float) -> ToolResult:
        """How many bytes were written where."""
        answer = expect(result, WriteResult)
        if isinstance(answer, OpFailure):
            return failure_result(answer)
        return ToolResult(
            success=True, output=f"Wrote {answer.bytes_written} bytes to {arguments.path}"
        )


def command_result(result: ExecResult, timeout_s: float) -> ToolResult:
    """What the model reads of a command that ran. Durations are left out: equal rollouts must read equal text."""
    metadata: dict[str, Any] = {"exit_code": result.exit_code}
    if result.status is ExecStatus.TIMED_OUT:
        metadata = {"exit_code": -1, "timeout": True}
    if truncated := _truncated(stdout=result.stdout, stderr=result.stderr):
        metadata["truncated"] = truncated
    if result.killed_processes:
        metadata["killed_processes"] = result.killed_processes
    error = _error_of(result, timeout_s)
    return ToolResult(
        success=error is None, output=_output_of(result), error=error, metadata=metadata
    )


def _output_of(result: ExecResult) -> str:
    stderr = result.stderr.text()
    parts = [result.stdout.text(), f"[stderr]\n{stderr}" if stderr else ""]
    if result.killed_processes:
        count = result.killed_processes
        noun = "process was" if count == 1 else "processes were"
        parts.append(
            f"[{count} background {noun} still running when the command ended, and killed]"
        )
    return join_lines([part for part in parts if part])


def join_lines(parts: list[str]) -> str:
    """Each part starts on a line of its own; what a command wrote is otherwise unchanged."""
    text = ""
    for part in parts:
        text += ("\n" if text and not text.endswith("\n") else "") + part
    return text


def _error_of(result: ExecResult, timeout_s: float) -> str | None:
    code = result.exit_code
    match result.status:
        case ExecStatus.EXITED:
            return None if code == 0 else f"Exit code: {code}"
        case ExecStatus.SIGNALED:
            return f"Exit code: {code} (killed by signal {code - 128})"
        case ExecStatus.TIMED_OUT:
            return f"Command timed out after {timeout_s:g}s"
        case ExecStatus.OUT_OF_MEMORY:
            return f"Exit code: {code} (killed: out of memory)"
        case ExecStatus.CANCELLED:
            return "Command cancelled"
        case _ as never:
            assert_never(never)


def _truncated(**streams: Capture) -> dict[str, dict[str, int]]:
    return {
        name: {
            "total_bytes": stream.total_bytes,
            "kept_bytes": len(stream.head) + len(stream.tail),
        }
        for name, stream in streams.items()
        if stream.truncated
    }


def failure_result(failure: OpFailure) -> ToolResult:
    """What the model reads of a request that could not be done."""
    outside = failure.kind is FailureKind.OUTSIDE_WORKSPACE
    return ToolResult(success=False, error=ACCESS_DENIED if outside else failure.message)
