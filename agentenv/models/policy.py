"""Making the policy that a model's name means."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from agentenv.errors import ConfigError
from agentenv.models.keys import load_environ
from agentenv.models.routing import route_model
from agentenv.models.settings import ChatModelSettings

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from agentenv.policy.base import PolicyClient


def chat_policy(
    model: str,
    settings: ChatModelSettings | None = None,
    *,
    env_file: Path | str | None = ".env",
    environ: Mapping[str, str] | None = None,
    **changes: Any,
) -> PolicyClient:
    """The policy that `model` means (see `route_model`), not yet started. It returns no tokens.

    `changes` are fields of `ChatModelSettings`, over those of `settings`. Keys come from `environ` (None: that of this
    process) and `env_file`. Raises `ConfigError` for a model of no known provider, a missing key or region, and
    when the `models` extra is not installed.
    """
    given = settings.model_dump() if settings is not None else {}
    chosen = ChatModelSettings(**{**given, **changes})
    route = route_model(model, base_url=chosen.base_url)
    try:
        from agentenv.models.client import ChatModel, ToolChatModel  # noqa: PLC0415 - imports an extra
        from agentenv.models.providers import open_provider  # noqa: PLC0415
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] == "agentenv":
            raise
        raise ConfigError(
            f"chat models need the extra `models` ({error.name} is missing): pip install 'agentenv[models]'"
        ) from error
    provider = open_provider(route, chosen, load_environ(env_file, environ))
    return (ToolChatModel if chosen.native_tools else ChatModel)(route, chosen, provider)
