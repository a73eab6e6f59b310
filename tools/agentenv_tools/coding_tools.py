"""The toolset `coding`: `exec`, `read`, `write`, `edit`, `glob` and `grep` in a trajectory's slot.

Of each result, the main text is the `output`; the rest is in the metadata, by its documented name. Both are what the
model reads, so neither holds anything (a duration, say) in which equal rollouts could differ. Paths are relative to the
workspace, in arguments and in results, whatever folder commands start in.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

from pydantic import Field

from agentenv_backends.requests import (
    EditRequest,
    ExecRequest,
    GlobRequest,
    GrepRequest,
    Request,
    ViewRequest,
)
from agentenv_backends.results import (
    EditResult,
    ExecResult,
    GlobResult,
    GrepMatch,
    GrepResult,
    OpFailure,
    ViewResult,
)
from agentenv_tools._bounds import MAX_OUTPUT_BYTES
from agentenv_tools.arguments import ToolArguments
from agentenv_tools.base import SandboxTool, Tool, expect
from agentenv_tools.images import describe_image, image_part
from agentenv_tools.sandbox_tools import (
    ReadFileArguments,
    WriteFileArguments,
    WriteFileTool,
    command_result,
    failure_result,
)
from agentenv_tools.schema import ToolResult

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from agentenv_backends.results import Result

T = TypeVar("T")

EXEC_TIMEOUT_S = 300.0
"""What an `exec` call may take where neither its caller nor the model says."""
MAX_EDIT_CHARS = 1_000_000

Folder = Annotated[
    str, Field(description="Folder to start in, relative to the workspace.", min_length=1)
]
Pattern = Annotated[str, Field(min_length=1, max_length=4096)]


class ExecArguments(ToolArguments):
    """Arguments of `exec`."""

    command: Annotated[str, Field(description="The shell command to run.", min_length=1)]
    cwd: Folder = "."
    env: Annotated[
        dict[str, str], Field(description="Environment variables to add.", default_factory=dict)
    ]
    timeout: Annotated[
        int | None,
        Field(description=f"Seconds it may take ({EXEC_TIMEOUT_S:g} if left out).", ge=1),
    ] = None


class ReadArguments(ReadFileArguments):
    """Arguments of `read`."""

    offset: Annotated[int, Field(description="First line to read, counted from 0.", ge=0)] = 0
    limit: Annotated[int | None, Field(description="How many lines to read.", ge=1)] = None


class EditArguments(ReadFileArguments):
    """Arguments of `edit`."""

    old_text: Annotated[
        str,
        Field(
            description="The text to replace, exactly as it stands in the file. It must be there once.",
            min_length=1,
            max_length=MAX_EDIT_CHARS,
        ),
    ]
    new_text: Annotated[
        str, Field(description="What to put in its place.", max_length=MAX_EDIT_CHARS)
    ]


class GlobArguments(ToolArguments):
    """Arguments of `glob`."""

    pattern: Annotated[
        str,
        Field(
            description=(
                "Such as `*.py` (at any depth), `src/*.py` or `src/**/test_*.py`; `*`, `?`, `[a-z]` and `**`."
            ),
            min_length=1,
            max_length=4096,
        ),
    ]
    cwd: Folder = "."
    ignore: Annotated[
        list[Pattern],
        Field(
            description="Patterns of files and folders to leave out.",
            default_factory=list,
            max_length=100,
        ),
    ]


class GrepArguments(ToolArguments):
    """Arguments of `grep`."""

    pattern: Annotated[
        str,
        Field(
            description="A regular expression in Python's syntax, applied to each line.",
            min_length=1,
            max_length=4096,
        ),
    ]
    cwd: Annotated[
        str, Field(description="Folder or file to search, relative to the workspace.", min_length=1)
    ] = "."
    include: Annotated[
        list[Pattern],
        Field(
            description="Search only files that match one of these patterns, as `glob` takes them.",
            default_factory=list,
            max_length=100,
        ),
    ]
    max_results: Annotated[
        int, Field(description="How many matches to return at most.", ge=1, le=1000)
    ] = 100
    context_lines: Annotated[
        int, Field(description="Lines to show before and after each match.", ge=0, le=20)
    ] = 0


class ExecTool(SandboxTool[ExecArguments]):
    """A command in a fresh shell; stdout is the output, stderr and exit code are beside it."""

    name = "exec"
    description = (
        "Run a shell command. Each call is a fresh shell: files persist; variables, the working "
        "directory and background processes do not."
    )
    arguments_model = ExecArguments

    def asked_s(self, arguments: ExecArguments) -> float:
        """See `SandboxTool.asked_s`."""
        return EXEC_TIMEOUT_S

    def request(self, arguments: ExecArguments, timeout_s: float) -> Request:
        """See `SandboxTool.request`."""
        return ExecRequest(
            command=arguments.command, timeout_s=timeout_s, cwd=arguments.cwd, env=arguments.env
        )

    def result(self, arguments: ExecArguments, result: Result, timeout_s: float) -> ToolResult:
        """Output: stdout. Metadata: exit_code, stderr, truncated."""
        answer = expect(result, ExecResult)
        if isinstance(answer, OpFailure):
            return failure_result(answer)
        merged = command_result(answer, timeout_s)
        own = {"stderr": answer.stderr.text(), "truncated": "truncated" in merged.metadata}
        return replace(merged, output=answer.stdout.text(), metadata={**merged.metadata, **own})


class ReadTool(SandboxTool[ReadArguments]):
    """Lines of a text file, or an image."""

    name = "read"
    description = (
        "Read a text file of the workspace, or some lines of it; or look at an image (PNG, JPEG, GIF, WebP). "
        "`next_offset` in the result says where to go on when there is more."
    )
    arguments_model = ReadArguments

    def request(self, arguments: ReadArguments, timeout_s: float) -> Request:
        """See `SandboxTool.request`."""
        return ViewRequest(arguments.path, first_line=arguments.offset, max_lines=arguments.limit)

    def result(self, arguments: ReadArguments, result: Result, timeout_s: float) -> ToolResult:
        """Output: the content as it stands, or a line about the image. Metadata: path, and what was left out."""
        answer = expect(result, ViewResult)
        if isinstance(answer, OpFailure):
            return failure_result(answer)
        metadata: dict[str, Any] = {"path": arguments.path}
        if answer.media_type != "text/plain":
            return image_result(answer, metadata)
        if answer.more:
            metadata["next_offset"] = answer.first_line + answer.lines
            metadata["file_size"] = answer.file_size
        if answer.line_cut:
            metadata["truncated"] = f"line {answer.first_line} is cut: it is too long to be shown"
        return ToolResult(True, answer.content.decode("utf-8", "replace"), metadata=metadata)


class WriteTool(WriteFileTool):
    """`write_file` by the name it has here."""

    name = "write"

    def result(self, arguments: WriteFileArguments, result: Result, timeout_s: float) -> ToolResult:
        """Output: what was written. Metadata: path."""
        return _with_path(super().result(arguments, result, timeout_s), arguments.path)


class EditTool(SandboxTool[EditArguments]):
    """Replaces a text that stands in a file exactly once."""

    name = "edit"
    description = (
        "Replace a text in a file. It must stand there exactly once: give enough of the lines around it. "
        "Everything else in the file stays as it is."
    )
    arguments_model = EditArguments

    def request(self, arguments: EditArguments, timeout_s: float) -> Request:
        """See `SandboxTool.request`."""
        return EditRequest(arguments.path, arguments.old_text, arguments.new_text)

    def result(self, arguments: EditArguments, result: Result, timeout_s: float) -> ToolResult:
        """Output: a sentence. Metadata: path."""
        answer = expect(result, EditResult)
        if isinstance(answer, OpFailure):
            return failure_result(answer)
        return _with_path(ToolResult(True, f"Edited {arguments.path}"), arguments.path)


class GlobTool(SandboxTool[GlobArguments]):
    """Files by their paths."""

    name = "glob"
    description = "List files whose path matches a pattern, sorted (at most 1000)."
    arguments_model = GlobArguments

    def request(self, arguments: GlobArguments, timeout_s: float) -> Request:
        """See `SandboxTool.request`."""
        return GlobRequest(arguments.pattern, cwd=arguments.cwd, ignore=tuple(arguments.ignore))

    def result(self, arguments: GlobArguments, result: Result, timeout_s: float) -> ToolResult:
        """Output: how many. Metadata: files, and truncated where there are more."""
        answer = expect(result, GlobResult)
        if isinstance(answer, OpFailure):
            return failure_result(answer)
        files, cut = _fitting(answer.paths, _size)
        metadata: dict[str, Any] = {"files": files}
        if cut or answer.truncated:
            metadata["truncated"] = True
        return ToolResult(True, _counted(len(files), "file"), metadata=metadata)


class GrepTool(SandboxTool[GrepArguments]):
    """Lines by what is in them."""

    name = "grep"
    description = (
        "Find the lines of text files in which a regular expression is found. "
        "Binary and very large files are skipped."
    )
    arguments_model = GrepArguments

    def request(self, arguments: GrepArguments, timeout_s: float) -> Request:
        """See `SandboxTool.request`."""
        return GrepRequest(
            arguments.pattern,
            cwd=arguments.cwd,
            include=tuple(arguments.include),
            max_results=arguments.max_results,
            context_lines=arguments.context_lines,
            timeout_s=timeout_s,
        )

    def result(self, arguments: GrepArguments, result: Result, timeout_s: float) -> ToolResult:
        """Output: how many. Metadata: matches, truncated where there are more, and how many files were skipped."""
        answer = expect(result, GrepResult)
        if isinstance(answer, OpFailure):
            return failure_result(answer)
        found, cut = _fitting(answer.matches, _weight)
        metadata: dict[str, Any] = {
            "matches": [_match(match, context=arguments.context_lines > 0) for match in found]
        }
        if cut or answer.truncated:
            metadata["truncated"] = True
        if answer.skipped_files:
            metadata["skipped_files"] = answer.skipped_files
        return ToolResult(True, _counted(len(found), "match"), metadata=metadata)


def coding_tools() -> list[Tool[Any]]:
    """The tools of the toolset `coding`."""
    return [ExecTool(), ReadTool(), WriteTool(), EditTool(), GlobTool(), GrepTool()]


def _with_path(result: ToolResult, path: str) -> ToolResult:
    return replace(result, metadata={"path": path}) if result.success else result


def image_result(answer: ViewResult, metadata: dict[str, Any]) -> ToolResult:
    """An image of a file, with a line that says what it is."""
    try:
        image = image_part(answer.content, answer.media_type)
    except ValueError as error:
        return ToolResult(False, error=f"{metadata['path']}: {error}")
    return ToolResult(True, describe_image(image), metadata=metadata, images=(image,))


def _fitting(items: Iterable[T], weight: Callable[[T], int]) -> tuple[list[T], bool]:
    """As many as a model is to read at once, and whether that is not all."""
    room = MAX_OUTPUT_BYTES
    fitting: list[T] = []
    for item in items:
        room -= weight(item)
        if room < 0:
            return fitting, True
        fitting.append(item)
    return fitting, False


def _size(text: str) -> int:
    return len(text.encode("utf-8", "replace"))


def _weight(match: GrepMatch) -> int:
    return sum(map(_size, (match.path, match.text, *match.before, *match.after)))


def _match(match: GrepMatch, *, context: bool) -> dict[str, Any]:
    shown: dict[str, Any] = {"path": match.path, "line": match.line, "text": match.text}
    if context:
        shown["context"] = {"before": list(match.before), "after": list(match.after)}
    return shown


def _counted(count: int, noun: str) -> str:
    plural = noun + ("es" if noun.endswith("ch") else "s")
    return f"{count} {noun if count == 1 else plural}"
