"""Settings of the trajectory server."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING

from agentenv.errors import ConfigError
from agentenv_tools.serving.settings import is_loopback

if TYPE_CHECKING:
    from pathlib import Path


class Scope(Enum):
    """What a token allows. Everyone may read; only a trainer may take batches, pause and reset."""

    TRAINER = "trainer"
    ENVIRONMENT = "environment"
    READER = "reader"


@dataclass(frozen=True, slots=True)
class ApiSettings:
    """Settings of the trajectory server. Raises `ConfigError` for values that cannot work."""

    data: Path | None = None
    """The database, or a folder for it. None: a temporary one, removed when the server is told to stop."""
    tokens: dict[Scope, str] = field(default_factory=dict, repr=False)
    """Empty: whoever reaches the address may do everything."""
    lease_s: float = 600.0
    """How long a consumer may hold a batch before another may have it, and a pause may last that nobody renews."""
    env_timeout_s: float = 60.0
    """How long an environment may be silent and still be waited for."""
    max_staleness: int | None = None
    """Groups whose policy is more steps older than the trainer's are dropped at hand-out. None: none is."""
    max_queue_bytes: int = 16 << 30
    """Packed bytes of all groups kept; a group that comes when there are more is told to come later."""
    min_free_bytes: int = 256 << 20
    """Room on the disk that no new group may use: handing a batch out and letting go of it are writes too, and make
    room again. Should be more than the write-ahead log (64 MB) and the largest request."""
    max_body_bytes: int = 256 << 20
    """Of one request, as it is sent."""
    max_inflated_bytes: int = 1 << 30
    """Of one request, when it is unpacked."""
    sync_every_commit: bool = False
    """Answer only after the disk has it, so that a power failure loses nothing either. Else it has soon after."""
    accept_misaligned_advantages: bool = False
    """Take groups whose advantages have not one number a token."""

    def __post_init__(self) -> None:
        for name in ("lease_s", "env_timeout_s"):
            if not 0 < getattr(self, name) < math.inf:
                raise ConfigError(
                    f"{name}={getattr(self, name)}: must be a number of seconds over 0"
                )
        for name in ("max_queue_bytes", "max_body_bytes", "max_inflated_bytes"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)}: must be at least 1")
        if self.min_free_bytes < 0:
            raise ConfigError(f"min_free_bytes={self.min_free_bytes}: must be 0 or more")
        if self.max_staleness is not None and self.max_staleness < 0:
            raise ConfigError(f"max_staleness={self.max_staleness}: must be 0 or more steps")
        given = set(self.tokens)
        if given and not {Scope.TRAINER, Scope.ENVIRONMENT} <= given:
            raise ConfigError(
                "with a token for one scope, give one for the trainer and one for the environments too: "
                "nobody could use the others"
            )
        if len(set(self.tokens.values())) != len(self.tokens):
            raise ConfigError("the tokens of different scopes must differ")

    def check_address(self, host: str) -> None:
        """Raises `ConfigError` for an address that others can reach, without tokens."""
        if not self.tokens and not is_loopback(host):
            raise ConfigError(
                f"refusing to listen on {host or 'every address'} without tokens: whoever can reach it could "
                "take and feed training data; give tokens, or listen on 127.0.0.1"
            )
