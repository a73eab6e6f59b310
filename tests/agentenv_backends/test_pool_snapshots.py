"""Snapshots through the pool, over fake hosts that really copy, in virtual time."""
# mypy: disable-error-code="no-untyped-call, union-attr"

import asyncio
import random

import pytest

from agentenv_backends.base import Capabilities, Snapshot
from agentenv_backends.errors import (
    BackendError,
    BackendStoppedError,
    CapabilityError,
    HostLostError,
    InfrastructureError,
    SandboxTimeoutError,
    SlotLostError,
    SlotStateError,
)
from agentenv_backends.requests import ExecRequest, ReadRequest, WriteRequest
from agentenv_backends.testing import FakeProvider, Faults, fake_pool, run_in_virtual_time
from tests.agentenv_backends.virtual_time import in_virtual_time


async def prepared(pool, content=b"prepared"):
    """A snapshot of a workspace that holds one file, and the slot it was made in."""
    source = await pool.acquire("set-up")
    await pool.execute(source, WriteRequest("file", content))
    return await pool.snapshot(source), source


async def content_of(pool, slot):
    return (await pool.execute(slot, ReadRequest("file"))).content


def snapshots_of(provider):
    return [name for host in provider.live.values() for name in host.snapshots.kept]


@in_virtual_time
async def test_members_start_from_the_snapshot_and_see_nobodys_writes():
    provider = FakeProvider()
    async with fake_pool(provider) as pool:
        snapshot, source = await prepared(pool)
        await pool.execute(source, WriteRequest("file", b"later"))
        first, second = await pool.acquire("a"), await pool.acquire("b")
        await pool.restore(first, snapshot)
        await pool.execute(first, WriteRequest("file", b"mine"))
        await pool.restore(second, snapshot)
        assert await content_of(pool, second) == b"prepared"
        await pool.drop_snapshot(snapshot)
        assert await content_of(pool, first) == b"mine"
        assert await content_of(pool, source) == b"later"
        assert snapshots_of(provider) == []


@in_virtual_time
async def test_a_snapshot_outlives_the_slot_it_was_made_in():
    async with fake_pool() as pool:
        snapshot, source = await prepared(pool)
        await pool.release(source)
        member = await pool.acquire("a")
        await pool.restore(member, snapshot)
        assert await content_of(pool, member) == b"prepared"


@in_virtual_time
async def test_only_a_slot_that_nothing_was_done_in_can_be_restored():
    async with fake_pool() as pool:
        snapshot, source = await prepared(pool)
        used = await pool.acquire("a")
        await pool.execute(used, ExecRequest("true"))
        fresh = await pool.acquire("b")
        await pool.restore(fresh, snapshot)
        for slot in (used, source, fresh):
            with pytest.raises(SlotStateError, match="used already"):
                await pool.restore(slot, snapshot)


@in_virtual_time
async def test_a_slot_that_is_not_held_can_neither_be_frozen_nor_restored():
    async with fake_pool() as pool:
        snapshot, source = await prepared(pool)
        await pool.release(source)
        with pytest.raises(SlotStateError, match="not held"):
            await pool.snapshot(source)
        with pytest.raises(SlotStateError, match="not held"):
            await pool.restore(source, snapshot)


@in_virtual_time
async def test_a_dropped_snapshot_and_a_foreign_one_are_refused_and_dropping_again_is_fine():
    async with fake_pool() as pool:
        snapshot, _ = await prepared(pool)
        await asyncio.gather(pool.drop_snapshot(snapshot), pool.drop_snapshot(snapshot))
        await pool.drop_snapshot(snapshot)
        slot = await pool.acquire("a")
        for unknown in (snapshot, Snapshot("made-up", slot.host_id)):
            with pytest.raises(SlotStateError, match="was dropped, or does not come from"):
                await pool.restore(slot, unknown)
        await pool.execute(slot, ExecRequest("true"))


@in_virtual_time
async def test_a_backend_without_snapshots_says_so():
    provider = FakeProvider(capabilities=Capabilities("none", False, False, False, False))
    async with fake_pool(provider) as pool:
        slot = await pool.acquire("a")
        with pytest.raises(CapabilityError):
            await pool.snapshot(slot)
        with pytest.raises(CapabilityError):
            await pool.restore(slot, Snapshot("x", slot.host_id))
        await pool.drop_snapshot(Snapshot("x", slot.host_id))


@in_virtual_time
async def test_a_slot_takes_no_requests_while_it_is_restored():
    provider = FakeProvider(faults=Faults(latency_s=(1.0, 1.0)))
    async with fake_pool(provider) as pool:
        snapshot, _ = await prepared(pool)
        member = await pool.acquire("a")
        restoring = asyncio.create_task(pool.restore(member, snapshot))
        await asyncio.sleep(0.5)
        with pytest.raises(SlotStateError, match="still being restored"):
            await pool.execute(member, ExecRequest("true"))
        with pytest.raises(SlotStateError, match="used already"):
            await pool.restore(member, snapshot)
        await restoring
        assert await content_of(pool, member) == b"prepared"


@in_virtual_time
async def test_a_snapshot_is_carried_to_another_host_once_however_many_want_it_there():
    provider = FakeProvider(faults=Faults(latency_s=(1.0, 1.0)))
    async with fake_pool(provider, slots=4, max_hosts=3, warm_slots=0) as pool:
        snapshot, _ = await prepared(pool)
        members = [await pool.acquire(f"t{number}") for number in range(10)]
        assert {slot.host_id for slot in members} == {"h1", "h2", "h3"}
        await asyncio.gather(*(pool.restore(slot, snapshot) for slot in members))
        assert [await content_of(pool, slot) for slot in members] == [b"prepared"] * 10
        name = snapshot.snapshot_id
        assert provider.live["h1"].transfers == [f"fetch {name}"]
        assert provider.live["h2"].transfers == [f"put {name}"]
        assert provider.live["h3"].transfers == [f"put {name}"]
        await pool.drop_snapshot(snapshot)
        assert snapshots_of(provider) == []


@in_virtual_time
async def test_a_snapshot_goes_with_its_host_and_says_so():
    provider = FakeProvider()
    async with fake_pool(provider, slots=1, max_hosts=2) as pool:
        snapshot, source = await prepared(pool)
        member = await pool.acquire("a")
        provider.live[source.host_id].lose()
        with pytest.raises(HostLostError, match="is gone with host h1"):
            await pool.restore(member, snapshot)
        # Nothing has happened to the member's own slot, nor to its host.
        await pool.execute(member, ExecRequest("true"))
        await pool.drop_snapshot(snapshot)


@in_virtual_time
async def test_a_copy_elsewhere_outlives_the_host_it_was_made_on():
    provider = FakeProvider()
    async with fake_pool(provider, slots=2, max_hosts=2, warm_slots=0) as pool:
        snapshot, source = await prepared(pool)
        await pool.acquire("full")
        member, late = await pool.acquire("a"), await pool.acquire("b")
        await pool.restore(member, snapshot)
        provider.live[source.host_id].lose()
        await pool.restore(late, snapshot)
        assert await content_of(pool, late) == b"prepared"


@in_virtual_time
async def test_a_host_that_dies_under_a_restore_fails_it():
    provider = FakeProvider(faults=Faults(latency_s=(1.0, 1.0)))
    async with fake_pool(provider) as pool:
        snapshot, _ = await prepared(pool)
        member = await pool.acquire("a")
        restoring = asyncio.create_task(pool.restore(member, snapshot))
        await asyncio.sleep(0.5)
        provider.live["h1"].lose()
        with pytest.raises(HostLostError):
            await restoring
        await pool.release(member)


@in_virtual_time
async def test_a_host_that_dies_while_its_snapshot_is_fetched_costs_the_other_host_nothing():
    provider = FakeProvider(faults=Faults(latency_s=(1.0, 1.0)))
    async with fake_pool(provider, slots=1, max_hosts=2) as pool:
        snapshot, source = await prepared(pool)
        member = await pool.acquire("a")
        restoring = asyncio.create_task(pool.restore(member, snapshot))
        await asyncio.sleep(0.5)
        provider.live[source.host_id].lose()
        with pytest.raises(HostLostError):
            await restoring
        assert member.host_id in provider.live
        await pool.execute(member, ExecRequest("true"))


@in_virtual_time
async def test_dropping_waits_for_the_restores_under_way_and_refuses_later_ones():
    provider = FakeProvider(faults=Faults(latency_s=(1.0, 1.0)))
    async with fake_pool(provider) as pool:
        snapshot, _ = await prepared(pool)
        member, late = await pool.acquire("a"), await pool.acquire("b")
        restoring = asyncio.create_task(pool.restore(member, snapshot))
        await asyncio.sleep(0.5)
        dropping = asyncio.create_task(pool.drop_snapshot(snapshot))
        await asyncio.sleep(0)
        with pytest.raises(SlotStateError):
            await pool.restore(late, snapshot)
        await dropping
        assert restoring.done()
        assert snapshots_of(provider) == []
        assert await content_of(pool, member) == b"prepared"


@in_virtual_time
async def test_a_drop_that_is_cancelled_goes_on():
    provider = FakeProvider(faults=Faults(latency_s=(1.0, 1.0)))
    async with fake_pool(provider) as pool:
        snapshot, _ = await prepared(pool)
        dropping = asyncio.create_task(pool.drop_snapshot(snapshot))
        await asyncio.sleep(0.5)
        dropping.cancel()
        await asyncio.sleep(5)
        assert snapshots_of(provider) == []


@in_virtual_time
async def test_a_snapshot_that_is_cancelled_or_fails_is_let_go():
    provider = FakeProvider(faults=Faults(latency_s=(1.0, 1.0)))
    async with fake_pool(provider) as pool:
        slot = await pool.acquire("a")
        taking = asyncio.create_task(pool.snapshot(slot))
        await asyncio.sleep(0.5)
        assert len(snapshots_of(provider)) == 1
        taking.cancel()
        await asyncio.sleep(5)
        assert snapshots_of(provider) == []
        await pool.snapshot(slot)
        assert len(snapshots_of(provider)) == 1


@in_virtual_time
async def test_a_slot_whose_restore_was_cut_short_takes_no_requests():
    provider = FakeProvider(faults=Faults(latency_s=(1.0, 1.0)))
    async with fake_pool(provider, slots=2) as pool:
        snapshot, source = await prepared(pool)
        await pool.release(source)
        member = await pool.acquire("a")
        restoring = asyncio.create_task(pool.restore(member, snapshot))
        await asyncio.sleep(0.5)
        restoring.cancel()
        await asyncio.wait({restoring})
        with pytest.raises(SlotLostError, match="not restored to its end"):
            await pool.execute(member, ReadRequest("file"))
        await pool.release(member)
        again = await pool.acquire("b")
        await pool.restore(again, snapshot)
        assert await content_of(pool, again) == b"prepared"


@in_virtual_time
async def test_a_restore_whose_slot_is_released_ends():
    provider = FakeProvider(faults=Faults(latency_s=(1.0, 1.0)))
    async with fake_pool(provider) as pool:
        snapshot, _ = await prepared(pool)
        member = await pool.acquire("a")
        restoring = asyncio.create_task(pool.restore(member, snapshot))
        await asyncio.sleep(0.5)
        await pool.release(member)
        with pytest.raises(SlotLostError, match="released while"):
            await restoring


@in_virtual_time
async def test_steps_that_never_end_are_bounded():
    provider = FakeProvider()
    async with fake_pool(provider, slots=1, max_hosts=2, snapshot_timeout_s=7) as pool:
        snapshot, _ = await prepared(pool)
        member = await pool.acquire("a")
        provider.faults = Faults(snapshot_hangs=1.0)
        with pytest.raises(SandboxTimeoutError, match="fetching a snapshot took more than 7 s"):
            await pool.restore(member, snapshot)
        await pool.drop_snapshot(snapshot)
        slot = await pool.acquire("b", timeout_s=1) if pool.stats().available_slots else member
        with pytest.raises(SandboxTimeoutError, match="taking a snapshot"):
            await pool.snapshot(slot)


@in_virtual_time
async def test_an_idle_host_is_kept_for_the_snapshot_on_it():
    provider = FakeProvider()
    async with fake_pool(provider, slots=1, max_hosts=2, warm_slots=0) as pool:
        first = await pool.acquire("first")
        _, source = await prepared(pool)
        await pool.release(first)
        await pool.release(source)
        await asyncio.sleep(1000)
        assert list(provider.live) == [source.host_id] == ["h2"], "the younger one would have gone"


@in_virtual_time
async def test_where_hosts_are_for_a_single_use_a_snapshot_outlives_its_host():
    provider = FakeProvider()
    async with fake_pool(provider, slots=1, max_hosts=9, single_use_hosts=True) as pool:
        snapshot, source = await prepared(pool)
        await pool.release(source)
        assert source.host_id not in provider.live
        members = [await pool.acquire(f"t{number}") for number in range(8)]
        await asyncio.gather(*(pool.restore(slot, snapshot) for slot in members))
        assert [await content_of(pool, slot) for slot in members] == [b"prepared"] * 8


@in_virtual_time
async def test_stopping_ends_restores_and_forgets_snapshots():
    provider = FakeProvider(faults=Faults(latency_s=(1.0, 1.0)))
    pool = fake_pool(provider, slots=1, max_hosts=2)
    await pool.start()
    snapshot, _ = await prepared(pool)
    member = await pool.acquire("a")
    restoring = asyncio.create_task(pool.restore(member, snapshot))
    await asyncio.sleep(0.5)
    await pool.stop()
    with pytest.raises((HostLostError, BackendStoppedError)):
        await restoring
    await pool.drop_snapshot(snapshot)
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_archives_beyond_what_is_kept_in_memory_lie_in_files_without_a_name(
    tmp_path, monkeypatch
):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    async with fake_pool(
        FakeProvider(), slots=1, max_hosts=4, single_use_hosts=True, archive_memory_bytes=10
    ) as pool:
        snapshot, source = await prepared(pool, b"x" * 1000)
        await pool.release(source)
        assert list(tmp_path.iterdir()) == []
        member = await pool.acquire("a")
        await pool.restore(member, snapshot)
        assert await content_of(pool, member) == b"x" * 1000
        await pool.drop_snapshot(snapshot)


# --- Seeded faults -------------------------------------------------------------------------------


class Run:
    """Groups that share a snapshot each, on a pool in which anything may fail, hang or be cancelled."""

    def __init__(self, seed):
        self.chance = random.Random(-seed - 1)
        self.provider = FakeProvider(faults=self.draw_faults(seed))
        single_use = self.chance.random() < 0.3
        self.pool = fake_pool(
            self.provider,
            slots=1 if single_use else self.chance.randint(1, 4),
            max_hosts=self.chance.randint(1, 4),
            warm_slots=self.chance.randint(0, 3),
            single_use_hosts=single_use,
            acquire_timeout_s=120,
            launch_timeout_s=10,
            snapshot_timeout_s=20,
        )
        self.outcomes = []

    def draw_faults(self, seed):
        def rare(at_most):
            return self.chance.choice((0.0, 0.0, at_most * self.chance.random()))

        return Faults(
            seed=seed,
            snapshot_fails=rare(0.2),
            snapshot_hangs=rare(0.05),
            slot_lost=rare(0.05),
            host_lost=rare(0.05),
            host_freezes=rare(0.01),
            close_fails=rare(0.1),
            latency_s=(0.0, self.chance.choice((0.0, 0.05, 1.0))),
        )

    async def group(self, number):
        mine = f"group {number}".encode()
        source = await self.pool.acquire(f"set-up {number}")
        try:
            await self.pool.execute(source, WriteRequest("file", mine))
            snapshot = await self.pool.snapshot(source)
        finally:
            await self.pool.release(source, reset_workspace=False)
        try:
            await asyncio.gather(
                *(self.attempt(self.member(f"{number}-{n}", snapshot, mine)) for n in range(4))
            )
        finally:
            await self.pool.drop_snapshot(snapshot)

    async def member(self, name, snapshot, content):
        slot = await self.pool.acquire(name)
        try:
            await self.pool.restore(slot, snapshot)
            assert await content_of(self.pool, slot) == content, "somebody else's writes"
            await self.pool.execute(slot, WriteRequest("file", name.encode()))
            await self.pool.execute(slot, ExecRequest("sleep 1", timeout_s=5))
            assert await content_of(self.pool, slot) == name.encode(), "somebody else's writes"
        finally:
            await self.pool.release(slot, reset_workspace=False)

    async def attempt(self, work):
        try:
            await work
        except InfrastructureError as error:
            self.outcomes.append(type(error).__name__)
        except asyncio.CancelledError:
            self.outcomes.append("cancelled")
            raise
        else:
            self.outcomes.append("done")

    async def main(self):
        before = asyncio.all_tasks()
        try:
            await self.pool.start()
        except BackendError:
            return
        tasks = [asyncio.create_task(self.attempt(self.group(number))) for number in range(4)]
        for task in tasks:
            if self.chance.random() < 0.3:
                delay = self.chance.choice((0.0, 0.5, 3.0))
                asyncio.get_running_loop().call_later(delay, task.cancel)
        _, pending = await asyncio.wait(tasks, timeout=2_000)
        assert not pending, "a group hangs"
        for task in tasks:
            if not task.cancelled():
                task.result()
        self.provider.faults = Faults()
        await asyncio.sleep(300)  # what was cancelled is let go in the background
        self.check_nothing_is_kept()
        await self.pool.stop()
        await asyncio.sleep(0)
        assert asyncio.all_tasks() <= before, "a task was left behind"
        assert not self.provider.live

    def check_nothing_is_kept(self):
        shelf = self.pool._shelf
        assert not shelf._kept
        assert not shelf._going
        fleet = self.pool._scheduler._fleet
        assert not any(host.pins for host in fleet.live() if host.host_id not in self.refused)
        assert self.pool.stats().acquired_slots == 0

    @property
    def refused(self):
        """Hosts that were told to drop a snapshot again and again, and did not."""
        return {host_id for host_id, host in self.provider.live.items() if host.snapshots.kept}


def run_schedule(seed):
    run = Run(seed)
    try:
        run_in_virtual_time(asyncio.wait_for(run.main(), timeout=100_000))
    except Exception as error:
        raise AssertionError(f"seed {seed}: {error!r}") from error
    return run.outcomes


def test_three_hundred_fault_schedules_leak_no_snapshot_and_mix_no_workspaces():
    outcomes = [outcome for seed in range(300) for outcome in run_schedule(seed)]
    assert {"done", "cancelled", "SlotLostError", "HostLostError", "SandboxTimeoutError"} <= set(
        outcomes
    )
    assert outcomes.count("done") > len(outcomes) / 3


@pytest.mark.slow
def test_a_thousand_more_do_so_too():
    for seed in range(300, 1_300):
        run_schedule(seed)
