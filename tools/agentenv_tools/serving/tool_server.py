"""The tool server: tools that need credentials or a network, run outside of every sandbox, behind HTTP.

    GET  /          what this is
    GET  /health    {"status": "ok"}, without a token
    GET  /tools     {"tools": [OpenAI function objects], "deduplicates": true}
    POST /execute   {trajectory_id?, tool: {name, arguments, uniq_id}, timeout_s?, slot_id?, container_addr?}
                    -> {success, output, error, metadata, uniq_id}

What a tool's own code does wrong is a result with `success` false. What the server does wrong is a status of its own
with `{"error": {"kind", "message"}}`; 503 `busy` and `stopping` mean that the call was not run.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NoReturn

from pydantic import Field
from starlette.routing import Route, Router

from agentenv_backends.errors import BackendError, CapabilityError
from agentenv_backends.requests import DEFAULT_TIMEOUT_S
from agentenv_tools._bounds import bounded_result
from agentenv_tools._calls import RejectedError, run_tool, tool_code
from agentenv_tools.base import ExternalTool, SandboxTool, ToolContext
from agentenv_tools.config import MAX_TIMEOUT_S, MIN_TIMEOUT_S
from agentenv_tools.errors import ToolArgumentsError, ToolConfigError, ToolError
from agentenv_tools.registry import ToolRegistry
from agentenv_tools.schema import ToolResult, ToolSchema
from agentenv_tools.serving.answers import Answer, HttpError, kind_of, result_answer
from agentenv_tools.serving.call_table import BUSY, CallTable, fingerprint
from agentenv_tools.serving.guard import Guard
from agentenv_tools.serving.reading import Body, CallBody, read_body, while_connected
from agentenv_tools.serving.settings import ServeSettings, whole_number

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Mapping

    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.types import ASGIApp

    from agentenv_tools.base import Tool

logger = logging.getLogger(__name__)

DEFAULT_PORT = 9002
DEFAULT_MAX_CONCURRENCY = 16
ENV_PREFIX = "TOOL_SERVER_"
CONTEXT_PARAMETERS = ("trajectory_id", "slot_id", "container_addr")
"""A tool that names one of these gets the caller's value. The model neither sees nor sets them."""
MAX_QUEUE_WAIT_S = 30.0
"""How long a call may wait for its turn before it is refused as `busy`."""

_MAX_OUTPUT_BYTES = 1_000_000


class ExecuteBody(Body):
    """What `/execute` takes."""

    tool: CallBody
    trajectory_id: str | None = Field(default=None, max_length=256)
    timeout_s: float | None = None
    slot_id: str | None = Field(default=None, max_length=256)
    container_addr: str | None = Field(default=None, max_length=256)

    def context(self) -> dict[str, str]:
        """The context parameters the caller gave."""
        given = {name: getattr(self, name) for name in CONTEXT_PARAMETERS}
        return {name: value for name, value in given.items() if value is not None}


class ToolServer:
    """Serves tools. `app` is an ASGI application; `serving` or `serve_until_stopped` put it on a port.

    * At most `max_concurrency` calls run at once; a call that waits more than half a minute for its turn is
      refused as `busy`. The wait is not counted against the call's deadline.
    * A call runs until its deadline (`timeout_s`, clamped to 1-600 s), or until its caller has left.
    * A repeated `uniq_id` of the same trajectory with the same content within two minutes gets the answer of the
      first: give each call an id of its own.

    Not guaranteed: that a sync function stops at its deadline (threads cannot be ended).
    """

    def __init__(
        self,
        tools: Iterable[Tool[Any]],
        settings: ServeSettings | None = None,
        *,
        max_concurrency: int = DEFAULT_MAX_CONCURRENCY,
    ) -> None:
        """Raises `ToolConfigError` for no tools, a sandbox tool, a name that is taken, or a wrong limit."""
        if max_concurrency < 1:
            raise ToolConfigError(f"max_concurrency={max_concurrency}: must be at least 1")
        self.settings = settings or ServeSettings()
        self._tools = _checked(tools)
        self._schemas = {name: _shown(self._tool(name).schema) for name in self._tools.names()}
        self._max_concurrency = max_concurrency
        self._permits = asyncio.Semaphore(max_concurrency)
        self._calls = CallTable()
        routes = [
            Route("/", self._about),
            Route("/health", self._health),
            Route("/tools", self._list),
            Route("/execute", self._execute, methods=["POST"]),
        ]
        self._app = Guard(Router(routes, redirect_slashes=False), self.settings)

    @property
    def app(self) -> ASGIApp:
        """The application, with its guard."""
        return self._app

    async def close(self, grace_s: float | None = None) -> None:
        """See `Service.close`."""
        await self._calls.close(self.settings.stop_grace_s if grace_s is None else grace_s)

    # ---- routes ----

    async def _about(self, _request: Request) -> Response:
        about = {
            "service": "agentenv tool server",
            "tools": len(self._tools),
            "max_concurrency": self._max_concurrency,
            "calls_under_way": self._calls.under_way,
        }
        return Answer.of(about).response()

    async def _health(self, _request: Request) -> Response:
        return Answer.of({"status": "ok"}).response()

    async def _list(self, _request: Request) -> Response:
        shown = [self._schemas[schema.name].to_openai() for schema in self._tools.schemas()]
        return Answer.of({"tools": shown, "deduplicates": True}).response()

    async def _execute(self, request: Request) -> Response:
        body = await read_body(request, ExecuteBody, self.settings)
        call = body.tool.call()
        content = fingerprint(call)
        key = (body.trajectory_id, body.tool.uniq_id) if body.tool.uniq_id else None

        async def work() -> Answer:
            return await self._answer(body, call.arguments, call.uniq_id)

        answer = await while_connected(request, self._calls.run(key, content, work))
        return answer.response()

    # ---- machinery ----

    async def _answer(
        self, body: ExecuteBody, arguments: Mapping[str, Any], uniq_id: str
    ) -> Answer:
        try:
            result = await self._run(body, arguments)
        except RejectedError as rejected:
            result = ToolResult(success=False, error=str(rejected))
        except (BackendError, ToolError) as error:
            logger.warning("tool %s: %s", body.tool.name, error)
            return Answer.error(503, kind_of(error), str(error))
        result = bounded_result(result, _MAX_OUTPUT_BYTES)
        return result_answer(replace(result, uniq_id=uniq_id))

    async def _run(self, body: ExecuteBody, arguments: Mapping[str, Any]) -> ToolResult:
        tool = self._tools.get(body.tool.name)
        if tool is None:
            return ToolResult(success=False, error=self._tools.unknown(body.tool.name))
        with tool_code():
            available, reason = tool.is_available()
            if not available:
                message = f"Tool not available: {body.tool.name}: {reason or 'no reason given'}"
                return ToolResult(success=False, error=message)
            validated = tool.validate(self._with_context(tool, arguments, body.context()))
        asked = DEFAULT_TIMEOUT_S if body.timeout_s is None else body.timeout_s
        timeout_s = max(MIN_TIMEOUT_S, min(asked, MAX_TIMEOUT_S))
        async with _turn(self._permits):
            ctx = ToolContext(
                body.trajectory_id or "", timeout_s, acquire=_no_sandbox, send=_no_sandbox
            )
            return await run_tool(tool, validated, ctx)

    def _with_context(
        self, tool: Tool[Any], arguments: Mapping[str, Any], context: Mapping[str, str]
    ) -> dict[str, Any]:
        """The arguments, with the context parameters the tool names taken from the caller alone."""
        hidden = [name for name in CONTEXT_PARAMETERS if name in tool.schema.parameters]
        if forged := [name for name in CONTEXT_PARAMETERS if name in arguments]:
            raise ToolArgumentsError(
                f"Invalid arguments for {tool.schema.name}: {forged[0]}: unknown argument"
            )
        return {**arguments, **{name: context[name] for name in hidden if name in context}}

    def _tool(self, name: str) -> Tool[Any]:
        tool = self._tools.get(name)
        assert tool is not None
        return tool


def max_concurrency_from(environ: Mapping[str, str]) -> int:
    """`TOOL_SERVER_MAX_CONCURRENCY`, or 16."""
    name = f"{ENV_PREFIX}MAX_CONCURRENCY"
    return whole_number(name, environ.get(name) or str(DEFAULT_MAX_CONCURRENCY))


@asynccontextmanager
async def _turn(permits: asyncio.Semaphore) -> AsyncIterator[None]:
    """One of the calls that may run at once, waited for with a deadline."""
    try:
        async with asyncio.timeout(MAX_QUEUE_WAIT_S):
            await permits.acquire()
    except TimeoutError:
        message = f"no turn came within {MAX_QUEUE_WAIT_S:g}s; the call was not run"
        raise HttpError(503, BUSY, message, {"retry-after": "1"}) from None
    try:
        yield
    finally:
        permits.release()


def _checked(tools: Iterable[Tool[Any]]) -> ToolRegistry:
    registry = ToolRegistry(tools)
    for name in registry.names():
        tool = registry.get(name)
        if isinstance(tool, SandboxTool):
            raise ToolConfigError(
                f"the tool {name!r} works in a sandbox, which a tool server has not; leave it to the executor"
            )
        if isinstance(tool, ExternalTool):
            raise ToolConfigError(
                f"the tool {name!r} belongs to {tool.origin}; a tool server serves tools of its own"
            )
    if not len(registry):
        raise ToolConfigError("a tool server without tools serves nobody; give at least one")
    return registry


def _shown(schema: ToolSchema) -> ToolSchema:
    """What callers are told: without the parameters that are not the model's."""
    return ToolSchema(
        schema.name,
        schema.description,
        {key: value for key, value in schema.parameters.items() if key not in CONTEXT_PARAMETERS},
        [key for key in schema.required if key not in CONTEXT_PARAMETERS],
    )


async def _no_sandbox(*_: object) -> NoReturn:
    raise CapabilityError("this tool asked for a sandbox, which a tool server has not")
