"""Snapshots that are found again under a key: in bounds, and never taken from under anybody."""

from agentenv_backends import _library
from agentenv_backends.pool import SlotPool
from agentenv_backends.requests import ExecRequest
from agentenv_backends.results import ExecResult
from agentenv_backends.testing import FakeProvider, fake_pool, run_in_virtual_time


async def _remember(pool: SlotPool, key: str) -> None:
    slot = await pool.acquire(key)
    await pool.execute(slot, ExecRequest(f"echo {key} > file", 5))
    snapshot = await pool.snapshot(slot)
    await pool.release(slot)
    await pool.remember_snapshot(key, snapshot, key.encode())
    await pool.drop_snapshot(snapshot)


async def _read(pool: SlotPool, key: str) -> str | None:
    """What a slot holds that starts from what is known under a key; None when nothing is."""
    known = await pool.recall_snapshot(key)
    if known is None:
        return None
    assert known.note == key.encode()
    slot = await pool.acquire("reader")
    await pool.restore(slot, known.snapshot)
    result = await pool.execute(slot, ExecRequest("cat file", 5))
    await pool.release(slot)
    await pool.drop_snapshot(known.snapshot)
    assert isinstance(result, ExecResult)
    return result.stdout.text().strip()


def _kept(provider: FakeProvider) -> int:
    return sum(len(host.snapshots.kept) for host in provider.live.values())


def test_what_is_remembered_is_found_after_its_maker_has_let_go() -> None:
    async def scenario() -> None:
        async with fake_pool() as pool:
            await _remember(pool, "a")
            assert await _read(pool, "a") == "a"
            assert await _read(pool, "a") == "a"
            assert await _read(pool, "b") is None

    run_in_virtual_time(scenario())


def test_those_not_asked_for_longest_go_first() -> None:
    async def scenario() -> None:
        provider = FakeProvider()
        async with fake_pool(provider) as pool:
            for number in range(_library.MOST_ENTRIES):
                await _remember(pool, f"k{number}")
            assert await _read(pool, "k0") == "k0"
            await _remember(pool, "more")
            assert await _read(pool, "k1") is None
            assert await _read(pool, "k0") == "k0"
            assert await _read(pool, "more") == "more"
            assert _kept(provider) <= _library.MOST_ENTRIES

    run_in_virtual_time(scenario())


def test_one_that_is_in_use_stays_however_many_come() -> None:
    async def scenario() -> None:
        provider = FakeProvider()
        async with fake_pool(provider) as pool:
            await _remember(pool, "held")
            held = await pool.recall_snapshot("held")
            assert held is not None
            for number in range(_library.MOST_ENTRIES + 5):
                await _remember(pool, f"k{number}")
            slot = await pool.acquire("late")
            await pool.restore(slot, held.snapshot)
            await pool.release(slot)
            await pool.drop_snapshot(held.snapshot)
            assert _kept(provider) <= _library.MOST_ENTRIES + 1

    run_in_virtual_time(scenario())
