"""The engine's stream: chunks with headers in, bytes out, whatever their sizes."""
# mypy: disable-error-code="no-untyped-call, union-attr"

import asyncio
import struct
from itertools import pairwise

import aiohttp
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentenv_backends.docker.stream import AttachedStream, Demultiplexer, StreamError
from tests.agentenv_backends.receiver import Receiver
from tests.waiting import WITHIN_S


def chunk(kind, data):
    return struct.pack(">B3xI", kind, len(data)) + data


def in_pieces(data, cuts):
    edges = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    return [data[start:end] for start, end in pairwise(edges)]


@given(
    st.lists(st.tuples(st.sampled_from([1, 2]), st.binary(max_size=50))),
    st.lists(st.integers(min_value=0), max_size=20),
)
def test_output_comes_out_in_order_however_it_is_cut(chunks, cuts):
    demultiplexer = Demultiplexer()
    sent = b"".join(chunk(kind, data) for kind, data in chunks)
    received = b"".join(demultiplexer.feed(piece) for piece in in_pieces(sent, cuts))
    assert received == b"".join(data for kind, data in chunks if kind == 1)
    assert demultiplexer.complaints == b"".join(data for kind, data in chunks if kind == 2)


def test_only_the_end_of_many_complaints_is_kept():
    demultiplexer = Demultiplexer()
    for n in range(1000):
        assert demultiplexer.feed(chunk(2, b"complaint %d\n" % n)) == b""
    assert demultiplexer.complaints.endswith(b"complaint 999\n")
    assert len(demultiplexer.complaints) == 2000


@pytest.mark.parametrize("garbage", [b"\x03" + b"\x00" * 7, b"HTTP/1.1 500 Internal", b"\xae" * 8])
def test_what_is_no_chunk_is_refused(garbage):
    with pytest.raises(StreamError, match="no chunk begins with"):
        Demultiplexer().feed(chunk(1, b"x") + garbage)


class Engine:
    """Answers one upgrade, with `first` in the same breath, and then is the other end of the stream."""

    def __init__(self, first=b""):
        self._first = first
        self.reader = self.writer = None

    async def serve(self, reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        head = b"HTTP/1.1 101 UPGRADED\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n"
        writer.write(head + self._first)
        self.reader, self.writer = reader, writer

    async def end(self):
        self.writer.close()
        await asyncio.wait({asyncio.ensure_future(self.writer.wait_closed())})


async def because():
    return "because of the moon"


@pytest.fixture
async def connect(tmp_path):
    engines, servers, sessions = [], [], []

    async def make(engine):
        engines.append(engine)
        path = tmp_path / "engine.sock"
        servers.append(await asyncio.start_unix_server(engine.serve, path))
        sessions.append(aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(path))))
        upgrade = {"Connection": "Upgrade", "Upgrade": "tcp"}
        response = await sessions[0].post("http://localhost/attach", headers=upgrade)
        recorder = Receiver()
        stream = AttachedStream(recorder, because)
        stream.take_over(response)
        return stream, recorder

    yield make
    for session in sessions:
        async with asyncio.timeout(WITHIN_S):
            await session.close()
    for engine in engines:
        await engine.end()
    for server in servers:
        server.close()


async def until(holds):
    async with asyncio.timeout(WITHIN_S):
        while not holds():
            await asyncio.sleep(0.001)


async def test_what_came_with_the_upgrade_is_not_lost(connect):
    engine = Engine(first=chunk(1, b"early ") + chunk(1, b"bird")[:-2])
    stream, recorder = await connect(engine)
    engine.writer.write(b"rd")
    await until(lambda: recorder.received == b"early bird")
    stream.abort()
    assert await recorder.lost is None


async def test_what_is_written_goes_out_as_it_is(connect):
    engine = Engine()
    stream, _ = await connect(engine)
    stream.write(b"\x00\x01raw")
    assert await engine.reader.readexactly(5) == b"\x00\x01raw"
    stream.abort()
    stream.write(b"into the void")
    assert await engine.reader.read() == b""


async def test_an_engine_that_does_not_read_is_felt_by_who_writes(connect):
    engine = Engine()
    stream, recorder = await connect(engine)
    stream.set_write_buffer_limits(high=1000)
    sent = b"x" * 5_000_000
    stream.write(sent)
    await until(lambda: recorder.flow == ["pause"])
    assert stream.get_write_buffer_size() > 0
    await engine.reader.readexactly(len(sent))
    await until(lambda: recorder.flow == ["pause", "resume"])
    stream.abort()


async def test_a_stream_that_ends_by_itself_is_explained(connect):
    engine = Engine()
    _, recorder = await connect(engine)
    engine.writer.write(chunk(2, b"it hurts\n"))
    engine.writer.close()
    assert str(await recorder.lost) == "because of the moon it hurts"


async def test_garbage_ends_the_stream(connect):
    engine = Engine()
    stream, recorder = await connect(engine)
    engine.writer.write(chunk(1, b"fine") + b"?" * 8)
    assert "no chunk begins with" in str(await recorder.lost)
    assert stream.is_closing()
