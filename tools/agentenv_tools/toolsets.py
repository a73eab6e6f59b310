"""Named groups of tools, and which of them an environment's settings select."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from agentenv_tools.coding_tools import coding_tools
from agentenv_tools.editor_tool import EditorTool
from agentenv_tools.errors import ToolConfigError
from agentenv_tools.registry import ToolRegistry
from agentenv_tools.sandbox_tools import BashTool, ReadFileTool, TerminalTool, WriteFileTool
from agentenv_tools.terminal_tools import TerminalStatefulTool, TmuxTool

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from agentenv_tools.base import Tool

ALL = frozenset({"all", "*"})
"""Two names for the union of every toolset."""


@dataclass(frozen=True, slots=True)
class Toolset:
    """A named group: tools of its own, and those of the toolsets it includes (circles are fine)."""

    name: str
    tools: tuple[str, ...] = ()
    includes: tuple[str, ...] = ()


BUILTIN_TOOLSETS = (
    Toolset("filesystem", tools=("read_file", "write_file")),
    Toolset("terminal", tools=("terminal",)),
    Toolset("bash", tools=("bash",)),
    Toolset("terminal_stateful", tools=("terminal_stateful", "tmux")),
    Toolset("tmux", tools=("tmux",)),
    Toolset("coding", tools=("exec", "read", "write", "edit", "glob", "grep")),
    Toolset("editor", tools=("editor",)),
    Toolset("agent_runner", includes=("bash", "editor")),
    Toolset("sandbox", includes=("terminal", "filesystem")),
    Toolset("default", includes=("sandbox",)),
    Toolset("full", includes=("filesystem", "sandbox", "terminal_stateful")),
)


class ToolsetCatalog:
    """The toolsets and tools there are. Starts with the built-in ones; add your own.

    catalog = ToolsetCatalog()
    catalog.add_tools(lookup, define)
    catalog.add_toolset(Toolset("dictionary", tools=("lookup", "define"), includes=("filesystem",)))
    registry = catalog.build(enabled=["dictionary", "terminal"], disabled=["filesystem"])
    """

    def __init__(self) -> None:
        self._tools = ToolRegistry([TerminalTool(), BashTool(), ReadFileTool(), WriteFileTool()])
        self._tools.register(TerminalStatefulTool())
        self._tools.register(TmuxTool())
        self._tools.register(EditorTool())
        for tool in coding_tools():
            self._tools.register(tool)
        self._toolsets = {toolset.name: toolset for toolset in BUILTIN_TOOLSETS}

    def names(self) -> tuple[str, ...]:
        """Every toolset's name."""
        return tuple(self._toolsets)

    def add_tools(self, *tools: Tool[Any]) -> None:
        """Make tools known, so that toolsets can name them. Raises `ToolConfigError` for a name that is taken."""
        for tool in tools:
            self._tools.register(tool)

    def add_toolset(self, toolset: Toolset) -> None:
        """Make a toolset known. Raises `ToolConfigError` for a name that is taken."""
        if toolset.name in self._toolsets or toolset.name in ALL:
            raise ToolConfigError(f"a toolset named {toolset.name!r} exists already")
        self._toolsets[toolset.name] = toolset

    def resolve(
        self, enabled: Sequence[str] = ("default",), disabled: Sequence[str] = ()
    ) -> tuple[str, ...]:
        """The names of the tools of `enabled` without those of `disabled`, each once, in the order of `enabled`.

        Raises `ToolConfigError` for an unknown toolset, an included one that is unknown, or a tool
        that cannot be had.
        """
        for setting, names in (("enabled_toolsets", enabled), ("disabled_toolsets", disabled)):
            if isinstance(names, str):
                raise ToolConfigError(f"{setting}: give a list of names, not the text {names!r}")
        taken_out = set(self._tools_of(disabled))
        names = tuple(name for name in self._tools_of(enabled) if name not in taken_out)
        for name in names:
            self._check_tool(name)
        return names

    def build(
        self, enabled: Sequence[str] = ("default",), disabled: Sequence[str] = ()
    ) -> ToolRegistry:
        """A registry of the tools `resolve` names. Raises as `resolve` does."""
        tools = (self._tools.get(name) for name in self.resolve(enabled, disabled))
        return ToolRegistry(tool for tool in tools if tool is not None)

    def _tools_of(self, toolsets: Iterable[str]) -> dict[str, None]:
        """Tool names in order of appearance."""
        names: dict[str, None] = {}
        seen: set[str] = set()
        pending = list(toolsets)[::-1]
        while pending:
            toolset = pending.pop()
            if toolset in seen:
                continue
            seen.add(toolset)
            if toolset in ALL:
                pending.extend(reversed(self._toolsets))
                continue
            group = self._toolset(toolset)
            names.update(dict.fromkeys(group.tools))
            pending.extend(reversed(group.includes))
        return names

    def _toolset(self, name: str) -> Toolset:
        try:
            return self._toolsets[name]
        except KeyError:
            known = ", ".join([*self._toolsets, "all"])
            raise ToolConfigError(f"unknown toolset {name!r}; known: {known}") from None

    def _check_tool(self, name: str) -> None:
        if name in self._tools:
            return
        raise ToolConfigError(
            f"a toolset names the tool {name!r}, which does not exist; add it with "
            "ToolsetCatalog.add_tools first"
        )


def build_registry(
    enabled: Sequence[str] = ("default",), disabled: Sequence[str] = ()
) -> ToolRegistry:
    """A registry of built-in tools. See `ToolsetCatalog.resolve` for the rules."""
    return ToolsetCatalog().build(enabled, disabled)
