"""The driver's end against a host that does exactly what a test tells it to."""

from __future__ import annotations

import asyncio
import json
import socket
from typing import TYPE_CHECKING

import pytest

from agentenv_backends.connection import HostConnection, connect_host
from agentenv_backends.errors import (
    HostLostError,
    HostStartError,
    SandboxTimeoutError,
    SlotLostError,
)
from agentenv_backends.requests import ExecRequest, ReadRequest, WriteRequest
from agentenv_backends.results import ExecResult, ExecStatus, OpFailure
from agentenv_backends.sandboxd import frames
from agentenv_backends.sandboxd.settings import HostFacts, HostSettings
from tests.waiting import WITHIN_S

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

FACTS = HostFacts("none", "/w", "6.1", "3.11", "3.11")
ANSWER = b'{"status":"exited","code":%d,"seconds":0.5,"killed":0,"sizes":[0,0,0,0,0,0]}'


class ScriptedHost:
    """Answers greetings, openings and goodbyes by itself, requests only when told to."""

    def __init__(self, stream: socket.socket) -> None:
        stream.setblocking(False)
        self.stream = stream
        self.requests: asyncio.Queue[frames.Frame] = asyncio.Queue()
        self.seen: list[frames.Frame] = []
        self.greeting = frames.encode(
            frames.REPLY, request_id=1, header=json.dumps(FACTS.to_json()).encode()
        )

    async def serve(self) -> None:
        reader = frames.FrameReader()
        loop = asyncio.get_running_loop()
        while data := await loop.sock_recv(self.stream, 1 << 16):
            for frame in reader.feed(data):
                self.seen.append(frame)
                await self.take(frame)

    async def take(self, frame: frames.Frame) -> None:
        if frame.kind == frames.HELLO:
            await self.send(self.greeting)
        elif frame.kind == frames.OPEN:
            await self.answer(frame, b'{"workspace":"/w"}')
        elif frame.kind in (frames.CLOSE, frames.PING, frames.SHUTDOWN):
            await self.answer(frame)
        elif frame.kind == frames.REQUEST:
            self.requests.put_nowait(frame)

    async def answer(
        self, frame: frames.Frame, header: bytes = b"", body: bytes = b"", flags: int = 0
    ) -> None:
        await self.send(
            frames.encode(
                frames.REPLY,
                channel=frame.channel,
                request_id=frame.request_id,
                header=header,
                body=body,
                flags=flags,
            )
        )

    async def send(self, data: bytes) -> None:
        await asyncio.get_running_loop().sock_sendall(self.stream, data)

    def kinds(self) -> list[int]:
        return [frame.kind for frame in self.seen]


@pytest.fixture
async def scripted() -> AsyncIterator[tuple[HostConnection, ScriptedHost]]:
    ours, theirs = socket.socketpair()
    host = ScriptedHost(theirs)
    server = asyncio.create_task(host.serve())
    connection = await connect_host(ours, "h", HostSettings(run_id="t"), grace_s=0.2)
    await connection.open_slot("a")
    yield connection, host
    await connection.close()
    server.cancel()
    await asyncio.gather(server, return_exceptions=True)
    theirs.close()


Scripted = tuple[HostConnection, ScriptedHost]


def run(
    connection: HostConnection, command: str = "true", timeout_s: float = 5
) -> asyncio.Task[object]:
    return asyncio.create_task(connection.execute("a", ExecRequest(command, timeout_s=timeout_s)))


async def test_answers_find_their_requests_in_any_order(scripted: Scripted) -> None:
    connection, host = scripted
    tasks = [run(connection, str(number)) for number in range(5)]
    asked = [await host.requests.get() for _ in tasks]
    for frame in reversed(asked):
        await host.answer(frame, ANSWER % int(frame.body))
    results = await asyncio.gather(*tasks)
    assert [result.exit_code for result in results if isinstance(result, ExecResult)] == [
        0,
        1,
        2,
        3,
        4,
    ]
    assert not connection._futures


async def test_requests_of_one_turn_of_the_loop_leave_in_one_piece(
    scripted: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    connection, host = scripted
    written: list[bytes] = []
    write = connection._write_now

    def record(data: bytes) -> None:
        written.append(data)
        write(data)

    monkeypatch.setattr(connection, "_write_now", record)
    tasks = [run(connection) for _ in range(20)]
    for _ in tasks:
        await host.answer(await host.requests.get(), ANSWER % 0)
    await asyncio.gather(*tasks)
    assert len(written) == 1


async def test_the_hosts_word_on_memory_makes_it_out_of_memory(scripted: Scripted) -> None:
    connection, host = scripted
    task = run(connection)
    await host.answer(await host.requests.get(), ANSWER % 137, flags=frames.WAS_OOM)
    result = await task
    assert isinstance(result, ExecResult)
    assert result.status is ExecStatus.OUT_OF_MEMORY


async def test_no_answer_in_deadline_and_grace_is_a_timeout_that_withdraws_the_request(
    scripted: Scripted,
) -> None:
    connection, host = scripted
    with pytest.raises(SandboxTimeoutError, match="no answer"):
        await run(connection, timeout_s=0.05)
    asked = await host.requests.get()
    await connection.ping()
    assert host.seen[-2].kind == frames.CANCEL
    assert host.seen[-2].request_id == asked.request_id
    await host.answer(asked, ANSWER % 0)
    await connection.ping()
    assert not connection._futures


async def test_the_deadline_of_a_request_counts_from_the_end_of_those_before_it(
    scripted: Scripted,
) -> None:
    connection, host = scripted
    first, second = run(connection, timeout_s=WITHIN_S), run(connection, timeout_s=1.0)
    asked = [await host.requests.get() for _ in range(2)]
    await asyncio.sleep(1.3)  # longer than the second's deadline and grace
    for frame in asked:
        await host.answer(frame, ANSWER % 0)
    await asyncio.gather(first, second)


async def test_cancelling_withdraws_the_request_and_forgets_it(scripted: Scripted) -> None:
    connection, host = scripted
    task = run(connection)
    asked = await host.requests.get()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await connection.ping()
    assert frames.CANCEL in host.kinds()
    assert not connection._futures
    await host.answer(asked, ANSWER % 0)
    await connection.ping()


async def test_a_lost_slot_fails_its_requests_and_calls_back_once(scripted: Scripted) -> None:
    connection, host = scripted
    lost: list[tuple[str, SlotLostError]] = []
    connection.on_slot_lost(lambda slot, error: lost.append((slot, error)))
    task = run(connection)
    asked = await host.requests.get()
    notice = frames.encode(frames.SLOT_LOST, channel=asked.channel, header=b'{"reason":"it died"}')
    await host.send(notice + notice)
    with pytest.raises(SlotLostError, match="it died"):
        await task
    assert [(slot, str(error)) for slot, error in lost] == [("a", "slot a is gone: it died")]
    with pytest.raises(SlotLostError):
        await run(connection)


@pytest.mark.parametrize(
    "fault",
    [
        lambda host: host.stream.shutdown(socket.SHUT_RDWR),
        lambda host: host.stream.send(b"x" * 100),
        lambda host: host.stream.send(frames.encode(frames.CLOSING, header=b'{"reason":"bye"}')),
        lambda host: host.stream.send(frames.encode(frames.READY)),
        lambda host: host.stream.send(frames.encode(frames.CLOSING, header=b"no json")),
    ],
    ids=["end of stream", "garbage", "goodbye", "misplaced frame", "broken header"],
)
async def test_a_lost_host_fails_everything_and_calls_back_once(
    scripted: Scripted, fault: Callable[[ScriptedHost], object]
) -> None:
    connection, host = scripted
    lost: list[str] = []
    connection.on_lost(lost.append)
    tasks = [run(connection), asyncio.create_task(connection.open_slot("b"))]
    await host.requests.get()
    fault(host)
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert isinstance(results[0], HostLostError)
    assert len(lost) == 1
    for attempt in (
        connection.ping(),
        connection.open_slot("c"),
        connection.execute("a", ReadRequest("f")),
    ):
        with pytest.raises(HostLostError):
            await attempt
    await connection.close_slot("a")


async def test_an_answer_that_makes_no_sense_loses_the_slot(scripted: Scripted) -> None:
    connection, host = scripted
    for nonsense in (b"", b"[]", b'{"status":"odd"}', b'{"failure":"odd","message":""}', b"\xff"):
        task = run(connection)
        await host.answer(await host.requests.get(), nonsense)
        with pytest.raises(SlotLostError):
            await task


async def test_a_host_that_takes_nothing_holds_requests_back_in_order(scripted: Scripted) -> None:
    connection, host = scripted
    big = b"x" * (4 << 20)
    connection.pause_writing()
    tasks = [
        asyncio.create_task(connection.execute("a", WriteRequest(str(number), big)))
        for number in range(4)
    ]
    await asyncio.sleep(0)
    assert len(connection._held_back) == 4
    tasks.pop(1).cancel()
    await asyncio.sleep(0.01)
    assert host.requests.empty()
    connection.resume_writing()
    paths = []
    for _ in tasks:
        frame = await host.requests.get()
        paths.append(json.loads(frame.header)["path"])
        await host.answer(frame, b'{"written":1}')
    await asyncio.gather(*tasks)
    assert paths == ["0", "2", "3"]


async def test_closing_is_said_and_done_once(scripted: Scripted) -> None:
    connection, host = scripted
    lost: list[str] = []
    connection.on_lost(lost.append)
    await asyncio.gather(connection.close(), connection.close())
    await connection.close()
    assert host.kinds().count(frames.SHUTDOWN) == 1
    assert lost == []


@pytest.mark.parametrize("answer", [frames.FAILED, None], ids=["refusal", "silence"])
async def test_a_greeting_that_is_not_accepted_is_a_failed_start(answer: int | None) -> None:
    ours, theirs = socket.socketpair()
    host = ScriptedHost(theirs)
    header = b'{"message":"no bubblewrap here"}'
    host.greeting = frames.encode(answer, request_id=1, header=header) if answer else b""
    server = asyncio.create_task(host.serve())
    with pytest.raises(HostStartError, match="no bubblewrap here" if answer else "no answer"):
        await connect_host(ours, "h", HostSettings(run_id="t"), timeout_s=0.1)
    await asyncio.wait_for(asyncio.gather(server, return_exceptions=True), WITHIN_S)
    theirs.close()


@pytest.mark.parametrize(
    ("attempt", "kind"),
    [
        (ExecRequest("x", timeout_s=float("nan")), "bad_request"),
        (ExecRequest("\ud800"), "bad_request"),
        (ExecRequest("x", env={"A": "\ud800"}), "bad_request"),
        (WriteRequest("f", bytes(frames.MAX_BODY + 1)), "too_large"),
        (ReadRequest("x" * frames.MAX_HEADER), "too_large"),
    ],
    ids=["deadline", "command", "environment", "body", "header"],
)
async def test_what_cannot_be_sent_is_refused_on_the_spot(
    scripted: Scripted, attempt: ExecRequest, kind: str
) -> None:
    connection, host = scripted
    result = await connection.execute("a", attempt)
    assert isinstance(result, OpFailure)
    assert result.kind == kind
    assert frames.REQUEST not in host.kinds()


async def test_a_slot_can_be_opened_only_once_at_a_time(scripted: Scripted) -> None:
    connection, _ = scripted
    with pytest.raises(ValueError, match="open already"):
        await connection.open_slot("a")
    await connection.close_slot("a")
    await connection.open_slot("a")
    assert connection.workspace_dir("a") == "/w"
