"""Which provider serves a model, by the model's name."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from agentenv.errors import ConfigError


class Provider(StrEnum):
    """Whose protocol is spoken."""

    OPENAI = "openai"
    ANTHROPIC = "anthropic"
    GOOGLE = "google"
    BEDROCK = "bedrock"
    COMPATIBLE = "compatible"
    """OpenAI's chat protocol, at an address of one's own."""


@dataclass(frozen=True, slots=True)
class ModelRoute:
    """Where a model is, and what its provider calls it."""

    provider: Provider
    model: str


_PREFIXES = {
    "gemini": Provider.GOOGLE,
    "google": Provider.GOOGLE,
    "anthropic": Provider.ANTHROPIC,
    "bedrock": Provider.BEDROCK,
    "openai": Provider.OPENAI,
    "compatible": Provider.COMPATIBLE,
}
_RULES = (
    "gemini/... or a name with gemini: Google; claude-... or anthropic/...: Anthropic; bedrock/... or a name with "
    "anthropic.: Bedrock; openai/..., gpt-..., chatgpt-..., o followed by a digit, or computer-use-preview: OpenAI; "
    "anything with a base_url: an OpenAI-compatible server"
)


def route_model(name: str, *, base_url: str | None = None) -> ModelRoute:
    """The provider that a model's name means, and the name without the provider's prefix.

    A name that means none is one of an OpenAI-compatible server, if there is a `base_url`. Raises `ConfigError` for
    one without, and for an empty name.
    """
    prefix, slash, rest = name.partition("/")
    if slash and rest and prefix.lower() in _PREFIXES:
        return _checked(ModelRoute(_PREFIXES[prefix.lower()], rest), base_url)
    provider = _by_name(name.lower())
    if provider is None and base_url and name:
        provider = Provider.COMPATIBLE
    if provider is None:
        raise ConfigError(f"model {name!r} is of no known provider: {_RULES}")
    return _checked(ModelRoute(provider, name), base_url)


def _checked(route: ModelRoute, base_url: str | None) -> ModelRoute:
    if route.provider is Provider.COMPATIBLE and not base_url:
        raise ConfigError(
            f"model {route.model!r} is of an OpenAI-compatible server: give its base_url"
        )
    return route


def _by_name(name: str) -> Provider | None:
    if "gemini" in name:
        return Provider.GOOGLE
    if "anthropic." in name:
        return Provider.BEDROCK
    if name.startswith("claude-"):
        return Provider.ANTHROPIC
    numbered = name[:1] == "o" and name[1:2].isdigit()
    if name.startswith(("gpt-", "chatgpt-")) or numbered or "computer-use-preview" in name:
        return Provider.OPENAI
    return None
