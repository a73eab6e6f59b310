"""Groups on their way: in order, until the server has them."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agentenv.api.group import GroupError, WireGroup
from agentenv.errors import ApiRefusedError, ApiUnreachableError, UnknownEnvError
from agentenv.serve.outbox import Outbox, decode, encode
from agentenv.serve.spool import Spool
from tests.waiting import WITHIN_S


def group(name: str) -> dict[str, Any]:
    return {
        "tokens": [[1, 2, 3], [4, 5]],
        "masks": [[-100, 2, 3], [-100, 5]],
        "scores": [0.0, 1.0],
        "inference_logprobs": [[1.0, -0.5, -0.25], [1.0, -1.5]],
        "overrides": [{}, {"set_advantage_to_zero": True}],
        "group_id": name,
        "policy_version": 3,
    }


class Server:
    """Takes groups, after it has raised what it was told to, in turn."""

    def __init__(self, *errors: Exception, refuses: str | None = None) -> None:
        self.errors = list(errors)
        self.refuses = refuses
        self.took: list[str | None] = []
        self.calls: list[int] = []

    async def send(self, groups: Sequence[WireGroup]) -> None:
        self.calls.append(len(groups))
        if self.errors:
            raise self.errors.pop(0)
        if self.refuses in {held.group_id for held in groups}:
            raise ApiRefusedError("invalid", 422)
        self.took += [held.group_id for held in groups]


@asynccontextmanager
async def outbox_to(server: Server, path: Path, **options: Any) -> AsyncIterator[Outbox]:
    spool = await Spool.open(path, max_bytes=options.pop("max_bytes", 10**6))
    outbox = Outbox(spool, server.send, retry_s=0.001, **options)
    sending = asyncio.create_task(outbox.run())
    try:
        async with asyncio.timeout(WITHIN_S):
            yield outbox
    finally:
        sending.cancel()
        await asyncio.wait({sending})
        await spool.close()


def test_a_record_holds_the_whole_group():
    again = decode(encode(group("a")))
    assert again.lengths.tolist() == [3, 2]
    assert again.tokens.tolist() == [1, 2, 3, 4, 5]
    assert again.masks.tolist() == [-100, 2, 3, -100, 5]
    assert again.inference_logprobs is not None
    assert np.allclose(again.inference_logprobs, [1.0, -0.5, -0.25, 1.0, -1.5])
    assert (again.group_id, again.policy_version) == ("a", 3)


async def test_groups_arrive_in_the_order_they_were_put(tmp_path: Path):
    server = Server()
    async with outbox_to(server, tmp_path) as outbox:
        for name in "abcdefghijklmnopqrst":
            await outbox.put(group(name))
        await outbox.drained()
    assert "".join(str(name) for name in server.took) == "abcdefghijklmnopqrst"


@pytest.mark.parametrize(
    "error",
    [
        ApiUnreachableError("away"),
        ApiUnreachableError("full", 1.0, 503),
        UnknownEnvError("who?", 404),
        ApiRefusedError("the token has expired", 401),
    ],
)
async def test_what_is_not_the_groups_fault_costs_no_group(tmp_path: Path, error: Exception):
    server = Server(error, error)
    async with outbox_to(server, tmp_path) as outbox:
        await outbox.put(group("a"))
        await outbox.put(group("b"))
        await outbox.drained()
    assert server.took == ["a", "b"]


async def test_one_invalid_group_is_dropped_and_those_beside_it_are_not(tmp_path: Path):
    server = Server(ApiUnreachableError("not yet"), refuses="b")
    reasons: list[str] = []
    async with outbox_to(server, tmp_path, on_refused=reasons.append) as outbox:
        for name in "abc":
            await outbox.put(group(name))
        await outbox.drained()
    assert server.took == ["a", "c"]
    assert reasons == ["invalid"]


async def test_a_group_no_trainer_could_read_is_refused_at_once(tmp_path: Path):
    async with outbox_to(Server(), tmp_path) as outbox:
        with pytest.raises(GroupError, match="masks"):
            await outbox.put({**group("a"), "masks": [[1], [1]]})
        assert outbox.pending == 0


async def test_a_full_spool_makes_whoever_puts_wait_until_the_bound_is_lifted(tmp_path: Path):
    class Away(Server):
        async def send(self, groups: Sequence[WireGroup]) -> None:
            await asyncio.Event().wait()

    async with outbox_to(Away(), tmp_path, max_bytes=1) as outbox:
        await outbox.put(group("a"))
        second = asyncio.create_task(outbox.put(group("b")))
        done, _ = await asyncio.wait({second}, timeout=0.05)
        assert not done
        await outbox.lift_bound()
        await second
        assert outbox.pending == 2
