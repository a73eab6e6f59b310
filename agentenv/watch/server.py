"""The page and its controls, served on this machine.

    GET /           the page, with the token that everything else asks for
    GET /changes    what is new since a version of the board; waits a little for it, but for `wait=0`
    GET /pictures/N an image of a tool result, as JSON: only the page's script can make a picture of it
    POST /control   {"action": "pause" | "resume" | "cancel" | "cancel_all", "number": N}

Nothing is kept for a page: a browser that is slow or gone costs nothing, and one that comes back asks from what it
knows. Other web pages cannot ask: their requests have a foreign `Origin`, no token, or a `Host` that is not ours.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from contextlib import suppress
from typing import TYPE_CHECKING

from starlette.responses import Response
from starlette.routing import Route, Router

from agentenv.run.page import PageSource, data_block, page_end, page_start
from agentenv.run.pictures import checked_picture
from agentenv_tools.serving.answers import Answer, HttpError
from agentenv_tools.serving.guard import Guard, same_token
from agentenv_tools.serving.settings import is_loopback

if TYPE_CHECKING:
    from collections.abc import Callable

    from starlette.requests import Request
    from starlette.types import ASGIApp

    from agentenv.control.pause import PauseGate
    from agentenv.watch.board import Board, Slots
    from agentenv_tools.serving.settings import ServeSettings

TOKEN_HEADER = "x-watch-token"  # noqa: S105 - a name
_WAIT_S = 2.0
"""So often the page hears something, also when nothing happens."""
_RECENT_S, _LINGER_S = 2 * _WAIT_S, 1.0
"""A page that asked so recently is given so long to hear of the end."""
_MAX_BODY_BYTES = 1_000
_PAGE = PageSource(
    scripts=("agentenv.watch/watch.js",),
    styles=("agentenv.run/report.css", "agentenv.watch/watch.css"),
    body="agentenv.watch/watch.html",
)


class WatchServer:
    """Serves a board. `app` is an ASGI application, see `agentenv_tools.serving`."""

    def __init__(
        self,
        settings: ServeSettings,
        board: Board,
        *,
        gate: PauseGate,
        cancel_all: Callable[[], object],
        slots: Callable[[], Slots | None] = lambda: None,
    ) -> None:
        """`gate` is paused and resumed, `cancel_all` called, `slots` asked for the sandboxes; all in the event loop.

        Raises `ValueError` for settings with an address that others can reach.
        """
        if not is_loopback(settings.host):
            raise ValueError(f"a live page is for this machine alone, not for {settings.host!r}")
        self.settings = settings
        self.token = secrets.token_urlsafe(32)
        self._board = board
        self._gate = gate
        self._cancel_all = cancel_all
        self._slots = slots
        self._asked_at = float("-inf")
        self._end_told = asyncio.Event()
        routes = [
            Route("/", self._page, methods=["GET"]),
            Route("/changes", self._changes, methods=["GET"]),
            Route("/pictures/{number:int}", self._picture, methods=["GET"]),
            Route("/control", self._control, methods=["POST"]),
        ]
        self.app: ASGIApp = Guard(Router(routes), settings)

    async def close(self, grace_s: float | None = None) -> None:
        """Answer whoever waits, and let a page that is open hear how it ended."""
        self._board.close()
        if time.monotonic() - self._asked_at < _RECENT_S:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._end_told.wait(), _LINGER_S)

    async def _page(self, request: Request) -> Response:
        body = page_start("AgentEnv: live", _PAGE, asks=True)
        body += data_block("watch", {"token": self.token}) + page_end(_PAGE)
        headers = {
            "content-security-policy": "frame-ancestors 'none'",
            "referrer-policy": "no-referrer",
            "cross-origin-opener-policy": "same-origin",
            "cross-origin-resource-policy": "same-origin",
        }
        return Response(body, media_type="text/html; charset=utf-8", headers=headers)

    async def _changes(self, request: Request) -> Response:
        self._check_token(request)
        since, shown, seen = (_number(request, name) for name in ("since", "show", "seen"))
        self._asked_at = time.monotonic()
        await self._board.news(since, _WAIT_S if _number(request, "wait", "1") else 0.0)
        slots = self._slots()
        told = self._board.changes(since, shown, seen) | {
            "paused": self._gate.paused,
            "slots": None if slots is None else [slots.used, slots.total, slots.waiting],
        }
        if told["closed"]:
            self._end_told.set()
        return Answer.of(told).response()

    async def _picture(self, request: Request) -> Response:
        self._check_token(request)
        image = self._board.pictures.get(request.path_params["number"])
        if image is None:
            raise HttpError(404, "not_kept", "this image is no longer kept here")
        shown = await asyncio.to_thread(checked_picture, image.media_type, image.data)
        return Answer.of(shown).response()

    async def _control(self, request: Request) -> Response:
        self._check_token(request)
        asked = await _body(request)
        action, number = asked.get("action"), asked.get("number")
        if action == "cancel" and isinstance(number, int):
            if not self._board.cancel(number):
                raise HttpError(409, "not_running", f"trajectory {number} does not run")
        elif action == "cancel_all":
            self._cancel_all()
        elif action in ("pause", "resume"):
            (self._gate.pause if action == "pause" else self._gate.resume)()
        else:
            raise HttpError(400, "action", f"{str(action)[:40]!r} is nothing that can be done here")
        return Answer.of({"done": action}).response()

    def _check_token(self, request: Request) -> None:
        if not same_token(request.headers.get(TOKEN_HEADER, ""), self.token):
            raise HttpError(
                403, "wrong_token", "the token is not that of this run: load the page again"
            )


def _number(request: Request, name: str, default: str = "0") -> int:
    text = request.query_params.get(name, default)
    if not (text.isascii() and text.isdecimal() and len(text) <= 15):
        raise HttpError(400, "parameter", f"{name} must be a number")
    return int(text)


async def _body(request: Request) -> dict[str, object]:
    read = b""
    async for part in request.stream():
        read += part
        if len(read) > _MAX_BODY_BYTES:
            raise HttpError(413, "too_large", "the body is too long")
    try:
        asked = json.loads(read)
    except ValueError:
        asked = None
    if not isinstance(asked, dict):
        raise HttpError(400, "body", "the body must be a JSON object")
    return asked
