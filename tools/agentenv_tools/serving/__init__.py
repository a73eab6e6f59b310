"""Services of tools: the tool server, the executor, and what both have in common.

async with serving(ToolServer([lookup])) as url: ...
"""

from agentenv_tools.serving.executor_server import ExecutorServer, ExecutorServerLimits
from agentenv_tools.serving.running import Service, serve_until_stopped, serving
from agentenv_tools.serving.settings import ServeSettings
from agentenv_tools.serving.tool_server import ToolServer

__all__ = [
    "ExecutorServer",
    "ExecutorServerLimits",
    "ServeSettings",
    "Service",
    "ToolServer",
    "serve_until_stopped",
    "serving",
]
