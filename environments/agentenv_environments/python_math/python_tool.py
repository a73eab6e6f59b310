"""The `python` tool: a program in the trajectory's sandbox."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from agentenv_backends.requests import ExecRequest
from agentenv_backends.results import ExecResult, OpFailure
from agentenv_tools.arguments import ToolArguments
from agentenv_tools.base import SandboxTool, expect
from agentenv_tools.sandbox_tools import command_result, failure_result

if TYPE_CHECKING:
    from agentenv_backends.requests import Request
    from agentenv_backends.results import Result
    from agentenv_tools.schema import ToolResult


class PythonArguments(ToolArguments):
    """Arguments of `python`."""

    code: Annotated[str, Field(description="The program.", min_length=1, max_length=100_000)]


class PythonTool(SandboxTool[PythonArguments]):
    """A Python program, in a fresh interpreter each time; files persist."""

    name = "python"
    description = (
        "Run a Python program in the workspace. Each call is a fresh interpreter: print what you want to see; "
        "files persist, variables do not."
    )
    arguments_model: type[PythonArguments] = PythonArguments

    def request(self, arguments: PythonArguments, timeout_s: float) -> Request:
        """See `SandboxTool.request`."""
        return ExecRequest(
            command=("python3", "-"), timeout_s=timeout_s, stdin=arguments.code.encode()
        )

    def result(self, arguments: PythonArguments, result: Result, timeout_s: float) -> ToolResult:
        """What `terminal` shows of a command."""
        answer = expect(result, ExecResult)
        if isinstance(answer, OpFailure):
            return failure_result(answer)
        return command_result(answer, timeout_s)
