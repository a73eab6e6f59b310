"""What a configuration and its tools ask of a backend, checked before anything runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from agentenv_backends.errors import CapabilityError

if TYPE_CHECKING:
    from agentenv_backends.base import Capabilities
    from agentenv_tools.config import ToolExecutorConfig
    from agentenv_tools.registry import ToolRegistry

_MEANING = {
    "stateful_terminals": "has no persistent shells or terminals",
    "tmux": "has no tmux in its sandboxes (install it in their image)",
}


def check_policy(config: ToolExecutorConfig, offered: Capabilities) -> None:
    """Raise `CapabilityError` unless the backend enforces what the configuration requires."""
    isolated = offered.isolation != "none"
    if not config.allow_network and not offered.network_control:
        raise CapabilityError(
            "allow_network is False, but this backend cannot keep commands off the network; "
            "choose one that can, or set allow_network to True"
        )
    if config.require_sandbox and not isolated:
        raise CapabilityError(
            "require_sandbox is True, but this backend runs commands without isolation; "
            "choose another one"
        )
    if config.require_stateful_sandbox and not (isolated and offered.stateful_terminals):
        raise CapabilityError(
            "require_stateful_sandbox is True, but this backend has no isolated stateful "
            "terminals; set it to False"
        )


def check_tools(registry: ToolRegistry, offered: Capabilities) -> None:
    """Raise `CapabilityError` for the first tool that this backend cannot serve."""
    for name in registry.names():
        tool = registry.get(name)
        for need in tool.backend_needs if tool is not None else ():
            if not getattr(offered, need):
                meaning = _MEANING.get(need, f"does not offer {need}")
                raise CapabilityError(
                    f"the tool {name!r} is enabled, but this backend {meaning}; add its toolset "
                    "to disabled_toolsets ('tmux' takes out that tool alone), or choose another one"
                )
