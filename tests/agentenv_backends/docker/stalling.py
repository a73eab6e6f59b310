"""A way to an engine that can be made to stall, as an engine that is stopped does, without stopping one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path


class StallingWay:
    """While `open` is not set, nothing passes in either direction and nothing is refused."""

    def __init__(self, engine: str) -> None:
        self.open = asyncio.Event()
        self.open.set()
        self.url = ""
        self._engine = engine
        self._carriers: set[asyncio.Task[None]] = set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        engine_reader, engine_writer = await asyncio.open_unix_connection(self._engine)
        for source, target in ((reader, engine_writer), (engine_reader, writer)):
            task = asyncio.create_task(self._carry(source, target))
            self._carriers.add(task)
            task.add_done_callback(self._carriers.discard)

    async def _carry(self, source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        try:
            while data := await source.read(1 << 16):
                await self.open.wait()
                target.write(data)
                await target.drain()
        except ConnectionError:
            pass
        finally:
            target.close()

    async def end(self) -> None:
        for task in list(self._carriers):
            task.cancel()
        await asyncio.gather(*self._carriers, return_exceptions=True)


@asynccontextmanager
async def stalling_way(folder: Path, engine: str) -> AsyncIterator[StallingWay]:
    """Serve one at a Unix socket in `folder`."""
    way = StallingWay(engine)
    path = folder / "way.sock"
    server = await asyncio.start_unix_server(way.serve, path)
    way.url = f"unix://{path}"
    try:
        yield way
    finally:
        server.close()
        await way.end()
