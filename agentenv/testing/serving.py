"""Serving fakes on a loopback port, in the event loop of the test."""

from __future__ import annotations

import asyncio
import socket
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any

import uvicorn

from agentenv.testing.engine import FakeEngine

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from starlette.types import ASGIApp

_START_TIMEOUT = 10.0
_TURNS_OF_ACCEPTING = 5
"""A connection that was accepted just before the listener was closed is known some turns of the loop later."""


class _Server(uvicorn.Server):
    """uvicorn as a guest in somebody else's loop.

    It leaves signals alone, says when it serves, and ends at once, without waiting for anybody.
    """

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.serving = asyncio.Event()
        self.ending = asyncio.Event()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.serving.set()

    async def main_loop(self) -> None:
        await self.ending.wait()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        for listener in (*self.servers, *(sockets or ())):
            listener.close()
        for _ in range(_TURNS_OF_ACCEPTING):
            self._cut_connections()
            await asyncio.sleep(0)
        handlers = list(self.server_state.tasks)
        for handler in handlers:
            handler.cancel()
        await asyncio.gather(*handlers, return_exceptions=True)

    def _cut_connections(self) -> None:
        for connection in list(self.server_state.connections):
            transport = getattr(connection, "transport", None)
            if transport is not None:
                transport.abort()


class RunningApp:
    """An ASGI application being served on a loopback port. `kill` and `revive` make its server die and come back on
    the same port.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self.port = 0
        self._server: _Server | None = None
        self._task: asyncio.Task[Any] | None = None

    @property
    def root_url(self) -> str:
        """Its address, without a path."""
        return f"http://127.0.0.1:{self.port}"

    async def revive(self) -> None:
        """Serve, on the port of before if there was one."""
        # With the protocol named asyncio turns Nagle's algorithm off; else each reply takes 40 ms.
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", self.port))
        self.port = listener.getsockname()[1]
        config = uvicorn.Config(
            self.app, log_config=None, log_level="critical", access_log=False, lifespan="off"
        )
        self._server = _Server(config)
        self._task = asyncio.create_task(self._server.serve(sockets=[listener]))
        async with asyncio.timeout(_START_TIMEOUT):
            await self._server.serving.wait()

    async def kill(self) -> None:
        """Stop listening and cut every connection. Idempotent."""
        server, task = self._server, self._task
        self._server = self._task = None
        if server is not None and task is not None:
            server.ending.set()
            await task


class RunningEngine(RunningApp):
    """A fake engine being served."""

    def __init__(self, engine: FakeEngine) -> None:
        super().__init__(engine)
        self.engine = engine

    @property
    def base_url(self) -> str:
        """For `APIServerConfig.base_url`."""
        return f"{self.root_url}/v1"


@asynccontextmanager
async def running_engine(
    engine: FakeEngine | None = None, **options: Any
) -> AsyncIterator[RunningEngine]:
    """Serve `engine`, or a `FakeEngine` made with `options`, on a free loopback port inside the
    block.
    """
    if engine is not None and options:
        raise ValueError("give either an engine or the options of one")
    running = RunningEngine(engine or FakeEngine(**options))
    await running.revive()
    try:
        yield running
    finally:
        await running.kill()


@asynccontextmanager
async def running_app(app: ASGIApp) -> AsyncIterator[RunningApp]:
    """Serve an ASGI application on a free loopback port inside the block."""
    running = RunningApp(app)
    await running.revive()
    try:
        yield running
    finally:
        await running.kill()
