"""What the trajectory server reads and sends: bounded bodies in, JSON and refusals out."""

from __future__ import annotations

import asyncio
import json
import zlib
from typing import TYPE_CHECKING, Any, TypeVar

import orjson
from aiohttp import web
from pydantic import BaseModel, ValidationError

from agentenv.api.reading import InvalidBodyError, inflate

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from agentenv.api.service import TrajectoryService

BodyT = TypeVar("BodyT", bound=BaseModel)

MIN_GZIP_BYTES = 1_000
WORTH_A_THREAD = 131_072
"""Bytes from which a batch is written in threads: less is done sooner than a thread is reached."""
_MAX_SMALL_BODY = 1 << 20
"""Of a body that is no group: it is read on the event loop, and some of it is kept and told to everyone."""
_READ_TIMEOUT_S = 300.0
_SEND_TIMEOUT_S = 120.0
_GZIP_LEVEL = 1
"""9 takes twenty times as long for a tenth less."""
_GZIP = 16 + zlib.MAX_WBITS


async def read_body(
    request: web.Request, content_types: tuple[str, ...], service: TrajectoryService
) -> bytes:
    """The request's body, unpacked. Raises `InvalidBodyError`, `InvalidGzipError`, or an HTTP error."""
    try:
        async with asyncio.timeout(_READ_TIMEOUT_S):
            data = await _whole(request)
    except TimeoutError:
        raise web.HTTPRequestTimeout(text=f"no whole body within {_READ_TIMEOUT_S:g}s") from None
    if not data:
        raise InvalidBodyError.of("missing", (), "Field required")
    if request.content_type not in content_types:
        expected = " or ".join(content_types)
        raise InvalidBodyError.of(
            "content_type", (), f"Content-Type is {request.content_type}; send {expected}"
        )
    if "gzip" not in request.headers.get("Content-Encoding", "").lower():
        return data
    limit = service.limits.max_inflated_bytes
    return await service.in_thread(lambda: inflate(data, limit))


async def _whole(request: web.Request) -> bytes:
    """As `request.read()`, with fewer copies."""
    chunks, size = [], 0
    while chunk := await request.content.readany():
        chunks.append(chunk)
        size += len(chunk)
        if size > request.client_max_size:
            raise web.HTTPRequestEntityTooLarge(request.client_max_size, size)
    return chunks[0] if len(chunks) == 1 else b"".join(chunks)


async def read_model(request: web.Request, model: type[BodyT], service: TrajectoryService) -> BodyT:
    """A small JSON body. Raises as `read_body` does."""
    data = await read_body(request, ("application/json",), service)
    if len(data) > _MAX_SMALL_BODY:
        raise web.HTTPRequestEntityTooLarge(_MAX_SMALL_BODY, len(data))
    try:
        return model.model_validate(orjson.loads(data))
    except orjson.JSONDecodeError as error:
        raise InvalidBodyError.of("json_invalid", (), f"JSON decode error: {error}") from None
    except ValidationError as error:
        raise InvalidBodyError.of_pydantic(error) from None


def reply(payload: Any, status: int = 200, headers: dict[str, str] | None = None) -> web.Response:
    """A JSON answer."""
    return web.Response(
        body=json.dumps(payload).encode(),
        status=status,
        headers=headers,
        content_type="application/json",
    )


def refusal(status: int, detail: Any, **more: Any) -> web.Response:
    """An error, in the protocol's form. With `retry_after_s`: when to come again."""
    headers = {}
    if (retry_after_s := more.pop("retry_after_s", None)) is not None:
        headers["Retry-After"] = str(retry_after_s)
    return reply({"detail": detail, **more}, status, headers)


def accepts_gzip(request: web.Request) -> bool:
    """Whether the caller reads gzip."""
    return "gzip" in request.headers.get("Accept-Encoding", "").lower()


async def send_json(request: web.Request, body: bytes, service: TrajectoryService) -> web.Response:
    """A JSON body, packed where the caller reads it and it is worth it."""
    response = web.Response(content_type="application/json")
    if accepts_gzip(request) and len(body) >= MIN_GZIP_BYTES:
        packer = zlib.compressobj(_GZIP_LEVEL, wbits=_GZIP)
        body = await service.in_thread(lambda: packer.compress(body) + packer.flush())
        response.headers["Content-Encoding"] = "gzip"
        response.headers["Vary"] = "Accept-Encoding"
    response.body = body
    return response


async def stream(
    request: web.Request,
    pieces: AsyncIterator[bytes],
    content_type: str,
    in_thread: Callable[[Callable[[], bytes]], Awaitable[bytes]] | None,
) -> web.StreamResponse:
    """Send pieces as they come; through gzip in a thread where `in_thread` is given.

    Raises `ConnectionError` when the caller leaves, or does not read for two minutes.
    """
    response = web.StreamResponse(headers={"Content-Type": content_type})
    packer = zlib.compressobj(_GZIP_LEVEL, wbits=_GZIP)
    if in_thread is not None:
        response.headers["Content-Encoding"] = "gzip"
        response.headers["Vary"] = "Accept-Encoding"
    await response.prepare(request)
    async for piece in pieces:
        if in_thread is None:
            await _send(response.write(piece))
        elif packed := await in_thread(lambda piece=piece: packer.compress(piece)):  # type: ignore[misc]
            await _send(response.write(packed))
    if in_thread is not None:
        await _send(response.write(packer.flush()))
    await _send(response.write_eof())
    return response


async def _send(write: Awaitable[None]) -> None:
    try:
        async with asyncio.timeout(_SEND_TIMEOUT_S):
            await write
    except TimeoutError:
        raise ConnectionResetError(f"the caller read nothing for {_SEND_TIMEOUT_S:g}s") from None
