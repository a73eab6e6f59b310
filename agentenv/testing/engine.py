"""A fake inference engine: an ASGI application that answers as vLLM, SGLang and OpenAI-compatible
servers do.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import unquote

from starlette.applications import Starlette
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from agentenv.policy import engine_side
from agentenv.policy.base import Completion
from agentenv.policy.engine_side import Draft, EngineProtocol
from agentenv.policy.router import CHECK_TRAJECTORY
from agentenv.policy.server import TRAJECTORY_HEADER
from agentenv.testing.faults import Fault, FaultPlan
from agentenv.testing.script import (
    EncodesText,
    FakeRequest,
    ReplyScript,
    Script,
    ScriptExhaustedError,
)
from agentenv.testing.spoiling import spoil

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from starlette.requests import Request
    from starlette.types import Receive, Scope, Send

_CHECK_REPLY = Completion((1,), (-0.001,), "length")
_NAMED = ("max_tokens", "temperature", "top_p", "seed", "stop_token_ids", "prompt", "messages")


class FakeEngine:
    """The engine. Serve it with `running_engine`, or give it to an in-process ASGI client.

    Speaks `/v1/completions`, `/inference/v1/generate`, `/generate` (SGLang's, or the server's that
    Atropos shipped, by the shape of the request), `/v1/chat/completions`, `/v1/models` and
    `/health`. Trajectories are told apart by the header `x-trajectory-id`; requests without it are
    one trajectory. The one-token check of `PolicyClient.start` is answered outside the script and
    is in none of the counters.

    `requests` holds every request that reached the engine, in order; `delivered` counts sound
    replies, `paths` requests by path. `healthy` may be set to False to have `/health` fail.
    `in_use` and `most_at_once` are gauges.
    """

    def __init__(  # noqa: PLR0913 - the options of a test double, each by name
        self,
        script: Script | None = None,
        *,
        tokenizer: EncodesText | None = None,
        end_ids: Sequence[int] = (),
        faults: FaultPlan | None = None,
        latency_s: float | Callable[[FakeRequest], float] = 0.0,
        model_name: str = "default",
        policy_version: str | None = None,
        version_header: str | None = None,
        api_key: str | None = None,
        context_length: int | None = None,
        completions_form: Literal["token_ids", "token_id_strings"] = "token_ids",
    ) -> None:
        self.faults = faults or FaultPlan()
        self.policy_version = policy_version
        self.healthy = True
        self.requests: list[FakeRequest] = []
        self.paths: Counter[str] = Counter()
        self.delivered = self.in_use = self.most_at_once = 0
        self._script = ReplyScript(script, tokenizer=tokenizer, end_ids=end_ids)
        self._latency_s = latency_s
        self._model_name = model_name
        self._version_header = version_header
        self._api_key = api_key
        self._context_length = context_length
        self._app = Starlette(
            routes=self._routes(strings_only=completions_form == "token_id_strings")
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request (ASGI)."""
        # Only the server's own `send` leads to the connection that a fault may have to cut.
        scope["agentenv.transport"] = getattr(getattr(send, "__self__", None), "transport", None)
        await self._app(scope, receive, send)

    def _routes(self, *, strings_only: bool) -> list[Route]:
        served = {
            "/v1/completions": engine_side.completions(strings_only=strings_only),
            "/inference/v1/generate": engine_side.GENERATE,
            "/v1/chat/completions": engine_side.CHAT,
        }
        routes = [
            Route(path, partial(self._respond, protocol), methods=["POST"])
            for path, protocol in served.items()
        ]
        routes.append(Route("/generate", self._generate, methods=["POST"]))
        routes.append(Route("/health", self._health))
        routes.append(Route("/v1/models", self._models))
        return routes

    async def _health(self, request: Request) -> Response:
        del request
        return Response(status_code=200 if self.healthy else 503)

    async def _models(self, request: Request) -> Response:
        del request
        return JSONResponse(
            {"object": "list", "data": [{"id": self._model_name, "object": "model"}]}
        )

    async def _generate(self, request: Request) -> Response:
        body = await request.json()
        protocol = engine_side.SGLANG if "input_ids" in body else engine_side.LEGACY
        return await self._respond(protocol, request)

    async def _respond(self, protocol: EngineProtocol, request: Request) -> Response:
        if (
            self._api_key is not None
            and request.headers.get("authorization") != f"Bearer {self._api_key}"
        ):
            return _error(401, "invalid api key")
        try:
            asked = self._asked(protocol, request, await request.json())
        except (KeyError, TypeError, ValueError) as error:
            return _error(400, f"the request has another shape than expected: {error!r}")
        is_check = asked.trajectory_id == CHECK_TRAJECTORY
        fault = self.faults.draw(is_check=is_check)
        if is_check:
            return self._written(protocol, asked, _CHECK_REPLY, fault)
        self.requests.append(asked)
        self.paths[request.url.path] += 1
        return await self._answered(protocol, request, asked, fault)

    async def _answered(
        self, protocol: EngineProtocol, request: Request, asked: FakeRequest, fault: Fault | None
    ) -> Response:
        self.in_use += 1
        self.most_at_once = max(self.most_at_once, self.in_use)
        try:
            await asyncio.sleep(self._latency(asked))
            refusal = self._refused(asked, fault)
            if refusal is not None:
                return refusal
            try:
                completion = self._script.completion(asked)
            except ScriptExhaustedError as error:
                return _error(400, str(error))
            if fault is None and not await request.is_disconnected():
                self._script.delivered(asked.trajectory_id)
                self.delivered += 1
            return self._written(protocol, asked, completion, fault)
        finally:
            self.in_use -= 1

    def _asked(self, protocol: EngineProtocol, request: Request, body: Any) -> FakeRequest:
        asked = protocol.read(body)
        sampling = asked.sampling
        trajectory_id = unquote(request.headers.get(TRAJECTORY_HEADER, ""))
        return FakeRequest(
            trajectory_id=trajectory_id,
            turn=self._script.turn(trajectory_id),
            max_tokens=int(sampling["max_tokens"]),
            prompt_ids=asked.prompt_ids,
            messages=asked.messages,
            temperature=float(sampling.get("temperature", 1.0)),
            top_p=float(sampling.get("top_p", 1.0)),
            seed=sampling.get("seed"),
            stop_token_ids=tuple(sampling.get("stop_token_ids", ())),
            extra={name: value for name, value in sampling.items() if name not in _NAMED},
        )

    def _latency(self, asked: FakeRequest) -> float:
        return self._latency_s(asked) if callable(self._latency_s) else self._latency_s

    def _refused(self, asked: FakeRequest, fault: Fault | None) -> Response | None:
        """The answer to a request that is not sampled for."""
        limit = self._context_length
        if limit is not None and len(asked.prompt_ids) >= limit:
            return _too_long(len(asked.prompt_ids), limit)
        return None if fault is None else _refusal(fault, asked, self.faults.retry_after)

    def _written(
        self,
        protocol: EngineProtocol,
        asked: FakeRequest,
        completion: Completion,
        fault: Fault | None,
    ) -> Response:
        if fault is not None:
            refusal = _refusal(fault, asked, self.faults.retry_after)
            if refusal is not None:
                return refusal
        version = completion.policy_version or self.policy_version
        in_body = None if self._version_header else version
        draft = Draft.of(
            replace(completion, policy_version=in_body), prompt_tokens=len(asked.prompt_ids)
        )
        if fault is not None:
            spoil(draft, fault, max_tokens=asked.max_tokens)
        content = json.dumps(protocol.write(draft)).encode()
        headers = {self._version_header: version} if self._version_header and version else {}
        return _delivery(content, headers, fault)


class _Cut(Response):
    """The first `sent` bytes of the body, if any, and then the end of the connection."""

    def __init__(self, content: bytes = b"", *, sent: int = 0, hang: bool = False) -> None:
        super().__init__(content, media_type="application/json")
        self._sent = sent
        self._hang = hang

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._sent:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            part = bytes(self.body[: self._sent])
            await send({"type": "http.response.body", "body": part, "more_body": True})
        transport = scope["agentenv.transport"]
        if not self._hang:
            if transport is None:
                raise ConnectionResetError("the fake engine was told to cut the connection")
            transport.abort()
        while (await receive())["type"] != "http.disconnect":
            pass


def _delivery(content: bytes, headers: dict[str, str], fault: Fault | None) -> Response:
    half = len(content) // 2
    match fault:
        case Fault.TRUNCATED:
            return _Cut(content, sent=half)
        case Fault.NEVER_ENDS:
            return _Cut(content, sent=half, hang=True)
        case Fault.BROKEN_JSON:
            content = content[:half]
    return Response(content, media_type="application/json", headers=headers)


def _refusal(fault: Fault, asked: FakeRequest, retry_after: str) -> Response | None:
    """The answer that `fault` puts in place of a reply; None if the fault is in the reply
    itself.
    """
    match fault:
        case Fault.SERVER_ERROR:
            return _error(500, "as told")
        case Fault.UNAVAILABLE:
            return _error(503, "as told")
        case Fault.RATE_LIMITED:
            return _error(429, "as told", {"retry-after": retry_after})
        case Fault.UNAUTHORIZED:
            return _error(401, "as told")
        case Fault.BAD_REQUEST:
            return _error(400, "as told")
        case Fault.CONTEXT_LENGTH:
            return _too_long(len(asked.prompt_ids), 1)
        case Fault.HTML:
            return HTMLResponse("<html><body>502 Bad Gateway</body></html>")
        case Fault.RESET:
            return _Cut()
        case Fault.NEVER_ANSWERS:
            return _Cut(hang=True)
    return None


def _too_long(length: int, limit: int) -> Response:
    return _error(
        400,
        f"This model's maximum context length is {limit} tokens. "
        f"However, your prompt has {length} tokens.",
    )


def _error(status: int, message: str, headers: dict[str, str] | None = None) -> Response:
    error = {"message": message, "type": "fake", "code": status}
    return JSONResponse({"error": error}, status_code=status, headers=headers)
