"""The report of a sweep, served on this machine: for sweeps that no file should hold, and while one runs.

    GET /                        the page
    GET /tasks                   the index of tasks
    GET /samples/NUMBER          the samples of one task, with their trajectories
    GET /outputs/NUMBER          the files that a sample left
    GET /outputs/NUMBER/PATH     one of them

Each answer is read from the database when it is asked for, in a thread. Nothing can be changed by asking.
"""

from __future__ import annotations

import asyncio
import gzip
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from starlette.responses import Response
from starlette.routing import Route, Router

from agentenv.errors import SweepError
from agentenv.evaluation.reader import SweepReader
from agentenv.evaluation.report.data import Room, arm_places, samples_of, task_index
from agentenv.evaluation.report.files import file_answer, listed, sample_folder
from agentenv.evaluation.report.page import served_page
from agentenv.run.jsonl import encode_json
from agentenv_tools.serving.answers import HttpError
from agentenv_tools.serving.guard import Guard

if TYPE_CHECKING:
    from collections.abc import Callable

    from starlette.requests import Request
    from starlette.types import ASGIApp

    from agentenv_tools.serving.settings import ServeSettings

MAX_TASK_BYTES = 50_000_000
"""Of images and terminals in one answer, by quarters: see `Room`."""
_TERMINAL_S = 20.0
_AT_ONCE = 2
_JSON = "application/json; charset=utf-8"

T = TypeVar("T")


class SweepServer:
    """Serves one sweep's directory. `app` is an ASGI application, see `agentenv_tools.serving`."""

    def __init__(self, directory: Path | str, settings: ServeSettings) -> None:
        """Raises `SweepError` when there is no sweep."""
        self.settings = settings
        self._directory = Path(directory)
        self._places = asyncio.Semaphore(_AT_ONCE)
        SweepReader(self._directory).__exit__()
        routes = [
            Route("/", self._page, methods=["GET"]),
            Route("/tasks", self._tasks, methods=["GET"]),
            Route("/samples/{task:int}", self._samples, methods=["GET"]),
            Route("/outputs/{sample:int}", self._files, methods=["GET"]),
            Route("/outputs/{sample:int}/{name:path}", self._file, methods=["GET"]),
        ]
        self.app: ASGIApp = Guard(Router(routes), settings)

    async def close(self, grace_s: float | None = None) -> None:
        """Nothing is under way for long."""

    async def _page(self, request: Request) -> Response:
        body = await self._read(served_page)
        headers = {
            "content-security-policy": "frame-ancestors 'none'",
            "referrer-policy": "no-referrer",
        }
        return Response(body, media_type="text/html; charset=utf-8", headers=headers)

    async def _tasks(self, request: Request) -> Response:
        body = await self._read(lambda reader: encode_json(task_index(reader, reader.tasks())))
        return await _answer(request, body)

    async def _samples(self, request: Request) -> Response:
        task = request.path_params["task"]

        def read(reader: SweepReader) -> bytes:
            room = Room.of(reader, MAX_TASK_BYTES, seconds=_TERMINAL_S)
            return encode_json(samples_of(reader, task, arm_places(reader), room))

        return await _answer(request, await self._read(read))

    async def _files(self, request: Request) -> Response:
        sample = request.path_params["sample"]
        body = await self._read(
            lambda reader: encode_json(listed(sample_folder(reader, sample))), status=404
        )
        return await _answer(request, body)

    async def _file(self, request: Request) -> Response:
        sample, name = request.path_params["sample"], request.path_params["name"]
        return await self._read(
            lambda reader: file_answer(sample_folder(reader, sample), name), status=404
        )

    async def _read(self, work: Callable[[SweepReader], T], *, status: int = 500) -> T:
        def open_and_read() -> T:
            with SweepReader(self._directory) as reader:
                return work(reader)

        async with self._places:
            try:
                return await asyncio.to_thread(open_and_read)
            except (SweepError, OSError) as error:
                raise HttpError(status, "sweep", str(error)) from error


async def _answer(request: Request, body: bytes) -> Response:
    if "gzip" not in request.headers.get("accept-encoding", ""):
        return Response(body, media_type=_JSON)
    packed = await asyncio.to_thread(gzip.compress, body, 5)
    return Response(packed, media_type=_JSON, headers={"content-encoding": "gzip"})
