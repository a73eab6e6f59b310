"""Who may ask the live page, and what it may do."""

import asyncio
import base64
import json
import logging
import re
import socket
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest

from agentenv.control.pause import PauseGate
from agentenv.errors import ConfigError
from agentenv.watch import Board, Slots, Watch, server, watching
from agentenv.watch.server import WatchServer
from agentenv_tools.schema import ImagePart, ToolCall, ToolResult
from agentenv_tools.serving import ServeSettings, serving
from tests.agentenv.run.payloads import dot
from tests.agentenv.watch.rollouts import begin, end, say


class Client:
    """A browser's requests, as bytes would be sent."""

    def __init__(self, http: aiohttp.ClientSession, watch: Watch, asked: list[str]) -> None:
        self.http = http
        self.watch = watch
        self.asked = asked
        self.token = ""

    async def get(self, path: str, **headers: str) -> tuple[int, Any, Any]:
        sent = {"x-watch-token": self.token} | headers
        async with self.http.get(self.watch.url + path, headers=sent) as answer:
            text = await answer.text()
            return answer.status, text, answer.headers

    async def control(self, body: Any, **headers: str) -> int:
        sent = {"x-watch-token": self.token} | headers
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        async with self.http.post(self.watch.url + "/control", data=data, headers=sent) as answer:
            return answer.status


@pytest.fixture
async def client() -> AsyncIterator[Client]:
    asked: list[str] = []
    async with (
        watching(
            cancel_all=lambda: asked.append("cancel_all"),
            slots=lambda: Slots(4, 2, 1),
            announce=asked.append,
        ) as watch,
        aiohttp.ClientSession() as http,
    ):
        assert asked.pop() == f"{watch.url}/"
        client = Client(http, watch, asked)
        _, page, _ = await client.get("/")
        found = re.search(r'id="watch">\{"token":"([^"]+)"\}<', page)
        assert found is not None
        client.token = found.group(1)
        yield client


async def test_the_page_allows_nothing_but_its_own_script_and_style(client):
    status, page, headers = await client.get("/")
    assert status == 200
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', page)
    assert policy is not None
    assert policy.group(1).startswith("default-src 'none'; base-uri 'none'; form-action 'none'; ")
    assert "unsafe" not in policy.group(1)
    assert "http" not in policy.group(1)
    assert headers["content-security-policy"] == "frame-ancestors 'none'"
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["cache-control"] == "no-store"
    assert "access-control-allow-origin" not in headers


async def test_what_happens_is_told_with_slots_and_the_pause(client):
    begin(client.watch.board, "a")
    say(client.watch.board, "a", "\ud800 text")
    status, text, _ = await client.get("/changes?since=0&show=1&seen=1")
    told = json.loads(text)
    assert status == 200
    assert told["slots"] == [2, 4, 1]
    assert told["paused"] is False
    assert [entry["number"] for entry in told["entries"]] == [2, 3, 4, 5]


@pytest.mark.parametrize("path", ["/", "/changes?since=0"])
async def test_another_name_for_this_machine_is_refused(client, path):
    status, text, _ = await client.get(path, Host="evil.example:8080")
    assert status == 421
    assert "wrong_host" in text


async def test_controls_need_the_token_and_refuse_other_pages(client):
    pause, gate = {"action": "pause"}, client.watch.gate
    assert await client.control(pause, Origin="http://evil.example") == 403
    assert await client.control(pause, Origin="null") == 403
    assert await client.control(pause, **{"x-watch-token": ""}) == 403
    assert await client.control(pause, **{"x-watch-token": "é"}) == 403
    assert (await client.get("/changes?since=0", **{"x-watch-token": "x"}))[0] == 403
    assert (await client.get("/control"))[0] == 405
    assert not gate.paused
    assert await client.control(pause, Origin=client.watch.url) == 200
    assert gate.paused
    assert await client.control({"action": "resume"}) == 200
    assert not gate.paused


async def test_one_trajectory_is_cancelled_or_all(client):
    begin(client.watch.board, "a", lambda: client.asked.append("a"))
    assert await client.control({"action": "cancel", "number": 1}) == 200
    assert await client.control({"action": "cancel_all"}) == 200
    assert client.asked == ["a", "cancel_all"]
    end(client.watch.board, "a")
    assert await client.control({"action": "cancel", "number": 1}) == 409


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400),
        (b"[]", 400),
        (b"{" * 900, 400),
        (b"\xff", 400),
        (b" " * 2_000, 413),
        ({"action": "explode"}, 400),
        ({"action": ["pause"]}, 400),
        ({"action": "cancel"}, 400),
        ({"action": "cancel", "number": "1"}, 400),
        ({"action": "cancel", "number": 10**30}, 409),
    ],
)
async def test_bad_requests_are_refused(client, body, status):
    assert await client.control(body) == status


@pytest.mark.parametrize(
    "query", ["since=-1", "since=x", "show=1e9", "seen=" + "9" * 40, "since=²"]
)
async def test_bad_numbers_are_refused(client, query):
    assert (await client.get(f"/changes?{query}"))[0] == 400


async def test_whoever_waits_is_answered_when_the_run_ends(monkeypatch):
    monkeypatch.setattr(server, "_WAIT_S", 600.0)
    board = Board()
    served = WatchServer(ServeSettings(), board, gate=PauseGate(), cancel_all=list)
    await served.close()
    await board.news(0, 600)
    assert board.changes(0)["closed"]


async def test_an_image_is_data_for_the_page_and_never_a_page_itself(client):
    begin(client.watch.board, "a")
    svg = base64.b64encode(b"<svg onload='x'>").decode()
    images = (dot(), ImagePart("image/png", svg, 1, 1))
    client.watch.board.tool_finished(
        "a", ToolCall("look", {}), ToolResult(True, "seen", images=images)
    )
    status, text, headers = await client.get("/pictures/1")
    assert (status, headers["content-type"]) == (200, "application/json; charset=utf-8")
    assert json.loads(text) == {
        "media_type": "image/png",
        "data": dot().data,
        "note": "image/png, 1 x 1 pixels",
    }
    _, text, _ = await client.get("/pictures/2")
    assert list(json.loads(text)) == ["note"]
    assert (await client.get("/pictures/3"))[0] == 404
    assert (await client.get("/pictures/1", **{"x-watch-token": "x"}))[0] == 403
    assert (await client.get("/pictures/-1"))[0] == 404


async def test_a_page_that_is_open_hears_how_the_run_ended():
    board = Board()
    served = WatchServer(ServeSettings(), board, gate=PauseGate(), cancel_all=list)
    headers = {"x-watch-token": served.token}
    async with aiohttp.ClientSession(headers=headers) as http:

        async def closed(url: str) -> bool:
            async with http.get(f"{url}/changes?wait=0") as answer:
                return bool(json.loads(await answer.text())["closed"])

        async with serving(served) as url:
            assert not await closed(url)
            ending = asyncio.create_task(served.close())
            await asyncio.sleep(0)
            assert not ending.done()
            assert await closed(url)
            await ending


async def test_whoever_takes_no_answers_holds_up_neither_the_run_nor_its_end(caplog):
    board = Board()
    begin(board, "a")
    for _ in range(100):
        say(board, "a", "y" * 8_000)
    served = WatchServer(ServeSettings(), board, gate=PauseGate(), cancel_all=list)
    headers, path = {"x-watch-token": served.token}, "/changes?since=0&show=1&seen=0"
    with socket.socket() as slow:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
        async with serving(served) as url, aiohttp.ClientSession(headers=headers) as http:
            place = url.removeprefix("http://")
            slow.connect(("127.0.0.1", int(place.split(":")[1])))
            lines = (f"GET {path} HTTP/1.1", f"Host: {place}", f"x-watch-token: {served.token}")
            slow.sendall("".join(f"{line}\r\n" for line in (*lines, "")).encode())
            assert await asyncio.to_thread(slow.recv, 12) == b"HTTP/1.1 200"
            async with http.get(url + path) as answer:
                assert len(await answer.read()) > 500_000
    assert [each.getMessage() for each in caplog.records if each.levelno >= logging.ERROR] == []


async def test_the_next_free_port_is_taken_and_a_page_for_others_refused(monkeypatch):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        async with watching(port=port, announce=lambda url: None) as watch:
            assert watch.url.startswith("http://127.0.0.1:")
            assert not watch.url.endswith(f":{port}")
        monkeypatch.setattr("agentenv.watch.opening._PORTS_TRIED", 1)
        with pytest.raises(ConfigError, match=f"free from {port} on"):
            async with watching(port=port):
                pass
    with pytest.raises(ValueError, match="this machine alone"):
        WatchServer(
            ServeSettings(host="0.0.0.0", token="x" * 20),
            Board(),
            gate=PauseGate(),
            cancel_all=list,
        )
