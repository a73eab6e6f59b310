"""Bodies that are wrong, huge or hostile: each is refused, costs little, and the server goes on."""

import gzip
import json
import socket
import zlib
from collections.abc import Iterator
from urllib.parse import urlsplit

import httpx
import pytest

from tests.interop.api import Api, group, marks
from tests.interop.servers import AgentEnvServer
from tests.processes import resident_memory

pytestmark = pytest.mark.slow
JSON = {"content-type": "application/json"}
GZIP = {"content-encoding": "gzip"} | JSON
BINARY = {"content-type": "application/vnd.agentenv.groups"}
MIB = 1 << 20
_LIMITS = ("--max-body-bytes", str(32 * MIB), "--max-inflated-bytes", str(64 * MIB))
_BOMB_MIB = 512
_MOST_MEMORY = 256 * MIB
"""What hostile requests may add to the server's memory: far less than what the bombs below unpack to."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AgentEnvServer]:
    with AgentEnvServer(tmp_path_factory.mktemp("server"), *_LIMITS) as running:
        yield running


@pytest.fixture
def api(server: AgentEnvServer) -> Iterator[Api]:
    """A client; afterwards the server must be as well as before."""
    with Api(server.url) as client:
        client.reset()
        client.start(batch_size=2)
        before = resident_memory(server.pid)
        yield client
    with Api(server.url) as client:
        assert client.status()["queue_size"] == 0
        client.send(2, mark=7)
        assert marks(client.batch()) == [7]
    assert resident_memory(server.pid) - before < _MOST_MEMORY


def bomb(mib: int, layers: int = 1) -> bytes:
    """So much of nothing, gzipped."""
    packer = zlib.compressobj(9, wbits=31)
    packed = b"".join(packer.compress(bytes(MIB)) for _ in range(mib)) + packer.flush()
    for _ in range(layers - 1):
        packed = gzip.compress(packed)
    return packed


def with_token(token: str) -> bytes:
    """A group with a number that is written as no number should be."""
    return json.dumps(group(1)).replace('"tokens": [[0', f'"tokens": [[{token}').encode()


def with_score(score: str) -> bytes:
    """The same, for the score."""
    return json.dumps(group(1)).replace('"scores": [0.0', f'"scores": [{score}').encode()


GARBAGE: dict[str, bytes] = {
    "nothing": b"",
    "bytes that are no text": bytes(range(256)) * 100,
    "half a group": json.dumps(group(2)).encode()[:-20],
    "a group and more": json.dumps(group(2)).encode() * 2,
    "text in another encoding": json.dumps(group(2) | {"images": "é"}, ensure_ascii=False).encode(
        "latin-1"
    ),
    "a number": b"1",
    "lists in lists": b"[" * 200_000,
    "closed lists in lists": b"[" * 100_000 + b"]" * 100_000,
    "objects in objects": b'{"a":' * 100_000,
    "deep messages": json.dumps(group(1)).encode()[:-1]
    + b', "messages": '
    + b"[" * 5_000
    + b"]" * 5_000
    + b"}",
    "a huge token": with_token("9" * 5_000),
    "a token of 64 bits": with_token(str(2**63)),
    "a token of 33 bits": with_token(str(2**32)),
    "a negative token": with_token("-1"),
    "a token that is no number": with_token("NaN"),
    "a token beyond all numbers": with_token("1e400"),
    "a score that is no number": with_score("NaN"),
    "a score beyond all numbers": with_score("1e400"),
    "an endless score": with_score("-Infinity"),
    "a huge environment id": json.dumps(group(1) | {"env_id": 10**40}).encode(),
    "no rows": json.dumps({"tokens": [], "masks": [], "scores": []}).encode(),
    "rows of nothing": json.dumps({"tokens": [[]], "masks": [[]], "scores": [1.0]}).encode(),
}


@pytest.mark.parametrize("path", ["/scored_data", "/scored_data_list"])
@pytest.mark.parametrize("body", GARBAGE.values(), ids=GARBAGE)
def test_garbage_is_refused_with_a_reason(api: Api, path: str, body: bytes):
    answer = api.http.post(path, content=body, headers=JSON)
    assert 400 <= answer.status_code < 500, answer.text[:500]
    assert answer.text
    assert "Traceback" not in answer.text
    assert len(answer.content) < 64 * 1024


@pytest.mark.parametrize("body", GARBAGE.values(), ids=GARBAGE)
def test_garbage_in_the_binary_form_is_refused_with_a_reason(api: Api, body: bytes):
    answer = api.http.post("/scored_data", content=body, headers=BINARY)
    assert 400 <= answer.status_code < 500, answer.text[:500]
    assert "Traceback" not in answer.text


@pytest.mark.parametrize("layers", [1, 2])
def test_a_gzip_bomb_is_refused_before_it_unpacks(api: Api, layers: int):
    answer = api.http.post("/scored_data", content=bomb(_BOMB_MIB, layers), headers=GZIP)
    assert 400 <= answer.status_code < 500, answer.text[:500]


@pytest.mark.parametrize("cut", [1, 10, 1_000])
def test_a_gzipped_body_that_breaks_off_is_refused(api: Api, cut: int):
    body = gzip.compress(json.dumps(group(2, length=4_096)).encode())[:-cut]
    assert api.http.post("/scored_data", content=body, headers=GZIP).status_code == 400


def test_a_gzipped_body_with_a_wrong_checksum_is_refused(api: Api):
    body = bytearray(gzip.compress(json.dumps(group(2, length=4_096)).encode()))
    body[-6] ^= 0xFF
    assert api.http.post("/scored_data", content=bytes(body), headers=GZIP).status_code == 400


def test_a_body_without_end_is_refused(api: Api):
    def chunks() -> Iterator[bytes]:
        yield b"["
        for _ in range(_BOMB_MIB):
            yield b" " * MIB

    try:
        answer = api.http.post("/scored_data_list", content=chunks(), headers=JSON)
    except httpx.TransportError:
        return  # it was cut off, which is all that can be done with who does not listen
    assert answer.status_code == 413


def test_a_client_that_leaves_in_the_middle_of_a_body_stores_nothing(
    api: Api, server: AgentEnvServer
):
    body = json.dumps(group(2)).encode()
    lines = ("POST /scored_data HTTP/1.1", "Host: localhost", "Content-Type: application/json")
    head = "\r\n".join((*lines, f"Content-Length: {len(body)}", "", ""))
    parts = urlsplit(server.url)
    for sent in (0, 1, len(body) // 2, len(body) - 1):
        with socket.create_connection((parts.hostname, parts.port), timeout=10) as connection:
            connection.sendall(head.encode() + body[:sent])
    assert api.status()["queue_size"] == 0
