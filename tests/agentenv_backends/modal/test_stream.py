"""The stream to a command in a sandbox, over a client that is slow, fails, or has nothing more to say."""
# mypy: disable-error-code="no-untyped-call, no-untyped-def"

import asyncio

import pytest
from modal import exception

from agentenv_backends.errors import EngineError
from agentenv_backends.modal.stream import PIECE, ExecStream
from tests.agentenv_backends.receiver import Receiver
from tests.agentenv_backends.virtual_time import in_virtual_time


class Call:
    """A method of the client: `method.aio(...)`."""

    def __init__(self, function):
        self.aio = function


class Stdin:
    """Takes a piece at a time, as the client's does: what is drained is what was written since."""

    def __init__(self, failures=()):
        self.taken = bytearray()
        self.pieces = []
        self.failures = list(failures)
        self.open = asyncio.Event()
        self.open.set()
        self._buffer = b""
        self.drain = Call(self._drain)

    def write(self, data):
        assert not self._buffer, "the piece before was not taken yet"
        self._buffer = data

    async def _drain(self):
        await self.open.wait()
        await asyncio.sleep(0.01)
        if self.failures:
            raise self.failures.pop(0)
        self.pieces.append(len(self._buffer))
        self.taken += self._buffer
        self._buffer = b""


class Stdout:
    """Gives these pieces, raises these errors, and ends."""

    def __init__(self, *pieces):
        self.pieces = list(pieces)
        self.given = 0

    def __aiter__(self):
        return self._all()

    async def _all(self):
        while self.pieces:
            piece = self.pieces.pop(0)
            if piece is None:
                await asyncio.get_running_loop().create_future()
            if isinstance(piece, Exception):
                raise piece
            self.given += 1
            yield piece


class Process:
    def __init__(self, *pieces, failures=(), code=0, complaints=b""):
        self.stdin = Stdin(failures)
        self.stdout = Stdout(*pieces)
        self.stderr = type("Stderr", (), {"read": Call(lambda: self._say(complaints))})
        self.wait = Call(lambda: self._say(code))

    async def _say(self, answer):
        return answer


async def alive():
    return None


def begun(process, look=alive):
    receiver, stream = Receiver(), ExecStream(process, look)
    stream.begin(receiver)
    return receiver, stream


async def ended(stream):
    stream.abort()
    await stream.wait_closed()


def test_bytes_arrive_in_order_and_in_large_pieces():
    @in_virtual_time
    async def test():
        process = Process(b"one", b"two", None)
        receiver, stream = begun(process)
        sent = bytes(range(256)) * (PIECE // 100)
        for start in range(0, len(sent), 100_000):
            stream.write(sent[start : start + 100_000])
        while stream.get_write_buffer_size():
            await asyncio.sleep(0.1)
        assert process.stdin.taken == sent
        assert max(process.stdin.pieces) == PIECE
        assert receiver.received == b"onetwo"
        await ended(stream)

    test()


def test_whoever_writes_is_told_to_wait_while_nothing_is_taken():
    @in_virtual_time
    async def test():
        process = Process(None)
        receiver, stream = begun(process)
        stream.set_write_buffer_limits(high=1000)
        process.stdin.open.clear()
        stream.write(b"x" * 1001)
        assert receiver.flow == ["pause"]
        await asyncio.sleep(5)
        process.stdin.open.set()
        await asyncio.sleep(5)
        assert receiver.flow == ["pause", "resume"]
        assert not receiver.lost.done(), "slow is not gone"
        await ended(stream)

    test()


def test_nothing_is_read_ahead_of_a_receiver_that_waits():
    @in_virtual_time
    async def test():
        process = Process(*[b"x"] * 10, None)
        receiver, stream = begun(process)
        stream.pause_reading()
        await asyncio.sleep(1)
        assert process.stdout.given == 1
        stream.resume_reading()
        await asyncio.sleep(1)
        assert receiver.received == b"x" * 10
        await ended(stream)

    test()


def test_what_the_client_gives_up_is_taken_up_again_while_the_sandbox_lives():
    @in_virtual_time
    async def test():
        trouble = [exception.ServiceError("unavailable"), ConnectionError("refused")]
        process = Process(b"one", *trouble, b"two", None, failures=trouble)
        receiver, stream = begun(process)
        stream.write(b"in")
        await asyncio.sleep(5)
        assert process.stdin.taken == b"in"
        assert receiver.received == b"onetwo"
        await ended(stream)

    test()


@pytest.mark.parametrize("where", ["reading", "writing"])
def test_a_sandbox_that_is_gone_ends_the_stream_with_its_reason(where):
    @in_virtual_time
    async def test():
        async def gone():
            return "its lifetime is over"

        trouble = exception.NotFoundError("no such task")
        pieces = [trouble] if where == "reading" else [None]
        process = Process(*pieces, failures=[trouble] if where == "writing" else [])
        receiver, stream = begun(process, gone)
        stream.write(b"in")
        assert str(await receiver.lost) == "its lifetime is over"
        assert stream.is_closing()
        await stream.wait_closed()

    test()


def test_a_server_that_ends_says_its_last_words():
    @in_virtual_time
    async def test():
        process = Process(b"one", code=1, complaints=b"python3: not found\n")
        receiver, stream = begun(process)
        assert (
            str(await receiver.lost)
            == "the sandbox server in it ended (code 1). python3: not found"
        )
        await stream.wait_closed()

    test()


def test_input_that_is_refused_for_good_ends_the_stream_with_the_same_words():
    @in_virtual_time
    async def test():
        refused = exception.ConflictError("the process takes no input")
        process = Process(None, failures=[refused], code=127, complaints=b"what now")
        receiver, stream = begun(process)
        stream.write(b"in")
        assert str(await receiver.lost) == "the sandbox server in it ended (code 127). what now"
        await stream.wait_closed()

    test()


def test_a_service_that_cannot_be_reached_is_waited_for_a_while_and_not_for_ever():
    @in_virtual_time
    async def test():
        async def unreachable():
            raise EngineError("it cannot be reached", transient=True)

        process = Process(None)
        receiver, stream = begun(process, unreachable)
        process.stdin.open.clear()
        started = asyncio.get_running_loop().time()
        stream.write(b"in")
        assert str(await receiver.lost) == "it cannot be reached"
        assert 10 <= asyncio.get_running_loop().time() - started < 13
        await stream.wait_closed()

    test()


def test_a_stream_that_is_dropped_tells_nobody():
    @in_virtual_time
    async def test():
        receiver, stream = begun(Process(None))
        await asyncio.sleep(1)
        await ended(stream)
        stream.write(b"late")
        assert not receiver.lost.done()
        assert stream.get_write_buffer_size() == 0

    test()
