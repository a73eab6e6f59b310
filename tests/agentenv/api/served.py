"""A trajectory server within a test, and calls of it as any HTTP client makes them."""

from __future__ import annotations

import io
import json
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import aiohttp

from agentenv.api.server import TrajectoryServer, serving_api
from agentenv.api.settings import ApiSettings
from agentenv_tools.serving import ServeSettings
from tests.agentenv.api.groups import REGISTRATION, env_registration

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    body: bytes
    headers: Mapping[str, str]

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Api:
    """Plain calls."""

    def __init__(self, url: str, session: aiohttp.ClientSession, server: TrajectoryServer) -> None:
        self.url = url
        self.session = session
        self.server = server

    async def call(
        self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None
    ) -> Answer:
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        given = {"Content-Type": "application/json"} if data is not None else {}
        async with self.session.request(
            method, self.url + path, data=data and io.BytesIO(data), headers=given | (headers or {})
        ) as response:
            return Answer(response.status, await response.read(), response.headers)

    async def get(self, path: str, body: Any = None, **headers: str) -> Any:
        answer = await self.call("GET", path, body, headers)
        assert answer.status == 200, answer
        return answer.json

    async def post(self, path: str, body: Any) -> Any:
        answer = await self.call("POST", path, body)
        assert answer.status == 200, answer
        return answer.json

    async def start_training(self, **changes: Any) -> None:
        """A trainer registers and asks for its first batch."""
        await self.post("/register", REGISTRATION | changes)
        assert (await self.get("/batch"))["batch"] is None

    async def register_env(self, **changes: Any) -> int:
        answer = await self.post("/register-env", env_registration(**changes))
        assert answer["status"] == "success"
        env_id: int = answer["env_id"]
        return env_id


@asynccontextmanager
async def served(api: ApiSettings | None = None, **address: Any) -> AsyncIterator[Api]:
    server = TrajectoryServer(ServeSettings(**address), api)
    session = aiohttp.ClientSession(auto_decompress=False)
    async with serving_api(server) as url, session:
        yield Api(url, session, server)
