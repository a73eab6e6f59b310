"""The tool executor as a service, for agents that live in another process.

    GET  /          what this is
    GET  /health    {"status": "ok"}, without a token
    GET  /status    {queue_size, total_requests, total_errors, ..., pool: {...}}
    POST /execute   {trajectory_id, tool: {name, arguments, uniq_id}, timeout_s?}
                    -> {success, output, error, metadata, uniq_id}
    POST /release   {trajectory_id, reset_workspace} -> {success, released}
    POST /artifacts/read, /artifacts/list, /artifacts/archive   {trajectory_id, path, ...}

A call's result says what the agent did. What the infrastructure did wrong is 503 with `{"error": {"kind", "message"}}`,
where `kind` names the failure (`host_lost`, `slot_lost`, `acquire_timeout`, ...): never a reason for a score.
"""

from __future__ import annotations

import asyncio
import base64
import logging
import math
import mimetypes
from collections import OrderedDict
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field
from starlette.routing import Route, Router

from agentenv_backends.errors import BackendError, CapabilityError
from agentenv_backends.requests import DEFAULT_MAX_ARTIFACT_BYTES, DEFAULT_MAX_ENTRIES
from agentenv_backends.results import FailureKind, OpFailure
from agentenv_tools.errors import (
    ExecutorClosedError,
    NoActiveSlotError,
    ToolConfigError,
    ToolError,
    TrajectoryReleasedError,
)
from agentenv_tools.serving.answers import Answer, HttpError, kind_of, result_answer
from agentenv_tools.serving.call_table import STOPPING, CallTable, fingerprint
from agentenv_tools.serving.guard import Guard
from agentenv_tools.serving.reading import Body, CallBody, read_body, while_connected
from agentenv_tools.serving.settings import ServeSettings

if TYPE_CHECKING:
    from collections.abc import Iterator

    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.types import ASGIApp

    from agentenv_backends.base import Backend
    from agentenv_tools.executor import ToolExecutor

logger = logging.getLogger(__name__)

DEFAULT_PORT = 9001
ENV_PREFIX = "TOOL_EXECUTOR_"
IDEMPOTENCY_KEY = "idempotency-key"
"""Header of `/execute`: a call sent again with the same key, after a lost connection, runs once."""

_STATUS_OF_FAILURE = {
    FailureKind.OUTSIDE_WORKSPACE: 403,
    FailureKind.PERMISSION_DENIED: 403,
    FailureKind.NOT_FOUND: 404,
    FailureKind.TOO_LARGE: 413,
}


class _TrajectoryBody(Body):
    trajectory_id: str = Field(min_length=1, max_length=256)


class ExecuteBody(_TrajectoryBody):
    """What `/execute` takes."""

    tool: CallBody
    timeout_s: float | None = None


class ReleaseBody(_TrajectoryBody):
    """What `/release` takes."""

    reset_workspace: bool = False


class ReadBody(_TrajectoryBody):
    """What `/artifacts/read` takes."""

    path: str = Field(max_length=4096)
    encoding: Literal["text", "base64"] = "text"
    max_bytes: int = Field(default=DEFAULT_MAX_ARTIFACT_BYTES, ge=0, le=DEFAULT_MAX_ARTIFACT_BYTES)
    include_sha256: bool = False


class ListBody(_TrajectoryBody):
    """What `/artifacts/list` takes."""

    path: str = Field(default=".", max_length=4096)
    recursive: bool = False
    max_entries: int = Field(default=DEFAULT_MAX_ENTRIES, ge=1, le=DEFAULT_MAX_ENTRIES)


class ArchiveBody(_TrajectoryBody):
    """What `/artifacts/archive` takes."""

    path: str = Field(default=".", max_length=4096)
    format: Literal["tar.gz", "tgz"] = "tar.gz"
    max_bytes: int = Field(default=DEFAULT_MAX_ARTIFACT_BYTES, ge=0, le=DEFAULT_MAX_ARTIFACT_BYTES)
    max_entries: int = Field(default=DEFAULT_MAX_ENTRIES, ge=1, le=DEFAULT_MAX_ENTRIES)


@dataclass(frozen=True, slots=True)
class ExecutorServerLimits:
    """What clients may take."""

    idle_s: float = 1_800.0
    """A trajectory nobody has spoken of for so long is released, its workspace reset: its client is gone."""
    max_trajectories: int = 10_000

    def __post_init__(self) -> None:
        """Raises `ToolConfigError`."""
        if not 0 < self.idle_s < math.inf:
            raise ToolConfigError(f"idle_s={self.idle_s:g}: must be more than 0 seconds")


@dataclass(eq=False, slots=True)
class _Seen:
    """When a trajectory was last spoken of, and by how many requests it is being spoken of now."""

    last: float = field(default=0.0)
    active: int = 0


class ExecutorServer:
    """Serves a started `ToolExecutor`; both it and the backend stay the caller's to close.

    Cancelling is leaving: when a caller closes its connection, its call is withdrawn (with an `Idempotency-Key`,
    a few seconds later, so that it can come back for the answer).
    """

    def __init__(
        self,
        executor: ToolExecutor,
        backend: Backend,
        settings: ServeSettings | None = None,
        limits: ExecutorServerLimits | None = None,
    ) -> None:
        self.settings = settings or ServeSettings()
        self._executor = executor
        self._backend = backend
        self._limits = limits or ExecutorServerLimits()
        self._calls = CallTable()
        self._seen: dict[str, _Seen] = {}
        self._expired: OrderedDict[str, None] = OrderedDict()
        self._reaper: asyncio.Task[None] | None = None
        routes = [
            Route("/", self._about),
            Route("/health", self._health),
            Route("/status", self._status),
            Route("/execute", self._execute, methods=["POST"]),
            Route("/release", self._release, methods=["POST"]),
            Route("/artifacts/read", self._read, methods=["POST"]),
            Route("/artifacts/list", self._list, methods=["POST"]),
            Route("/artifacts/archive", self._archive, methods=["POST"]),
        ]
        self._app = Guard(Router(routes, redirect_slashes=False), self.settings)

    @property
    def app(self) -> ASGIApp:
        """The application, with its guard."""
        return self._app

    async def close(self, grace_s: float | None = None) -> None:
        """See `Service.close`."""
        reaper, self._reaper = self._reaper, None
        if reaper is not None:
            reaper.cancel()
            await asyncio.wait({reaper})
        await self._calls.close(self.settings.stop_grace_s if grace_s is None else grace_s)

    # ---- routes ----

    async def _about(self, _request: Request) -> Response:
        return Answer.of({"service": "agentenv tool executor"}).response()

    async def _health(self, _request: Request) -> Response:
        return Answer.of({"status": "ok"}).response()

    async def _status(self, _request: Request) -> Response:
        stats, pool = self._executor.stats(), self._backend.stats()
        counts = {
            "queue_size": stats.queue_size,
            "total_requests": stats.total_requests,
            "total_errors": stats.total_errors,
            "total_failures": stats.total_failures,
            "in_flight": stats.in_flight,
            "mean_latency_s": stats.mean_latency_s,
            "errors_by_kind": dict(stats.errors_by_kind),
            "trajectories": len(self._seen),
        }
        by_state = {"available": pool.available_slots, "acquired": pool.acquired_slots}
        shown = {**asdict(pool), "containers": pool.hosts, "slots_by_state": by_state}
        return Answer.of({**counts, "pool": shown}).response()

    async def _execute(self, request: Request) -> Response:
        body = await read_body(request, ExecuteBody, self.settings)
        call = body.tool.call()
        given = request.headers.get(IDEMPOTENCY_KEY)
        key = (body.trajectory_id, given[:256]) if given else None

        async def work() -> Answer:
            with self._speaking_of(body.trajectory_id), _failures():
                timeout_s = body.timeout_s
                return result_answer(
                    await self._executor.execute(body.trajectory_id, call, timeout_s=timeout_s)
                )

        answer = await while_connected(request, self._calls.run(key, fingerprint(call), work))
        return answer.response()

    async def _release(self, request: Request) -> Response:
        body = await read_body(request, ReleaseBody, self.settings)
        known = self._seen.pop(body.trajectory_id, None) is not None
        self._expired.pop(body.trajectory_id, None)
        await self._executor.release_trajectory(
            body.trajectory_id, reset_workspace=body.reset_workspace
        )
        # Another trajectory of this name must not read what this one did.
        self._calls.forget(lambda key: isinstance(key, tuple) and key[0] == body.trajectory_id)
        return Answer.of({"success": True, "released": known}).response()

    async def _read(self, request: Request) -> Response:
        body = await read_body(request, ReadBody, self.settings)
        with self._speaking_of(body.trajectory_id), _failures():
            found = _done(
                await self._executor.read_artifact(
                    body.trajectory_id,
                    body.path,
                    max_bytes=body.max_bytes,
                    include_sha256=body.include_sha256,
                )
            )
        text = body.encoding == "text"
        content = found.content.decode("utf-8", "replace") if text else _base64(found.content)
        payload = {
            "success": True,
            "content": content,
            "encoding": body.encoding,
            "truncated": found.truncated,
            "bytes": len(found.content),
            "file_size": found.file_size,
            "path": body.path,
            "mime": mimetypes.guess_type(body.path)[0] or "application/octet-stream",
            "sha256": found.sha256,
        }
        return Answer.of(payload).response()

    async def _list(self, request: Request) -> Response:
        body = await read_body(request, ListBody, self.settings)
        with self._speaking_of(body.trajectory_id), _failures():
            found = _done(
                await self._executor.list_artifacts(
                    body.trajectory_id,
                    body.path,
                    recursive=body.recursive,
                    max_entries=body.max_entries,
                )
            )
        entries = [
            {"path": entry.path, "is_dir": entry.is_dir, "size": entry.size, "mtime": entry.mtime}
            for entry in found.entries
        ]
        payload = {"success": True, "entries": entries, "truncated": found.truncated}
        return Answer.of(payload).response()

    async def _archive(self, request: Request) -> Response:
        body = await read_body(request, ArchiveBody, self.settings)
        with self._speaking_of(body.trajectory_id), _failures():
            found = _done(
                await self._executor.archive_artifacts(
                    body.trajectory_id,
                    body.path,
                    max_bytes=body.max_bytes,
                    max_entries=body.max_entries,
                )
            )
        payload = {
            "success": True,
            "content": _base64(found.content),
            "encoding": "base64",
            "format": found.archive_format,
            "bytes": len(found.content),
            "entry_count": found.entry_count,
        }
        return Answer.of(payload).response()

    # ---- trajectories whose client is gone ----

    @contextmanager
    def _speaking_of(self, trajectory_id: str) -> Iterator[None]:
        seen = self._seen.get(trajectory_id) or self._first_seen(trajectory_id)
        seen.active += 1
        try:
            yield
        finally:
            seen.active -= 1
            seen.last = asyncio.get_running_loop().time()

    def _first_seen(self, trajectory_id: str) -> _Seen:
        if trajectory_id in self._expired:  # never a second, empty workspace under the same name
            message = (
                f"trajectory {trajectory_id} was released after {self._limits.idle_s:g}s of silence"
            )
            raise HttpError(410, "trajectory_expired", message)
        if len(self._seen) >= self._limits.max_trajectories:
            message = f"{len(self._seen)} trajectories are open; release those that have ended"
            raise HttpError(503, "too_many_trajectories", message)
        self._reaper = self._reaper or asyncio.create_task(self._release_idle())
        seen = self._seen[trajectory_id] = _Seen()
        return seen

    async def _release_idle(self) -> None:
        while True:
            await asyncio.sleep(self._limits.idle_s / 10)
            oldest = asyncio.get_running_loop().time() - self._limits.idle_s
            idle = [
                name for name, seen in self._seen.items() if not seen.active and seen.last < oldest
            ]
            for name in idle:
                logger.info("trajectory %s is released: its client has been silent", name)
                del self._seen[name]
                self._expired[name] = None
            while len(self._expired) > self._limits.max_trajectories:
                self._expired.popitem(last=False)
            await asyncio.gather(
                *(self._executor.release_trajectory(name, reset_workspace=True) for name in idle)
            )


@contextmanager
def _failures() -> Iterator[None]:
    """What is no answer, as a status of its own."""
    try:
        yield
    except (NoActiveSlotError, TrajectoryReleasedError) as error:
        raise HttpError(409, kind_of(error), str(error)) from error
    except ExecutorClosedError as error:
        raise HttpError(503, STOPPING, str(error)) from error
    except CapabilityError as error:
        raise HttpError(501, kind_of(error), str(error)) from error
    except (BackendError, ToolError) as error:
        logger.warning("infrastructure failed: %s", error)
        raise HttpError(503, kind_of(error), str(error)) from error


def _done(found: Any) -> Any:
    """What was found, or `HttpError` for what could not be done."""
    if not isinstance(found, OpFailure):
        return found
    raise HttpError(_STATUS_OF_FAILURE.get(found.kind, 400), found.kind.value, found.message)


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode("ascii")
