"""What of a call is the model's to decide: its arguments and a wish for its deadline, not how it is confined."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from agentenv_tools.arguments import invalid_arguments, shorten
from agentenv_tools.base import SandboxTool
from agentenv_tools.config import MAX_TIMEOUT_S, MIN_TIMEOUT_S
from agentenv_tools.registry import POLICY_ARGUMENTS

if TYPE_CHECKING:
    from agentenv_tools.base import Tool
    from agentenv_tools.schema import ToolCall


def without_policy(tool: Tool[Any], call: ToolCall) -> tuple[float | None, dict[str, Any]]:
    """The timeout a call asks for, and its arguments without what is not the model's to set.

    Raises `ToolArgumentsError` for a timeout that is no number.
    """
    arguments = {key: value for key, value in call.arguments.items() if key not in POLICY_ARGUMENTS}
    asked = None
    if isinstance(tool, SandboxTool) or "timeout" not in tool.schema.parameters:
        asked = _seconds(call.name, arguments.pop("timeout", None))
    return asked, arguments


def granted_s(
    asked: float | None, timeout_s: float | None, limit_s: float | None, *, default_s: float
) -> float:
    """A call's deadline: what the caller says, else what the call asks for, within everybody's limits."""
    if timeout_s is None:
        timeout_s = default_s if asked is None else asked
    most = MAX_TIMEOUT_S if limit_s is None else min(limit_s, MAX_TIMEOUT_S)
    return max(min(timeout_s, most), MIN_TIMEOUT_S)


def _seconds(tool: str, value: object) -> float | None:
    """A timeout a model asked for, as a number; None if it asked for none."""
    if value is None:
        return None
    try:
        seconds = math.nan if isinstance(value, bool) else float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        seconds = math.nan
    if not math.isfinite(seconds):
        problem = f"timeout: must be a number of seconds from 1 to 600 (got {shorten(value)})"
        raise invalid_arguments(tool, [problem])
    return seconds
