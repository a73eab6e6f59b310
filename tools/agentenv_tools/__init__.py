"""What a model may call: tools, toolsets, parsing of calls, and the executor that runs them over a backend."""

from agentenv_tools.arguments import ToolArguments
from agentenv_tools.base import ExternalTool, SandboxTool, Tool, ToolContext
from agentenv_tools.config import ToolExecutorConfig
from agentenv_tools.errors import (
    ExecutorClosedError,
    NoActiveSlotError,
    ToolArgumentsError,
    ToolCallFormatError,
    ToolConfigError,
    ToolError,
    ToolServerError,
    ToolServerProtocolError,
    ToolServerTimeoutError,
    ToolServerUnavailableError,
    TrajectoryReleasedError,
)
from agentenv_tools.executor import ToolExecutor
from agentenv_tools.function_tool import FunctionTool, tool
from agentenv_tools.images import image_part
from agentenv_tools.json_values import validate_json_arguments
from agentenv_tools.parsing import (
    ParsedText,
    build_call,
    finish_calls,
    parse_reply,
    parse_tool_calls,
)
from agentenv_tools.registry import ToolRegistry
from agentenv_tools.sandbox_tools import BashTool, ReadFileTool, TerminalTool, WriteFileTool
from agentenv_tools.schema import ImagePart, ToolCall, ToolResult, ToolSchema, new_call_id
from agentenv_tools.stats import CallError, ExecutorStats
from agentenv_tools.terminal_tools import TerminalStatefulTool, TmuxTool
from agentenv_tools.toolsets import BUILTIN_TOOLSETS, Toolset, ToolsetCatalog, build_registry

__all__ = [
    "BUILTIN_TOOLSETS",
    "BashTool",
    "CallError",
    "ExecutorClosedError",
    "ExecutorStats",
    "ExternalTool",
    "FunctionTool",
    "ImagePart",
    "NoActiveSlotError",
    "ParsedText",
    "ReadFileTool",
    "SandboxTool",
    "TerminalStatefulTool",
    "TerminalTool",
    "TmuxTool",
    "Tool",
    "ToolArguments",
    "ToolArgumentsError",
    "ToolCall",
    "ToolCallFormatError",
    "ToolConfigError",
    "ToolContext",
    "ToolError",
    "ToolExecutor",
    "ToolExecutorConfig",
    "ToolRegistry",
    "ToolResult",
    "ToolSchema",
    "ToolServerError",
    "ToolServerProtocolError",
    "ToolServerTimeoutError",
    "ToolServerUnavailableError",
    "Toolset",
    "ToolsetCatalog",
    "TrajectoryReleasedError",
    "WriteFileTool",
    "build_call",
    "build_registry",
    "finish_calls",
    "image_part",
    "new_call_id",
    "parse_reply",
    "parse_tool_calls",
    "tool",
    "validate_json_arguments",
]
