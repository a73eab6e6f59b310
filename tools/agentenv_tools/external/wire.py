"""Requests to a tool server: over HTTP, or straight into an application of this process."""

from __future__ import annotations

import asyncio
import io
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import aiohttp
import httpx

from agentenv_tools.errors import ToolServerProtocolError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from starlette.types import ASGIApp

IN_PROCESS_HOST = "toolserver"
MAX_REPLY_BYTES = 8_000_000

_CONNECT_TIMEOUT_S = 10.0
_KEEP_IDLE_S = 4.0
"""Shorter than common servers do: a connection closed just as a call is sent loses the call."""
_MAX_AT_ONCE = 256


class NotSentError(Exception):
    """No connection: the server has seen nothing of the request."""


class CutOffError(Exception):
    """The connection was lost after the request had been sent: nobody knows what became of it."""


class TooLargeError(Exception):
    """The reply is larger than `MAX_REPLY_BYTES`."""


@dataclass(frozen=True, slots=True)
class Reply:
    """What came back, whatever its status."""

    status: int
    body: bytes
    location: str | None = None


class Wire(Protocol):
    """A way to one server."""

    async def request(
        self,
        method: str,
        path: str,
        body: bytes | None,
        headers: Mapping[str, str],
        timeout_s: float,
    ) -> Reply:
        """Send and wait. Redirects are not followed.

        Raises `TimeoutError`, `NotSentError`, `CutOffError`, `TooLargeError` or `ToolServerProtocolError`.
        """
        ...

    async def close(self) -> None:
        """Close connections. Idempotent."""
        ...


class HttpWire:
    """Over aiohttp: an httpx client slows down by an order of magnitude at 64 concurrent requests."""

    def __init__(self, base_url: str) -> None:
        self._base_url = base_url.rstrip("/")
        self._session: aiohttp.ClientSession | None = None
        self._turns = asyncio.Semaphore(_MAX_AT_ONCE)

    async def request(
        self,
        method: str,
        path: str,
        body: bytes | None,
        headers: Mapping[str, str],
        timeout_s: float,
    ) -> Reply:
        """See `Wire.request`. Waiting for a connection is not counted."""
        async with self._turns, asyncio.timeout(timeout_s):
            try:
                return await self._request(method, path, body, headers)
            except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
                raise NotSentError(str(error)) from error
            except (aiohttp.ClientConnectionError, aiohttp.ClientPayloadError) as error:
                raise CutOffError(str(error) or type(error).__name__) from error
            except aiohttp.ClientError as error:
                raise ToolServerProtocolError(
                    f"{self._base_url}{path}: the answer is no HTTP ({type(error).__name__})"
                ) from None  # the cause carries our headers

    async def close(self) -> None:
        """See `Wire.close`."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    async def _request(
        self, method: str, path: str, body: bytes | None, headers: Mapping[str, str]
    ) -> Reply:
        if self._session is None:
            self._session = _new_session()
        async with self._session.request(
            method,
            f"{self._base_url}{path}",
            data=None if body is None else io.BytesIO(body),  # as a file it leaves in pieces
            headers=headers,
            allow_redirects=False,
        ) as response:
            content = bytearray()
            async for chunk in response.content.iter_any():
                content += chunk
                if len(content) > MAX_REPLY_BYTES:
                    response.close()
                    raise TooLargeError
            return Reply(response.status, bytes(content), response.headers.get("location"))


def _new_session() -> aiohttp.ClientSession:
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=_MAX_AT_ONCE, keepalive_timeout=_KEEP_IDLE_S),
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_TIMEOUT_S),
        cookie_jar=aiohttp.DummyCookieJar(),
        headers={"accept-encoding": "identity"},
        auto_decompress=False,  # a small reply that unpacks to a large one stays small
    )


class InProcessWire:
    """Into an ASGI application of this process. Nothing listens anywhere."""

    def __init__(self, app: ASGIApp) -> None:
        self._client = httpx.AsyncClient(
            transport=httpx.ASGITransport(app), base_url=f"http://{IN_PROCESS_HOST}"
        )

    async def request(
        self,
        method: str,
        path: str,
        body: bytes | None,
        headers: Mapping[str, str],
        timeout_s: float,
    ) -> Reply:
        """See `Wire.request`."""
        async with asyncio.timeout(timeout_s):
            reply = await self._client.request(method, path, content=body, headers=headers)
        return Reply(reply.status_code, reply.content)

    async def close(self) -> None:
        """See `Wire.close`."""
        await self._client.aclose()
