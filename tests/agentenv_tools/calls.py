"""Calls of a fake executor, and its clock."""

from __future__ import annotations

import asyncio
from typing import Any

from agentenv_tools import ToolCall


def sh(command: str, **arguments: Any) -> ToolCall:
    """A call of `terminal`."""
    return ToolCall("terminal", {"command": command, **arguments})


def now() -> float:
    """The running loop's time, which in virtual time begins at 0."""
    return asyncio.get_running_loop().time()
