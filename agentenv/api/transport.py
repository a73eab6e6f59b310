"""HTTP as the clients of a trajectory server use it: one session, deadlines, and failures told apart."""

from __future__ import annotations

import io
import json
from typing import TYPE_CHECKING, Any

import aiohttp
import orjson

from agentenv.errors import ApiError, ApiRefusedError, ApiUnreachableError

if TYPE_CHECKING:
    from collections.abc import Mapping

_MAX_SHOWN = 500
_LATER = frozenset({408, 425, 429})
"""Statuses below 500 that say to come again."""


class Transport:
    """Calls of one server. The session is made at the first call, so that it belongs to the running loop."""

    def __init__(self, base_url: str, *, token: str | None, timeout_s: float) -> None:
        self._base_url = base_url.rstrip("/")
        self._headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        self._timeout_s = timeout_s
        self._session: aiohttp.ClientSession | None = None

    async def close(self) -> None:
        """Close the connections. Idempotent."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    async def json(
        self,
        method: str,
        path: str,
        body: Any = None,
        headers: Mapping[str, str] | None = None,
    ) -> dict[str, Any]:
        """A call that is answered with a JSON object. `body` may be bytes, with `headers` that name their type."""
        _, data = await self.bytes(method, path, body, headers)
        try:
            answer = json.loads(
                data
            )  # /register answers with numbers over 64 bits, which orjson rounds
        except ValueError:
            answer = None
        if not isinstance(answer, dict):
            raise ApiError(
                f"{method} {self._base_url}{path} was answered with no JSON object: {data[:80]!r}"
            )
        return answer

    async def bytes(
        self,
        method: str,
        path: str,
        body: Any = None,
        headers: Mapping[str, str] | None = None,
        query: Mapping[str, str] | None = None,
    ) -> tuple[str, bytes]:
        """A call; returns the answer's type and body.

        Raises `ApiUnreachableError` or `ApiRefusedError`.
        """
        if body is not None and not isinstance(body, bytes):
            body, headers = orjson.dumps(body), {"Content-Type": "application/json"}
        data = None if body is None else io.BytesIO(body)  # large bytes would be sent in one go
        url = f"{self._base_url}{path}"
        try:
            async with self._open().request(
                method, url, data=data, headers=headers, params=query, allow_redirects=False
            ) as response:
                answer = await response.read()
                if response.status >= 300:
                    raise _failure(method, url, response, answer)
                return response.content_type, answer
        except TimeoutError as error:
            raise ApiUnreachableError(
                f"{method} {url}: no answer within {self._timeout_s:g}s"
            ) from error
        except (aiohttp.ClientError, OSError) as error:
            if isinstance(error, ApiError):
                raise
            raise ApiUnreachableError(f"{method} {url}: {error or type(error).__name__}") from error

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                headers=self._headers, timeout=aiohttp.ClientTimeout(total=self._timeout_s)
            )
        return self._session


def _failure(
    method: str, url: str, response: aiohttp.ClientResponse, data: bytes
) -> ApiUnreachableError | ApiRefusedError:
    shown = data[:_MAX_SHOWN].decode("utf-8", "replace")
    message = f"{method} {url} was answered with {response.status}: {shown}"
    status = response.status
    if status in _LATER or status >= 500:
        after = response.headers.get("Retry-After", "")
        return ApiUnreachableError(message, float(after) if after.isdigit() else None, status)
    return ApiRefusedError(message, status)
