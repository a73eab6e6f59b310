"""An MCP server reached over streamable HTTP, through the `mcp` library's transport."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import httpx
from mcp.client.streamable_http import streamable_http_client

from agentenv_tools.config import MAX_TIMEOUT_S

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping

    from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream
    from mcp.shared.message import SessionMessage

MAX_RESPONSE_BYTES = 8_000_000
_CONNECT_TIMEOUT_S = 10.0


@asynccontextmanager
async def http_streams(
    url: str, headers: Mapping[str, str], broken: Callable[[str], None]
) -> AsyncIterator[
    tuple[
        MemoryObjectReceiveStream[SessionMessage | Exception],
        MemoryObjectSendStream[SessionMessage],
    ]
]:
    """What a `ClientSession` reads from and writes to. Enter and leave it in one task.

    Redirects are followed within the server's own origin only. An event stream's length is not limited, but that of
    each answer is; `broken` is told of a larger one.
    """
    client = httpx.AsyncClient(
        transport=_BoundedTransport(broken),
        headers={**headers, "accept-encoding": "identity"},
        timeout=httpx.Timeout(_CONNECT_TIMEOUT_S, read=MAX_TIMEOUT_S + 30),
        trust_env=False,
    )
    async with client, streamable_http_client(url, http_client=client) as (reads, writes, _):
        yield reads, writes


class _BoundedTransport(httpx.AsyncHTTPTransport):
    """Gives up on an answer that does not end."""

    def __init__(self, broken: Callable[[str], None]) -> None:
        super().__init__(trust_env=False)
        self._broken = broken

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        response = await super().handle_async_request(request)
        if response.headers.get("content-encoding", "identity") != "identity":
            reason = "it sent a compressed answer, which was not asked for"
            self._broken(reason)
            raise httpx.ReadError(reason)
        if request.method == "POST":
            assert isinstance(response.stream, httpx.AsyncByteStream)
            response.stream = _BoundedStream(response.stream, self._broken)
        return response


class _BoundedStream(httpx.AsyncByteStream):
    def __init__(self, stream: httpx.AsyncByteStream, broken: Callable[[str], None]) -> None:
        self._stream = stream
        self._broken = broken

    async def __aiter__(self) -> AsyncIterator[bytes]:
        total = 0
        async for chunk in self._stream:
            total += len(chunk)
            if total > MAX_RESPONSE_BYTES:
                reason = f"it sent an answer of more than {MAX_RESPONSE_BYTES} bytes"
                self._broken(reason)
                raise httpx.ReadError(reason)
            yield chunk

    async def aclose(self) -> None:
        await self._stream.aclose()
