"""The client of a tool server: its tools as tools of ours."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import random
import time
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from uuid import uuid4

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from agentenv_tools._bounds import bounded_result, bounded_text
from agentenv_tools.arguments import parameters_of
from agentenv_tools.base import ExternalTool
from agentenv_tools.errors import (
    ToolCallFormatError,
    ToolConfigError,
    ToolServerError,
    ToolServerProtocolError,
    ToolServerTimeoutError,
    ToolServerUnavailableError,
)
from agentenv_tools.external.images import Images
from agentenv_tools.external.secrets import Masker, check_header
from agentenv_tools.external.wire import (
    IN_PROCESS_HOST,
    MAX_REPLY_BYTES,
    CutOffError,
    HttpWire,
    InProcessWire,
    NotSentError,
    TooLargeError,
)
from agentenv_tools.json_values import validate_json_arguments
from agentenv_tools.schema import ToolResult, ToolSchema

if TYPE_CHECKING:
    from collections.abc import Sequence

    from agentenv_tools.base import Tool, ToolContext
    from agentenv_tools.external.wire import Reply, Wire
    from agentenv_tools.serving.tool_server import ToolServer

logger = logging.getLogger(__name__)

_WAY_OUT = "start it with `agentenv tool-server MODULE:TOOLS`, or unset tool_server_url"
START_TIMEOUT_S = 15.0
"""How long a server that is just being started is waited for."""
_CONTROL_TIMEOUT_S = 10.0
_QUEUE_S = 30.0
_SLACK_S = 5.0
"""How much later than the call's own deadline an answer is given up: the server enforces that one itself, after
the call has waited for its turn."""
_ATTEMPTS = 5
_FIRST_PAUSE_S = 0.1
_NOT_RUN = frozenset({"busy", "stopping"})
_REFUSED_ARGUMENTS = frozenset({400, 413, 422})


class _Image(BaseModel):
    """An image beside the text. What it is, its own bytes say."""

    model_config = ConfigDict(extra="ignore", strict=True)

    media_type: str
    data: str


class _Answer(BaseModel):
    """What `/execute` answers."""

    model_config = ConfigDict(extra="ignore", strict=True)

    success: bool
    output: str = ""
    error: str | None = None
    metadata: dict[str, Any] | None = None
    images: list[_Image] = Field(default_factory=list)


class _Listed(BaseModel):
    """One entry of `/tools`, without its `function` wrapper."""

    model_config = ConfigDict(extra="ignore", strict=True)

    name: str = Field(max_length=128)
    description: str = ""
    parameters: dict[str, Any] = Field(default_factory=dict)


class _ServedTool(ExternalTool):
    """A tool of a tool server."""

    def __init__(self, schema: ToolSchema, client: ToolServerClient) -> None:
        super().__init__(schema, client.origin)
        self._client = client

    async def run(self, arguments: dict[str, Any], ctx: ToolContext) -> ToolResult:
        """See `Tool.run`."""
        return await self._client.execute(
            self.schema.name, arguments, trajectory_id=ctx.trajectory_id, timeout_s=ctx.timeout_s
        )


class ToolServerClient:
    """A `ToolSource`: the tools of one server.

    What a tool did is a result. A server that is down, busy for long, broken or not a tool server raises
    `ToolServerError`. A call is sent again only when it cannot have run, or when the server says that it recognises
    repetitions and the connection was lost.
    """

    def __init__(
        self,
        url: str,
        token: str | None = None,
        *,
        wire: Wire | None = None,
        start_timeout_s: float = START_TIMEOUT_S,
    ) -> None:
        """Raises `ToolConfigError` for a URL that is none, or that holds credentials."""
        self.origin = f"the tool server {url}"
        self._wire = wire or HttpWire(_checked(url))
        self._headers = {"authorization": f"Bearer {token}"} if token else {}
        for name, value in self._headers.items():
            check_header(name, value, "tool_server_token")
        self._mask = Masker([token] if token else [])
        self._start_timeout_s = start_timeout_s
        self._deduplicates = False

    async def start(self) -> Sequence[ExternalTool]:
        """See `ToolSource.start`."""
        reply = await self._ask_for_tools()
        if reply.status != 200:
            raise self._failure(reply, "/tools")
        try:
            value = json.loads(reply.body)
            listed = [_Listed.model_validate(_unwrapped(entry)) for entry in value["tools"]]
        except (ValueError, LookupError, TypeError, RecursionError):
            raise ToolServerProtocolError(
                f"{self.origin} is none: its /tools answers something else than a list of tools"
            ) from None
        self._deduplicates = value.get("deduplicates") is True
        return [_ServedTool(self._schema(entry), self) for entry in listed]

    async def release(self, trajectory_id: str) -> None:
        """See `ToolSource.release`. A tool server holds nothing of a trajectory."""

    async def close(self) -> None:
        """See `ToolSource.close`."""
        await self._wire.close()

    async def execute(
        self, name: str, arguments: dict[str, Any], *, trajectory_id: str, timeout_s: float
    ) -> ToolResult:
        """Carry out one call. Raises `ToolServerError`."""
        uniq_id = uuid4().hex  # ours, not the model's: models use an id again for another call
        call = {"name": name, "arguments": arguments, "uniq_id": uniq_id}
        payload = {"trajectory_id": trajectory_id, "tool": call, "timeout_s": timeout_s}
        body = json.dumps(payload, ensure_ascii=False).encode("utf-8", "replace")
        try:
            reply = await self._send(body, uniq_id, timeout_s + _QUEUE_S + _SLACK_S)
        except TooLargeError:
            message = f"the tool's answer is larger than {MAX_REPLY_BYTES} bytes; ask for less"
            return ToolResult(success=False, error=message)
        if reply.status == 200:
            return self._result(reply)
        if reply.status in _REFUSED_ARGUMENTS:
            return ToolResult(
                success=False, error=self._said(reply) or "the arguments were refused"
            )
        raise self._failure(reply, "/execute")

    # ---- machinery ----

    async def _ask_for_tools(self) -> Reply:
        give_up = time.monotonic() + self._start_timeout_s
        while True:
            try:
                return await self._wire.request(
                    "GET", "/tools", None, self._headers, _CONTROL_TIMEOUT_S
                )
            except NotSentError as error:
                if time.monotonic() > give_up:
                    raise ToolServerUnavailableError(
                        f"{self.origin} cannot be reached: {error}; {_WAY_OUT}"
                    ) from error
            except CutOffError as error:
                raise ToolServerUnavailableError(f"{self.origin}: {error}; {_WAY_OUT}") from error
            except TimeoutError as error:
                raise ToolServerTimeoutError(
                    f"{self.origin} did not say within {_CONTROL_TIMEOUT_S:g}s what tools it has"
                ) from error
            except TooLargeError:
                raise ToolServerProtocolError(f"{self.origin} lists too many tools") from None
            await asyncio.sleep(0.25)

    async def _send(self, body: bytes, uniq_id: str, timeout_s: float) -> Reply:
        headers = {**self._headers, "content-type": "application/json", "x-request-id": uniq_id}
        problem = "it is busy"
        for attempt in range(_ATTEMPTS):
            if attempt:
                await asyncio.sleep(_FIRST_PAUSE_S * 3 ** (attempt - 1) * random.uniform(0.8, 1.2))  # noqa: S311 - jitter
            try:
                reply = await self._wire.request("POST", "/execute", body, headers, timeout_s)
            except NotSentError as error:
                problem = str(error)
            except CutOffError as error:
                problem = f"{error}; what became of the call is unknown"
                if not self._deduplicates:
                    break
            except TimeoutError as error:
                raise ToolServerTimeoutError(
                    f"{self.origin} gave no answer to a call within {timeout_s:g}s"
                ) from error
            else:
                if reply.status != 429 and (reply.status != 503 or _kind(reply) not in _NOT_RUN):
                    return reply
                problem = self._said(reply) or problem
        raise ToolServerUnavailableError(f"{self.origin} cannot take a call: {problem}")

    def _result(self, reply: Reply) -> ToolResult:
        try:
            answer = _Answer.model_validate(json.loads(reply.body))
            metadata = self._mask.within(validate_json_arguments(answer.metadata or {}))
        except (ValueError, RecursionError, ValidationError, ToolCallFormatError):
            raise ToolServerProtocolError(
                f"{self.origin} answered a call with something that is no result"
            ) from None
        error = None if answer.error is None else self._mask(answer.error)
        images = Images()
        for image in answer.images:
            images.take(image.data, image.media_type)
        output = self._mask(answer.output)
        return bounded_result(
            ToolResult(answer.success, output, error, metadata, images=images.kept)
        )

    def _failure(self, reply: Reply, path: str) -> ToolServerError:
        said = self._said(reply)
        detail = f": {said}" if said else ""
        if reply.status in (401, 403):
            return ToolServerProtocolError(
                f"{self.origin} refuses us with {reply.status}{detail}; set tool_server_token to its token"
            )
        if 300 <= reply.status < 400:
            return ToolServerProtocolError(
                f"{self.origin} sends us elsewhere ({reply.status}), where our token does not belong; "
                "give the final address as tool_server_url"
            )
        if reply.status >= 500:
            return ToolServerError(f"{self.origin} failed with {reply.status}{detail}")
        return ToolServerProtocolError(
            f"{self.origin} is none: {path} answered {reply.status}{detail}"
        )

    def _said(self, reply: Reply) -> str:
        """The server's own words about a failure, fit for a log: short, printable, without our token."""
        value = _json_object(reply)
        error = value.get("error")
        text = error.get("message") if isinstance(error, dict) else value.get("detail", error)
        if text is None:
            return ""
        text = text if isinstance(text, str) else json.dumps(text)
        shown = "".join(char if char.isprintable() else " " for char in text)
        return bounded_text(self._mask(shown), 1_000)

    def _schema(self, entry: _Listed) -> ToolSchema:
        try:
            parameters, required = parameters_of(entry.parameters)
        except ToolConfigError as error:
            raise ToolConfigError(f"{self.origin}: tool {entry.name!r}: {error}") from error
        return ToolSchema(entry.name, entry.description, parameters, required)


class InProcessToolServer:
    """A `ToolSource`: a tool server in this process, for `tool_server_url: inprocess`."""

    def __init__(self, server: ToolServer) -> None:
        self.origin = "the tool server in this process"
        self._server = server
        self._client = ToolServerClient(f"http://{IN_PROCESS_HOST}", wire=InProcessWire(server.app))

    @classmethod
    def of(cls, tools: Sequence[Tool[Any]]) -> InProcessToolServer:
        """A server of these tools, with the limit of `TOOL_SERVER_MAX_CONCURRENCY`. Raises `ToolConfigError`."""
        from agentenv_tools.serving.settings import ServeSettings  # noqa: PLC0415 - only this mode serves
        from agentenv_tools.serving.tool_server import ToolServer, max_concurrency_from  # noqa: PLC0415

        settings = ServeSettings(allowed_hosts=(IN_PROCESS_HOST,), stop_grace_s=1.0)
        limit = max_concurrency_from(os.environ)
        return cls(ToolServer(tools, settings, max_concurrency=limit))

    async def start(self) -> Sequence[ExternalTool]:
        """See `ToolSource.start`."""
        return await self._client.start()

    async def release(self, trajectory_id: str) -> None:
        """See `ToolSource.release`."""

    async def close(self) -> None:
        """See `ToolSource.close`."""
        await self._server.close()
        await self._client.close()


def _checked(url: str) -> str:
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname)
        _ = parts.port
    except ValueError:
        usable = False
    if not usable or parts.query or parts.fragment:
        raise ToolConfigError(
            f"tool_server_url={url!r}: give an address such as http://127.0.0.1:9002, or `inprocess`"
        )
    if parts.username is not None or parts.password is not None:
        raise ToolConfigError(
            "tool_server_url: credentials do not belong into the address; use tool_server_token"
        )
    return url


def _unwrapped(entry: Any) -> Any:
    return entry["function"] if isinstance(entry, dict) and "function" in entry else entry


def _kind(reply: Reply) -> str | None:
    error = _json_object(reply).get("error")
    return error.get("kind") if isinstance(error, dict) else None


def _json_object(reply: Reply) -> dict[str, Any]:
    try:
        value = json.loads(reply.body[:100_000])
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
