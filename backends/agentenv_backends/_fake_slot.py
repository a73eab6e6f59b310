"""A fake slot: a workspace in memory, and what it does when nothing is scripted."""

from __future__ import annotations

import asyncio
import shlex
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from agentenv_backends._fake_terminals import FakeTerminals
from agentenv_backends.requests import (
    ArchiveRequest,
    KillRequest,
    ListRequest,
    ReadRequest,
    WriteRequest,
)
from agentenv_backends.results import (
    ArchiveResult,
    Capture,
    Entry,
    ExecResult,
    ExecStatus,
    FailureKind,
    KillResult,
    ListResult,
    OpFailure,
    ReadResult,
    WriteResult,
)

if TYPE_CHECKING:
    from agentenv_backends.requests import ExecRequest, Request
    from agentenv_backends.results import Result


@dataclass(slots=True)
class FakeSlot:
    """A workspace in memory."""

    slot_id: str
    files: dict[str, bytes] = field(default_factory=dict)
    requests: list[Request] = field(default_factory=list)
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    terminals: FakeTerminals = field(default_factory=FakeTerminals)


def exec_result(
    stdout: str | bytes = b"",
    *,
    stderr: str | bytes = b"",
    exit_code: int = 0,
    status: ExecStatus = ExecStatus.EXITED,
) -> ExecResult:
    """What a command did, in short."""

    def capture(stream: str | bytes) -> Capture:
        data = stream.encode() if isinstance(stream, str) else stream
        return Capture(head=data, total_bytes=len(data))

    return ExecResult(status, exit_code, capture(stdout), capture(stderr), duration_s=0.0)


async def toy_shell(slot: FakeSlot, request: ExecRequest) -> ExecResult:
    """A shell that knows six commands, and `echo ... > file`; each is a program as well."""
    target = ""
    if isinstance(request.command, str):
        command, _, target = request.command.partition(">")
        words = shlex.split(command) or ["true"]
    else:
        words = list(request.command)
    if words[0] == "sleep":
        await asyncio.sleep(float(words[1]))
    if words[0] in {"sleep", "true"}:
        return exec_result()
    if words[0] == "echo":
        return _echo(slot, " ".join(words[1:]) + "\n", target.strip())
    if words[0] == "cat" and words[1] in slot.files:
        return exec_result(slot.files[words[1]])
    if words[0] in {"exit", "false", "cat"}:
        return exec_result(exit_code=int(words[1]) if words[0] == "exit" else 1)
    return exec_result(stderr=f"{words[0]}: command not found\n", exit_code=127)


def _echo(slot: FakeSlot, text: str, target: str) -> ExecResult:
    if not target:
        return exec_result(text)
    slot.files[target] = text.encode()
    return exec_result()


def file_operation(slot: FakeSlot, request: Request) -> Result:
    """What a request that concerns files gives."""
    match request:
        case WriteRequest(path, content, append):
            slot.files[path] = slot.files.get(path, b"") + content if append else content
            return WriteResult(len(content))
        case ReadRequest(path, offset, max_bytes) if path in slot.files:
            data = slot.files[path]
            part = data[offset : offset + max_bytes]
            return ReadResult(part, len(data), truncated=offset + len(part) < len(data))
        case ListRequest(_, _, limit):
            entries = [
                Entry(path, "file", len(slot.files[path]), 0.0) for path in sorted(slot.files)
            ]
            return ListResult(tuple(entries[:limit]), truncated=len(entries) > limit)
        case ArchiveRequest(_, archive_format):
            return ArchiveResult(repr(slot.files).encode(), archive_format, len(slot.files))
        case KillRequest():
            return KillResult(0)
        case _:
            return OpFailure(FailureKind.NOT_FOUND, f"no such file: {getattr(request, 'path', '')}")
