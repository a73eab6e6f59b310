"""Settings of a `ToolExecutor`."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from agentenv_backends.requests import DEFAULT_TIMEOUT_S
from agentenv_tools.errors import ToolConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from agentenv_tools.external.mcp_config import McpServerConfig

MIN_TIMEOUT_S = 1.0
MAX_TIMEOUT_S = 600.0


@dataclass(frozen=True, slots=True)
class ToolExecutorConfig:
    """Settings of a `ToolExecutor`. Raises `ToolConfigError` for values that cannot work."""

    batch_window_ms: int = 20
    """The longest a call may be held back to travel with others. An upper bound: nothing is held back at all."""
    max_batch_size: int = 200
    """The most requests handed to one host within one turn of the event loop."""
    default_timeout_s: float = DEFAULT_TIMEOUT_S
    """A call's deadline where neither the caller nor the model names one."""
    acquire_timeout_s: float | None = None
    """How long a first call may wait for a slot; None: as the backend is configured."""
    release_timeout_s: float = 60.0
    """How long ending a trajectory may take before it goes on in the background of the backend's own cleanup."""
    max_recording_bytes: int = 2_000_000
    """The driver's memory for what one trajectory's terminals recorded; 0: nothing is kept."""
    recording_timeout_s: float = 5.0
    """How long a slot may take to hand out the end of a recording."""
    allow_network: bool = True
    """False: refuse to run on a backend that does not enforce it."""
    require_sandbox: bool = False
    """True: refuse to run on a backend without isolation."""
    require_stateful_sandbox: bool = False
    """True: refuse to run on a backend without isolated stateful terminals."""
    tool_server_url: str | None = None
    """Server of external tools; `inprocess`: one in this process. None: there are none."""
    tool_server_token: str | None = field(default=None, repr=False)
    """Its bearer token."""
    mcp_servers: Mapping[str, McpServerConfig] = field(default_factory=dict)
    """MCP servers by name, whose tools are external tools too."""

    def __post_init__(self) -> None:
        if self.tool_server_token is not None and self.tool_server_url is None:
            raise ToolConfigError("tool_server_token is set, but tool_server_url is not; set both")
        self._check("batch_window_ms", minimum=0)
        self._check("max_batch_size", minimum=1)
        self._check("default_timeout_s", minimum=MIN_TIMEOUT_S, maximum=MAX_TIMEOUT_S)
        self._check("release_timeout_s", minimum=0)
        self._check("max_recording_bytes", minimum=0)
        self._check("recording_timeout_s", minimum=0)
        if self.acquire_timeout_s is not None:
            self._check("acquire_timeout_s", minimum=0)

    def _check(self, name: str, *, minimum: float, maximum: float = math.inf) -> None:
        value = getattr(self, name)
        if not minimum <= value <= maximum:
            raise ToolConfigError(
                f"{name}: must be between {minimum:g} and {maximum:g}, not {value!r}"
            )
