"""Talking to a service under test: decently, by aiohttp, or indecently, by bytes on a socket."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

import aiohttp

from agentenv_tools import Tool, tool
from agentenv_tools.serving import ServeSettings, ToolServer, serving

TOKEN = "a-token-of-tests"


def bearer(token: str = TOKEN) -> dict[str, str]:
    return {"authorization": f"Bearer {token}"}


class Client:
    def __init__(self, url: str, token: str | None = None) -> None:
        self.url = url
        self._headers = bearer(token) if token else {}

    async def request(
        self, method: str, path: str, json: Any = None, **options: Any
    ) -> tuple[int, Any]:
        """A status and a decoded body, over a connection of its own."""
        headers = {**self._headers, **options.pop("headers", {})}
        async with (
            aiohttp.ClientSession() as session,
            session.request(
                method, self.url + path, json=json, headers=headers, **options
            ) as response,
        ):
            return response.status, await response.json(content_type=None)

    async def get(self, path: str, **options: Any) -> tuple[int, Any]:
        return await self.request("GET", path, **options)

    async def post(self, path: str, json: Any, **options: Any) -> tuple[int, Any]:
        return await self.request("POST", path, json, **options)

    async def call(self, name: str, _id: str | None = None, **arguments: Any) -> tuple[int, Any]:
        body: dict[str, Any] = {
            "trajectory_id": "t",
            "tool": {"name": name, "arguments": arguments},
        }
        if _id:
            body["tool"]["uniq_id"] = _id
        return await self.post("/execute", body)

    async def raw(self, data: bytes, *, patience_s: float = 10.0) -> bytes:
        """What comes back until the other side closes."""
        address = urlsplit(self.url)
        reader, writer = await asyncio.open_connection(address.hostname, address.port)
        try:
            async with asyncio.timeout(patience_s):
                writer.write(data)
                return await reader.read()
        except ConnectionResetError:
            return b""
        finally:
            writer.close()


@asynccontextmanager
async def tool_server(*tools: Tool[Any], max_concurrency: int = 16, **settings: Any):
    """A served tool server and its client."""
    settings.setdefault("stop_grace_s", 0.2)
    server = ToolServer(
        tools or (shout,), ServeSettings(**settings), max_concurrency=max_concurrency
    )
    async with serving(server) as url:
        yield Client(url, settings.get("token"))


@tool
async def shout(text: str) -> str:
    """Say it louder.

    Args:
        text: What to say.
    """
    return text.upper()
