"""A chat model as a policy: one reply at a time, tried again where that may help, within a deadline."""

from __future__ import annotations

import asyncio
import logging
import random
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NoReturn

from pydantic_ai import exceptions as theirs
from pydantic_ai.direct import model_request
from pydantic_ai.models import ModelRequestParameters
from pydantic_ai.settings import ModelSettings

from agentenv.errors import ConfigError, NotStartedError, PolicyTimeoutError, TokensUnavailableError
from agentenv.models import messages as convert
from agentenv.models.errors import Failure, read_failure
from agentenv.models.prices import cost_of
from agentenv.models.routing import Provider
from agentenv.policy.base import ChatCompletion
from agentenv.policy.faults import RetryPolicy
from agentenv.policy.limiter import Limiter

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from pydantic_ai.messages import ModelResponse
    from pydantic_ai.models import Model

    from agentenv.models.providers import OpenProvider
    from agentenv.models.routing import ModelRoute
    from agentenv.models.settings import ChatModelSettings
    from agentenv.policy.base import SamplingParams
    from agentenv.tokens.base import Message
    from agentenv_tools.schema import ToolSchema

logger = logging.getLogger(__name__)

_FINISH = {"content_filter": "refused", "length": "length"}
"""Finish reasons but `stop`."""


class ChatModel:
    """A model of a provider that gets tools in text. Implements `PolicyClient`."""

    returns_tokens = False

    def __init__(
        self, route: ModelRoute, settings: ChatModelSettings, provider: OpenProvider
    ) -> None:
        self.route = route
        self.settings = settings
        self.takes_images = settings.takes_images
        self.requests = 0
        """Attempts that were made."""
        self._provider = provider
        self._limiter = Limiter(settings.max_concurrency)
        self._retry = RetryPolicy(
            max_attempts=settings.max_attempts,
            base_delay=settings.retry_base_delay_s,
            max_delay=settings.retry_max_delay_s,
            max_retry_after=settings.max_retry_after_s,
        )
        self._jitter = random.Random()  # noqa: S311 - spreads retries, no secret
        self._model: Model[Any] | None = None
        self._close: Callable[[], Awaitable[None]] | None = None

    async def start(self) -> None:
        """Make the provider's client. Nothing is asked yet: a question costs money. Idempotent.

        Raises `ConfigError` when the provider's library refuses the settings.
        """
        if self._model is not None:
            return
        try:
            self._model, self._close = await asyncio.to_thread(self._provider.build)
        except theirs.UserError as error:
            raise ConfigError(f"{self._where}: {error}") from error

    async def close(self) -> None:
        """Close its connections. Idempotent."""
        close, self._close, self._model = self._close, None, None
        if close is not None:
            await close()

    async def generate(
        self, prompt_ids: Sequence[int], params: SamplingParams, *, trajectory_id: str
    ) -> NoReturn:
        """Raises `TokensUnavailableError`."""
        raise TokensUnavailableError(
            f"{self._where} returns text only: it can be evaluated, and not be trained on"
        )

    async def chat(
        self, messages: Sequence[dict[str, Any]], params: SamplingParams, *, trajectory_id: str
    ) -> ChatCompletion:
        """One reply to messages in the OpenAI form, as text."""
        return await self._ask(convert.chat_to_messages(messages), (), params)

    def raise_concurrency(self, requests: int) -> None:
        """Allow at least `requests` at once."""
        self._limiter.raise_to(requests)

    async def _ask(
        self, messages: Sequence[Message], tools: Sequence[ToolSchema], params: SamplingParams
    ) -> ChatCompletion:
        """One reply, after as many attempts as it takes and may."""
        if self._model is None:
            raise NotStartedError(f"{self._where} is not started: await start() first")
        if not self.takes_images:
            messages = [_without_images(message) for message in messages]
        asked = convert.to_request(messages)
        failed: Failure | None = None
        asked_for_more = False
        try:
            async with asyncio.timeout(self.settings.timeout_s) as deadline:
                for attempt in range(1, self.settings.max_attempts + 1):
                    reply = await self._attempt(asked, tools, params)
                    if isinstance(reply, ChatCompletion):
                        # Some say nothing when they are done; others by accident, so they are asked once more.
                        if (
                            asked_for_more
                            or attempt == self.settings.max_attempts
                            or not _is_empty(reply)
                        ):
                            return reply
                        asked_for_more = True
                        continue
                    failed = reply
                    if not self._worth_another(failed, attempt, deadline):
                        break
                    await asyncio.sleep(
                        self._retry.delay(attempt, failed.retry_after_s, self._jitter)
                    )
        except TimeoutError as error:
            if not deadline.expired():
                raise
            last = f"; the last attempt: {failed.error}" if failed else ""
            raise PolicyTimeoutError(
                f"{self._where} gave no reply within timeout_s={self.settings.timeout_s:g}{last}"
            ) from error
        assert failed is not None, "max_attempts is at least 1"
        raise failed.error

    async def _attempt(
        self,
        asked: list[Any],
        tools: Sequence[ToolSchema],
        params: SamplingParams,
    ) -> ChatCompletion | Failure:
        model = self._model
        if model is None:
            raise NotStartedError(f"{self._where} was closed")
        async with self._limiter.permit():
            self.requests += 1
            try:
                async with asyncio.timeout(self.settings.attempt_timeout_s) as deadline:
                    response = await model_request(
                        model,
                        asked,
                        model_settings=self._settings(params),
                        model_request_parameters=ModelRequestParameters(
                            function_tools=convert.to_tools(tools)
                        ),
                    )
                return self._completion(response)
            except theirs.ContentFilterError as error:
                return ChatCompletion(str(error), "refused")
            except TimeoutError as error:
                reason = f"attempt_timeout_s={self.settings.attempt_timeout_s:g}"
                shown = TimeoutError(reason) if deadline.expired() else error
                return read_failure(self._where, shown)
            except Exception as error:  # noqa: BLE001 - the provider's library may raise what its HTTP client does
                return read_failure(self._where, error)

    def _worth_another(self, failed: Failure, attempt: int, deadline: asyncio.Timeout) -> bool:
        """Whether to try again: never after a wait that is longer than may be or than there is time."""
        if not failed.again or attempt >= self.settings.max_attempts:
            return False
        wait_s = failed.retry_after_s or 0.0
        ends = deadline.when()
        assert ends is not None
        left_s = ends - asyncio.get_running_loop().time()
        if wait_s > min(self.settings.max_retry_after_s, left_s):
            return False
        logger.info(
            "%s: attempt %d failed, it is tried again: %s", self._where, attempt, failed.error
        )
        return True

    def _settings(self, params: SamplingParams) -> ModelSettings:
        settings = ModelSettings(max_tokens=params.max_tokens, temperature=params.temperature)
        if self.route.provider is not Provider.BEDROCK:  # whose client was made without retries
            settings["max_retries"] = 0
        if params.top_p != 1.0:
            settings["top_p"] = params.top_p
        if params.seed is not None:
            settings["seed"] = params.seed
        if self.settings.reasoning_effort is not None:
            settings["thinking"] = self.settings.reasoning_effort  # type: ignore[typeddict-item]
        if params.extra:
            settings["extra_body"] = params.extra
        return settings

    def _completion(self, response: ModelResponse) -> ChatCompletion:
        usage = response.usage
        calls = convert.calls_of(response)
        text = convert.text_of(response)
        finish = _FINISH.get(response.finish_reason or "", "stop")
        if response.finish_reason == "error":
            raise theirs.UnexpectedModelBehavior("the model broke off with an error")
        if finish == "refused" and not text:
            text = str((response.provider_details or {}).get("refusal") or "")
        return ChatCompletion(
            text,
            finish,
            prompt_tokens=usage.input_tokens,
            completion_tokens=usage.output_tokens,
            cached_tokens=usage.cache_read_tokens,
            cost_usd=cost_of(response, known=self.route.provider is not Provider.COMPATIBLE),
            reasoning=convert.reasoning_of(response),
            tool_calls=calls,
            native=response,
        )

    @property
    def _where(self) -> str:
        return f"{self.route.model} ({self.route.provider})"


class ToolChatModel(ChatModel):
    """A model of a provider that is told of tools and makes calls. Implements `ToolCallingPolicy` besides."""

    async def chat_with_tools(
        self,
        messages: Sequence[Message],
        tools: Sequence[ToolSchema],
        params: SamplingParams,
        *,
        trajectory_id: str,
    ) -> ChatCompletion:
        """One reply to a conversation whose messages hold calls and results as they are."""
        return await self._ask(messages, tools, params)


def _is_empty(reply: ChatCompletion) -> bool:
    return not reply.text and not reply.tool_calls and reply.finish_reason == "stop"


def _without_images(message: Message) -> Message:
    return replace(message, images=()) if message.images else message
