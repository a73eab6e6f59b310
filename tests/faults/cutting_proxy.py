"""A TCP proxy in front of an HTTP server that cuts some requests: halfway to the server, halfway back, or when they are
done and only the answer is missing, which is the case in which a client cannot know and has to ask again.
"""

from __future__ import annotations

import asyncio
import enum
import random
from collections import Counter
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

_CHUNK = 1 << 16


class Cut(enum.Enum):
    """Where a request is cut."""

    REQUEST = "half of the request arrives"
    ANSWER = "the request is done, its answer is lost"
    HALF_ANSWER = "half of the answer comes back"


class CuttingProxy:
    """Listens on a port of its own, which stays the same while the server behind it dies and comes back elsewhere."""

    def __init__(self, upstream: Callable[[], tuple[str, int]], share: float, seed: int) -> None:
        self._upstream = upstream
        self._share = share
        self._draw = random.Random(seed)
        self._under_way: set[asyncio.Task[None]] = set()
        self.requests = 0
        self.cuts: Counter[Cut] = Counter()
        self.url = ""

    async def serve(self) -> asyncio.Server:
        """Start to listen."""
        server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        host, port = server.sockets[0].getsockname()[:2]
        self.url = f"http://{host}:{port}"
        return server

    async def close(self) -> None:
        """End every connection."""
        tasks = list(self._under_way)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def drawn(self) -> Cut | None:
        """What happens to a request that begins now."""
        self.requests += 1
        if self._draw.random() >= self._share:
            return None
        cut = self._draw.choice(list(Cut))
        self.cuts[cut] += 1
        return cut

    def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._forward(reader, writer))
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            server_reader, server_writer = await asyncio.open_connection(*self._upstream())
        except OSError:
            writer.transport.abort()
            return
        connection = _Connection(self, (writer, server_writer))
        directions = {
            asyncio.create_task(connection.to_server(reader)),
            asyncio.create_task(connection.to_client(server_reader)),
        }
        try:
            await asyncio.wait(directions, return_when=asyncio.FIRST_COMPLETED)
        finally:
            connection.abort()
            await asyncio.wait(directions)


class _Connection:
    """Two directions. A request begins with the first bytes from the client after an answer."""

    def __init__(
        self, proxy: CuttingProxy, writers: tuple[asyncio.StreamWriter, asyncio.StreamWriter]
    ) -> None:
        self._proxy = proxy
        self._client, self._server = writers
        self._cut: Cut | None = None
        self._asking = False

    def abort(self) -> None:
        """Both sides see a reset, and both directions end."""
        self._client.transport.abort()
        self._server.transport.abort()

    async def to_server(self, reader: asyncio.StreamReader) -> None:
        """Until the client has nothing more to say, or its request is cut."""
        while data := await _read(reader):
            if not self._asking:
                self._asking, self._cut = True, self._proxy.drawn()
            if self._cut is Cut.REQUEST:
                await _write(self._server, data[: len(data) // 2])
                return
            if not await _write(self._server, data):
                return

    async def to_client(self, reader: asyncio.StreamReader) -> None:
        """Until the server has nothing more to say, or its answer is cut."""
        while data := await _read(reader):
            self._asking = False
            if self._cut is Cut.ANSWER:
                return
            if self._cut is Cut.HALF_ANSWER:
                await _write(self._client, data[: len(data) // 2])
                return
            if not await _write(self._client, data):
                return


async def _read(reader: asyncio.StreamReader) -> bytes:
    try:
        return await reader.read(_CHUNK)
    except OSError:
        return b""


async def _write(writer: asyncio.StreamWriter, data: bytes) -> bool:
    try:
        writer.write(data)
        await writer.drain()
    except OSError:
        return False
    return True


@asynccontextmanager
async def cutting_proxy(
    upstream: Callable[[], tuple[str, int]], *, share: float, seed: int
) -> AsyncIterator[CuttingProxy]:
    """A proxy to whatever `upstream()` says at the time of a connection; `share` of the requests are cut, by `seed`."""
    proxy = CuttingProxy(upstream, share, seed)
    server = await proxy.serve()
    try:
        yield proxy
    finally:
        server.close()
        await proxy.close()
        await server.wait_closed()
