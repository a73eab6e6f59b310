"""The server as a process of its own, killed in the middle of its work."""

import asyncio
import os
import re
import signal
import sys
from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import TypeVar

import pytest

from agentenv.api.client import EnvironmentClient, TrainerClient, TrainerRegistration
from agentenv.errors import ApiRefusedError, ApiUnreachableError
from tests.agentenv.api.groups import REGISTRATION, make_group

pytestmark = pytest.mark.slow

T = TypeVar("T")

KILLS = 4
GROUPS = 120
DEADLINE_S = 120.0


class Server:
    """`agentenv api` on one port and one database, as often as it is started."""

    def __init__(self, data: Path) -> None:
        self.data = data
        self.port = 0
        self.process: asyncio.subprocess.Process | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def start(self) -> None:
        self.process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "agentenv", "api"),
            *("--port", str(self.port), "--data", str(self.data)),
            stdout=asyncio.subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        )
        assert self.process.stdout is not None
        line = (await self.process.stdout.readline()).decode()
        found = re.search(r"http://127\.0\.0\.1:(\d+)", line)
        assert found, line
        self.port = int(found[1])

    async def end(self, number: signal.Signals) -> int:
        assert self.process is not None
        self.process.send_signal(number)
        await self.process.communicate()
        assert self.process.returncode is not None
        return self.process.returncode


@asynccontextmanager
async def running(data: Path):
    server = Server(data)
    await server.start()
    try:
        yield server
    finally:
        if server.process is not None and server.process.returncode is None:
            await server.end(signal.SIGKILL)


async def until_taken(call: Callable[[], Awaitable[T]]) -> T:
    """Again and again, as a client does whose server is away."""
    while True:
        try:
            return await call()
        except ApiUnreachableError:
            await asyncio.sleep(0.02)


async def test_killed_again_and_again_it_hands_every_acknowledged_group_out_exactly_once(tmp_path):
    kept: set[int] = set()
    trained: list[int] = []

    async def send(url: str, first: int) -> None:
        async with EnvironmentClient(url) as client:
            for number in range(first, GROUPS, 2):
                group = make_group(2, 50, seed=number, group_id=f"g{number}")
                await until_taken(partial(client.send, [group]))
                kept.add(number)

    async def train(url: str, name: str) -> None:
        async with TrainerClient(url, consumer=name) as client:
            while len(trained) < GROUPS:
                batch = await until_taken(client.batch)
                if batch is None:
                    await asyncio.sleep(0.02)
                    continue
                assert batch.batch_id is not None
                try:
                    await until_taken(partial(client.acknowledge, batch.batch_id))
                except ApiRefusedError:
                    continue
                trained.extend(int(group.scores[0]) for group in batch.groups)

    async with running(tmp_path) as server, asyncio.timeout(DEADLINE_S):
        async with TrainerClient(server.url) as trainer:
            await trainer.register(TrainerRegistration(**REGISTRATION))
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(send(server.url, 0))
            tasks.create_task(send(server.url, 1))
            tasks.create_task(train(server.url, "a"))
            tasks.create_task(train(server.url, "b"))
            for kill in range(1, KILLS + 1):
                while len(kept) < kill * GROUPS // (KILLS + 2):
                    await asyncio.sleep(0.002)
                await server.end(signal.SIGKILL)
                await server.start()
        async with TrainerClient(server.url) as trainer:
            status = await trainer.status()
    assert sorted(trained) == sorted(kept) == list(range(GROUPS))
    assert status["current_step"] == GROUPS // 2
    assert (status["queue_size"], status["bytes"]) == (0, 0)


async def test_a_signal_ends_it_in_order(tmp_path):
    async with running(tmp_path) as server, asyncio.timeout(DEADLINE_S):
        async with EnvironmentClient(server.url) as client:
            await client.send([make_group()])
        assert await server.end(signal.SIGTERM) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["trajectories.db"]
