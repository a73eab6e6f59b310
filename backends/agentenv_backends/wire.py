"""Requests as a slot's init reads them, and its answers as results. Pure functions; `connection.py` moves the bytes."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any, NamedTuple

import orjson

from agentenv_backends.requests import (
    ArchiveRequest,
    EditRequest,
    ExecRequest,
    GlobRequest,
    GrepRequest,
    KillRequest,
    ListRequest,
    ReadRequest,
    RecordingRequest,
    ShellRequest,
    TmuxRequest,
    ViewRequest,
    WriteRequest,
)
from agentenv_backends.results import (
    ArchiveResult,
    Capture,
    EditResult,
    Entry,
    ExecResult,
    ExecStatus,
    FailureKind,
    GlobResult,
    GrepMatch,
    GrepResult,
    KillResult,
    ListResult,
    OpFailure,
    ReadResult,
    Recording,
    RecordingResult,
    ShellResult,
    TerminalEvent,
    TmuxResult,
    ViewResult,
    WriteResult,
)
from agentenv_backends.sandboxd import frames

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from agentenv_backends.requests import Request
    from agentenv_backends.results import Result

OPERATION_TIMEOUT_S = 30.0
"""What a request without a deadline of its own may take inside the slot; its own limits are lower."""
GLOB_TIMEOUT_S = 15.0
"""A walk gives what it has found before that; this ends one that is stuck."""
_ALL_LINES = 1 << 62
_encode_json = json.JSONEncoder(separators=(",", ":")).encode
_decode_json = json.JSONDecoder().decode
_STATUSES = {status.value: status for status in ExecStatus}


class Encoded(NamedTuple):
    """A request ready to be sent."""

    header: bytes
    body: bytes
    timeout_s: float


class _Refused(Exception):  # noqa: N818 - becomes a value before it leaves this file
    def __init__(self, kind: FailureKind, message: str) -> None:
        super().__init__(message)
        self.failure = OpFailure(kind, message)


def encode_request(request: Request, key: str | None = None) -> Encoded | OpFailure:
    """The request as header and body, or why no slot could take it.

    `key` makes repeats of the request safe: the slot answers a key it has seen with the answer it gave.
    """
    try:
        values, body, timeout_s = _ENCODERS[type(request)](request)
    except _Refused as refused:
        return refused.failure
    if key is not None:
        values["key"] = key
    header = _encoded(values)
    for size, most, what in (
        (len(header), frames.MAX_HEADER, "names, paths and environment"),
        (len(body), frames.MAX_BODY, "contents"),
    ):
        if size > most:
            message = f"{what} of {size} bytes; a request can have {most} of them"
            return OpFailure(FailureKind.TOO_LARGE, message)
    return Encoded(header, body, timeout_s)


def decode_result(request: Request, frame: frames.Frame) -> Result:
    """The result that an answer holds. Raises `ValueError`, `KeyError` or `TypeError` when it is none."""
    values = _decoded(frame.header)
    if "failure" in values:
        return OpFailure(FailureKind(values["failure"]), values["message"])
    return _DECODERS[type(request)](values, frame)


def _encoded(values: dict[str, Any]) -> bytes:
    """In ASCII, which a slot reads without being told of an encoding."""
    try:
        text = orjson.dumps(values)
    except orjson.JSONEncodeError:  # a path with bytes that are no UTF-8
        return _encode_json(values).encode("ascii")
    return text if text.isascii() else _encode_json(values).encode("ascii")


def _decoded(text: bytes) -> Any:
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:  # such as of a path with bytes that are no UTF-8
        return _decode_json(text.decode("ascii"))


def _encode_exec(request: ExecRequest) -> tuple[dict[str, Any], bytes, float]:
    timeout_s = _seconds(request.timeout_s)
    values: dict[str, Any] = {"op": "exec", "timeout": timeout_s, "max": request.max_output_bytes}
    if isinstance(request.command, str):
        command = _text_bytes("command", request.command)
    else:
        command = _arguments_bytes(request.command)
        values["program"] = True
    if request.cwd != ".":
        values["cwd"] = request.cwd
    if request.env:
        for name, value in request.env.items():
            _text_bytes(f"environment variable {name!r}", name + value)
        values["env"] = dict(request.env)
    if request.stdin:
        values["stdin"] = len(request.stdin)
        command += request.stdin
    return values, command, timeout_s


def _seconds(timeout_s: float) -> float:
    if not (timeout_s > 0 and math.isfinite(timeout_s)):
        raise _Refused(
            FailureKind.BAD_REQUEST, f"timeout_s={timeout_s!r}: it must be positive and finite"
        )
    return timeout_s


def _arguments_bytes(arguments: Sequence[str]) -> bytes:
    if not arguments:
        raise _Refused(FailureKind.BAD_REQUEST, f"command={arguments!r}: it names no program")
    if any("\0" in argument for argument in arguments):
        message = "the command holds a NUL byte, which no program accepts"
        raise _Refused(FailureKind.BAD_REQUEST, message)
    return b"\0".join(_text_bytes("command", argument) for argument in arguments)


def _text_bytes(what: str, text: str) -> bytes:
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError as error:
        raise _Refused(FailureKind.BAD_REQUEST, f"{what}: {error}") from error


def _encode_read(request: ReadRequest) -> tuple[dict[str, Any], bytes, float]:
    values = {
        "op": "read",
        "path": request.path,
        "offset": request.offset,
        "max": request.max_bytes,
    }
    if request.with_sha256:
        values["sha256"] = True
    return values, b"", OPERATION_TIMEOUT_S


def _encode_write(request: WriteRequest) -> tuple[dict[str, Any], bytes, float]:
    values = {"op": "write", "path": request.path, "append": request.append}
    return values, request.content, OPERATION_TIMEOUT_S


def _encode_list(request: ListRequest) -> tuple[dict[str, Any], bytes, float]:
    values = {
        "op": "list",
        "path": request.path,
        "recursive": request.recursive,
        "max": request.max_entries,
    }
    return values, b"", OPERATION_TIMEOUT_S


def _encode_archive(request: ArchiveRequest) -> tuple[dict[str, Any], bytes, float]:
    values = {
        "op": "archive",
        "path": request.path,
        "max": request.max_bytes,
        "max_entries": request.max_entries,
    }
    return values, b"", OPERATION_TIMEOUT_S


def _encode_view(request: ViewRequest) -> tuple[dict[str, Any], bytes, float]:
    values = {
        "op": "view",
        "path": request.path,
        "line": request.first_line,
        "lines": _ALL_LINES if request.max_lines is None else request.max_lines,
        "max": request.max_bytes,
        "max_image": request.max_image_bytes,
    }
    return values, b"", OPERATION_TIMEOUT_S


def _encode_edit(request: EditRequest) -> tuple[dict[str, Any], bytes, float]:
    texts = []
    for name, text in (("old_text", request.old_text), ("new_text", request.new_text)):
        try:
            texts.append(text.encode("utf-8"))
        except UnicodeEncodeError as error:
            raise _Refused(FailureKind.BAD_REQUEST, f"{name}: {error}") from error
    values = {"op": "edit", "path": request.path, "old": len(texts[0]), "all": request.replace_all}
    return values, b"".join(texts), OPERATION_TIMEOUT_S


def _encode_glob(request: GlobRequest) -> tuple[dict[str, Any], bytes, float]:
    values = {
        "op": "glob",
        "pattern": request.pattern,
        "cwd": request.cwd,
        "ignore": list(request.ignore),
        "max": request.max_results,
        "timeout": GLOB_TIMEOUT_S,
    }
    return values, b"", GLOB_TIMEOUT_S


def _encode_grep(request: GrepRequest) -> tuple[dict[str, Any], bytes, float]:
    timeout_s = _seconds(request.timeout_s)
    values = {
        "op": "grep",
        "pattern": request.pattern,
        "cwd": request.cwd,
        "include": list(request.include),
        "max": request.max_results,
        "context": request.context_lines,
        "timeout": timeout_s,
    }
    return values, b"", timeout_s


def _encode_kill(_: KillRequest) -> tuple[dict[str, Any], bytes, float]:
    return {"op": "kill"}, b"", OPERATION_TIMEOUT_S


def _encode_shell(request: ShellRequest) -> tuple[dict[str, Any], bytes, float]:
    timeout_s = _seconds(request.timeout_s)
    values = {"op": "shell", "timeout": timeout_s, "max": request.max_output_bytes}
    return values, _text_bytes("command", request.command), timeout_s


def _encode_tmux(request: TmuxRequest) -> tuple[dict[str, Any], bytes, float]:
    for name in ("timeout_s", "min_wait_s"):
        seconds = getattr(request, name)
        if not (seconds >= 0 and math.isfinite(seconds)):
            raise _Refused(
                FailureKind.BAD_REQUEST, f"{name}={seconds!r}: it must be finite, and not negative"
            )
    _text_bytes("keys", "".join(request.keys))
    values = {
        "op": "tmux",
        "action": request.action,
        "keys": list(request.keys),
        "block": request.block,
        "wait": request.min_wait_s,
        "timeout": request.timeout_s,
        "offset": request.offset,
        "max": request.max_bytes,
        "reset": request.reset,
        "size": [request.width, request.height],
        "history": request.history,
    }
    return values, b"", request.timeout_s


def _encode_recording(_: RecordingRequest) -> tuple[dict[str, Any], bytes, float]:
    return {"op": "recording"}, b"", OPERATION_TIMEOUT_S


def _decode_exec(values: dict[str, Any], frame: frames.Frame) -> ExecResult:
    stdout, stderr, _ = _decode_streams(values["sizes"], frame.body)
    return ExecResult(
        status=_decode_status(values, frame),
        exit_code=values["code"],
        stdout=stdout,
        stderr=stderr,
        duration_s=values["seconds"],
        killed_processes=values["killed"],
    )


def _decode_status(values: dict[str, Any], frame: frames.Frame) -> ExecStatus:
    was_oom = frame.flags & frames.WAS_OOM
    return ExecStatus.OUT_OF_MEMORY if was_oom else _STATUSES[values["status"]]


def _decode_streams(sizes: list[int], body: bytes) -> tuple[Capture, Capture, int]:
    """Both streams, and where they end."""
    out_head, out_tail, out_total, err_head, err_tail, err_total = sizes
    out_end, err_start = out_head + out_tail, out_head + out_tail + err_head
    end = err_start + err_tail
    return (
        Capture(body[:out_head], body[out_head:out_end], out_total),
        Capture(body[out_end:err_start], body[err_start:end], err_total),
        end,
    )


def _decode_shell(values: dict[str, Any], frame: frames.Frame) -> ShellResult:
    stdout, stderr, end = _decode_streams(values["sizes"], frame.body)
    return ShellResult(
        status=_decode_status(values, frame),
        exit_code=values["code"],
        stdout=stdout,
        stderr=stderr,
        duration_s=values["seconds"],
        shell_ended=values["ended"],
        recordings=_decode_recordings(values["recordings"], frame.body, end),
    )


def _decode_tmux(values: dict[str, Any], frame: frames.Frame) -> TmuxResult:
    body, screen, output = frame.body, values["screen"], values["output"]
    return TmuxResult(
        running=values["running"],
        screen=body[:screen].decode("utf-8", "replace"),
        output=body[screen : screen + output],
        next_offset=values["next"],
        timed_out=values["timed_out"],
        recordings=_decode_recordings(values["recordings"], body, screen + output),
    )


def _decode_recordings(rows: list[Any], body: bytes, start: int) -> tuple[Recording, ...]:
    """The texts of all events lie in the body from `start` on, one after the other."""
    recordings = []
    for session, width, height, dropped, event_rows in rows:
        events = []
        for at_s, kind, size in event_rows:
            text = body[start : start + size].decode("utf-8", "replace")
            events.append(TerminalEvent(at_s, kind, text))
            start += size
        recordings.append(Recording(session, width, height, tuple(events), dropped))
    return tuple(recordings)


def _decode_read(values: dict[str, Any], frame: frames.Frame) -> ReadResult:
    content, size, offset = frame.body, values["size"], values["offset"]
    return ReadResult(content, size, offset + len(content) < size, values["sha256"])


def _decode_list(values: dict[str, Any], frame: frames.Frame) -> ListResult:
    rows = _decoded(frame.body)
    return ListResult(tuple(Entry(*row) for row in rows), values["truncated"])


def _decode_archive(values: dict[str, Any], frame: frames.Frame) -> ArchiveResult:
    return ArchiveResult(frame.body, "tar.gz", values["entries"])


def _decode_view(values: dict[str, Any], frame: frames.Frame) -> ViewResult:
    return ViewResult(
        content=frame.body,
        media_type=values["type"],
        file_size=values["size"],
        first_line=values["first"],
        lines=values["lines"],
        more=bool(values["more"]),
        line_cut=bool(values["cut"]),
    )


def _decode_glob(values: dict[str, Any], frame: frames.Frame) -> GlobResult:
    return GlobResult(tuple(_decoded(frame.body)), values["truncated"])


def _decode_grep(values: dict[str, Any], frame: frames.Frame) -> GrepResult:
    rows = _decoded(frame.body)
    matches = (
        GrepMatch(path, line, text, *(tuple(lines) for lines in context))
        for path, line, text, *context in rows
    )
    return GrepResult(tuple(matches), values["truncated"], values["skipped"])


_ENCODERS: dict[type, Callable[[Any], tuple[dict[str, Any], bytes, float]]] = {
    ExecRequest: _encode_exec,
    ReadRequest: _encode_read,
    WriteRequest: _encode_write,
    ListRequest: _encode_list,
    ArchiveRequest: _encode_archive,
    KillRequest: _encode_kill,
    ViewRequest: _encode_view,
    EditRequest: _encode_edit,
    GlobRequest: _encode_glob,
    GrepRequest: _encode_grep,
    ShellRequest: _encode_shell,
    TmuxRequest: _encode_tmux,
    RecordingRequest: _encode_recording,
}
_DECODERS: dict[type, Callable[[dict[str, Any], frames.Frame], Result]] = {
    ExecRequest: _decode_exec,
    ReadRequest: _decode_read,
    WriteRequest: lambda values, _: WriteResult(values["written"]),
    ListRequest: _decode_list,
    ArchiveRequest: _decode_archive,
    KillRequest: lambda values, _: KillResult(values["killed"]),
    ViewRequest: _decode_view,
    EditRequest: lambda values, _: EditResult(values["replacements"], values["written"]),
    GlobRequest: _decode_glob,
    GrepRequest: _decode_grep,
    ShellRequest: _decode_shell,
    TmuxRequest: _decode_tmux,
    RecordingRequest: lambda values, frame: RecordingResult(
        _decode_recordings(values["recordings"], frame.body, 0)
    ),
}
