"""What is in memory and what the database tells after a restart are the same, whatever happened before."""

import random
from pathlib import Path

import pytest

from agentenv.api.codec import PackedGroup
from agentenv.api.leases import Batch
from agentenv.api.refusals import LostLeaseError, UnknownBatchError
from agentenv.api.registry import EnvRegistration, TrainerRegistration
from agentenv.api.state import Change, ServerState
from agentenv.api.store import Store
from tests.agentenv.api.groups import REGISTRATION, env_registration

OPERATIONS = 150


class Life:
    """Random requests to one state."""

    def __init__(self, state: ServerState, draw: random.Random) -> None:
        self.state = state
        self.draw = draw
        self.now = 1_000.0
        self.sent: list[Batch] = []

    def step(self) -> Change:
        self.now += self.draw.random() * 10
        choice = self.draw.choice
        return choice(
            [self.register, self.register_env, self.env]
            + [self.post] * 8
            + [self.take] * 4
            + [self.acknowledge] * 3
            + [self.send] * 2
            + ([self.state.reset] if self.draw.random() < 0.1 else [])
        )()

    def register(self) -> Change:
        return self.state.register(TrainerRegistration(**REGISTRATION))[1]

    def register_env(self) -> Change:
        size = self.draw.choice([1, 2, 4])
        minimum = self.draw.choice([None, 0.25, 0.5])
        given = env_registration(group_size=size, min_batch_allocation=minimum)
        return self.state.register_env(EnvRegistration(**given))[1]

    def env(self) -> Change:
        envs = self.state.registry.envs
        if not envs:
            return Change()
        env = self.draw.choice(envs)
        changes = [
            lambda: self.state.env_status(env, 0.0)[1],
            lambda: self.state.expire(env),
            lambda: self.state.set_connected(env, connected=self.draw.random() < 0.7),
            lambda: self.state.pause_until(self.draw.choice([0.0, 1.0])),
        ]
        return self.draw.choice(changes)()

    def post(self) -> Change:
        groups = [
            PackedGroup(
                b"x" * self.draw.randrange(1, 9),
                self.draw.choice([1, 2, 3, 4, 8]),
                self.draw.choice([None, 0, 1, 7]),
                self.draw.choice([None, self.state.registry.step - self.draw.randrange(3)]),
                self.draw.choice([None, f"g{self.draw.randrange(40)}"]),
            )
            for _ in range(self.draw.randrange(1, 4))
        ]
        return self.state.put_groups(groups)[1]

    def take(self) -> Change:
        consumer = self.draw.choice([None, "a", "b"])
        staleness = self.draw.choice([None, 1])
        batch, change = self.state.take_batch(consumer, self.now, 20.0, staleness)
        if batch is not None and consumer is None:
            self.sent.append(batch)
        return change

    def acknowledge(self) -> Change:
        known = [batch.batch_id for batch in self.state.leases.open] or [1]
        try:
            return self.state.acknowledge(self.draw.choice(known), self.draw.choice(["a", "b"]))
        except (LostLeaseError, UnknownBatchError):
            return Change()

    def send(self) -> Change:
        if not self.sent:
            return Change()
        batch = self.sent.pop()
        whole = self.draw.random() < 0.7
        return self.state.delivered(batch) if whole else self.state.undelivered(batch)


def told(state: ServerState) -> dict[str, object]:
    status = state.status(0.0)
    del status["counts"]
    for lease in status["leases"]:
        if lease["consumer"] is None:
            lease["deadline"] = 0.0  # after a restart nobody is under way
    return status


def taken_to_the_end(state: ServerState) -> list[list[int]]:
    """The groups of all batches there are to come."""
    batches: list[list[int]] = []
    while True:
        batch, _ = state.take_batch(f"c{len(batches)}", 1e9, 1e9, None)
        if batch is None:
            return batches
        batches.append([entry.seq for entry in batch.entries])


@pytest.mark.parametrize("seed", range(12))
async def test_a_restart_finds_what_there_was(tmp_path: Path, seed: int):
    draw = random.Random(seed)
    store = Store(tmp_path / "a.db")
    store.open()
    state = store.load()
    life = Life(state, draw)
    for number in range(OPERATIONS):
        await store.submit(life.step().statements)
        if number % 30 == 29:
            loaded = store.load()
            assert told(loaded) == told(state)
            assert loaded.answers == state.answers
            for known in ("groups", "batches", "dropped_by_reset"):
                assert loaded.counts[known] == state.counts[known]
            assert loaded.next_batch_id == state.next_batch_id
            in_use = {entry.seq for batch in state.leases.open for entry in batch.entries}
            assert loaded.next_seq > max(in_use, default=0)
    loaded = store.load()
    await store.close()
    assert loaded.bytes == state.bytes
    assert taken_to_the_end(loaded) == taken_to_the_end(state)
