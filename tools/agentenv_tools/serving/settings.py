"""Where a service listens, who may use it, and what one request may take."""

from __future__ import annotations

import ipaddress
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

from agentenv_tools.errors import ToolConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping

ANY_HOST = "*"


@dataclass(frozen=True, slots=True)
class ServeSettings:
    """Settings of a service. Raises `ToolConfigError` for an address that others can reach without a token."""

    host: str = "127.0.0.1"
    """The address to listen on."""
    port: int = 0
    """0: a free one."""
    token: str | None = field(default=None, repr=False)
    """What callers must send as `Authorization: Bearer ...`. None: whoever reaches the address may call."""
    allowed_hosts: tuple[str, ...] = ()
    """Names callers may reach it by, beside `localhost` and bare addresses; `*`: any name.

    Any other name in a request is that of a web page which pointed its own name at this machine.
    """
    max_body_bytes: int = 4_000_000
    max_connections: int = 1_024
    read_timeout_s: float = 20.0
    """How long a request's head may take to arrive, and then its body."""
    stop_grace_s: float = 10.0
    """How long calls under way may go on when the service is told to stop."""

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65_535:
            raise ToolConfigError(f"port {self.port}: must be between 0 and 65535")
        if not 0 <= self.stop_grace_s < math.inf:
            raise ToolConfigError(f"stop_grace_s={self.stop_grace_s}: must be 0 or more seconds")
        if self.token is not None and not _is_token(self.token):
            raise ToolConfigError(
                "the token must be printable ASCII without spaces, at least one character; "
                "make one with: python -c 'import secrets; print(secrets.token_urlsafe(32))'"
            )
        if self.token is None and not is_loopback(self.host):
            raise ToolConfigError(
                f"refusing to listen on {self.host or 'every address'} without a token: whoever can reach it could "
                "run the tools; give a token, or listen on 127.0.0.1"
            )

    @classmethod
    def from_environment(cls, prefix: str, environ: Mapping[str, str], **given: Any) -> Self:
        """Settings from `given` where not None, else from `PREFIX_HOST`, `_PORT`, `_TOKEN`, `_ALLOWED_HOSTS`."""
        found: dict[str, Any] = {key: value for key, value in given.items() if value is not None}
        for name in ("host", "token"):
            if name not in found and environ.get(f"{prefix}{name.upper()}"):
                found[name] = environ[f"{prefix}{name.upper()}"]
        if "port" not in found and environ.get(f"{prefix}PORT"):
            found["port"] = whole_number(f"{prefix}PORT", environ[f"{prefix}PORT"])
        if "allowed_hosts" not in found and (names := environ.get(f"{prefix}ALLOWED_HOSTS")):
            found["allowed_hosts"] = tuple(name.strip() for name in names.split(","))
        return cls(**found)

    def admits_host(self, header: str) -> bool:
        """Whether a request with this `Host` header was meant for this service.

        A bare address always is: only a name can be pointed elsewhere after a browser has looked it up.
        """
        name = host_of(header)
        known = {"localhost", self.host.lower(), *(host.lower() for host in self.allowed_hosts)}
        return _address(name) is not None or (bool(name) and name in known) or ANY_HOST in known


def whole_number(name: str, text: str) -> int:
    """A setting's text as a number. Raises `ToolConfigError` naming it."""
    try:
        return int(text)
    except ValueError:
        raise ToolConfigError(f"{name}={text!r}: must be a whole number") from None


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address. Names other than `localhost` count as reachable."""
    address = _address(host)
    return host.lower() == "localhost" or (address is not None and address.is_loopback)


def host_of(header: str) -> str:
    """The name or address in a `Host` header, without port and brackets."""
    header = header.strip().lower()
    if header.startswith("["):
        return header[1:].partition("]")[0]
    return header.partition(":")[0]


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def _is_token(token: str) -> bool:
    return bool(token) and all("!" <= char <= "~" for char in token)
