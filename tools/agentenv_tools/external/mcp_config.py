"""Settings of an MCP server whose tools an agent gets."""

from __future__ import annotations

from typing import Literal, Self
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, model_validator


class McpServerConfig(BaseModel):
    """An MCP server: one that is started (`command`), or one that is reached (`url`).

    Values of `env` and `headers` may refer to variables of the driver's environment as `${NAME}`. Put secrets there
    and nowhere else: everything written here is written to the run directory too.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    command: str | None = None
    """Program of a server that speaks over standard input and output."""
    args: list[str] = Field(default_factory=list)
    """Its arguments."""
    env: dict[str, str] = Field(default_factory=dict)
    """Its environment, beside PATH, HOME, USER, LANG and TMPDIR. It gets nothing else of the driver's."""
    cwd: str | None = None
    """Its working directory; none: the driver's."""
    url: str | None = None
    """Address of a server that speaks streamable HTTP."""
    headers: dict[str, str] = Field(default_factory=dict)
    """Headers of every request."""
    scope: Literal["run", "trajectory"] = "run"
    """`run`: one session for all trajectories. `trajectory`: one for each, for servers that keep state."""
    tools: list[str] | None = None
    """Only these of its tools, by the server's own names; none: all."""
    prefix: str = Field(default="", pattern=r"^([A-Za-z_][A-Za-z0-9_-]{0,31})?$")
    """Put before each tool's name."""
    start_timeout_s: float = Field(default=30.0, gt=0, le=600)
    """Deadline for starting it and hearing what tools it has."""
    restart_limit: int = Field(default=3, ge=0)
    """How often in a row it may fail before it is left alone for half a minute."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.command is None) == (self.url is None):
            raise ValueError("give either `command` or `url`")
        if self.url is None:
            self._refuse("command", headers=self.headers)
            return self
        self._refuse("url", args=self.args, env=self.env, cwd=self.cwd)
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("url: give an address such as http://127.0.0.1:8000/mcp")
        if parts.username is not None or parts.password is not None:
            raise ValueError("url: credentials do not belong into the address; use `headers`")
        return self

    def _refuse(self, kind: str, **others: object) -> None:
        if given := [name for name, value in others.items() if value]:
            raise ValueError(f"{given[0]}: has no meaning beside `{kind}`")
