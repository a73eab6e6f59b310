"""MCP servers over streamable HTTP: the library's own server, and servers that are none."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from agentenv_tools import ToolConfigError, ToolServerError, ToolServerUnavailableError
from agentenv_tools.external import McpServerConfig, mcp_http, mcp_server
from agentenv_tools.external.mcp_server import McpServer
from agentenv_tools.serving import ServeSettings, serving
from tests.agentenv_tools.external.contexts import started
from tests.waiting import WITHIN_S

HERE = Path(__file__).parent
pytestmark = pytest.mark.slow


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@asynccontextmanager
async def http_fixture(port: int | None = None):
    """The fixture's server as a process; yields its address and the process."""
    port = port or free_port()
    command = [sys.executable, str(HERE / "mcp_fixture.py"), str(port)]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        try:
            async with asyncio.timeout(WITHIN_S):
                while True:
                    try:
                        _, writer = await asyncio.open_connection("127.0.0.1", port)
                    except OSError:
                        await asyncio.sleep(0.05)
                    else:
                        writer.close()
                        break
            yield f"http://127.0.0.1:{port}/mcp", process
        finally:
            process.kill()


def client(url: str, **settings: Any) -> McpServer:
    return McpServer("web", McpServerConfig(url=url, **settings))


async def test_tools_are_listed_called_and_timed_out():
    async with http_fixture() as (url, _), started(client(url)) as mcp:
        assert (await mcp.call("add", a=1, b=2)).output == "3"
        late = await mcp.call("slow", 0.3, seconds=60)
        assert (late.success, late.error) == (False, "Tool timed out after 0.3s")
        results = await asyncio.gather(*(mcp.call("add", a=n, b=1) for n in range(64)))
        assert [result.output for result in results] == [str(n + 1) for n in range(64)]


async def test_each_trajectory_can_have_a_session_of_its_own():
    async with http_fixture() as (url, _), started(client(url, scope="trajectory")) as mcp:
        for name in ("one", "two"):
            assert (await mcp.call("add", a=1, b=2, _trajectory=name)).output == "3"
            await mcp.source.release(name)


async def test_a_server_that_dies_in_mid_call_is_no_result_and_a_new_one_is_found(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(mcp_server, "_COOL_DOWN_S", 0.1)
    async with http_fixture() as (url, process):
        port = int(url.split(":")[2].split("/")[0])
        async with started(client(url)) as mcp:
            call = asyncio.create_task(mcp.call("slow", 2.0, seconds=60))
            await asyncio.sleep(0.3)
            process.send_signal(signal.SIGKILL)
            with pytest.raises(ToolServerError):
                await call
            with pytest.raises(ToolServerError):
                await mcp.call("add", a=1, b=1)
            process.wait()
            async with http_fixture(port), asyncio.timeout(WITHIN_S):
                while True:
                    try:
                        assert (await mcp.call("add", a=1, b=1)).output == "2"
                        break
                    except ToolServerError:
                        await asyncio.sleep(0.1)


async def test_nobody_there_is_said():
    with pytest.raises(ToolServerUnavailableError, match="did not start: ConnectError"):
        async with started(client(f"http://127.0.0.1:{free_port()}/mcp")):
            pass


async def test_an_address_without_an_mcp_server_is_refused_as_soon_as_it_answers():
    async def page(request: Request) -> Response:
        return Response("<html>", media_type="text/html")

    async with web(page) as url, asyncio.timeout(WITHIN_S):
        with pytest.raises(ToolServerUnavailableError, match="did not start: it sent something"):
            async with started(client(url, start_timeout_s=600)):
                pass


@pytest.mark.parametrize("secret", ["sesame-sesame\n", "sesame\r\nX: y", "sésame"])
def test_a_header_that_cannot_be_sent_is_refused_without_its_value(
    secret: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("TEST_MCP_TOKEN", secret)
    with pytest.raises(ToolConfigError, match="Authorization: not a header") as caught:
        client("http://127.0.0.1/mcp", headers={"Authorization": "Bearer ${TEST_MCP_TOKEN}"})
    assert "same" not in str(caught.value)


@asynccontextmanager
async def web(answer: Any):
    """Something that speaks HTTP and is no MCP server."""

    class Web:
        settings = ServeSettings(stop_grace_s=0.1)
        app = Starlette(routes=[Route("/mcp", answer, methods=["GET", "POST", "DELETE"])])

        async def close(self, grace_s: float | None = None) -> None:
            pass

    async with serving(Web()) as url:
        yield f"{url}/mcp"


def handshake_then(answer: Callable[[Request], Response]) -> Any:
    async def respond(request: Request) -> Response:
        message = await request.json() if request.method == "POST" else {}
        match message.get("method"):
            case "initialize":
                result = {
                    "protocolVersion": message["params"]["protocolVersion"],
                    "capabilities": {"tools": {}},
                    "serverInfo": {"name": "x", "version": "1"},
                }
            case "tools/list":
                result = {"tools": [{"name": "act", "inputSchema": {"type": "object"}}]}
            case "tools/call":
                return answer(request)
            case _:
                return Response(status_code=202)
        return JSONResponse({"jsonrpc": "2.0", "id": message["id"], "result": result})

    return respond


@pytest.mark.parametrize(
    ("response", "message"),
    [
        (Response("oops", 500), "500"),
        (Response("no", 401), "401"),
        (Response("<html>", 200, media_type="text/html"), "unreadable|content type"),
        (Response("{}", 200, media_type="application/json"), "unreadable"),
        (Response(status_code=302, headers={"location": "http://evil.example/"}), "302|edirect"),
        (Response(b"x" * 100_000, 200, media_type="application/json"), "more than 50000 bytes"),
        (
            Response(b"\x1f\x8b", 200, {"content-encoding": "gzip"}, "application/json"),
            "compressed",
        ),
    ],
)
async def test_an_answer_that_is_none_makes_no_result(
    response: Response, message: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(mcp_http, "MAX_RESPONSE_BYTES", 50_000)
    async with (
        web(handshake_then(lambda _: response)) as url,
        started(client(url, restart_limit=0)) as mcp,
    ):
        with pytest.raises(ToolServerError, match=message):
            await mcp.call("act")


async def test_a_token_goes_out_and_comes_back_in_no_error(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TEST_MCP_TOKEN", "sesame-sesame")
    seen = []

    def echo(request: Request) -> Response:
        seen.append(request.headers["authorization"])
        return Response(f"bad token {request.headers['authorization']}", 403)

    headers = {"Authorization": "Bearer ${TEST_MCP_TOKEN}"}
    async with web(handshake_then(echo)) as url, started(client(url, headers=headers)) as mcp:
        with pytest.raises(ToolServerError) as caught:
            await mcp.call("act")
    assert seen == ["Bearer sesame-sesame"]
    assert "sesame" not in repr(caught.value) + str(caught.value.__cause__)
    assert os.environ["TEST_MCP_TOKEN"] not in repr(client(url, headers=headers)._config)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"command": "x", "url": "http://localhost/mcp"},
        {"url": "ftp://localhost"},
        {"url": "http://user:secret@localhost/mcp"},
        {"url": "http://localhost/mcp", "env": {"A": "b"}},
        {"command": "x", "headers": {"A": "b"}},
        {"command": "x", "prefix": "no spaces"},
        {"command": "x", "scope": "group"},
        {"command": "x", "start_timeout_s": 0},
        {"command": "x", "argv": []},
    ],
)
def test_settings_that_cannot_work_are_refused(settings: dict[str, Any]):
    with pytest.raises(ValidationError):
        McpServerConfig(**settings)
