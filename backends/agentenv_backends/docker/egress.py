"""The driver's part of a container's way out: which connections are made for it, and to which addresses.

The container has no network. What its proxy (`sandboxd/egress.py`) asks for is looked up here, connected to from here,
and refused unless it is listed (`allow_list.py`).
"""

from __future__ import annotations

import asyncio
import inspect
import logging
from functools import partial
from typing import TYPE_CHECKING

from agentenv_backends.allow_list import RefusedError
from agentenv_backends.sandboxd import egress as tunnels

if TYPE_CHECKING:
    from collections.abc import Callable

    from agentenv_backends.allow_list import AllowList

_log = logging.getLogger(__name__)

PROXY_URL = f"http://127.0.0.1:{tunnels.PORT}"
"""The proxy, for commands in the container."""
PROXY_ARGUMENTS = ("-I", "-S", "-c", inspect.getsource(tunnels) + "\n\nasyncio.run(main())\n")
"""What it is, for a Python in the container."""
_CONNECT_S = 10.0
_ADDRESSES_TRIED = 4
_MOST_UNREAD = 64 << 20
"""More than this does not wait for a proxy that keeps to the rules."""


class Egress(asyncio.Protocol):
    """Makes the connections of one container. Its stream is that of the container's proxy."""

    def __init__(self, allowed: AllowList, on_lost: Callable[[], None]) -> None:
        self.ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Done when the proxy takes clients."""
        self._allowed = allowed
        self._on_lost = on_lost
        self._frames = tunnels.FrameReader()
        self._tunnels: dict[int, tunnels.Tunnel] = {}
        self._work: set[asyncio.Task[None]] = set()
        self._opening: dict[int, asyncio.Task[None]] = {}
        """Those that have no connection yet, by its number."""
        self._transport: asyncio.Transport | None = None
        self._closed = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by asyncio: the stream is ours."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Called by asyncio: bytes from the proxy."""
        if self._closed:
            return
        try:
            for number, kind, payload in self._frames.feed(data):
                self._take(number, kind, payload)
        except tunnels.FrameError as error:
            self._end(f"it sent what is no frame: {error}")

    def connection_lost(self, exc: Exception | None) -> None:
        """Called by asyncio: the proxy is gone."""
        self._end(f"its stream ended ({exc})")

    @property
    def began(self) -> bool:
        """Whether the proxy has ever taken clients."""
        ready = self.ready
        return ready.done() and not ready.cancelled() and ready.exception() is None

    async def close(self) -> None:
        """End every connection. Idempotent."""
        self._closed = True
        for task in self._work:
            task.cancel()
        if self._work:
            await asyncio.wait(self._work)

    def _end(self, reason: str) -> None:
        if self._closed:
            return
        self._closed = True
        if not self.ready.done():
            self.ready.set_exception(ConnectionError(reason))
            self.ready.exception()  # seen, also when nobody waits for it any more
        for task in self._work:
            task.cancel()
        if self._transport is not None:
            self._transport.abort()
        _log.warning("the proxy of a container is gone: %s", reason)
        self._on_lost()

    def _take(self, number: int, kind: int, payload: bytes) -> None:
        if kind == tunnels.READY:
            if not self.ready.done():
                self.ready.set_result(None)
        elif kind == tunnels.OPEN:
            self._open(number, payload.decode("utf-8", "replace"))
        elif kind == tunnels.RESET and number in self._opening:
            self._opening[number].cancel()  # nobody waits for it any more
        elif number in self._tunnels:
            self._tunnels[number].take(kind, payload)

    def _open(self, number: int, where: str) -> None:
        if number in self._tunnels:
            raise tunnels.FrameError(f"connection {number} is there already")
        if len(self._tunnels) >= tunnels.MAX_CONNECTIONS:
            self._send(tunnels.encode(number, tunnels.REFUSED, b"too many connections"))
            return
        tunnel = self._tunnels[number] = tunnels.Tunnel(number, self._send)
        task = asyncio.get_running_loop().create_task(self._serve(tunnel, where), name="egress")
        self._work.add(task)
        self._opening[number] = task
        task.add_done_callback(partial(self._forget, number))

    def _forget(self, number: int, task: asyncio.Task[None]) -> None:
        self._work.discard(task)
        self._opening.pop(number, None)
        self._tunnels.pop(number, None)

    async def _serve(self, tunnel: tunnels.Tunnel, where: str) -> None:
        try:
            reader, writer = await self._connect(where)
        except RefusedError as error:
            _log.info("refused: %s", error)
            reason = str(error).encode("utf-8", "replace")
            self._send(tunnels.encode(tunnel.number, tunnels.REFUSED, reason))
        else:
            del self._opening[tunnel.number]
            self._send(tunnels.encode(tunnel.number, tunnels.OPENED))
            await tunnel.carry(reader, writer)

    async def _connect(self, where: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        addresses, port = await self._allowed.addresses(where)
        reason: Exception = OSError("no address")
        for address in addresses[:_ADDRESSES_TRIED]:
            try:
                async with asyncio.timeout(_CONNECT_S):
                    return await asyncio.open_connection(str(address), port)
            except (OSError, TimeoutError) as error:
                reason = error
        raise RefusedError(f"{where} cannot be reached: {reason or type(reason).__name__}")

    def _send(self, frame: bytes) -> None:
        if self._transport is None or self._transport.is_closing():
            return
        self._transport.write(frame)
        if self._transport.get_write_buffer_size() > _MOST_UNREAD:
            self._end("it does not read what it asked for")
