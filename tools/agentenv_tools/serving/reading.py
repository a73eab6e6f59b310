"""Reading requests: bounded in size, depth and time."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.requests import ClientDisconnect

from agentenv_tools.errors import ToolCallFormatError
from agentenv_tools.json_values import validate_json_arguments
from agentenv_tools.schema import ToolCall, new_call_id
from agentenv_tools.serving.answers import HttpError

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from starlette.requests import Request

    from agentenv_tools.serving.settings import ServeSettings

BodyT = TypeVar("BodyT", bound=BaseModel)
T = TypeVar("T")

_MAX_ID_CHARS = 256
_MAX_NAME_CHARS = 128


class Body(BaseModel):
    """Base of what requests carry. Unknown keys are ignored, so that newer callers can be served."""

    model_config = ConfigDict(extra="ignore", frozen=True, strict=True, allow_inf_nan=False)


class CallBody(Body):
    """A tool call."""

    name: str = Field(max_length=_MAX_NAME_CHARS)
    arguments: Any = Field(default_factory=dict)
    uniq_id: str | None = Field(default=None, max_length=_MAX_ID_CHARS)

    def call(self) -> ToolCall:
        """As the tools know it. Raises `HttpError` 400 for arguments that are none."""
        try:
            arguments = validate_json_arguments(self.arguments)
        except ToolCallFormatError as error:
            raise HttpError(400, "bad_arguments", str(error)) from None
        return ToolCall(self.name, arguments, uniq_id=self.uniq_id or new_call_id())


async def read_body(request: Request, model: type[BodyT], settings: ServeSettings) -> BodyT:
    """The request's JSON as a `model`. Raises `HttpError`: 400, 408, 413 or 415."""
    if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
        raise HttpError(415, "not_json", "send the body as application/json")
    if request.headers.get("content-encoding", "identity") != "identity":
        raise HttpError(415, "compressed", "compressed bodies are not read")
    body = await _read(request, settings.max_body_bytes, settings.read_timeout_s)
    try:
        value = json.loads(body)
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)[:200]
        raise HttpError(400, "bad_json", f"the body is no JSON: {reason}") from None
    try:
        return model.model_validate(value)
    except ValidationError as error:
        raise HttpError(400, "bad_request", _say(error)) from None


async def _read(request: Request, limit: int, timeout_s: float) -> bytes:
    too_large = HttpError(413, "too_large", f"the body may have at most {limit} bytes")
    declared = request.headers.get("content-length", "0")
    if not declared.isascii() or not declared.isdigit() or len(declared) > 18:
        raise HttpError(400, "bad_length", "Content-Length is no number")
    if int(declared) > limit:
        raise too_large
    body = bytearray()
    try:
        async with asyncio.timeout(timeout_s):
            async for chunk in request.stream():
                body += chunk
                if len(body) > limit:
                    raise too_large
    except TimeoutError:
        message = f"the body did not arrive within {timeout_s:g}s"
        raise HttpError(408, "too_slow", message, {"connection": "close"}) from None
    except ClientDisconnect:
        raise HttpError(400, "cut_off", "the caller left in the middle of the body") from None
    return bytes(body)


def _say(error: ValidationError) -> str:
    problems = error.errors(include_url=False, include_context=False, include_input=False)[:5]
    fields = (
        f"{'.'.join(str(part)[:80] for part in problem['loc']) or 'body'}: {problem['msg']}"
        for problem in problems
    )
    return "; ".join(fields)


async def while_connected(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Await `work`; cancel it when the caller goes away first. The body must have been read."""
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_left(request))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise HttpError(499, "gone", "the caller left")
        return working.result()
    finally:
        for task in (working, leaving):
            task.cancel()
        await asyncio.wait({working, leaving})
        if not working.cancelled():
            working.exception()  # seen: raised above, or of no interest to a caller who left


async def _left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
