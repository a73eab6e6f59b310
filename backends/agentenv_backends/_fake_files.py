"""View, edit, glob and grep on the files of a fake slot: what the real ones answer, for small text files and images."""

from __future__ import annotations

import re
from itertools import islice
from typing import TYPE_CHECKING

from agentenv_backends.requests import EditRequest, GlobRequest, GrepRequest, ViewRequest
from agentenv_backends.results import (
    EditResult,
    FailureKind,
    GlobResult,
    GrepMatch,
    GrepResult,
    OpFailure,
    ViewResult,
)
from agentenv_backends.sandboxd.refusal import RefusedError
from agentenv_backends.sandboxd.slot_edit import edited, image_type
from agentenv_backends.sandboxd.slot_glob import matches

if TYPE_CHECKING:
    from collections.abc import Iterator

    from agentenv_backends.requests import Request
    from agentenv_backends.results import Result


def file_tool(files: dict[str, bytes], request: Request) -> Result | None:
    """The answer to one of these requests; None for any other."""
    try:
        match request:
            case ViewRequest(path) if path in files:
                return _view(files[path], request)
            case EditRequest(path, old_text, new_text, replace_all) if path in files:
                old, new = old_text.encode(), new_text.encode()
                count, files[path] = edited(files[path], old, new, path, every=replace_all)
                return EditResult(count, len(files[path]))
            case GlobRequest():
                return _glob(files, request)
            case GrepRequest():
                return _grep(files, request)
    except RefusedError as refused:
        return OpFailure(FailureKind(refused.kind), refused.message)
    return None


def _view(content: bytes, request: ViewRequest) -> ViewResult | OpFailure:
    media_type = image_type(content).decode()
    if media_type:
        return ViewResult(content, media_type, len(content))
    if b"\0" in content:
        return OpFailure(FailureKind.NOT_TEXT, f"{request.path}: no text: a NUL byte")
    lines = content.splitlines(keepends=True)[request.first_line :]
    shown = lines[: request.max_lines]
    return ViewResult(
        b"".join(shown),
        "text/plain",
        len(content),
        first_line=request.first_line,
        lines=len(shown),
        more=len(shown) < len(lines),
    )


def _glob(files: dict[str, bytes], request: GlobRequest) -> GlobResult:
    found = [
        path
        for path, below in _below(files, request.cwd)
        if matches([request.pattern], below) and not _ignored(request.ignore, below)
    ]
    most = request.max_results
    return GlobResult(tuple(found[:most]), truncated=len(found) > most)


def _grep(files: dict[str, bytes], request: GrepRequest) -> GrepResult | OpFailure:
    try:
        pattern = re.compile(request.pattern)
    except re.error as error:
        return OpFailure(FailureKind.BAD_REQUEST, f"pattern: {error}")
    paths = [
        path
        for path, below in _below(files, request.cwd)
        if not request.include or matches(request.include, below)
    ]
    found = (match for path in paths for match in _matches(path, files[path], pattern, request))
    kept = tuple(islice(found, request.max_results))
    return GrepResult(kept, truncated=next(found, None) is not None)


def _matches(
    path: str, content: bytes, pattern: re.Pattern[str], request: GrepRequest
) -> Iterator[GrepMatch]:
    lines = content.decode("utf-8", "replace").splitlines()
    around = request.context_lines
    for number, line in enumerate(lines):
        if pattern.search(line):
            before = tuple(lines[max(0, number - around) : number])
            after = tuple(lines[number + 1 : number + 1 + around])
            yield GrepMatch(path, number + 1, line, before, after)


def _below(files: dict[str, bytes], cwd: str) -> Iterator[tuple[str, str]]:
    """Each file below a folder: its path, and its path from there."""
    folder = "" if cwd == "." else cwd.rstrip("/") + "/"
    for path in sorted(files):
        if path == cwd:
            yield path, path.rpartition("/")[2]
        elif path.startswith(folder):
            yield path, path[len(folder) :]


def _ignored(patterns: tuple[str, ...], path: str) -> bool:
    names = path.split("/")
    return any(matches(patterns, "/".join(names[: end + 1])) for end in range(len(names)))
