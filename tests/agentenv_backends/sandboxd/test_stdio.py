"""A server behind two pipes, as under `docker exec -i`: spoken to in raw frames."""

from __future__ import annotations

import json
import os
import select
import shutil
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest

from agentenv_backends.sandboxd import frames
from agentenv_backends.sandboxd.settings import HostSettings
from agentenv_backends.sandboxd.slot_processes import descendants_of
from tests.agentenv_backends.sandboxd.harness import all_gone, owner

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.sandbox


class PipedServer:
    """A server and the two pipes to it."""

    def __init__(self, pyz: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-I", "-S", str(pyz), "--stdio"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
        )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self._to, self._from = self.process.stdin, self.process.stdout
        self._reader = frames.FrameReader()
        self._waiting: list[frames.Frame] = []
        self._request_id = 0

    def send(self, kind: int, channel: int = 0, body: bytes = b"", **header: Any) -> int:
        self._request_id += 1
        data = frames.encode(
            kind,
            channel=channel,
            request_id=self._request_id,
            header=json.dumps(header).encode(),
            body=body,
        )
        self._to.write(data)
        return self._request_id

    def command(self, command: bytes, max_bytes: int = 1000) -> int:
        return self.send(frames.REQUEST, 1, command, op="exec", timeout=30.0, max=max_bytes)

    def receive(self, timeout_s: float = 10.0) -> frames.Frame:
        end = time.monotonic() + timeout_s
        while not self._waiting:
            ready, _, _ = select.select([self._from], [], [], max(0.0, end - time.monotonic()))
            assert ready, "the server says nothing"
            data = os.read(self._from.fileno(), 1 << 16)
            assert data, "the server's stream has ended"
            self._waiting += self._reader.feed(data)
        return self._waiting.pop(0)

    def ask(self, kind: int, channel: int = 0, **header: Any) -> frames.Frame:
        request_id = self.send(kind, channel, **header)
        answer = self.receive()
        assert answer.request_id == request_id
        return answer

    def greet(self, **settings: Any) -> None:
        values = {"run_id": "pipes", "isolation": "none", **settings}
        answer = self.ask(frames.HELLO, **HostSettings(**values).to_json())
        assert answer.kind == frames.REPLY, answer.header

    def hang_up(self) -> None:
        self._to.close()

    def stop_listening(self) -> None:
        self._from.close()


@pytest.fixture
def server(pyz: Path) -> Iterator[PipedServer]:
    server = PipedServer(pyz)
    with server.process:  # closes the pipes
        yield server
        server.process.kill()


def test_slots_open_run_and_close_over_pipes(server: PipedServer) -> None:
    server.greet()
    opened = server.ask(frames.OPEN, 1, slot="a")
    assert "workspace" in json.loads(opened.header)
    server.command(b"echo out; echo err >&2; cat")
    assert server.receive().body == b"out\nerr\n"
    assert server.ask(frames.CLOSE, 1).kind == frames.REPLY
    assert server.ask(frames.SHUTDOWN).kind == frames.REPLY
    assert server.process.wait(10) == 0
    assert server.process.stderr is not None
    assert server.process.stderr.read() == b""


def test_answers_larger_than_a_pipe_arrive_whole(server: PipedServer) -> None:
    server.greet()
    server.ask(frames.OPEN, 1, slot="a")
    for _ in range(3):
        server.command(b"head -c 8M /dev/zero", 8 << 20)
        assert server.receive().body == bytes(8 << 20)


def test_a_driver_that_does_not_read_stops_nothing_but_its_own_answers(server: PipedServer) -> None:
    server.greet()
    server.ask(frames.OPEN, 1, slot="a")
    commands = [server.command(b"head -c 8M /dev/zero", 8 << 20) for _ in range(8)]
    pings = [server.send(frames.PING) for _ in range(100)]
    seen = [server.receive() for _ in range(108)]
    assert [f.request_id for f in seen if f.channel] == commands
    assert [f.request_id for f in seen if not f.channel] == pings
    assert all(len(f.body) == 8 << 20 for f in seen if f.channel)


@pytest.mark.parametrize("goes", ["hang_up", "stop_listening"])
async def test_the_server_ends_with_either_of_its_pipes(server: PipedServer, goes: str) -> None:
    server.greet()
    server.ask(frames.OPEN, 1, slot="a")
    server.command(b"sleep 1000")
    family = [owner(pid) for pid in (server.process.pid, *descendants_of(server.process.pid))]
    getattr(server, goes)()
    assert await all_gone(family)


@pytest.mark.parametrize("isolation", ["none", "bubblewrap"])
def test_an_open_stream_that_says_nothing_is_no_reason_to_live(
    server: PipedServer, isolation: str
) -> None:
    if isolation == "bubblewrap" and shutil.which("bwrap") is None:
        pytest.skip("bubblewrap is not installed")
    server.greet(lease_s=1.0, isolation=isolation)
    server.ask(frames.OPEN, 1, slot="a")
    server.command(b"sleep 1000")
    lost, closing = (server.receive() for _ in range(2))
    assert (lost.kind, closing.kind) == (frames.SLOT_LOST, frames.CLOSING)
    assert "nothing heard from the driver for 1 s" in json.loads(closing.header)["reason"]
    assert server.process.wait(10) == 0


def test_a_lifetime_is_an_end_however_often_the_driver_is_heard_of(server: PipedServer) -> None:
    server.greet(lease_s=60.0, max_lifetime_s=1.0)
    server.ask(frames.OPEN, 1, slot="a")
    server.command(b"sleep 1000")
    while (frame := server.receive()).kind != frames.CLOSING:
        if frame.kind == frames.REPLY:
            server.send(frames.PING)
    assert "its lifetime of 1 s is over" in json.loads(frame.header)["reason"]
    assert server.process.wait(10) == 0
