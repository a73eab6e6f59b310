"""Groups and batches while the trajectory server is killed and connections break: none is lost, none comes twice."""

import asyncio
import random
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import pytest

from agentenv.api.client import (
    EnvironmentClient,
    EnvRegistration,
    TrainerClient,
    TrainerRegistration,
)
from agentenv.errors import ApiUnreachableError
from tests.faults.cutting_proxy import Cut, CuttingProxy, cutting_proxy
from tests.faults.trajectory_ledger import Ledger, marked_group, marks_of
from tests.interop.servers import AgentEnvServer
from tests.waiting import eventually

pytestmark = pytest.mark.slow
GROUPS, ENVIRONMENTS, TRAINERS, KILLS = 1_000, 4, 2, 10
ROWS, BATCH_ROWS = 2, 20
CUT_SHARE, REPEAT_SHARE, CRASH_SHARE = 0.05, 0.05, 0.1
SEED = 20
_WITHIN_S, _PAUSE_S = 480.0, 0.02
T = TypeVar("T")


async def until_reached(ask: Callable[[], Awaitable[T]]) -> T:
    """What `ask` gives, however often the server is away."""
    while True:
        try:
            return await ask()
        except ApiUnreachableError:
            await asyncio.sleep(_PAUSE_S)


class Side:
    """What both sides need: where the server is, the ledger, and luck of their own."""

    def __init__(self, url: str, ledger: Ledger, name: str) -> None:
        self.url = url
        self.ledger = ledger
        self.name = name
        self.draw = random.Random(f"{SEED} {name}")


async def environment(side: Side, marks: range) -> None:
    """Send one group for each mark, and some of them again."""
    client = EnvironmentClient(side.url)
    try:
        env_id = await registered(client, side.name)
        for mark in marks:
            times = 2 if side.draw.random() < REPEAT_SHARE else 1
            for _ in range(times):
                await sent(client, env_id, mark)
                side.ledger.promised.add(mark)
    finally:
        await client.close()


async def registered(client: EnvironmentClient, name: str) -> int:
    """The id under which the server knows the environment."""
    registration = EnvRegistration(
        max_token_length=64, desired_name=name, weight=1.0, group_size=ROWS
    )
    while True:
        answer = await until_reached(lambda: client.register(registration))
        if answer is not None:
            return answer.env_id
        await asyncio.sleep(_PAUSE_S)


async def sent(client: EnvironmentClient, env_id: int, mark: int) -> None:
    """Return when the server has promised the group."""
    group: Any = marked_group(mark, env_id, ROWS)
    await until_reached(lambda: client.send([group]))


async def trainer(side: Side) -> None:
    """Take batches and acknowledge them, but for those before which it crashes: it comes back under its name."""
    registration = TrainerRegistration(
        wandb_group="g",
        wandb_project="p",
        batch_size=BATCH_ROWS,
        max_token_len=64,
        checkpoint_dir="",
        save_checkpoint_interval=0,
        starting_step=0,
        num_steps=1_000,
    )
    client = TrainerClient(side.url, consumer=side.name)
    try:
        await until_reached(lambda: client.register(registration))
        while sum(map(len, side.ledger.done.values())) < GROUPS:
            batch = await until_reached(client.batch)
            if batch is None:
                await asyncio.sleep(_PAUSE_S)
                continue
            side.ledger.saw(batch.batch_id, marks_of(batch.scored_groups()))
            if side.draw.random() < CRASH_SHARE:
                await client.close()
                client = TrainerClient(side.url, consumer=side.name)
                continue
            batch_id = batch.batch_id
            assert batch_id is not None
            await until_reached(lambda: client.acknowledge(batch_id))  # noqa: B023 - awaited at once
            side.ledger.acknowledged(batch_id)
    finally:
        await client.close()


async def killer(server: AgentEnvServer, ledger: Ledger) -> None:
    """Kill the server at moments drawn over the whole of the work, and start it again."""
    draw = random.Random(SEED)
    for progress in sorted(draw.sample(range(50, 2 * GROUPS - 100), KILLS)):
        await eventually(
            lambda: ledger.progress >= progress,  # noqa: B023 - awaited at once
            lambda: f"progress {progress}, only {ledger.progress}: {server.log[-2000:]}",  # noqa: B023
            within_s=_WITHIN_S,
        )
        await asyncio.sleep(draw.uniform(0, 0.05))
        await asyncio.to_thread(server.kill)
        await asyncio.to_thread(server.start)


def address_of(server: AgentEnvServer) -> tuple[str, int]:
    """Where it listens now."""
    parts = urlsplit(server.url)
    assert parts.hostname is not None
    assert parts.port is not None
    return parts.hostname, parts.port


async def work(server: AgentEnvServer, proxy: CuttingProxy, ledger: Ledger) -> None:
    """All of it at once."""
    async with asyncio.timeout(_WITHIN_S), asyncio.TaskGroup() as group:
        for number in range(ENVIRONMENTS):
            marks = range(number, GROUPS, ENVIRONMENTS)
            group.create_task(environment(Side(proxy.url, ledger, f"env-{number}"), marks))
        for number in range(TRAINERS):
            group.create_task(trainer(Side(proxy.url, ledger, f"trainer-{number}")))
        group.create_task(killer(server, ledger))


async def test_every_group_reaches_exactly_one_trainer_through_kills_and_cut_connections(
    tmp_path: Path,
):
    ledger = Ledger()
    with AgentEnvServer(tmp_path) as server:
        async with cutting_proxy(lambda: address_of(server), share=CUT_SHARE, seed=SEED) as proxy:
            await work(server, proxy, ledger)
            client = TrainerClient(server.url, consumer="last")
            assert await client.batch() is None
            status = await client.status()
            await client.close()
    ledger.check(GROUPS)
    assert ledger.redelivered
    assert set(proxy.cuts) == set(Cut)
    assert status["queue_size"] == 0
    assert status["current_step"] == GROUPS * ROWS // BATCH_ROWS
