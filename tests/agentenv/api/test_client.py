import asyncio
from typing import Any

import pytest
from aiohttp import web

from agentenv.api.client import (
    EnvironmentClient,
    EnvRegistration,
    TrainerClient,
    TrainerRegistration,
)
from agentenv.api.codec import CONTENT_TYPE
from agentenv.api.settings import ApiSettings, Scope
from agentenv.errors import ApiRefusedError, ApiUnreachableError, UnknownEnvError
from tests.agentenv.api.groups import REGISTRATION, env_registration, make_group
from tests.agentenv.api.served import served

TRAINER = TrainerRegistration(**REGISTRATION)
ENV = EnvRegistration(**env_registration())


async def test_a_group_goes_from_an_environment_to_a_trainer():
    async with (
        served() as api,
        EnvironmentClient(api.url) as env,
        TrainerClient(api.url, consumer="t") as trainer,
    ):
        assert await env.register(ENV) is None
        assert (await trainer.register(TRAINER)).took_effect
        assert await trainer.batch() is None
        registered = await env.register(ENV)
        assert registered is not None
        assert (registered.wandb_name, registered.num_steps) == ("env_0", 100)
        assert await env.wandb_info() == ("group", "project")
        assert (await env.info()).batch_size == 4
        groups = [
            make_group(seed=seed, env_id=registered.env_id, policy_version=seed)
            for seed in range(2)
        ]
        sent = await env.send(groups)
        assert (sent.groups, sent.buffered) == (2, 0)
        status = await env.status(registered.env_id)
        assert (status.self_queue_size, status.paused) == (2, False)
        assert status.server_id == registered.server_id
        batch = await trainer.batch()
        assert batch is not None
        assert (batch.batch_id, batch.step) == (1, 0)
        assert [group.policy_version for group in batch.groups] == [0, 1]
        back = batch.scored_groups()
        assert [group["inference_logprobs"] for group in back] == [
            group["inference_logprobs"] for group in groups
        ]
        await trainer.acknowledge(1)
        assert await trainer.batch() is None
        await trainer.pause()
        assert (await env.status(registered.env_id)).paused
        await trainer.resume()
        assert await env.disconnect(registered.env_id)
        assert (await trainer.status())["environments"][0]["connected"] is False
        await trainer.reset()
        with pytest.raises(UnknownEnvError):
            await env.status(registered.env_id)


async def test_what_the_server_refuses_is_told_from_what_may_be_tried_again():
    limits = ApiSettings(max_queue_bytes=1)
    async with served(limits) as api, EnvironmentClient(api.url) as env:
        with pytest.raises(ApiRefusedError, match=r"scores\[0\]") as refused:
            await env.send([make_group(scores=[float("nan"), 1.0])])
        assert refused.value.status == 422
        with pytest.raises(ApiRefusedError, match="masks"):
            await env.send([make_group(masks=[[1]])])
        await env.send([make_group()])
        with pytest.raises(ApiUnreachableError) as full:
            await env.send([make_group()])
        assert full.value.retry_after_s
        url = api.url
    async with EnvironmentClient(url) as env:
        with pytest.raises(ApiUnreachableError):
            await env.info()


async def test_an_answer_that_does_not_come_is_told_as_such():
    async def hang(_: web.Request) -> web.Response:
        await asyncio.Event().wait()
        return web.Response()

    async with other_server({"/info": hang}) as url, EnvironmentClient(url, timeout_s=0.05) as env:
        with pytest.raises(ApiUnreachableError, match="within"):
            await env.info()


async def test_tokens_are_sent():
    tokens = {Scope.TRAINER: "t", Scope.ENVIRONMENT: "e"}
    async with served(ApiSettings(tokens=tokens)) as api:
        async with EnvironmentClient(api.url, token="e") as env:
            await env.send([make_group()])
        async with EnvironmentClient(api.url, token="t") as env:
            with pytest.raises(ApiRefusedError):
                await env.send([make_group()])


class other_server:  # noqa: N801 - used as a function
    """Routes on a free loopback port."""

    def __init__(self, routes: dict[str, Any]) -> None:
        app = web.Application()
        for path, handler in routes.items():
            app.router.add_route("*", path, handler)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)

    async def __aenter__(self) -> str:
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        host, port = self._runner.addresses[0][:2]
        return f"http://{host}:{port}"

    async def __aexit__(self, *_: object) -> None:
        await self._runner.cleanup()


async def test_a_server_that_speaks_only_json_gets_json():
    received: list[Any] = []

    async def about(_: web.Request) -> web.Response:
        return web.json_response({"message": "another server"})

    async def take(request: web.Request) -> web.Response:
        received.extend(await request.json())
        return web.json_response({"status": "received", "groups_processed": 1})

    async def batch(_: web.Request) -> web.Response:
        return web.json_response({"batch": received})

    async def register(_: web.Request) -> web.Response:
        return web.json_response({"uuid": 2**100})

    routes = {"/": about, "/scored_data_list": take, "/batch": batch, "/register": register}
    async with (
        other_server(routes) as url,
        EnvironmentClient(url) as env,
        TrainerClient(url, consumer="t") as trainer,
    ):
        assert (await trainer.register(TRAINER)).uuid == 2**100
        group = make_group(2, 400)
        assert (await env.send([group])).groups == 1
        assert len(received[0]) == 14
        found = await trainer.batch()
        assert found is not None
        assert found.batch_id is None
        assert found.scored_groups()[0]["tokens"] == group["tokens"]


async def test_a_server_that_took_the_place_of_another_is_asked_again_what_it_speaks():
    about: dict[str, Any] = {"content_types": [CONTENT_TYPE]}
    kinds: list[str] = []

    async def tell(_: web.Request) -> web.Response:
        return web.json_response(about)

    async def register(_: web.Request) -> web.Response:
        return web.json_response({"status": "wait for trainer to start"})

    async def take(request: web.Request) -> web.Response:
        kinds.append(request.content_type)
        return web.json_response({"status": "received", "groups_processed": 1})

    routes = {"/": tell, "/register-env": register, "/scored_data_list": take}
    async with other_server(routes) as url, EnvironmentClient(url) as env:
        await env.send([make_group()])
        about.clear()
        await env.register(ENV)
        await env.send([make_group()])
    assert kinds == [CONTENT_TYPE, "application/json"]
