"""Bad requests, over real sockets: each is refused, in time and within bounds, and the service lives on."""

import asyncio
import json
import logging
from typing import Any

import pytest

from tests.agentenv_tools.serving.service_client import TOKEN, bearer, tool_server
from tests.waiting import WITHIN_S

JSON = "Content-Type: application/json\r\n"


def http(head: str, body: bytes = b"", path: str = "/execute") -> bytes:
    text = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{head}\r\n"
    return text.encode("latin-1") + body


def status_of(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1])


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 401),
        ({"authorization": ""}, 401),
        ({"authorization": TOKEN}, 401),
        ({"authorization": "Bearer"}, 401),
        ({"authorization": f"Basic {TOKEN}"}, 401),
        ({"authorization": f"Token {TOKEN}"}, 401),
        ({"authorization": "Bearer " + "x" * 8_000}, 401),
        (bearer("wrong"), 403),
        (bearer(TOKEN + "x"), 403),
        (bearer(TOKEN[:-1]), 403),
        (bearer("ümlaut"), 403),
        ({"authorization": f"bearer {TOKEN}"}, 200),
    ],
)
async def test_who_has_no_token_is_refused(headers: dict[str, str], status: int):
    async with tool_server(token=TOKEN) as client:
        client._headers = {}
        answered, body = await client.get("/tools", headers=headers)
        assert answered == status
        assert TOKEN not in json.dumps(body)


async def test_a_token_counts_only_in_its_header():
    async with tool_server(token=TOKEN) as client:
        client._headers = {}
        assert (await client.get(f"/tools?token={TOKEN}&authorization=Bearer+{TOKEN}"))[0] == 401
        twice = f"Authorization: Bearer {TOKEN}\r\nAuthorization: Bearer wrong\r\n"
        assert status_of(await client.raw(http(twice + JSON + "Content-Length: 0\r\n"))) == 401


async def test_liveness_can_be_probed_without_a_token():
    async with tool_server(token=TOKEN) as client:
        client._headers = {}
        assert await client.get("/health") == (200, {"status": "ok"})


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"host": "evil.example"}, 421),
        ({"host": "127.0.0.1.nip.example:80"}, 421),
        ({"origin": "http://evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({"origin": "http://localhost:1"}, 403),
    ],
)
async def test_a_web_page_cannot_call_tools(headers: dict[str, str], status: int):
    async with tool_server(token=TOKEN) as client:
        assert (await client.get("/tools", headers=headers))[0] == status
        assert (await client.get("/health", headers=headers))[0] == status


async def test_a_simple_form_post_of_a_web_page_is_no_call():
    async with tool_server() as client:
        body = json.dumps({"tool": {"name": "shout", "arguments": {"text": "x"}}})
        for kind in ("text/plain", "application/x-www-form-urlencoded"):
            sent = await client.request(
                "POST", "/execute", data=body, headers={"content-type": kind}
            )
            assert (sent[0], sent[1]["error"]["kind"]) == (415, "not_json")


async def test_a_websocket_is_not_opened():
    async with tool_server() as client:
        upgrade = (
            "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
            "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nOrigin: http://evil.example\r\n"
        )
        request = f"GET / HTTP/1.1\r\nHost: localhost\r\n{upgrade}Connection: close\r\n\r\n"
        assert b"101" not in (await client.raw(request.encode())).split(b"\r\n")[0]


# ---- bodies ----


@pytest.mark.parametrize(
    ("head", "body", "status"),
    [
        ("Content-Length: 1000000000\r\n", b"{", 413),
        ("Transfer-Encoding: chunked\r\n", b"ffff\r\n" + b"x" * 0xFFFF + b"\r\n", 413),
        ("Content-Length: 20\r\nContent-Encoding: gzip\r\n", b"\x1f\x8b" + b"x" * 18, 415),
        ("Content-Length: 99999999999999999999\r\n", b"{", 400),
        ("Content-Length: 50000\r\n", b"[" * 50_000, 400),
        ("Content-Length: 50000\r\n", b'{"a":' * 10_000, 400),
        ("Content-Length: 4\r\n", b"\xff\xfe\xfd\xfc", 400),
        ("Content-Length: 4\r\n", b"null", 400),
        ("Content-Length: 2\r\n", b"[]", 400),
        ("Content-Length: 0\r\n", b"", 400),
    ],
)
async def test_a_body_that_is_too_large_too_deep_or_none_is_refused(
    head: str, body: bytes, status: int
):
    async with tool_server(max_body_bytes=60_000) as client:
        assert status_of(await client.raw(http(JSON + head, body))) == status
        assert (await client.call("shout", text="alive"))[1]["output"] == "ALIVE"


@pytest.mark.parametrize(
    "data",
    [
        b"POST /execute HTTP/1.1\r\nHost: localhost\r\nX-Slow: ",
        http(JSON + "Content-Length: 100\r\n", b"{"),
        b"",
        b"\x16\x03\x01\x02\x00\x01\x00",
        b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 20_000,
    ],
    ids=["head never ends", "body never ends", "silence", "tls", "endless headers"],
)
async def test_a_caller_that_takes_its_time_is_cut_off(data: bytes):
    async with tool_server(read_timeout_s=0.3) as client:
        answer = await client.raw(data)  # returns: the server has closed the connection
        assert not answer or status_of(answer) in (400, 408, 431)
        assert (await client.get("/health"))[0] == 200


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"tool": {"name": "shout"}, "timeout_s": "soon"},
        {"tool": {"name": "shout"}, "timeout_s": True},
        {"tool": "shout"},
        {"tool": {"name": 5}},
        {"tool": {"name": "shout", "arguments": {}}, "trajectory_id": "x" * 10_000},
        {"tool": {"name": "x" * 1_000}},
        {"tool": {"name": "shout", "arguments": "text=x"}},
        {"tool": {"name": "shout", "arguments": [1]}},
        {"tool": {"name": "shout", "arguments": {"a": {"b": "\ud800"}}}},
    ],
)
async def test_a_body_of_the_wrong_shape_is_refused_with_the_field(body: Any):
    async with tool_server() as client:
        status, answer = await client.post("/execute", body)
        assert status == 400
        assert answer["error"]["message"]


async def test_numbers_that_json_does_not_have_are_refused():
    async with tool_server() as client:
        for number in ("NaN", "Infinity", "1e999"):
            body = f'{{"tool": {{"name": "shout", "arguments": {{"text": {number}}}}}}}'
            head = f"{JSON}Content-Length: {len(body)}\r\n"
            assert status_of(await client.raw(http(head, body.encode()))) == 400


@pytest.mark.parametrize(
    "arguments",
    [
        {"text": "x", "__proto__": {"admin": True}},
        {"text": "x", "__class__": "os.system"},
        {"text": "!!python/object/apply:os.system ['true']", "py/object": "os.system"},
    ],
)
async def test_keys_that_mean_something_elsewhere_mean_nothing_here(arguments: dict[str, Any]):
    async with tool_server() as client:
        status, answer = await client.call("shout", **arguments)
        assert (status, answer["success"]) == (200, False)
        assert "unknown argument" in answer["error"]


@pytest.mark.parametrize("path", ["/..%2f..%2fetc%2fpasswd", "/%00", "/" + "x" * 10_000, "/tools/"])
async def test_other_paths_are_not_found(path: str):
    async with tool_server() as client:
        answer = await client.raw(http("Content-Length: 0\r\n", path=path))
        assert status_of(answer) == 404


async def test_other_methods_are_not_allowed():
    async with tool_server() as client:
        for request in (b"DELETE /execute", b"GET /execute", b"POST /tools"):
            head = b" HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
            assert status_of(await client.raw(request + head)) == 405


# ---- what is told ----


async def test_a_fault_of_the_service_is_told_without_its_trace(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    from agentenv_tools.serving import ToolServer

    async def broken(*_: object) -> None:
        raise RuntimeError("a detail of ours")

    monkeypatch.setattr(ToolServer, "_run", broken)
    async with tool_server() as client:
        status, answer = await client.call("shout", text="x")
    assert (status, answer["error"]["kind"]) == (500, "internal")
    assert "detail" not in json.dumps(answer)
    assert "Traceback" not in json.dumps(answer)
    assert answer["error"]["request_id"] in caplog.text
    assert "a detail of ours" in caplog.text


async def test_requests_are_logged_under_their_id_without_what_is_secret(
    caplog: pytest.LogCaptureFixture,
):
    caplog.set_level(logging.DEBUG, logger="agentenv_tools")
    async with tool_server(token=TOKEN) as client:
        await client.get("/tools", headers={"x-request-id": "mine-1"})
        await client.get(f"/tools?token={TOKEN}", headers={"x-request-id": "forged\tline"})
    assert "request mine-1" in caplog.text
    assert "forged" not in caplog.text
    assert TOKEN not in caplog.text


async def test_connections_beyond_the_limit_are_turned_away_and_come_back_later():
    async with tool_server(max_connections=4, read_timeout_s=0.3) as client:
        held = [await asyncio.open_connection(*_address(client.url)) for _ in range(8)]
        try:
            assert (await client.raw(http(JSON + "Content-Length: 0\r\n")))[:12].endswith(b"503")
        finally:
            for _, writer in held:
                writer.close()
        async with asyncio.timeout(WITHIN_S):
            while (await client.raw(b"GET /health HTTP/1.0\r\nHost: localhost\r\n\r\n"))[
                9:12
            ] != b"200":
                await asyncio.sleep(0.05)


def _address(url: str) -> tuple[str, int]:
    host, _, port = url.removeprefix("http://").partition(":")
    return host, int(port)
