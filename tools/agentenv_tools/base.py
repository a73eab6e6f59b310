"""What a tool is.

`SandboxTool` runs in the trajectory's slot, `FunctionTool` (function_tool.py) in the driver, `ExternalTool` elsewhere.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar, final

from pydantic import BaseModel

from agentenv_backends.errors import InfrastructureError
from agentenv_backends.requests import ExecRequest, ShellRequest, TmuxRequest
from agentenv_backends.results import OpFailure
from agentenv_tools.arguments import describe, invalid_arguments, validate
from agentenv_tools.errors import ToolCallFormatError
from agentenv_tools.json_values import validate_json_arguments
from agentenv_tools.schema import ToolSchema

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Mapping

    from agentenv_backends.requests import Request
    from agentenv_backends.results import Result
    from agentenv_tools.schema import ToolResult

ArgumentsT = TypeVar("ArgumentsT")
ModelT = TypeVar("ModelT", bound=BaseModel)
ResultT = TypeVar("ResultT")


class Tool(ABC, Generic[ArgumentsT]):
    """Something a model may call: its schema, and what happens then."""

    schema: ToolSchema
    backend_needs: ClassVar[tuple[str, ...]] = ()
    """Fields of `Capabilities` that must hold; an executor over a backend without them does not start."""

    # ---- override these ----

    @abstractmethod
    def validate(self, arguments: Mapping[str, Any]) -> ArgumentsT:
        """The arguments in the form `run` takes. Raises `ToolArgumentsError`, which the model gets to read."""

    @abstractmethod
    async def run(self, arguments: ArgumentsT, ctx: ToolContext) -> ToolResult:
        """Do it. The result's `uniq_id` is set by the executor.

        An `InfrastructureError` passes through to whoever runs the trajectory; any other exception
        becomes a result that says "Tool execution error".
        """

    def is_available(self) -> tuple[bool, str | None]:
        """Whether it can be used now, and why not. Asked before each call, so it must be cheap.

        A tool that is not available is left out of what the model is told.
        """
        return True, None


class SandboxTool(Tool[ModelT]):
    """A tool that is one request to the trajectory's slot. Holds no state of its own.

    class Touch(SandboxTool[TouchArguments]):
        name = "touch"
        description = "Create an empty file."
        arguments_model = TouchArguments

        def request(self, arguments, timeout_s):
            return WriteRequest(arguments.path, b"")

        def result(self, arguments, result, timeout_s):
            return ToolResult(success=isinstance(result, WriteResult))
    """

    name: ClassVar[str]
    description: ClassVar[str]
    arguments_model: type[ModelT]

    def __init__(self) -> None:
        parameters, required = describe(self.arguments_model)
        self.schema = ToolSchema(self.name, self.description, parameters, required)

    # ---- override these ----

    @abstractmethod
    def request(self, arguments: ModelT, timeout_s: float) -> Request:
        """What to ask of the slot. May raise `ToolArgumentsError`."""

    @abstractmethod
    def result(self, arguments: ModelT, result: Result, timeout_s: float) -> ToolResult:
        """What the model gets to read of the answer."""

    def asked_s(self, arguments: ModelT) -> float | None:
        """Seconds its own arguments ask the call to take, where it has such beside `timeout`. The executor decides."""
        return None

    # ---- machinery ----

    @final
    def validate(self, arguments: Mapping[str, Any]) -> ModelT:
        """See `Tool.validate`."""
        return validate(self.arguments_model, self.name, arguments)

    @final
    async def run(self, arguments: ModelT, ctx: ToolContext) -> ToolResult:
        """See `Tool.run`."""
        answer = await ctx.execute(self.request(arguments, ctx.timeout_s))
        return self.result(arguments, answer, ctx.timeout_s)


class ExternalTool(Tool[dict[str, Any]]):
    """A tool that another process carries out: a tool server, or an MCP server (`agentenv_tools.external`).

    It takes no slot, and keeps deadlines of its own, a little later than its call's.
    """

    def __init__(self, schema: ToolSchema, origin: str) -> None:
        """`origin` says where it comes from, for errors."""
        self.schema = replace(schema, external=True)
        self.origin = origin

    def validate(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """See `Tool.validate`. Whoever carries the call out judges them; here they need only be JSON."""
        try:
            return validate_json_arguments(dict(arguments))
        except ToolCallFormatError as error:
            raise invalid_arguments(self.schema.name, [str(error)]) from error

    async def prepare(self, trajectory_id: str) -> None:
        """Have what the trajectory's calls need, such as a session of its own. Raises `InfrastructureError`."""


class ToolContext:
    """What a running tool knows of its call: whose it is, the trajectory's slot, and how much time is left.

    The time a call waits for a slot is not counted against it.
    """

    __slots__ = (
        "_acquire",
        "_busy",
        "_deadline",
        "_guard",
        "_send",
        "timeout_s",
        "trajectory_id",
        "working_dir",
    )

    def __init__(
        self,
        trajectory_id: str,
        timeout_s: float,
        *,
        acquire: Callable[[], Awaitable[float]],
        send: Callable[[Request], Awaitable[Result]],
        working_dir: str | None = None,
    ) -> None:
        """`acquire` makes sure the trajectory has a slot and returns the seconds that took; `send` asks that slot."""
        self.trajectory_id = trajectory_id
        self.timeout_s = timeout_s
        self.working_dir = working_dir
        self._acquire = acquire
        self._send = send
        self._deadline = asyncio.get_running_loop().time() + timeout_s
        self._guard: asyncio.Timeout | None = None
        self._busy = 0

    def remaining_s(self) -> float:
        """Seconds until this call's deadline; 0.0 when it has passed."""
        return max(0.0, self._deadline - asyncio.get_running_loop().time())

    async def execute(self, request: Request) -> Result:
        """Carry a request to the trajectory's slot, which is taken on first use.

        Inside a tool with code of its own, a command gets no more than the time that is left.
        Raises `InfrastructureError`; let it pass.
        """
        with self._sandbox_at_work():
            waited = await self._acquire()
            self._deadline += waited
            return await self._send(self._placed(self._within_deadline(request)))

    async def limit(self, work: Awaitable[ToolResult]) -> ToolResult:
        """Await `work` until the deadline; raises `TimeoutError` then. For the executor.

        The clock stands still while the sandbox works for the tool: a sandbox has its own
        deadlines, and one that does not answer must not look like a slow tool.
        """
        try:
            async with asyncio.timeout_at(self._deadline) as self._guard:
                return await work
        finally:
            self._guard = None

    @contextmanager
    def _sandbox_at_work(self) -> Iterator[None]:
        self._busy += 1
        self._set_guard(None)
        try:
            yield
        finally:
            self._busy -= 1
            if self._busy == 0:
                self._set_guard(self._deadline)

    def _set_guard(self, when: float | None) -> None:
        if self._guard is not None and not self._guard.expired():
            self._guard.reschedule(when)

    def _placed(self, request: Request) -> Request:
        """A command that names no folder starts in the trajectory's."""
        if self.working_dir is None or not isinstance(request, ExecRequest) or request.cwd != ".":
            return request
        return replace(request, cwd=self.working_dir)

    def _within_deadline(self, request: Request) -> Request:
        if self._guard is None or not isinstance(request, ExecRequest | ShellRequest | TmuxRequest):
            return request
        limit = min(request.timeout_s, max(self.remaining_s(), 0.001))
        if isinstance(request, TmuxRequest):
            return replace(request, timeout_s=limit, min_wait_s=min(request.min_wait_s, limit))
        return replace(request, timeout_s=limit)


def expect(result: Result, kind: type[ResultT]) -> ResultT | OpFailure:
    """`result`, which must be a `kind` or a failure. Raises `InfrastructureError` for an answer to
    another question.
    """
    if isinstance(result, (kind, OpFailure)):
        return result
    raise InfrastructureError(
        f"the sandbox answered with {type(result).__name__} where {kind.__name__} belongs; "
        "driver and sandbox server do not fit together"
    )
