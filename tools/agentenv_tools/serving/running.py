"""Serving an ASGI application with uvicorn: in this event loop, stopped in order, slow callers cut off."""

from __future__ import annotations

import asyncio
import logging
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import TYPE_CHECKING, Protocol

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from agentenv_tools.serving.listening import Stoppable, listen, run_until_stopped, url_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from starlette.types import ASGIApp


logger = logging.getLogger(__name__)

_START_TIMEOUT_S = 10.0
_KEEP_ALIVE_S = 75
"""Longer than callers keep idle connections: a connection closed just as a call is sent loses the call."""
_CONNECTIONS_GRACE_S = 2
"""How long uvicorn waits for connections, once no call is under way any more."""


class Service(Stoppable, Protocol):
    """Something that can be served."""

    @property
    def app(self) -> ASGIApp:
        """The application, with its guard."""
        ...


@asynccontextmanager
async def serving(service: Service) -> AsyncIterator[str]:
    """Serve within the block; yields the URL. At its end calls get `stop_grace_s` to finish.

    Raises `ToolConfigError` when the address cannot be had.
    """
    listener = listen(service.settings)
    server = _Server(_config(service))
    task = asyncio.create_task(server.serve(sockets=[listener]), name="uvicorn")
    try:
        await _started(server, task)
        yield url_of(listener)
    finally:
        await _stop(service, server, task)


async def serve_until_stopped(service: Service, announce: Callable[[str], None]) -> None:
    """Serve until SIGINT or SIGTERM. `announce` is called with the URL once requests are taken.

    A second signal ends calls under way at once.
    """
    await run_until_stopped(serving(service), service, announce)


class _Server(uvicorn.Server):
    """uvicorn as a guest in somebody else's loop: it leaves signals alone, and ends when told, not when it looks."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.ending = asyncio.Event()

    async def main_loop(self) -> None:
        while not self.ending.is_set():
            await self.on_tick(0)  # the date in answers
            with suppress(TimeoutError):
                async with asyncio.timeout(1.0):
                    await self.ending.wait()

    def leave_slow_readers(self) -> None:
        """Let go of those who do not take their answers, before uvicorn cancels these and logs each as a failure."""
        for connection in list(self.server_state.connections):
            transport: asyncio.Transport = connection.transport
            if transport.get_write_buffer_size():
                transport.abort()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def _config(service: Service) -> uvicorn.Config:
    settings = service.settings

    class Connection(_TimedConnection):
        read_timeout_s = settings.read_timeout_s

    return uvicorn.Config(
        service.app,
        http=Connection,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        limit_concurrency=settings.max_connections,
        timeout_keep_alive=_KEEP_ALIVE_S,
        timeout_graceful_shutdown=_CONNECTIONS_GRACE_S,
    )


class _TimedConnection(H11Protocol):
    """Closes a connection on which the head of the next request takes too long; uvicorn waits for ever."""

    read_timeout_s = 20.0
    _too_slow: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        self._unwatch()
        super().connection_lost(exc)

    def _watch(self) -> None:
        if self.cycle is not None and not self.cycle.response_complete:
            self._unwatch()
        elif self._too_slow is None:
            self._too_slow = self.loop.call_later(self.read_timeout_s, self.transport.close)

    def _unwatch(self) -> None:
        if self._too_slow is not None:
            self._too_slow.cancel()
            self._too_slow = None


async def _started(server: _Server, task: asyncio.Task[None]) -> None:
    async with asyncio.timeout(_START_TIMEOUT_S):
        while not server.started:
            if task.done():
                task.result()
                raise RuntimeError("uvicorn ended before it served")
            await asyncio.sleep(0.005)


async def _stop(service: Service, server: _Server, task: asyncio.Task[None]) -> None:
    """End it all, whoever cancels meanwhile."""
    server_stop = asyncio.ensure_future(_stop_in_order(service, server, task))
    cancelled = None
    while not server_stop.done():
        try:
            await asyncio.shield(server_stop)
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        raise cancelled
    server_stop.result()


async def _stop_in_order(service: Service, server: _Server, task: asyncio.Task[None]) -> None:
    try:
        await service.close()
    finally:
        server.ending.set()
        _, running = await asyncio.wait({task}, timeout=_CONNECTIONS_GRACE_S / 2)
        if running:
            server.leave_slow_readers()
        await asyncio.wait({task})
