"""Fake providers of chat models: an ASGI application with the endpoints of OpenAI, Anthropic, Gemini and Bedrock."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from starlette.applications import Starlette
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from agentenv.testing import provider_wire as wire
from agentenv.testing.faults import Fault, FaultPlan
from agentenv.testing.script import ScriptExhaustedError

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.types import Receive, Scope, Send

_FOREVER_S = 3600.0
_STATUS = {
    Fault.SERVER_ERROR: 500,
    Fault.UNAVAILABLE: 503,
    Fault.RATE_LIMITED: 429,
    Fault.OUT_OF_BUDGET: 429,
    Fault.UNAUTHORIZED: 401,
    Fault.NO_SUCH_MODEL: 404,
    Fault.BAD_REQUEST: 400,
    Fault.CONTEXT_LENGTH: 400,
}


@dataclass(frozen=True, slots=True)
class ModelReply:
    """What a fake model says, whatever the protocol."""

    text: str = ""
    calls: tuple[tuple[str, str, dict[str, Any] | str], ...] = ()
    """Id, name and arguments of each; arguments given as text are sent as they are where the protocol has text."""
    refused: bool = False
    cut: bool = False
    """It ended because of its length."""
    reasoning: str = ""
    prompt_tokens: int = 10
    """Cached ones included."""
    completion_tokens: int = 5
    cached_tokens: int = 0
    usage: bool = True
    """False: it tells nothing of tokens."""
    cost_usd: float | None = None
    """Told by OpenAI-compatible servers alone."""


@dataclass(frozen=True, slots=True)
class ModelRequest:
    """A request that came, as it came."""

    protocol: str
    """`openai`, `anthropic`, `gemini` or `bedrock`."""
    model: str
    body: dict[str, Any]
    headers: dict[str, str] = field(repr=False, default_factory=dict)
    number: int = 0
    """How many sound replies went before."""


ModelScript = Callable[[ModelRequest], ModelReply | str] | Sequence[ModelReply | str]
"""A function of the request, or one reply after the other."""


class FakeProviders:
    """All four at once, told apart by the path. Serve it with `running_app`; base URLs are its root, for OpenAI with
    `/v1` behind it.

    `requests` holds every request that came, faulty ones too.
    """

    def __init__(
        self,
        script: ModelScript = ("Done.",),
        *,
        faults: FaultPlan | None = None,
        latency_s: float = 0.0,
    ) -> None:
        self.requests: list[ModelRequest] = []
        self.faults = faults or FaultPlan()
        self.delivered = self.in_use = self.most_at_once = 0
        self._script = script
        self._latency_s = latency_s
        self._app = Starlette(
            routes=[
                Route(path, partial(self._respond, name), methods=["POST"])
                for name, path in wire.PATHS.items()
            ]
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request (ASGI)."""
        scope["agentenv.transport"] = getattr(getattr(send, "__self__", None), "transport", None)
        await self._app(scope, receive, send)

    async def _respond(self, protocol: str, request: Request) -> Response:
        body = json.loads(await request.body())
        model = request.path_params.get("model") or body["model"]
        asked = ModelRequest(protocol, model, body, dict(request.headers), self.delivered)
        self.requests.append(asked)
        self.in_use += 1
        self.most_at_once = max(self.most_at_once, self.in_use)
        try:
            await asyncio.sleep(self._latency_s)
            fault = self.faults.draw()
            if fault is not None:
                return await self._fail(fault, protocol, request)
            reply = self._reply(asked)
        finally:
            self.in_use -= 1
        self.delivered += 1
        return JSONResponse(wire.ENCODERS[protocol](reply, model))

    def _reply(self, asked: ModelRequest) -> ModelReply:
        if callable(self._script):
            reply = self._script(asked)
        elif asked.number < len(self._script):
            reply = self._script[asked.number]
        else:
            raise ScriptExhaustedError(f"the script has {len(self._script)} replies")
        return reply if isinstance(reply, ModelReply) else ModelReply(reply)

    async def _fail(self, fault: Fault, protocol: str, request: Request) -> Response:
        if fault in _STATUS:
            headers = (
                {"retry-after": self.faults.retry_after} if fault is Fault.RATE_LIMITED else {}
            )
            body = wire.error_body(protocol, fault, _STATUS[fault])
            return JSONResponse(body, status_code=_STATUS[fault], headers=headers)
        if fault is Fault.RESET:
            transport = request.scope["agentenv.transport"]
            if transport is not None:
                transport.abort()
            return Response(status_code=500)
        if fault is Fault.HTML:
            return HTMLResponse("<h1>It works!</h1>")
        if fault is Fault.BROKEN_JSON:
            return Response(b'{"id": "x", "cho', media_type="application/json")
        if fault is Fault.NO_TOKENS:
            return JSONResponse(wire.ENCODERS[protocol](ModelReply(), "m"))
        if fault is Fault.NEVER_ANSWERS:
            await asyncio.sleep(_FOREVER_S)
        raise ValueError(f"{fault} is no fault of a provider")
