"""The generation server: a policy in this process behind the protocols that inference engines speak.

    GET  /health                    {"status": "ok", "policy_version": "12"}, without a token
    GET  /v1/models                 the one model
    POST /v1/completions            as vLLM, for prompts of token ids
    POST /inference/v1/generate     as vLLM
    POST /generate                  as SGLang where the body has `input_ids`, else as the server that Atropos shipped

Token ids in; token ids, log-probs and the weights' version out; no text. What sampling cannot honour is refused with
400, not ignored.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from pydantic import RootModel
from starlette.routing import Route, Router

from agentenv.errors import ContextLengthError, PolicyError, PolicyRequestError
from agentenv.policy import engine_side
from agentenv.policy.base import SamplingParams
from agentenv_tools.serving.answers import Answer, HttpError
from agentenv_tools.serving.call_table import CallTable
from agentenv_tools.serving.guard import Guard
from agentenv_tools.serving.reading import read_body, while_connected
from agentenv_tools.serving.settings import ServeSettings

if TYPE_CHECKING:
    from collections.abc import Callable

    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.types import ASGIApp

    from agentenv.policy.base import Completion, PolicyClient
    from agentenv.policy.engine_side import Asked, EngineProtocol

_OF_THE_REPLY = frozenset(
    {
        *("model", "prompt", "token_ids", "input_ids", "logprobs", "return_token_ids", "stream"),
        *("return_tokens_as_token_ids", "skip_special_tokens", "n"),
    }
)
"""Fields that ask for a form of reply which is given anyway, or are checked apart."""
_NAMED = frozenset({"max_tokens", "temperature", "top_p", "seed", "stop_token_ids"})


class _Request(RootModel[dict[str, Any]]):
    """Any JSON object: each protocol reads its own."""


class GenerationServer:
    """Serves a started policy, which stays the caller's to close. A caller that leaves withdraws its request."""

    def __init__(
        self,
        policy: PolicyClient,
        settings: ServeSettings | None = None,
        *,
        version: Callable[[], str | None] = lambda: None,
        model_name: str = "default",
    ) -> None:
        self.settings = settings or ServeSettings()
        self._policy = policy
        self._version = version
        self._model_name = model_name
        self._calls = CallTable()
        routes = [
            Route("/health", self._health),
            Route("/v1/models", self._models),
            Route("/generate", self._generate, methods=["POST"]),
            _route("/v1/completions", self._answer, engine_side.completions(strings_only=False)),
            _route("/inference/v1/generate", self._answer, engine_side.GENERATE),
        ]
        self._app = Guard(Router(routes, redirect_slashes=False), self.settings)

    @property
    def app(self) -> ASGIApp:
        """The application, with its guard."""
        return self._app

    async def close(self, grace_s: float | None = None) -> None:
        """See `Service.close`."""
        await self._calls.close(self.settings.stop_grace_s if grace_s is None else grace_s)

    async def _health(self, _request: Request) -> Response:
        return Answer.of({"status": "ok", "policy_version": self._version()}).response()

    async def _models(self, _request: Request) -> Response:
        models = [{"id": self._model_name, "object": "model"}]
        return Answer.of({"object": "list", "data": models}).response()

    async def _generate(self, request: Request) -> Response:
        body = (await read_body(request, _Request, self.settings)).root
        sglang = "input_ids" in body
        return await self._sampled(
            engine_side.SGLANG if sglang else engine_side.LEGACY, request, body
        )

    async def _answer(self, protocol: EngineProtocol, request: Request) -> Response:
        body = (await read_body(request, _Request, self.settings)).root
        return await self._sampled(protocol, request, body)

    async def _sampled(
        self, protocol: EngineProtocol, request: Request, body: dict[str, Any]
    ) -> Response:
        try:
            asked = protocol.read(body)
            params = sampling_params(asked)
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            message = f"the request has another shape than expected: {error!r:.300}"
            raise HttpError(400, "bad_request", message) from None

        async def work() -> Answer:
            completion = await self._complete(asked, params)
            draft = engine_side.Draft.of(completion, prompt_tokens=len(asked.prompt_ids))
            return Answer.of(protocol.write(draft))

        answer = await while_connected(request, self._calls.run(None, None, work))
        return answer.response()

    async def _complete(self, asked: Asked, params: SamplingParams) -> Completion:
        try:
            return await self._policy.generate(asked.prompt_ids, params, trajectory_id="")
        except ContextLengthError as error:
            message = f"the prompt exceeds the maximum context length: {error}"
            raise HttpError(400, "context_length", message) from None
        except PolicyRequestError as error:
            raise HttpError(400, "bad_request", str(error)) from None
        except PolicyError as error:
            raise HttpError(503, "policy_failed", str(error)) from error


def sampling_params(asked: Asked) -> SamplingParams:
    """How to sample. Fields nothing is known of are kept as `extra`, for the policy to refuse; null counts as absent.

    Raises `TypeError` or `ValueError` for values that are none, and for more than one choice or a stream.
    """
    given = {name: value for name, value in asked.sampling.items() if value is not None}
    if given.get("n", 1) != 1 or given.get("stream", False):
        raise ValueError("one choice is given for each request, and not as a stream")
    stop = given.get("stop_token_ids", [])
    if not isinstance(stop, list) or not all(type(token) is int for token in stop):
        raise TypeError("stop_token_ids must be a list of token ids")
    return SamplingParams(
        max_tokens=int(given["max_tokens"]),
        temperature=float(given.get("temperature", 1.0)),
        top_p=float(given.get("top_p", 1.0)),
        seed=int(given["seed"]) if "seed" in given else None,
        stop_token_ids=tuple(stop),
        extra={name: given[name] for name in given.keys() - _NAMED - _OF_THE_REPLY},
    )


def _route(path: str, answer: Callable[..., Any], protocol: EngineProtocol) -> Route:
    return Route(path, partial(answer, protocol), methods=["POST"])
