"""The tool `editor`: look at files, make them and change them, with one tool for all of it.

It works on files of the workspace, as `read`, `write` and `edit` do; a path may be relative to the workspace.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, model_validator

from agentenv_backends.requests import (
    EditRequest,
    ListRequest,
    ReadRequest,
    ViewRequest,
    WriteRequest,
)
from agentenv_backends.results import (
    EditResult,
    FailureKind,
    ListResult,
    OpFailure,
    ReadResult,
    ViewResult,
    WriteResult,
)
from agentenv_tools.arguments import ToolArguments, describe, validate
from agentenv_tools.base import Tool, expect
from agentenv_tools.coding_tools import MAX_EDIT_CHARS, image_result
from agentenv_tools.sandbox_tools import failure_result
from agentenv_tools.schema import ToolResult, ToolSchema

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Self

    from agentenv_tools.base import ToolContext

_COMMANDS = {
    "view": (),
    "create": ("file_text",),
    "str_replace": ("old_str",),
    "insert": ("insert_line", "insert_text"),
}
"""What each command needs beside a path."""
_MAX_LISTED = 500
_MAX_INSERT_BYTES = 1_000_000
Text = Annotated[str | None, Field(max_length=MAX_EDIT_CHARS)]


class EditorArguments(ToolArguments):
    """Arguments of `editor`."""

    command: Annotated[
        Literal["view", "create", "str_replace", "insert"], Field(description="What to do.")
    ]
    path: Annotated[str, Field(description="A file; for `view` also a folder.", min_length=1)]
    view_range: Annotated[
        list[int] | None,
        Field(
            description="`view`: first and last line, from 1; -1 as the last: to the end.",
            min_length=2,
            max_length=2,
        ),
    ] = None
    file_text: Annotated[Text, Field(description="`create`: the whole content.")] = None
    old_str: Annotated[
        Text,
        Field(
            description="`str_replace`: the text to replace; it must stand in the file exactly once."
        ),
    ] = None
    new_str: Annotated[
        Text, Field(description="`str_replace`: what to put in its place (nothing if left out).")
    ] = None
    insert_line: Annotated[
        int | None, Field(description="`insert`: after which line; 0: before the first.", ge=0)
    ] = None
    insert_text: Annotated[Text, Field(description="`insert`: the lines to insert.")] = None

    @model_validator(mode="after")
    def _has_what_it_needs(self) -> Self:
        missing = [name for name in _COMMANDS[self.command] if getattr(self, name) is None]
        if missing:
            raise ValueError(f"the command {self.command!r} needs {' and '.join(missing)}")
        if self.old_str == "":
            raise ValueError("old_str is empty: it has to be a text of the file")
        if self.view_range is not None:
            first, last = self.view_range
            if first < 1 or (last != -1 and last < first):
                raise ValueError(
                    f"view_range {self.view_range} is no range of lines, which count from 1"
                )
        return self


class EditorTool(Tool[EditorArguments]):
    """Views, makes and changes text files of a slot."""

    def __init__(self) -> None:
        parameters, required = describe(EditorArguments)
        self.schema = ToolSchema(
            "editor",
            "View, create and edit files of the workspace: `view` a file with line numbers or list a folder, `create` "
            "a file, `str_replace` a text that stands in it exactly once, `insert` lines.",
            parameters,
            required,
        )

    def validate(self, arguments: Mapping[str, Any]) -> EditorArguments:
        """See `Tool.validate`."""
        return validate(EditorArguments, self.schema.name, arguments)

    async def run(self, arguments: EditorArguments, ctx: ToolContext) -> ToolResult:
        """See `Tool.run`."""
        if arguments.command == "view":
            return await _view(arguments, ctx)
        if arguments.command == "create":
            return await _create(arguments.path, arguments.file_text or "", ctx)
        if arguments.command == "str_replace":
            return await _replace(
                arguments.path, arguments.old_str or "", arguments.new_str or "", ctx
            )
        return await _insert(arguments, ctx)


async def _view(arguments: EditorArguments, ctx: ToolContext) -> ToolResult:
    first, last = arguments.view_range or (1, -1)
    lines = None if last == -1 else last - first + 1
    request = ViewRequest(arguments.path, first_line=first - 1, max_lines=lines)
    answer = expect(await ctx.execute(request), ViewResult)
    if isinstance(answer, OpFailure):
        is_folder = answer.kind is FailureKind.IS_A_DIRECTORY
        return await _list(arguments.path, ctx) if is_folder else failure_result(answer)
    if answer.media_type != "text/plain":
        return image_result(answer, {"path": arguments.path})
    text = answer.content.decode("utf-8", "replace")
    shown = "\n".join(
        f"{number:6d}\t{line}" for number, line in enumerate(text.splitlines(), first)
    )
    rest = answer.more and last == -1
    more = {"next_line": first + answer.lines, "file_size": answer.file_size} if rest else {}
    return ToolResult(True, shown, metadata=more)


async def _list(path: str, ctx: ToolContext) -> ToolResult:
    answer = expect(await ctx.execute(ListRequest(path, max_entries=_MAX_LISTED)), ListResult)
    if isinstance(answer, OpFailure):
        return failure_result(answer)
    names = [entry.path + ("/" if entry.kind == "directory" else "") for entry in answer.entries]
    metadata = {"truncated": f"only the first {_MAX_LISTED}"} if answer.truncated else {}
    return ToolResult(True, "\n".join(names) or "(empty)", metadata=metadata)


async def _create(path: str, text: str, ctx: ToolContext) -> ToolResult:
    answer = expect(await ctx.execute(WriteRequest(path, text.encode())), WriteResult)
    if isinstance(answer, OpFailure):
        return failure_result(answer)
    return ToolResult(True, f"Created {path} ({answer.bytes_written} bytes)")


async def _replace(path: str, old: str, new: str, ctx: ToolContext) -> ToolResult:
    answer = expect(await ctx.execute(EditRequest(path, old, new)), EditResult)
    return (
        failure_result(answer)
        if isinstance(answer, OpFailure)
        else ToolResult(True, f"Edited {path}")
    )


async def _insert(arguments: EditorArguments, ctx: ToolContext) -> ToolResult:
    """The whole text is replaced: so the file keeps its mode, and what changed it meanwhile is not overwritten."""
    path = arguments.path
    answer = expect(await ctx.execute(ReadRequest(path, max_bytes=_MAX_INSERT_BYTES)), ReadResult)
    if isinstance(answer, OpFailure):
        return failure_result(answer)
    if answer.truncated:
        return ToolResult(
            False, error=f"{path} is larger than {_MAX_INSERT_BYTES} bytes: use str_replace"
        )
    try:
        lines = answer.content.decode().splitlines(keepends=True)
    except UnicodeDecodeError:
        return ToolResult(False, error=f"{path} is no text")
    after = arguments.insert_line or 0
    if after > len(lines):
        return ToolResult(False, error=f"insert_line is {after}, and {path} has {len(lines)} lines")
    text = arguments.insert_text or ""
    if text and not text.endswith("\n"):
        text += "\n"
    before = "".join(lines[:after])
    if before and not before.endswith("\n"):
        before += "\n"
    changed = before + text + "".join(lines[after:])
    if not lines:
        return await _create(path, changed, ctx)
    return await _replace(path, answer.content.decode(), changed, ctx)
