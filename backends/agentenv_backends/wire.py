"""Requests as a slot's init reads them, and its answers as results. Pure functions; `connection.py` moves the bytes."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any, NamedTuple

from agentenv_backends.requests import (
    ArchiveRequest,
    ExecRequest,
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
from agentenv_backends.sandboxd import frames

if TYPE_CHECKING:
    from collections.abc import Callable

    from agentenv_backends.requests import Request
    from agentenv_backends.results import Result

OPERATION_TIMEOUT_S = 30.0
"""What a request without a deadline of its own may take inside the slot; its own limits are lower."""
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
    header = _encode_json(values).encode("ascii")
    if len(header) > frames.MAX_HEADER or len(body) > frames.MAX_BODY:
        size = len(header) + len(body)
        return OpFailure(
            FailureKind.TOO_LARGE,
            f"a request of {size} bytes; at most {frames.MAX_BODY} can be sent",
        )
    return Encoded(header, body, timeout_s)


def decode_result(request: Request, frame: frames.Frame) -> Result:
    """The result that an answer holds. Raises `ValueError`, `KeyError` or `TypeError` when it is none."""
    values = _decode_json(frame.header.decode("ascii"))
    if "failure" in values:
        return OpFailure(FailureKind(values["failure"]), values["message"])
    return _DECODERS[type(request)](values, frame)


def _encode_exec(request: ExecRequest) -> tuple[dict[str, Any], bytes, float]:
    timeout_s = request.timeout_s
    if not (timeout_s > 0 and math.isfinite(timeout_s)):
        raise _Refused(
            FailureKind.BAD_REQUEST, f"timeout_s={timeout_s!r}: it must be positive and finite"
        )
    command = _text_bytes("command", request.command)
    values: dict[str, Any] = {"op": "exec", "timeout": timeout_s, "max": request.max_output_bytes}
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


def _encode_kill(_: KillRequest) -> tuple[dict[str, Any], bytes, float]:
    return {"op": "kill"}, b"", OPERATION_TIMEOUT_S


def _decode_exec(values: dict[str, Any], frame: frames.Frame) -> ExecResult:
    out_head, out_tail, out_total, err_head, err_tail, err_total = values["sizes"]
    body = frame.body
    out_end, err_start = out_head + out_tail, out_head + out_tail + err_head
    status = (
        ExecStatus.OUT_OF_MEMORY if frame.flags & frames.WAS_OOM else _STATUSES[values["status"]]
    )
    return ExecResult(
        status=status,
        exit_code=values["code"],
        stdout=Capture(body[:out_head], body[out_head:out_end], out_total),
        stderr=Capture(body[out_end:err_start], body[err_start : err_start + err_tail], err_total),
        duration_s=values["seconds"],
        killed_processes=values["killed"],
    )


def _decode_read(values: dict[str, Any], frame: frames.Frame) -> ReadResult:
    content, size, offset = frame.body, values["size"], values["offset"]
    return ReadResult(content, size, offset + len(content) < size, values["sha256"])


def _decode_list(values: dict[str, Any], frame: frames.Frame) -> ListResult:
    rows = _decode_json(frame.body.decode("ascii"))
    return ListResult(tuple(Entry(*row) for row in rows), values["truncated"])


def _decode_archive(values: dict[str, Any], frame: frames.Frame) -> ArchiveResult:
    return ArchiveResult(frame.body, "tar.gz", values["entries"])


_ENCODERS: dict[type, Callable[[Any], tuple[dict[str, Any], bytes, float]]] = {
    ExecRequest: _encode_exec,
    ReadRequest: _encode_read,
    WriteRequest: _encode_write,
    ListRequest: _encode_list,
    ArchiveRequest: _encode_archive,
    KillRequest: _encode_kill,
}
_DECODERS: dict[type, Callable[[dict[str, Any], frames.Frame], Result]] = {
    ExecRequest: _decode_exec,
    ReadRequest: _decode_read,
    WriteRequest: lambda values, _: WriteResult(values["written"]),
    ListRequest: _decode_list,
    ArchiveRequest: _decode_archive,
    KillRequest: lambda values, _: KillResult(values["killed"]),
}
