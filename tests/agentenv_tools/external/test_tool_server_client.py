"""The client of a tool server: what is a result, what is the server's fault, and what is sent twice."""

import asyncio
import json
import logging
from contextlib import asynccontextmanager
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import Route

from agentenv_tools import (
    ToolConfigError,
    ToolServerError,
    ToolServerProtocolError,
    ToolServerTimeoutError,
    ToolServerUnavailableError,
    tool,
)
from agentenv_tools.external import tool_server as module
from agentenv_tools.external.tool_server import ToolServerClient
from agentenv_tools.external.wire import CutOffError, NotSentError, Reply
from agentenv_tools.images import image_part
from agentenv_tools.schema import ToolResult
from agentenv_tools.serving import ServeSettings, ToolServer, serving
from tests.agentenv_tools.external.contexts import context, started
from tests.agentenv_tools.external.mcp_fixture import PNG
from tests.waiting import WITHIN_S

TOKEN = "a-token-of-tests"


@tool
async def greet(name: str, trajectory_id: str) -> str:
    """Greet somebody.

    Args:
        name: Whom.
    """
    return f"hello {name} of {trajectory_id}"


@tool
async def boom() -> str:
    """Fail."""
    raise ValueError("went wrong")


@tool
async def slow(seconds: float) -> str:
    """Take a while."""
    await asyncio.sleep(seconds)
    return "done"


@tool
async def draw() -> ToolResult:
    """Draw a dot."""
    return ToolResult(True, "a dot", images=(image_part(PNG, "image/png"),))


@asynccontextmanager
async def served(token: str | None = TOKEN, **options: Any):
    """A real server with these tools, and a started client."""
    server = ToolServer(
        [greet, boom, slow, draw], ServeSettings(token=token, stop_grace_s=0.2), **options
    )
    async with serving(server) as url, started(ToolServerClient(url, token)) as client:
        yield client


async def test_a_servers_tools_are_offered_and_called():
    async with served() as client:
        assert client.tools["greet"].schema.external
        assert list(client.tools["greet"].schema.parameters) == ["name"]
        assert (await client.call("greet", name="Ada")).output == "hello Ada of t"
        failed = await client.call("boom")
        assert (failed.success, failed.error) == (
            False,
            "Tool execution error: ValueError: went wrong",
        )
        refused = await client.call("greet", name=5)
        assert "name: Input should be a valid string" in (refused.error or "")


async def test_a_tool_that_overruns_its_deadline_is_ended_by_the_server():
    async with served() as client:
        late = await client.call("slow", 1.0, seconds=60)
        assert (late.success, late.error) == (False, "Tool timed out after 1s")


async def test_images_come_along():
    async with served() as client:
        assert [image.width for image in (await client.call("draw")).images] == [1]


async def test_64_calls_at_once_are_all_answered_though_only_16_run():
    async with served() as client:
        names = [f"n{number}" for number in range(64)]
        results = await asyncio.gather(*(client.call("greet", name=name) for name in names))
        assert [result.output for result in results] == [f"hello {name} of t" for name in names]


async def test_withdrawing_a_call_frees_its_place_on_the_server():
    async with served(max_concurrency=1) as client:
        call = asyncio.create_task(client.call("slow", 600.0, seconds=600))
        await asyncio.sleep(0.2)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        assert (await client.call("greet", name="Ada")).success


async def test_a_server_that_asks_for_a_token_says_so_at_start():
    server = ToolServer([boom], ServeSettings(token=TOKEN))
    async with serving(server) as url:
        for token, status in ((None, 401), ("wrong", 403)):
            with pytest.raises(ToolServerProtocolError, match=f"{status}.*set tool_server_token"):
                await _start_and_close(ToolServerClient(url, token))


@pytest.mark.parametrize("token", ["with-a-line-break\n", "nøt-ascii", "two\r\nlines"])
def test_a_token_that_no_header_can_carry_is_refused_without_showing_it(token: str):
    with pytest.raises(ToolConfigError, match="tool_server_token: not a header") as caught:
        ToolServerClient("http://127.0.0.1:9002", token)
    assert token.strip() not in str(caught.value)


async def test_the_longest_arguments_a_model_can_send_arrive():
    async with served() as client:
        result = await client.call("greet", name="\x01" * 262_000)
    assert result.output.startswith("hello \x01")


async def test_nobody_there_is_said_with_the_way_out():
    client = ToolServerClient("http://127.0.0.1:1", start_timeout_s=0.3)
    with pytest.raises(ToolServerUnavailableError, match="agentenv tool-server MODULE:TOOLS"):
        await _start_and_close(client)


@pytest.mark.parametrize(
    "url",
    ["", "localhost:9002", "ftp://x", "http://", "http://x?token=1", "http://x:port", "inprocess2"],
)
def test_an_address_that_is_none_is_refused(url: str):
    with pytest.raises(ToolConfigError, match="tool_server_url"):
        ToolServerClient(url)


def test_credentials_in_the_address_are_refused_without_showing_them():
    with pytest.raises(ToolConfigError, match="tool_server_token") as caught:
        ToolServerClient("http://me:hunter2@x:1")
    assert "hunter2" not in str(caught.value)


async def _start_and_close(client: ToolServerClient) -> None:
    try:
        await client.start()
    finally:
        await client.close()


# ---- servers that are none ----


class Web:
    """Something that speaks HTTP: `/tools` is in order, `/execute` does what the test says."""

    def __init__(self, execute: Any, tools: Any = None) -> None:
        shown = {"name": "act", "description": "", "parameters": {"type": "object"}}
        listed = tools or JSONResponse({"tools": [{"type": "function", "function": shown}]})
        self.settings = ServeSettings(stop_grace_s=0.1)
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []

        async def on_execute(request: Request) -> Response:
            self.bodies.append(await request.json())
            self.headers.append(dict(request.headers))
            found: Response = execute if isinstance(execute, Response) else execute(request)
            return found

        async def on_tools(_: Request) -> Response:
            return listed

        routes = [
            Route("/tools", on_tools),
            Route("/execute", on_execute, methods=["POST"]),
        ]
        self.app = Starlette(routes=routes)

    async def close(self, grace_s: float | None = None) -> None:
        pass


@asynccontextmanager
async def foreign(execute: Any, token: str | None = TOKEN):
    web = Web(execute)
    async with serving(web) as url, started(ToolServerClient(url, token)) as client:
        yield client, web


@pytest.mark.parametrize(
    ("response", "error", "message"),
    [
        (Response("oops", 500), ToolServerError, "failed with 500"),
        (JSONResponse({"detail": "no luck"}, 502), ToolServerError, "502: no luck"),
        (Response("<html>", 200), ToolServerProtocolError, "no result"),
        (JSONResponse([], 200), ToolServerProtocolError, "no result"),
        (JSONResponse({"success": "yes"}, 200), ToolServerProtocolError, "no result"),
        (JSONResponse({"success": True, "output": 5}, 200), ToolServerProtocolError, "no result"),
        (Response(b"[" * 100_000, 200), ToolServerProtocolError, "no result"),
        (Response("", 404), ToolServerProtocolError, "/execute answered 404"),
        (RedirectResponse("http://evil.example/"), ToolServerProtocolError, "sends us elsewhere"),
        (Response("", 401), ToolServerProtocolError, "refuses us with 401"),
        (
            JSONResponse({"error": {"kind": "database", "message": "it is gone"}}, 503),
            ToolServerError,
            "503: it is gone",
        ),
    ],
)
async def test_an_answer_that_is_none_makes_no_result(
    response: Response, error: type[Exception], message: str
):
    async with foreign(response) as (client, web):
        with pytest.raises(error, match=message):
            await client.call("act")
        assert len(web.bodies) == 1


@pytest.mark.parametrize("status", [400, 413, 422])
async def test_refused_arguments_are_a_result(status: int):
    async with foreign(JSONResponse({"detail": "a must be a number"}, status)) as (client, _):
        refused = await client.call("act")
        assert (refused.success, refused.error) == (False, "a must be a number")


async def test_the_token_goes_to_the_server_and_shows_nowhere_else(
    caplog: pytest.LogCaptureFixture,
):
    caplog.set_level(logging.DEBUG)

    def repeat(request: Request) -> Response:
        said = request.headers["authorization"]
        ok = len(web.bodies) == 1
        answer = {"success": True, "output": f"you sent {said}", "error": said}
        answer["metadata"] = {said: [{"sent": said}]}
        return JSONResponse(answer if ok else {"detail": said}, 200 if ok else 500)

    async with foreign(repeat) as (client, web):
        result = await client.call("act")
        with pytest.raises(ToolServerError) as caught:
            await client.call("act")
    assert [headers["authorization"] for headers in web.headers] == [f"Bearer {TOKEN}"] * 2
    assert (result.output, result.error) == ("you sent Bearer ***", "Bearer ***")
    assert result.metadata == {"Bearer ***": [{"sent": "Bearer ***"}]}
    assert TOKEN not in repr(caught.value)
    assert TOKEN not in caplog.text
    assert TOKEN not in json.dumps(web.bodies)


async def test_each_call_has_an_id_of_its_own():
    async with foreign(JSONResponse({"success": True})) as (client, web):
        await client.call("act")
        await client.call("act")
    ids = {body["tool"]["uniq_id"] for body in web.bodies}
    assert len(ids) == 2
    assert web.bodies[0]["trajectory_id"] == "t"
    assert web.bodies[0]["timeout_s"] == WITHIN_S


async def test_an_endless_answer_is_cut_off_and_is_the_calls_doing(
    monkeypatch: pytest.MonkeyPatch,
):
    from agentenv_tools.external import wire

    monkeypatch.setattr(wire, "MAX_REPLY_BYTES", 10_000)
    async with foreign(Response(b"x" * 100_000)) as (client, _):
        result = await client.call("act")
        assert not result.success
        assert "ask for less" in (result.error or "")


@pytest.mark.parametrize(
    "tools",
    [
        Response("<html>"),
        JSONResponse({"tools": "many"}),
        JSONResponse({"tools": [{"name": 5}]}),
        JSONResponse([]),
    ],
)
async def test_a_list_of_tools_that_is_none_is_refused_at_start(tools: Response):
    async with serving(Web(None, tools)) as url:
        with pytest.raises(ToolServerProtocolError, match="something else than a list of tools"):
            await _start_and_close(ToolServerClient(url))


@pytest.mark.parametrize(
    "parameters",
    [
        {"properties": [1]},
        {"properties": {}, "required": ["a"]},
        {"properties": {"a": {"$ref": "#/$defs/none"}}},
    ],
)
async def test_a_schema_that_is_none_names_its_tool(parameters: dict[str, Any]):
    listed = JSONResponse({"tools": [{"name": "act", "parameters": parameters}]})
    async with serving(Web(None, listed)) as url:
        with pytest.raises(ToolConfigError, match="tool 'act': the schema"):
            await _start_and_close(ToolServerClient(url))


# ---- sending again ----


class ScriptedWire:
    """A wire whose replies and failures are given in advance."""

    def __init__(self, *script: Reply | Exception, deduplicates: bool = True) -> None:
        listed = {"tools": [{"name": "act"}], "deduplicates": deduplicates}
        self.script = [Reply(200, json.dumps(listed).encode()), *script]
        self.bodies: list[bytes | None] = []

    async def request(self, method, path, body, headers, timeout_s) -> Reply:
        self.bodies.append(body)
        step = self.script.pop(0)
        if isinstance(step, Exception):
            raise step
        return step

    async def close(self) -> None:
        pass


OK = Reply(200, b'{"success": true, "output": "fine"}')
BUSY = Reply(503, b'{"error": {"kind": "busy", "message": "later"}}')
STOPPING = Reply(503, b'{"error": {"kind": "stopping", "message": "bye"}}')


@pytest.mark.parametrize(
    "failures",
    [
        [NotSentError("refused")] * 4,
        [BUSY, STOPPING, NotSentError("refused"), Reply(429, b"")],
        [CutOffError("reset")],
    ],
)
async def test_a_call_that_cannot_have_run_twice_is_sent_again(
    failures: list[Any], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(module, "_FIRST_PAUSE_S", 0.001)
    wire = ScriptedWire(*failures, OK)
    async with started(ToolServerClient("http://x", wire=wire)) as client:
        assert (await client.call("act")).output == "fine"
        assert len(set(wire.bodies[1:])) == 1  # one id: the server knows it for a repetition
        assert len(wire.bodies) == 2 + len(failures)


async def test_a_call_that_may_have_run_is_not_sent_again_to_a_server_that_would_run_it_twice():
    wire = ScriptedWire(CutOffError("reset"), OK, deduplicates=False)
    async with started(ToolServerClient("http://x", wire=wire)) as client:
        with pytest.raises(ToolServerUnavailableError, match="what became of the call is unknown"):
            await client.call("act")
        assert len(wire.bodies) == 2


@pytest.mark.parametrize(
    ("step", "error"),
    [
        (NotSentError("refused"), ToolServerUnavailableError),
        (BUSY, ToolServerUnavailableError),
        (TimeoutError(), ToolServerTimeoutError),
    ],
)
async def test_what_goes_on_failing_is_given_up(
    step: Any, error: type[Exception], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(module, "_FIRST_PAUSE_S", 0.001)
    wire = ScriptedWire(*[step] * 10)
    async with started(ToolServerClient("http://x", wire=wire)) as client:
        with pytest.raises(error):
            await client.call("act")
    assert len(wire.bodies) <= 6


async def test_a_server_that_comes_back_in_time_is_found(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "_FIRST_PAUSE_S", 0.2)
    settings = ServeSettings(stop_grace_s=0.1)
    async with serving(ToolServer([greet], settings)) as url:
        client = ToolServerClient(url)
        tools = await client.start()
    again = ServeSettings(port=int(url.rpartition(":")[2]), stop_grace_s=0.1)
    try:
        call = asyncio.create_task(tools[0].run({"name": "Ada"}, context()))
        await asyncio.sleep(0.05)
        async with serving(ToolServer([greet], again)):
            assert (await call).output == "hello Ada of t"
    finally:
        await client.close()
