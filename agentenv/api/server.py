"""The trajectory server over HTTP: the Atropos protocol, and what ours adds to it.

    GET  /                what this is                      GET  /health            {"status": "ok"}, without a token
    POST /register        a trainer registers               POST /register-env      an environment registers
    POST /disconnect-env  an environment says goodbye       GET  /wandb_info /info /status
    GET  /status-env      JSON body {"env_id"}              POST /scored_data /scored_data_list
    GET  /batch           ?consumer=NAME leases it          POST /batch/acknowledge {"batch_id", "consumer"}
    GET  /latest_example                                    GET  /reset_data
    POST /pause /resume   `paused` in /status-env

aiohttp, not Starlette as the tools' services: uvicorn's h11 takes 11 ms to receive 4 MB, aiohttp 1.5.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from aiohttp import web
from pydantic import BaseModel, ConfigDict

from agentenv.api.checks import MAX_NAME_CHARS, is_name
from agentenv.api.codec import CONTENT_TYPE
from agentenv.api.http import (
    WORTH_A_THREAD,
    accepts_gzip,
    read_body,
    read_model,
    refusal,
    reply,
    send_json,
    stream,
)
from agentenv.api.reading import InvalidBodyError, InvalidGzipError, read_at_once, read_groups
from agentenv.api.refusals import RefusalError
from agentenv.api.registry import EnvRegistration, TrainerRegistration
from agentenv.api.service import TrajectoryService
from agentenv.api.settings import ApiSettings, Scope
from agentenv.api.writing import group_json
from agentenv.errors import TrajectoryStoreError
from agentenv.rollout import finish
from agentenv_tools.serving.answers import HttpError
from agentenv_tools.serving.guard import bearer_token, check_caller, same_token
from agentenv_tools.serving.listening import listen, url_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from agentenv.api.codec import PackedGroup
    from agentenv.api.leases import Batch
    from agentenv_tools.serving import ServeSettings

    Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

logger = logging.getLogger(__name__)

DEFAULT_PORT = 8000
SERVER_NAME = "agentenv"
RETRY_AFTER_S = 5
"""What a sender is told when the queue is full."""
_LEFT = 499
"""Nobody reads it."""
_READ_BYTES = 1 << 20
"""Of a body, that are taken before it is asked for."""
_SHUTDOWN_S = 1.0
"""How long aiohttp waits for connections, once no call is under way any more."""
_OPEN_PATHS = frozenset({"/health"})
_JSON = "application/json"
_NO_EXAMPLE = (
    "tokens", "masks", "scores", "advantages", "ref_logprobs", "generation_params", "inference_logprobs", "messages",
    "images",
)  # fmt: skip


class EnvIdBody(BaseModel):
    """Which environment."""

    env_id: int


class AcknowledgeBody(BaseModel):
    """Which batch, and whose it is."""

    model_config = ConfigDict(extra="ignore")

    batch_id: int
    consumer: str


class TrajectoryServer:
    """Serves a `TrajectoryService`. Use `serving_api`, or `run_until_stopped` with it."""

    def __init__(self, settings: ServeSettings, api: ApiSettings | None = None) -> None:
        """Raises `ConfigError` for an address that others can reach, without tokens."""
        self.settings = settings
        self.service = TrajectoryService(api or ApiSettings())
        self.service.settings.check_address(settings.host)
        self._calls: set[asyncio.Task[Any]] = set()
        self._stopping = False

    def application(self) -> web.Application:
        """A new aiohttp application with all routes."""
        read, env, trainer = Scope.READER, Scope.ENVIRONMENT, Scope.TRAINER
        routes: list[tuple[str, str, Handler, Scope]] = [
            ("GET", "/", self._about, read),
            ("GET", "/health", self._health, read),
            ("GET", "/wandb_info", self._wandb_info, read),
            ("GET", "/info", self._info, read),
            ("GET", "/status", self._status, read),
            ("GET", "/latest_example", self._latest_example, read),
            ("POST", "/register-env", self._register_env, env),
            ("POST", "/disconnect-env", self._disconnect_env, env),
            ("GET", "/status-env", self._status_env, env),
            ("POST", "/scored_data", self._scored_data, env),
            ("POST", "/scored_data_list", self._scored_data_list, env),
            ("POST", "/register", self._register, trainer),
            ("GET", "/batch", self._batch, trainer),
            ("POST", "/batch/acknowledge", self._acknowledge, trainer),
            ("GET", "/reset_data", self._reset_data, trainer),
            ("POST", "/pause", self._pause, trainer),
            ("POST", "/resume", self._resume, trainer),
        ]
        app = web.Application(
            middlewares=[self._exchange], client_max_size=self.service.settings.max_body_bytes
        )
        for method, path, handler, scope in routes:
            guarded = self._with_scope(handler, scope)
            if method == "GET":
                app.router.add_get(path, guarded, allow_head=False)
            else:
                app.router.add_post(path, guarded)
        return app

    async def close(self, grace_s: float | None = None) -> None:
        """Take no more calls, let those under way end for `grace_s` seconds, then cancel them. Idempotent."""
        self._stopping = True
        grace = self.settings.stop_grace_s if grace_s is None else grace_s
        calls = self._calls - {asyncio.current_task()}
        if calls:
            _, late = await asyncio.wait(calls, timeout=grace)
            for call in late:
                call.cancel()

    # ---- before and after every route ----

    @web.middleware
    async def _exchange(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        call = asyncio.current_task()
        assert call is not None
        self._calls.add(call)
        try:
            if self._stopping:
                return refusal(503, "the server is stopping", retry_after_s=RETRY_AFTER_S)
            check_caller(
                self.settings, request.headers.get("Host", ""), request.headers.get("Origin")
            )
            return await handler(request)
        except ConnectionError as error:
            logger.info("%s %s: the caller left: %s", request.method, request.path, error)
            return web.Response(status=_LEFT)
        except Exception as error:  # noqa: BLE001 - whatever it is, the caller gets an answer
            return _failure(request, error)
        finally:
            self._calls.discard(call)

    def _with_scope(self, handler: Handler, scope: Scope) -> Handler:
        tokens = self.service.settings.tokens
        if not tokens:
            return handler
        allowed = set(tokens) if scope is Scope.READER else {scope}

        async def guarded(request: web.Request) -> web.StreamResponse:
            if request.path not in _OPEN_PATHS:
                given = bearer_token(request.headers.getall("Authorization", []))
                found = [known for known, token in tokens.items() if same_token(given, token)]
                if not allowed.intersection(found):
                    raise HttpError(
                        403, "wrong_token", f"{request.path} needs the {scope.value}'s token"
                    )
            return await handler(request)

        return guarded

    # ---- what anyone may read ----

    async def _about(self, _request: web.Request) -> web.Response:
        about = {
            "message": "AgentEnv trajectory server",
            "server": SERVER_NAME,
            "server_id": self.service.state.server_id,
            "content_types": [_JSON, CONTENT_TYPE],
        }
        return reply(about)

    async def _health(self, _request: web.Request) -> web.Response:
        return reply({"status": "ok"})

    async def _wandb_info(self, _request: web.Request) -> web.Response:
        registry = self.service.state.registry
        return reply({"group": registry.group, "project": registry.project})

    async def _info(self, _request: web.Request) -> web.Response:
        registry = self.service.state.registry
        return reply({"batch_size": registry.batch_size, "max_token_len": registry.max_token_len})

    async def _status(self, request: web.Request) -> web.StreamResponse:
        return await send_json(request, reply(self.service.status()).body, self.service)  # type: ignore[arg-type]

    async def _latest_example(self, request: web.Request) -> web.StreamResponse:
        latest = self.service.state.latest
        if latest is None:
            return reply({key: [] for key in _NO_EXAMPLE})
        body = await self.service.in_thread(lambda: group_json(latest))
        return await send_json(request, body, self.service)

    # ---- environments ----

    async def _register_env(self, request: web.Request) -> web.Response:
        env = await read_model(request, EnvRegistration, self.service)
        registry = self.service.state.registry
        if not registry.started:
            return reply({"status": "wait for trainer to start"})
        entry = await self.service.register_env(env)
        answer = {
            "status": "success",
            "env_id": entry.env_id,
            "wandb_name": entry.name,
            "checkpoint_dir": registry.checkpoint_dir,
            "starting_step": registry.step,
            "checkpoint_interval": registry.checkpoint_interval,
            "num_steps": registry.num_steps,
            "server_id": self.service.state.server_id,
        }
        return reply(answer)

    async def _disconnect_env(self, request: web.Request) -> web.Response:
        body = await read_model(request, EnvIdBody, self.service)
        if await self.service.disconnect(body.env_id):
            return reply({"status": "success"})
        return reply({"status": "failure", "error": f"no environment {body.env_id} is registered"})

    async def _status_env(self, request: web.Request) -> web.Response:
        body = await read_model(request, EnvIdBody, self.service)
        return reply(await self.service.env_status(body.env_id))

    async def _scored_data(self, request: web.Request) -> web.Response:
        groups = await self._groups(request, many=False)
        answers = await self.service.put_groups(groups)
        return reply(answers[0])

    async def _scored_data_list(self, request: web.Request) -> web.Response:
        groups = await self._groups(request, many=True)
        answers = await self.service.put_groups(groups)
        left = [answer["buffer_size"] for answer in answers if answer["status"] == "buffered"]
        answer: dict[str, Any] = {"status": "received", "groups_processed": len(groups)}
        if left:
            answer |= {"buffered": len(left), "last_buffer_size": left[-1]}
        return reply(answer)

    async def _groups(self, request: web.Request, *, many: bool) -> list[PackedGroup]:
        self.service.check_room()
        data = await read_body(request, (_JSON, CONTENT_TYPE), self.service)
        limits, binary = self.service.limits, request.content_type == CONTENT_TYPE
        groups = read_at_once(data, limits, many=many, binary=binary)
        if groups is not None:
            return groups
        try:
            return await self.service.in_thread(
                partial(read_groups, data, limits, many=many, binary=binary)
            )
        except InvalidBodyError:
            self.service.count_refused()
            raise

    # ---- the trainer ----

    async def _register(self, request: web.Request) -> web.Response:
        trainer = await read_model(request, TrainerRegistration, self.service)
        took_effect = await self.service.register(trainer)
        registry = self.service.state.registry
        answer = {
            "uuid": uuid4().int,
            "took_effect": took_effect,
            "current_step": registry.step,
            "batch_size": registry.batch_size,
        }
        return reply(answer)

    async def _batch(self, request: web.Request) -> web.StreamResponse:
        if not self.service.state.registry.known:
            message = "Trainer not registered. Call /register first."
            return reply({"status": "error", "message": message, "batch": []})
        consumer = _consumer(request)
        batch = await self.service.take_batch(consumer)
        if batch is None:
            return reply({"batch": None})
        if consumer is not None:
            return await self._send_batch(request, batch)
        return await self._send_for_good(request, batch)

    async def _send_for_good(self, request: web.Request, batch: Batch) -> web.StreamResponse:
        """To a client that does not acknowledge: once it has all of it, the batch is gone."""
        whole = False
        try:
            response = await self._send_batch(request, batch)
            whole = True
        finally:
            self.service.delivered(batch, whole=whole)
        return response

    async def _send_batch(self, request: web.Request, batch: Batch) -> web.StreamResponse:
        binary = CONTENT_TYPE in request.headers.get("Accept", "")
        pieces = self.service.batch_pieces(batch, binary=binary)
        if not binary and sum(entry.size for entry in batch.entries) < WORTH_A_THREAD:
            body = b"".join([piece async for piece in pieces])
            response = await send_json(request, body, self.service)
            await response.prepare(request)
            await response.write_eof()
            return response
        packed = accepts_gzip(request) and not binary
        kind = CONTENT_TYPE if binary else _JSON
        return await stream(request, pieces, kind, self.service.in_thread if packed else None)

    async def _acknowledge(self, request: web.Request) -> web.Response:
        body = await read_model(request, AcknowledgeBody, self.service)
        await self.service.acknowledge(body.batch_id, body.consumer)
        return reply({"status": "success", "batch_id": body.batch_id})

    async def _reset_data(self, _request: web.Request) -> web.Response:
        await self.service.reset()
        return web.Response(text="Reset successful")

    async def _pause(self, _request: web.Request) -> web.Response:
        await self.service.pause()
        return reply(
            {"status": "success", "paused": True, "lease_s": self.service.settings.lease_s}
        )

    async def _resume(self, _request: web.Request) -> web.Response:
        await self.service.resume()
        return reply({"status": "success", "paused": False})


def _failure(request: web.Request, error: Exception) -> web.Response:
    """What the caller is told."""
    if isinstance(error, InvalidBodyError):
        return refusal(422, error.detail)
    if isinstance(error, InvalidGzipError):
        return web.Response(text=str(error), status=400)
    if isinstance(error, web.HTTPException):
        return refusal(error.status, error.reason)
    if isinstance(error, HttpError):
        return reply({"detail": str(error), "kind": error.kind}, error.status, error.headers)
    if isinstance(error, RefusalError):
        wait = {"retry_after_s": RETRY_AFTER_S} if error.later else {}
        return refusal(error.status, str(error), kind=error.kind, **wait)
    if isinstance(error, TrajectoryStoreError):
        return refusal(503, str(error), kind="store", retry_after_s=RETRY_AFTER_S)
    logger.error("%s %s failed", request.method, request.path, exc_info=error)
    return refusal(500, "the server failed; its log has more", kind="internal")


def _consumer(request: web.Request) -> str | None:
    consumer = request.query.get("consumer")
    if consumer is not None and not is_name(consumer):
        rule = f"must be 1 to {MAX_NAME_CHARS} printable characters"
        raise InvalidBodyError.of("value_error", ("consumer",), rule)
    return consumer


@asynccontextmanager
async def serving_api(server: TrajectoryServer) -> AsyncIterator[str]:
    """Serve within the block; yields the URL. At its end calls get `stop_grace_s` to finish.

    Raises `ConfigError` when the database cannot be had, `ToolConfigError` when the address cannot.
    """
    listener = listen(server.settings)
    try:
        await server.service.start()
    except BaseException:
        listener.close()
        raise
    # Bodies arrive packed: unpacking happens in threads, and is bounded.
    runner = web.AppRunner(
        server.application(),
        access_log=None,
        auto_decompress=False,
        read_bufsize=_READ_BYTES,
        shutdown_timeout=_SHUTDOWN_S,
    )
    try:
        await runner.setup()
        await web.SockSite(runner, listener).start()
        yield url_of(listener)
    finally:
        await finish(_stop_in_order(server, runner))
        listener.close()


async def _stop_in_order(server: TrajectoryServer, runner: web.AppRunner) -> None:
    try:
        await server.close()
        await runner.cleanup()
    finally:
        await server.service.close()
