"""A container's only way out: an HTTP proxy on its loopback, whose connections all go through one stream to the driver.

The container has no network. Whether a connection may be made, to which address, and making it is the driver's part
(`agentenv_backends.docker.egress`); in here is nothing to get past. The proxy is a process of its own, without rights,
in the container, which reads and writes these frames on its standard input and output:

    connection u32 | kind u8 | length u32 | payload

What travels in one direction of a connection and was not taken at the other end is at most `WINDOW`. This file is run
as it is by any Python from 3.8 on; the driver imports it for what both ends have in common.
"""

from __future__ import annotations

import asyncio
import struct
import sys
from typing import Callable, Dict, List, Optional, Tuple

PORT = 3128
"""Where the proxy listens."""
READY, OPEN, OPENED, REFUSED, DATA, END, TAKEN, RESET = range(8)
WINDOW = 256 << 10
MAX_PAYLOAD = 64 << 10
MAX_CONNECTIONS = 128
"""Of all slots of a container. Each may have as many as it leaves free for the others."""
_HEADER = struct.Struct(">IBI")
_MAX_HEAD = 32 << 10
_MAX_ASKING = 128
"""Clients whose request has not come yet. The one that is awaited longest makes room for the next."""
_HEAD_S = 30.0
_OPEN_S = 60.0
_IDLE_S = 900.0
_HALF_CLOSED_S = 60.0
"""How long nothing may come for a client that sends no more: it may be gone altogether, which does not show."""
_LOOK_AGAIN = b"all has been sent"
_CLIENTS = "/proc/net/tcp"
_Send = Callable[[bytes], None]


class FrameError(Exception):
    """The other end sent what makes no sense."""


def encode(number: int, kind: int, payload: bytes = b"") -> bytes:
    """A frame."""
    return _HEADER.pack(number, kind, len(payload)) + payload


class FrameReader:
    """Takes frames out of a stream of bytes."""

    def __init__(self) -> None:
        self._data = bytearray()

    def feed(self, data: bytes) -> List[Tuple[int, int, bytes]]:
        """The frames that are whole now. Raises `FrameError`."""
        self._data += data
        found = []
        while len(self._data) >= _HEADER.size:
            number, kind, length = _HEADER.unpack_from(self._data)
            if length > MAX_PAYLOAD or kind > RESET:
                raise FrameError("no frame begins with %r" % bytes(self._data[: _HEADER.size]))
            if len(self._data) < _HEADER.size + length:
                break
            found.append((number, kind, bytes(self._data[_HEADER.size : _HEADER.size + length])))
            del self._data[: _HEADER.size + length]
        return found


class Tunnel:
    """One end of one connection: what comes by its socket goes to the other end, and the reverse."""

    def __init__(self, number: int, send: _Send) -> None:
        self.number = number
        self._send = send
        self._credit = WINDOW
        self._untaken = 0
        self._room = asyncio.Event()
        self._has_sent_all = False
        self._incoming: asyncio.Queue[Optional[bytes]] = asyncio.Queue()
        """What the other end sent; empty: it sends no more; None: it is gone."""

    def take(self, kind: int, payload: bytes) -> None:
        """Something for this connection. Raises `FrameError`."""
        if kind == DATA:
            self._untaken += len(payload)
            if self._untaken > WINDOW:
                raise FrameError("more was sent than may be on its way")
            self._incoming.put_nowait(payload)
        elif kind == TAKEN:
            self._credit += int.from_bytes(payload, "big")
            if self._credit > WINDOW:
                raise FrameError("more was taken than had been sent")
            self._room.set()
        elif kind == END:
            self._incoming.put_nowait(b"")
        elif kind == RESET:
            self.lose()

    def lose(self) -> None:
        """The other end is gone."""
        self._incoming.put_nowait(None)

    async def carry(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, first: bytes = b""
    ) -> None:
        """Until both directions have ended, or one has failed. Closes the socket; the other end hears of it, and gets
        `first` before what is read.
        """
        directions = [
            asyncio.ensure_future(self._outward(reader, first)),
            asyncio.ensure_future(self._inward(writer)),
        ]
        try:
            await asyncio.gather(*directions)
        except (OSError, asyncio.TimeoutError):
            pass  # one side is gone, and so is the connection
        finally:
            for direction in directions:
                direction.cancel()
            self._send(encode(self.number, RESET))
            writer.close()
            await asyncio.gather(*directions, return_exceptions=True)

    async def _outward(self, reader: asyncio.StreamReader, first: bytes) -> None:
        if first:
            self._credit -= len(first)
            self._send(encode(self.number, DATA, first))
        while True:
            while self._credit <= 0:
                self._room.clear()
                await self._room.wait()
            data = await reader.read(min(self._credit, MAX_PAYLOAD))
            if not data:
                self._send(encode(self.number, END))
                self._has_sent_all = True
                self._incoming.put_nowait(_LOOK_AGAIN)
                return
            self._credit -= len(data)
            self._send(encode(self.number, DATA, data))

    async def _inward(self, writer: asyncio.StreamWriter) -> None:
        has_all = False
        while not (has_all and self._has_sent_all):  # until then the other end may be lost
            patience_s = _HALF_CLOSED_S if self._has_sent_all else _IDLE_S
            data = await asyncio.wait_for(self._incoming.get(), None if has_all else patience_s)
            if data is _LOOK_AGAIN:
                continue
            if data is None:
                raise ConnectionResetError("the other end is gone")
            if not data:
                has_all = True
                if writer.can_write_eof():
                    writer.write_eof()
                continue
            writer.write(data)
            await writer.drain()
            self._untaken -= len(data)
            self._send(encode(self.number, TAKEN, len(data).to_bytes(4, "big")))


# --- The proxy ------------------------------------------------------------------------------------


class RequestError(Exception):
    """What a client asked for is nothing that a proxy does."""


def parse_request(head: bytes) -> Tuple[str, bytes]:
    """Where a client wants to go (`host:port`), and what it sends there first: nothing, for CONNECT.

    Raises `RequestError`.
    """
    lines = head.split(b"\r\n")
    try:
        method, target, version = lines[0].decode("ascii").split(" ")
    except ValueError as error:
        raise RequestError("no request of HTTP") from error
    if not version.startswith("HTTP/1."):
        raise RequestError("%s is not spoken here" % version[:20])
    if method == "CONNECT":
        return target, b""
    scheme, _, rest = target.partition("://")
    if scheme.lower() != "http" or not rest:
        raise RequestError("a proxy is asked for http://... or by CONNECT")
    authority, slash, path = rest.partition("/")
    if "?" in authority:
        authority, _, query = authority.partition("?")
        slash, path = "/?", query
    host = authority.rpartition("@")[2]
    kept = [line for line in lines[1:] if line and not _is_for_the_proxy(line)]
    first = ("%s %s%s %s" % (method, slash or "/", path, version)).encode("ascii")
    whole = b"\r\n".join([first, *kept, b"Connection: close", b"", b""])
    return host if _has_port(host) else host + ":80", whole


def _is_for_the_proxy(line: bytes) -> bool:
    name = line.partition(b":")[0].strip().lower()
    return name in (b"connection", b"keep-alive") or name.startswith(b"proxy-")


def _has_port(authority: str) -> bool:
    return ":" in authority.rpartition("]")[2]


class Proxy:
    """Serves clients in the container. `send` writes to the driver."""

    def __init__(self, send: _Send) -> None:
        self._send = send
        self._tunnels: Dict[int, Tunnel] = {}
        self._openings: Dict[int, asyncio.Future[Optional[str]]] = {}
        self._asking: Dict[asyncio.StreamWriter, None] = {}
        """Clients whose request has not come yet, in their order."""
        self._ports: Dict[int, int] = {}
        """Of clients, by the numbers of their connections."""
        self._last = 0

    def take(self, number: int, kind: int, payload: bytes) -> None:
        """A frame from the driver. Raises `FrameError`."""
        opening = self._openings.get(number)
        if kind in (OPENED, REFUSED):
            if opening is not None and not opening.done():
                reason = payload.decode("utf-8", "replace") if kind == REFUSED else None
                opening.set_result(reason)
        elif number in self._tunnels:
            self._tunnels[number].take(kind, payload)

    async def serve_client(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        """One connection of a client, to its end."""
        try:
            head = await self._read_head(reader, writer)
            where, first = parse_request(head)
        except RequestError as error:
            await _say(writer, "400 Bad Request", str(error))
        except (EOFError, OSError, asyncio.LimitOverrunError, asyncio.TimeoutError):
            writer.close()
        else:
            await self._connect(where, first, reader, writer)

    async def _read_head(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
        if len(self._asking) >= _MAX_ASKING:
            oldest = next(iter(self._asking))
            del self._asking[oldest]
            oldest.transport.abort()
        self._asking[writer] = None
        try:
            return await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), _HEAD_S)
        finally:
            self._asking.pop(writer, None)

    def _has_room(self, port: int) -> bool:
        """Whether the user of the client at this port may have one more connection."""
        free = MAX_CONNECTIONS - len(self._tunnels)
        if len(self._tunnels) < free:
            return True
        users = users_by_port()
        user = users.get(port)
        return sum(users.get(other) == user for other in self._ports.values()) < free

    async def _connect(
        self, where: str, first: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        port = int(writer.get_extra_info("peername")[1])
        if not self._has_room(port):
            await _say(writer, "503 Service Unavailable", "too many connections")
            return
        self._last += 1
        number = self._last
        opening = self._openings[number] = asyncio.get_running_loop().create_future()
        tunnel = self._tunnels[number] = Tunnel(number, self._send)
        self._ports[number] = port
        try:
            self._send(encode(number, OPEN, where.encode("utf-8", "replace")[:1024]))
            reason = await asyncio.wait_for(opening, _OPEN_S)
            if reason is not None:
                await _say(writer, "403 Forbidden", reason)
                return
            if not first:
                writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
            await tunnel.carry(reader, writer, first)
        except asyncio.TimeoutError:
            self._send(encode(number, RESET))
            await _say(writer, "504 Gateway Timeout", "no answer from outside")
        finally:
            del self._openings[number], self._tunnels[number], self._ports[number]


def users_by_port() -> Dict[int, int]:
    """Whose the connections are that were made from this machine's own ports."""
    users = {}
    try:
        with open(_CLIENTS, encoding="ascii", errors="replace") as file:
            for line in file:
                parts = line.split()
                if parts[0] != "sl":
                    users[int(parts[1].rpartition(":")[2], 16)] = int(parts[7])
    except (OSError, ValueError, IndexError):
        return {}  # then all are one user, who has to share
    return users


async def _say(writer: asyncio.StreamWriter, status: str, reason: str) -> None:
    body = (reason + "\n").encode("utf-8")
    head = (
        "HTTP/1.1 %s\r\nContent-Type: text/plain\r\nContent-Length: %d\r\nConnection: close\r\n\r\n"
    )
    try:
        writer.write((head % (status, len(body))).encode("ascii") + body)
        await writer.drain()
    except OSError:
        pass  # nobody wants to know
    finally:
        writer.close()


async def main() -> None:
    """Serve until the driver is gone."""
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin.buffer)
    transport, _ = await loop.connect_write_pipe(asyncio.Protocol, sys.stdout.buffer)
    proxy = Proxy(transport.write)
    server = await asyncio.start_server(
        proxy.serve_client, "127.0.0.1", PORT, limit=_MAX_HEAD, backlog=128
    )
    transport.write(encode(0, READY))
    frames = FrameReader()
    while True:
        data = await reader.read(1 << 16)
        if not data:
            break
        for number, kind, payload in frames.feed(data):
            proxy.take(number, kind, payload)
    server.close()
