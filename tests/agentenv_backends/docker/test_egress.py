"""The only way out of a container: what its proxy carries, what it refuses, and what a hostile client gets."""
# mypy: disable-error-code="no-untyped-call, no-untyped-def"

import asyncio
import os
import socket
from contextlib import asynccontextmanager

import pytest

from agentenv_backends.allow_list import AllowList
from agentenv_backends.docker.egress import Egress
from agentenv_backends.requests import ExecRequest
from agentenv_backends.sandboxd import egress as tunnels
from tests.docker_engine import needs_engine
from tests.waiting import WITHIN_S

EXAMPLES = {"web.example": "127.0.0.1"}


class Pipe(asyncio.Transport):
    """Writes to a function, on the next turn of the loop."""

    def __init__(self, write):
        super().__init__()
        self._write = write

    def write(self, data):
        asyncio.get_running_loop().call_soon(self._write, bytes(data))

    def is_closing(self):
        return False

    def get_write_buffer_size(self):
        return 0

    def abort(self):
        pass


class Way:
    """A proxy and the driver's part, joined. `lost` says whether the driver gave the proxy up."""

    def __init__(self, *rules):
        self.lost = False
        self.egress = Egress(AllowList(rules), self._lose)
        self._frames = tunnels.FrameReader()
        self.proxy = tunnels.Proxy(self.to_driver)
        self.egress.connection_made(Pipe(self._to_proxy))
        self.port = 0

    def _lose(self):
        self.lost = True

    def to_driver(self, data):
        asyncio.get_running_loop().call_soon(self.egress.data_received, bytes(data))

    def _to_proxy(self, data):
        for frame in self._frames.feed(data):
            self.proxy.take(*frame)

    async def ask(self, request):
        """What a client gets that sends this and waits."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            writer.write(request)
            async with asyncio.timeout(WITHIN_S):
                return await reader.read()
        finally:
            writer.transport.abort()


@asynccontextmanager
async def way_out(*rules):
    way = Way(*rules)
    async with service(way.proxy.serve_client, limit=32 << 10) as way.port:
        yield way
        await way.egress.close()


@asynccontextmanager
async def service(serve, **options):
    """A server on the loopback, whose connections end with it; its port."""
    tasks = []

    async def serve_until_the_end(reader, writer):
        task = asyncio.current_task()
        assert task is not None
        tasks.append(task)
        try:
            await serve(reader, writer)
        except (asyncio.CancelledError, OSError, EOFError):
            pass
        finally:
            writer.transport.abort()

    server = await asyncio.start_server(serve_until_the_end, "127.0.0.1", 0, **options)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def echo_head(reader, writer):
    """Answers with the head of the request."""
    head = await reader.readuntil(b"\r\n\r\n")
    writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + head)
    await writer.drain()
    writer.close()


async def echo(reader, writer):
    while data := await reader.read(1 << 16):
        writer.write(data)
        await writer.drain()
    writer.close()


async def test_a_plain_request_reaches_the_server_without_what_is_for_the_proxy():
    async with service(echo_head) as port, way_out(f"127.0.0.1:{port}") as way:
        answer = await way.ask(
            f"GET http://127.0.0.1:{port}/a?b=c HTTP/1.1\r\nHost: x\r\nProxy-Authorization: secret\r\n"
            "Proxy-Connection: keep-alive\r\nConnection: keep-alive\r\nAccept: */*\r\n\r\n".encode()
        )
        _, _, head = answer.partition(b"\r\n\r\n")
        assert head.startswith(
            b"GET /a?b=c HTTP/1.1\r\nHost: x\r\nAccept: */*\r\nConnection: close"
        )
        assert b"secret" not in head


@pytest.mark.parametrize("size", [0, 1, 100_000, 5_000_000])
async def test_a_tunnel_carries_any_bytes_both_ways(size):
    sent = os.urandom(size)
    async with service(echo) as port, way_out(f"127.0.0.1:{port}") as way:
        reader, writer = await asyncio.open_connection("127.0.0.1", way.port)
        writer.write(f"CONNECT 127.0.0.1:{port} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        assert b" 200 " in await reader.readuntil(b"\r\n\r\n")

        async def send():
            writer.write(sent)
            await writer.drain()
            writer.write_eof()

        sending = asyncio.create_task(send())
        async with asyncio.timeout(60):
            received = await reader.read()
        await sending
        writer.transport.abort()
        assert received == sent


async def test_a_server_that_takes_nothing_holds_up_no_other_connection():
    stuck = asyncio.Event()

    async def take_nothing(_reader, _writer):
        await stuck.wait()

    async with (
        service(take_nothing) as deaf,
        service(echo_head) as port,
        way_out(f"127.0.0.1:{deaf}", f"127.0.0.1:{port}") as way,
    ):
        reader, writer = await asyncio.open_connection("127.0.0.1", way.port)
        writer.write(f"CONNECT 127.0.0.1:{deaf} HTTP/1.1\r\n\r\n".encode())
        await reader.readuntil(b"\r\n\r\n")
        writer.write(bytes(30 << 20))
        answer = await way.ask(f"GET http://127.0.0.1:{port}/ HTTP/1.1\r\n\r\n".encode())
        assert answer.startswith(b"HTTP/1.1 200")
        writer.transport.abort()
        stuck.set()


@pytest.mark.parametrize(
    "target",
    [
        "127.0.0.1:{other}", "localhost:{port}", "[::1]:{port}", "169.254.169.254:80", "2130706433:{port}",
        "127.1:{port}", "[::ffff:127.0.0.1]:{port}", "0.0.0.0:{port}", "metadata:80", "", ":", "a" * 900 + ":80",
    ],
)  # fmt: skip
async def test_what_is_not_listed_is_refused_and_nothing_is_connected_to(target):
    async with service(echo_head) as port, way_out(f"127.0.0.1:{port}", "*") as way:
        where = target.format(port=port, other=port - 1)
        for request in (f"CONNECT {where} HTTP/1.1", f"GET http://{where}/ HTTP/1.1"):
            answer = await way.ask(f"{request}\r\n\r\n".encode())
            assert answer.split(b" ")[1] in (b"403", b"400"), answer
        assert not way.lost


async def test_what_cannot_be_reached_is_said_so():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        async with way_out(f"127.0.0.1:{port}") as way:
            answer = await way.ask(f"CONNECT 127.0.0.1:{port} HTTP/1.1\r\n\r\n".encode())
    assert answer.startswith(b"HTTP/1.1 403")
    assert b"cannot be reached" in answer


@pytest.mark.parametrize(
    "request_",
    [
        b"\r\n\r\n", b"GET / HTTP/1.1\r\n\r\n", b"GET ftp://127.0.0.1/ HTTP/1.1\r\n\r\n", b"\xff\xfe a b\r\n\r\n",
        b"CONNECT 127.0.0.1:1 HTTP/2\r\n\r\n", b"A B C D\r\n\r\n", b"X" * 100_000,
    ],
)  # fmt: skip
async def test_what_is_no_request_ends_that_client_alone(request_):
    async with service(echo_head) as port, way_out(f"127.0.0.1:{port}") as way:
        try:
            answer = await way.ask(request_)
        except ConnectionError:
            answer = b""
        assert answer == b"" or b" 400 " in answer
        again = await way.ask(f"GET http://127.0.0.1:{port}/ HTTP/1.1\r\n\r\n".encode())
        assert again.startswith(b"HTTP/1.1 200")


async def connect(way, port, clients):
    """The status that one more client gets, which stays connected."""
    reader, writer = await asyncio.open_connection("127.0.0.1", way.port)
    clients.append(writer)
    writer.write(f"CONNECT 127.0.0.1:{port} HTTP/1.1\r\n\r\n".encode())
    async with asyncio.timeout(WITHIN_S):
        return int((await reader.readuntil(b"\r\n\r\n")).split(b" ")[1])


async def test_one_user_cannot_take_all_connections_and_the_others_share_the_rest(monkeypatch):
    users: dict[int, list[asyncio.StreamWriter]] = {}

    def users_by_port():
        return {
            writer.get_extra_info("sockname")[1]: user for user in users for writer in users[user]
        }

    monkeypatch.setattr(tunnels, "users_by_port", users_by_port)
    async with service(echo) as port, way_out(f"127.0.0.1:{port}") as way:
        got = {}
        for user in (1, 2, 3):
            users[user] = []
            answers = [await connect(way, port, users[user]) for _ in range(80)]
            assert set(answers) == {200, 503}
            got[user] = answers.count(200)
        assert got == {1: 64, 2: 32, 3: 16}
        assert not way.lost
        for writer in (writer for writers in users.values() for writer in writers):
            writer.transport.abort()


async def test_whose_a_connection_is_is_known_by_its_port():
    async with service(echo) as port:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        assert tunnels.users_by_port()[writer.get_extra_info("sockname")[1]] == os.getuid()
        writer.transport.abort()


async def test_clients_that_ask_for_nothing_keep_no_other_out():
    async with service(echo_head) as port, way_out(f"127.0.0.1:{port}") as way:
        idle = [await asyncio.open_connection("127.0.0.1", way.port) for _ in range(300)]
        answer = await way.ask(f"GET http://127.0.0.1:{port}/ HTTP/1.1\r\n\r\n".encode())
        assert answer.startswith(b"HTTP/1.1 200")
        async with asyncio.timeout(WITHIN_S):
            assert await idle[0][0].read() == b""  # it has waited longest
        for _, writer in idle:
            writer.transport.abort()


async def test_a_client_that_is_gone_is_not_kept_for_a_server_that_says_nothing(monkeypatch):
    monkeypatch.setattr(tunnels, "_HALF_CLOSED_S", 0.05)

    async def say_nothing(reader, _writer):
        await reader.read()
        await asyncio.Event().wait()

    async with service(say_nothing) as port, way_out(f"127.0.0.1:{port}") as way:
        clients: list[asyncio.StreamWriter] = []
        assert await connect(way, port, clients) == 200
        clients[0].close()
        async with asyncio.timeout(WITHIN_S):
            while way.proxy._tunnels or way.egress._tunnels:
                await asyncio.sleep(0.01)


async def test_a_client_that_goes_after_all_it_had_to_say_takes_its_connection_with_it():
    async def say_nothing(reader, _writer):
        await reader.read()
        await asyncio.Event().wait()

    async with service(say_nothing) as port:
        way = Way(f"127.0.0.1:{port}")
        where = f"127.0.0.1:{port}".encode()
        for kind, payload in ((tunnels.OPEN, where), (tunnels.END, b"")):
            way.egress.data_received(tunnels.encode(1, kind, payload))
        async with asyncio.timeout(WITHIN_S):
            while not way.egress._tunnels[1]._incoming.empty():
                await asyncio.sleep(0.01)
            way.egress.data_received(tunnels.encode(1, tunnels.RESET))
            while way.egress._tunnels:
                await asyncio.sleep(0.01)
        await way.egress.close()


async def test_a_connection_that_nobody_waits_for_any_more_is_not_made():
    looking = asyncio.Event()

    async def resolve(_name):
        looking.set()
        await asyncio.Event().wait()
        return []

    egress = Egress(AllowList(["*"], resolve), lambda: None)
    egress.connection_made(Pipe(lambda data: None))
    egress.data_received(tunnels.encode(1, tunnels.OPEN, b"slow.example.org:443"))
    async with asyncio.timeout(WITHIN_S):
        await looking.wait()
        egress.data_received(tunnels.encode(1, tunnels.RESET))
        while egress._tunnels or egress._work:
            await asyncio.sleep(0.01)
    await egress.close()


async def test_a_proxy_that_talks_nonsense_is_given_up():
    way = Way("*")
    way.egress.data_received(b"\xff" * 20)
    assert way.lost


async def test_a_proxy_that_sends_more_than_it_may_is_given_up():
    async def take_nothing(_reader, _writer):
        await asyncio.Event().wait()

    async with service(take_nothing) as port:
        way = Way(f"127.0.0.1:{port}")
        way.egress.data_received(tunnels.encode(1, tunnels.OPEN, f"127.0.0.1:{port}".encode()))
        for _ in range(5):
            way.egress.data_received(tunnels.encode(1, tunnels.DATA, bytes(tunnels.MAX_PAYLOAD)))
        assert way.lost
        await way.egress.close()


async def test_a_proxy_that_takes_what_was_not_sent_is_given_up():
    async with service(echo) as port:
        way = Way(f"127.0.0.1:{port}")
        way.egress.data_received(tunnels.encode(1, tunnels.OPEN, f"127.0.0.1:{port}".encode()))
        way.egress.data_received(tunnels.encode(1, tunnels.TAKEN, b"\xff" * 8))
        assert way.lost
        await way.egress.close()


async def test_a_proxy_that_reads_nothing_is_given_up_and_not_waited_for():
    class Deaf(Pipe):
        unread = 0
        aborted = False

        def write(self, data):
            self.unread += len(data)

        def get_write_buffer_size(self):
            return self.unread << 20

        def abort(self):
            self.aborted = True

    way, deaf = Way("example.org"), Deaf(None)
    way.egress.connection_made(deaf)
    for number in range(2000):
        if way.lost:
            break
        way.egress.data_received(tunnels.encode(number, tunnels.OPEN, b"elsewhere.org:443"))
        await asyncio.sleep(0)
    assert way.lost
    assert deaf.aborted
    way.egress.data_received(tunnels.encode(5000, tunnels.OPEN, b"example.org:443"))
    await asyncio.sleep(0)
    assert not way.egress._tunnels
    await way.egress.close()


# --- In containers --------------------------------------------------------------------------------

_FETCH = """
import sys, urllib.request, urllib.error
try:
    print(urllib.request.urlopen(sys.argv[1], timeout=20).read().decode())
except urllib.error.HTTPError as error:
    print("refused", error.code, error.read().decode())
except Exception as error:
    print("failed", error)
"""
_DIRECTLY = """
import socket, sys
port = int(sys.argv[1])
for host, port in (("127.0.0.1", port), ("172.17.0.1", port), ("169.254.169.254", 80), ("192.0.2.1", 53)):
    try:
        socket.create_connection((host, port), timeout=5)
        print("reached", host)
    except OSError:
        pass
try:
    print("looked up", socket.getaddrinfo("example.org", 80))
except OSError:
    pass
print(sorted(name for _, name in socket.if_nameindex()))
"""


_END_THE_PROXY = """
import os, socket, time
proxies = [int(pid) for pid in os.listdir("/proc") if pid.isdigit() and os.stat("/proc/" + pid).st_uid == 65534]
os.setresuid(65534, 65534, 65534)
for pid in proxies:
    os.kill(pid, 9)
    print("ended")
for _ in range(500):
    try:
        socket.create_connection(("127.0.0.1", 3128), timeout=5).close()
    except ConnectionRefusedError:
        print("connection refused")
        break
    time.sleep(0.02)
"""


async def python(made, slot, program, *words):
    await made.run(slot, f"cat > program.py <<'END'\n{program}\nEND")
    # The proxy leaves out the loopback by default, which is what the tests have.
    command = f"no_proxy= NO_PROXY= python3 program.py {' '.join(words)}"
    return await made.say(slot, command)


@pytest.mark.docker
@pytest.mark.usefixtures("docker_engine")
class TestInContainers:
    pytestmark = needs_engine

    @pytest.mark.parametrize("slots", [1, 4])
    async def test_commands_reach_what_is_listed_and_nothing_else(self, ground, slots):
        async def serve(reader, writer):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nhello from outside")
            await writer.drain()
            writer.close()

        async with service(serve) as port, service(serve) as other:
            rules = (f"127.0.0.1:{port}", "*")
            made = await ground(slots=slots, allow_network=True, network_allow_list=rules)
            slot = await made.pool.acquire("a")
            shown = await python(made, slot, _FETCH, f"http://127.0.0.1:{port}/")
            assert shown == "hello from outside\n"
            for url in (
                f"http://127.0.0.1:{other}/",
                f"http://localhost:{port}/",
                f"http://[::1]:{port}/",
                f"http://2130706433:{port}/",
                "http://169.254.169.254/latest/meta-data/",
                "http://172.17.0.1/",
            ):
                refused = await python(made, slot, _FETCH, url)
                assert refused.startswith("refused 403"), (url, refused)
            assert await python(made, slot, _DIRECTLY, str(port)) == "['lo']\n"

    async def test_without_a_list_there_is_no_proxy(self, ground):
        made = await ground()
        slot = await made.pool.acquire("a")
        assert "proxy" not in (await made.say(slot, "env")).lower()

    async def test_a_container_whose_proxy_is_gone_is_lost_and_not_the_agents_fault(self, ground):
        made = await ground(allow_network=True, network_allow_list=("*",))
        slot = await made.pool.acquire("a")
        lost = asyncio.create_task(made.pool.execute(slot, ExecRequest("sleep 60", 100)))
        container = made.container(slot)
        process = await container.exec(
            ["sh", "-c", "kill -9 $(pgrep -u 65534 python3)"], user="0:0"
        )
        async with process.start() as stream:
            while await stream.read_out() is not None:
                pass
        async with asyncio.timeout(WITHIN_S):
            with pytest.raises(Exception, match="is gone"):
                await lost

    async def test_commands_that_are_root_get_no_second_try_by_ending_the_proxy(self, ground):
        made = await ground(
            slots=1, run_as_root=True, allow_network=True, network_allow_list=("*",)
        )
        slot = await made.pool.acquire("a")
        assert (await python(made, slot, _END_THE_PROXY)).split() == [
            "ended",
            "connection",
            "refused",
        ]
        assert await made.say(slot, "echo goes on") == "goes on\n"
