"""Several pools as one backend."""

import pytest

from agentenv_backends.base import Capabilities
from agentenv_backends.errors import CapabilityError, HostLostError, HostStartError
from agentenv_backends.pool import SlotPool
from agentenv_backends.profiles import ProfiledPools
from agentenv_backends.requests import ExecRequest, ReadRequest, WriteRequest
from agentenv_backends.results import ReadResult
from agentenv_backends.settings import Limits, PoolSettings
from agentenv_backends.testing import FakeProvider, exec_result
from tests.agentenv_backends.virtual_time import in_virtual_time


def pools(**providers: FakeProvider) -> ProfiledPools:
    """A pool of two slots for each provider."""

    def pool(name: str, provider: FakeProvider) -> SlotPool:
        limits = Limits(slots_per_host=2, host_prefix=f"{name}-")
        return SlotPool(provider, PoolSettings(limits=limits))

    return ProfiledPools({name: pool(name, provider) for name, provider in providers.items()})


async def put(backend: ProfiledPools, slot, text: str) -> None:
    await backend.execute(slot, WriteRequest("file", text.encode()))


async def seen(backend: ProfiledPools, slot) -> bytes:
    answer = await backend.execute(slot, ReadRequest("file"))
    assert isinstance(answer, ReadResult)
    return answer.content


def test_a_slot_is_of_the_profile_that_was_asked_for_else_of_the_first():
    @in_virtual_time
    async def test():
        usual, big = FakeProvider(), FakeProvider()
        async with pools(default=usual, big=big) as backend:
            first = await backend.acquire("a")
            second = await backend.acquire("b", profile="big")
            third = await backend.acquire("c", profile="default")
            assert [slot.host_id for slot in (first, second, third)] == [
                "default-h1",
                "big-h1",
                "default-h1",
            ]
            for slot in (first, second, third):
                await put(backend, slot, slot.slot_id)
            assert await seen(backend, second) == second.slot_id.encode()
            stats = backend.stats()
            assert (stats.hosts, stats.total_slots, stats.acquired_slots) == (2, 4, 3)
            for slot in (first, second, third):
                await backend.release(slot)
        assert not usual.live
        assert not big.live

    test()


def test_a_profile_that_is_not_there_is_refused_by_name():
    @in_virtual_time
    async def test():
        async with pools(default=FakeProvider(), big=FakeProvider()) as backend:
            with pytest.raises(CapabilityError, match="no profile 'huge'; there is: default, big"):
                await backend.acquire("a", profile="huge")
        async with SlotPool(FakeProvider(), PoolSettings(limits=Limits(1))) as alone:
            with pytest.raises(CapabilityError, match="no profile 'big'"):
                await alone.acquire("a", profile="big")

    test()


def test_a_batch_may_go_to_all_of_them_and_answers_come_in_order():
    @in_virtual_time
    async def test():
        async with pools(default=FakeProvider(), big=FakeProvider()) as backend:
            slots = [await backend.acquire("a"), await backend.acquire("b", profile="big")]
            for slot in slots:
                await put(backend, slot, slot.slot_id)
            calls = [(slot, ReadRequest("file")) for slot in (slots[1], slots[0], slots[1])]
            answers = await backend.execute_batch(calls)
            expected = [slots[1].slot_id, slots[0].slot_id, slots[1].slot_id]
            assert [answer.content.decode() for answer in answers] == expected  # type: ignore[union-attr]

    test()


def test_snapshots_stay_within_their_profile():
    @in_virtual_time
    async def test():
        async with pools(default=FakeProvider(), big=FakeProvider()) as backend:
            made = await backend.acquire("a", profile="big")
            await put(backend, made, "prepared")
            snapshot = await backend.snapshot(made)
            same = await backend.acquire("b", profile="big")
            await backend.restore(same, snapshot)
            assert await seen(backend, same) == b"prepared"
            other = await backend.acquire("c")
            with pytest.raises(HostLostError, match="another profile"):
                await backend.restore(other, snapshot)
            await backend.remember_snapshot("key", snapshot, b"")
            assert await backend.recall_snapshot("key") is None
            await backend.drop_snapshot(snapshot)

    test()


def test_what_one_of_them_cannot_all_together_cannot():
    @in_virtual_time
    async def test():
        able = Capabilities("user", True, True, True, True, snapshot=True)
        unable = Capabilities("container", True, False, True, True)
        backend = pools(
            default=FakeProvider(capabilities=able), big=FakeProvider(capabilities=unable)
        )
        async with backend:
            assert backend.capabilities == Capabilities("user", True, False, True, True)

    test()


def test_when_one_of_them_does_not_start_none_is_left_running():
    @in_virtual_time
    async def test():
        usual, broken = FakeProvider(), FakeProvider()
        broken.fail_launches = [HostStartError("no such GPU")] * 10
        backend = pools(default=usual, big=broken)
        with pytest.raises(HostStartError, match="no such GPU"):
            await backend.start()
        assert not usual.live
        await backend.stop()

    test()


def test_commands_run_where_their_slot_is():
    @in_virtual_time
    async def test():
        ran = []

        def note(slot, request):
            ran.append(slot.slot_id)
            return exec_result()

        noting = FakeProvider(on_exec=note)
        async with pools(default=FakeProvider(), big=noting) as backend:
            slot = await backend.acquire("a", profile="big")
            await backend.execute(slot, ExecRequest("true"))
            assert ran == [slot.slot_id]

    test()
