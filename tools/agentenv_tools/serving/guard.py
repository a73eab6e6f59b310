"""What stands before every route of a service: who may call, how, and what is logged of it."""

from __future__ import annotations

import asyncio
import hmac
import logging
import re
import time
from typing import TYPE_CHECKING
from urllib.parse import urlsplit
from uuid import uuid4

from starlette.datastructures import Headers, MutableHeaders

from agentenv_tools.serving.answers import Answer, HttpError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from agentenv_tools.serving.settings import ServeSettings

logger = logging.getLogger(__name__)

REQUEST_ID = "x-request-id"
OPEN_PATHS = frozenset({"/health"})
"""What needs no token: probes of liveness have none."""

_SEND_TIMEOUT_S = 60.0
_MAX_HEADER_CHARS = 4_096
_USABLE_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


class Guard:
    """ASGI middleware. Refuses a request before its body is read; turns every failure into JSON."""

    def __init__(self, app: ASGIApp, settings: ServeSettings) -> None:
        self._app = app
        self._settings = settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See the ASGI specification."""
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        elif scope["type"] == "http":
            await _Exchange(self._app, self._settings, scope, send).run(receive)
        else:
            await self._app(scope, receive, send)


class _Exchange:
    """One request and its answer."""

    def __init__(self, app: ASGIApp, settings: ServeSettings, scope: Scope, send: Send) -> None:
        self._app = app
        self._settings = settings
        self._scope = scope
        self._send_raw = send
        self._headers = Headers(scope=scope)
        self._status = 0
        self._id = _request_id(self._headers.get(REQUEST_ID, ""))

    async def run(self, receive: Receive) -> None:
        started = time.monotonic()
        try:
            self._admit()
            await self._app(self._scope, receive, self._send)
        except HttpError as refusal:
            await self._refuse(refusal, receive)
        except asyncio.CancelledError:
            raise
        except Exception:
            logger.exception("request %s failed", self._id)
            message = "the service failed; its log has more under the request id"
            await self._refuse(HttpError(500, "internal", message), receive)
        finally:
            logger.info(
                "%s %s -> %d in %.0f ms, request %s",
                self._scope["method"],
                self._scope["path"][:100].encode("ascii", "backslashreplace").decode(),
                self._status,
                1000 * (time.monotonic() - started),
                self._id,
            )

    async def _send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._status = message["status"]
            headers = MutableHeaders(scope=message)
            headers[REQUEST_ID] = self._id
            headers["cache-control"] = "no-store"
            headers["x-content-type-options"] = "nosniff"
        async with asyncio.timeout(_SEND_TIMEOUT_S):  # a caller that does not read
            await self._send_raw(message)

    async def _refuse(self, refusal: HttpError, receive: Receive) -> None:
        if self._status == 0:
            answer: Answer = refusal.answer(request_id=self._id)
            await answer.response(refusal.headers)(self._scope, receive, self._send)

    def _admit(self) -> None:
        check_caller(self._settings, self._headers.get("host", ""), self._headers.get("origin"))
        if self._settings.token is not None and self._scope["path"] not in OPEN_PATHS:
            value = bearer_token(self._headers.getlist("authorization"))
            if not same_token(value, self._settings.token):
                raise HttpError(403, "wrong_token", "the token is not the one this service expects")


def check_caller(settings: ServeSettings, host: str, origin: str | None) -> None:
    """Raises `HttpError` for a request that was meant for another service, or comes from a web page."""
    if not settings.admits_host(host):
        raise HttpError(
            421,
            "wrong_host",
            "this service is not known by the name in the Host header; "
            "its operator can allow the name",
        )
    if origin is not None and urlsplit(origin).netloc.lower() != host.lower():
        raise HttpError(403, "foreign_origin", "requests of web pages are not served")


def bearer_token(headers: Sequence[str]) -> str:
    """The token in the `Authorization` headers. Raises `HttpError` 401 where there is not exactly one."""
    scheme, _, value = headers[0].partition(" ") if len(headers) == 1 else ("", "", "")
    if scheme.lower() != "bearer" or not value or len(value) > _MAX_HEADER_CHARS:
        raise HttpError(
            401,
            "unauthenticated",
            "send the token as Authorization: Bearer TOKEN",
            {"www-authenticate": "Bearer"},
        )
    return value


def same_token(given: str, expected: str) -> bool:
    """Whether two tokens are the same, in a time that tells nothing of where they differ."""
    return hmac.compare_digest(given.encode("utf-8", "replace"), expected.encode())


def _request_id(given: str) -> str:
    return given if _USABLE_ID.fullmatch(given) else uuid4().hex[:16]
