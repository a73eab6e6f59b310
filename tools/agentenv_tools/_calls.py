"""Running one call of a tool: what its code raises becomes an answer, what the layers below raise does not."""

from __future__ import annotations

import asyncio
import json
import logging
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pydantic_core import to_json

from agentenv_backends.errors import BackendError
from agentenv_tools.base import ExternalTool, SandboxTool
from agentenv_tools.errors import ToolArgumentsError, ToolError
from agentenv_tools.schema import ToolResult
from agentenv_tools.stats import CallError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from agentenv_tools.base import Tool, ToolContext

logger = logging.getLogger(__name__)


class RejectedError(Exception):
    """A call that the model gets an error for."""

    def __init__(self, kind: CallError, message: str) -> None:
        super().__init__(message)
        self.kind = kind


@contextmanager
def tool_code() -> Iterator[None]:
    """What a tool's own code raises becomes `RejectedError`; what the layers below raise does not."""
    try:
        yield
    except ToolArgumentsError as error:
        raise RejectedError(CallError.INVALID_ARGUMENTS, str(error)) from error
    except (BackendError, ToolError):
        raise
    except (Exception, SystemExit) as error:  # an argument parser's exit must not be the driver's
        logger.info("a tool raised", exc_info=True)
        message = f"Tool execution error: {type(error).__name__}: {error}"
        raise RejectedError(CallError.RAISED, message) from error


async def run_tool(tool: Tool[Any], arguments: Any, ctx: ToolContext) -> ToolResult:
    """Run `tool`, at most until the context's deadline. Raises `RejectedError`, `BackendError` or `ToolError`.

    A sandbox and a tool server keep deadlines of their own, and one that does not answer must not look like a
    slow tool: for their tools there is none here.
    """
    if isinstance(tool, SandboxTool | ExternalTool):
        return await _outcome(tool, arguments, ctx)
    try:
        return await ctx.limit(_outcome(tool, arguments, ctx))
    except BackendError:
        raise
    except TimeoutError:
        message = f"Tool timed out after {ctx.timeout_s:g}s"
        raise RejectedError(CallError.TIMED_OUT, message) from None


async def _outcome(tool: Tool[Any], arguments: Any, ctx: ToolContext) -> ToolResult:
    try:
        with tool_code():
            result = await tool.run(arguments, ctx)
            if not isinstance(result, ToolResult):
                raise TypeError(f"{tool.schema.name} returned {type(result).__name__}")
            return result if isinstance(tool, SandboxTool) else _with_plain_metadata(result)
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise
        # Nobody withdrew this call: the tool waited for something of its own that was cancelled.
        message = "Tool execution error: something the tool waited for was cancelled"
        raise RejectedError(CallError.RAISED, message) from None


def _with_plain_metadata(result: ToolResult) -> ToolResult:
    """The result with metadata that JSON can carry, whatever a tool's author put there."""
    if not result.metadata:
        return result
    plain = to_json(result.metadata, inf_nan_mode="strings", fallback=str)
    return replace(result, metadata=json.loads(plain))
