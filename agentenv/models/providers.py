"""Each provider's client, made so that it neither retries nor waits on its own."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import httpx2

from agentenv.models.keys import aws_keys, aws_region, find_key
from agentenv.models.routing import ModelRoute, Provider

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from pydantic_ai.models import Model

    from agentenv.models.settings import ChatModelSettings

_CONNECT_S = 30.0
_BASE_URL_NAMES = {
    Provider.OPENAI: "OPENAI_BASE_URL",
    Provider.ANTHROPIC: "ANTHROPIC_BASE_URL",
    Provider.GOOGLE: "GOOGLE_GEMINI_BASE_URL",
    Provider.BEDROCK: "AWS_ENDPOINT_URL_BEDROCK_RUNTIME",
}


@dataclass(frozen=True, slots=True)
class OpenProvider:
    """A provider's model, to be built and closed on an event loop."""

    build: Callable[[], tuple[Model[Any], Callable[[], Awaitable[None]]]]
    """Imports the provider's library, which takes a second: call it in a thread. What it returns beside the model
    closes its connections."""


def open_provider(
    route: ModelRoute, settings: ChatModelSettings, environ: Mapping[str, str]
) -> OpenProvider:
    """The provider of a route, with its key. Raises `ConfigError` when that is missing; connects to nothing."""
    key = settings.api_key or find_key(route.provider, environ)
    secret = key.get_secret_value() if key is not None else None
    url = settings.base_url or environ.get(_BASE_URL_NAMES.get(route.provider, ""))
    if route.provider is Provider.BEDROCK:
        region = aws_region(environ, settings.region)
        keys = {} if secret else aws_keys(environ)
        return OpenProvider(lambda: _bedrock(route.model, url, secret, keys, region, settings))
    builders = {
        Provider.OPENAI: _openai,
        Provider.COMPATIBLE: _openai,
        Provider.ANTHROPIC: _anthropic,
        Provider.GOOGLE: _google,
    }
    build = builders[route.provider]

    def built() -> tuple[Model[Any], Callable[[], Awaitable[None]]]:
        client = _http_client(settings)
        return build(route.model, url, secret or "none", client), client.aclose

    return OpenProvider(built)


def _http_client(settings: ChatModelSettings) -> httpx2.AsyncClient:
    timeout = httpx2.Timeout(
        settings.attempt_timeout_s, connect=min(_CONNECT_S, settings.attempt_timeout_s)
    )
    limits = httpx2.Limits(max_connections=None, max_keepalive_connections=settings.max_concurrency)
    return httpx2.AsyncClient(timeout=timeout, limits=limits)


def _openai(model: str, url: str | None, key: str, client: httpx2.AsyncClient) -> Model[Any]:
    from pydantic_ai.models.openai import OpenAIChatModel  # noqa: PLC0415 - takes a second
    from pydantic_ai.providers.openai import OpenAIProvider  # noqa: PLC0415

    return OpenAIChatModel(
        model, provider=OpenAIProvider(base_url=url, api_key=key, http_client=client)
    )


def _anthropic(model: str, url: str | None, key: str, client: httpx2.AsyncClient) -> Model[Any]:
    from pydantic_ai.models.anthropic import AnthropicModel  # noqa: PLC0415 - takes a second
    from pydantic_ai.providers.anthropic import AnthropicProvider  # noqa: PLC0415

    return AnthropicModel(
        model, provider=AnthropicProvider(base_url=url, api_key=key, http_client=client)
    )


def _google(model: str, url: str | None, key: str, client: httpx2.AsyncClient) -> Model[Any]:
    from pydantic_ai.models.google import GoogleModel  # noqa: PLC0415 - takes a second
    from pydantic_ai.providers.google import GoogleProvider  # noqa: PLC0415

    return GoogleModel(
        model, provider=GoogleProvider(base_url=url, api_key=key, http_client=client)
    )


def _bedrock(
    model: str,
    url: str | None,
    key: str | None,
    keys: Mapping[str, str],
    region: str,
    settings: ChatModelSettings,
) -> tuple[Model[Any], Callable[[], Awaitable[None]]]:
    import boto3  # noqa: PLC0415 - takes a second
    from botocore.config import Config  # noqa: PLC0415
    from botocore.session import get_session  # noqa: PLC0415
    from botocore.tokens import FrozenAuthToken  # noqa: PLC0415
    from pydantic_ai.models.bedrock import BedrockConverseModel  # noqa: PLC0415
    from pydantic_ai.providers.bedrock import BedrockProvider  # noqa: PLC0415

    config = Config(
        region_name=region,
        connect_timeout=min(_CONNECT_S, settings.attempt_timeout_s),
        read_timeout=settings.attempt_timeout_s,
        retries={"total_max_attempts": 1},
        max_pool_connections=settings.max_concurrency,
        **({"signature_version": "bearer"} if key else {}),
    )
    core = get_session()
    if key:
        core.register_component("token_provider", _Token(FrozenAuthToken(key)))
    session = boto3.Session(botocore_session=core, region_name=region, **keys)
    client = session.client("bedrock-runtime", endpoint_url=url, config=config)

    async def close() -> None:
        await asyncio.to_thread(client.close)

    return BedrockConverseModel(model, provider=BedrockProvider(bedrock_client=client)), close


class _Token:
    """A bearer token for botocore."""

    def __init__(self, token: Any) -> None:
        self._token = token

    def load_token(self, **_: Any) -> Any:
        return self._token
