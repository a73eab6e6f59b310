"""What `serve` needs of a trajectory server. `EnvironmentClient` is the real one, `FakeLink` of `agentenv.testing` the
one for tests.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from agentenv.api.client import (
        EnvRegistered,
        EnvRegistration,
        EnvStatus,
        SendResult,
        TrainerInfo,
    )
    from agentenv.api.group import WireGroup
    from agentenv.config import AgentEnvConfig


class Link(Protocol):
    """A trajectory server, as one environment sees it.

    Every method raises `ApiUnreachableError` when the server does not answer, or asks to come again later, and
    `ApiRefusedError` when it will not take what it was sent; `status` raises `UnknownEnvError` when the server does not
    know the environment.
    """

    async def register(self, registration: EnvRegistration, /) -> EnvRegistered | None:
        """Join. None: no trainer has started yet."""
        ...

    async def info(self) -> TrainerInfo:
        """What the trainer registered."""
        ...

    async def status(self, env_id: int, /) -> EnvStatus:
        """How things stand for this environment."""
        ...

    async def send(self, groups: Sequence[WireGroup | Mapping[str, Any]], /) -> SendResult:
        """Hand over groups, all or none. One with a `group_id` may be sent again and is stored once."""
        ...

    async def disconnect(self, env_id: int, /) -> bool:
        """Say goodbye."""
        ...

    async def wandb_info(self) -> tuple[str | None, str | None]:
        """The trainer's group and project at Weights & Biases."""
        ...

    async def close(self) -> None:
        """Close the connections. Idempotent."""
        ...


def open_link(config: AgentEnvConfig) -> Link:
    """The server that `rollout_server_url` names. Nothing is connected yet."""
    from agentenv.api.client import EnvironmentClient  # noqa: PLC0415 - an import of HTTP

    token = config.rollout_server_token
    return EnvironmentClient(
        config.rollout_server_url, token=token.get_secret_value() if token else None
    )
