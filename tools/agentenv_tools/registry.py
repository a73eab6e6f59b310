"""Which tools a rollout's model may call."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from agentenv_tools.errors import ToolConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from agentenv_tools.base import Tool
    from agentenv_tools.schema import ToolSchema

POLICY_ARGUMENTS = frozenset({"allow_network", "require_sandbox", "require_stateful_sandbox"})
"""Arguments a model may never set. The executor takes them out of every call."""

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]{0,63}")
_MAX_SHOWN_CHARS = 128


class ToolRegistry:
    """Tools by name, in the order they were registered."""

    def __init__(self, tools: Iterable[Tool[Any]] = ()) -> None:
        self._tools: dict[str, Tool[Any]] = {}
        for tool in tools:
            self.register(tool)

    def register(self, tool: Tool[Any]) -> None:
        """Add a tool. Raises `ToolConfigError` for a name that is taken or no name, or a reserved parameter."""
        name = tool.schema.name
        if not _NAME.fullmatch(name):
            raise ToolConfigError(
                f"tool name {name!r}: use 1 to 64 letters, digits, '_' and '-', "
                "with a letter or '_' in front"
            )
        if name in self._tools:
            raise ToolConfigError(
                f"two tools are named {name!r}; rename one, as in @tool(name=...)"
            )
        if reserved := sorted(POLICY_ARGUMENTS & tool.schema.parameters.keys()):
            raise ToolConfigError(
                f"tool {name!r}: the parameter name {reserved[0]!r} is reserved for sandbox "
                "policy, which no model may set; rename it"
            )
        self._tools[name] = tool

    def get(self, name: str) -> Tool[Any] | None:
        """The tool of that name, if there is one."""
        return self._tools.get(name)

    def names(self) -> tuple[str, ...]:
        """Every tool's name."""
        return tuple(self._tools)

    def schemas(self) -> list[ToolSchema]:
        """What a model is to be told: the schema of each tool that is available now."""
        return [tool.schema for tool in self._tools.values() if tool.is_available()[0]]

    def unknown(self, name: str) -> str:
        """What a model reads after calling a tool that is not here."""
        known = ", ".join(self._tools) or "none"
        return f"Unknown tool: {name[:_MAX_SHOWN_CHARS]}. Known tools: {known}"

    def __contains__(self, name: object) -> bool:
        return name in self._tools

    def __len__(self) -> int:
        return len(self._tools)
