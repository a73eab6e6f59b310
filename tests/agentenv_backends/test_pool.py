"""The pool over fake hosts, in virtual time: no test here waits, whatever it sleeps."""
# mypy: disable-error-code="no-untyped-call, union-attr, attr-defined, method-assign"

import asyncio
import random

import pytest

from agentenv_backends.base import Slot, SlotState
from agentenv_backends.errors import (
    AcquireTimeoutError,
    BackendStoppedError,
    HostLostError,
    HostStartError,
    SandboxTimeoutError,
    SlotLostError,
    SlotStateError,
)
from agentenv_backends.requests import ExecRequest, ReadRequest, WriteRequest
from agentenv_backends.results import ExecStatus, FailureKind
from agentenv_backends.testing import (
    FakeProvider,
    Faults,
    exec_result,
    fake_pool,
)
from tests.agentenv_backends.virtual_time import in_virtual_time


def host_of(provider, slot):
    return provider.live[slot.host_id]


@in_virtual_time
async def test_a_command_runs_in_an_acquired_slot():
    async with fake_pool() as pool:
        slot = await pool.acquire("a")
        assert (slot.state, slot.trajectory_id) == (SlotState.ACQUIRED, "a")
        result = await pool.execute(slot, ExecRequest("echo hi"))
        assert result.stdout.text() == "hi\n"
        await pool.release(slot)
    assert pool.stats().acquired_slots == 0


@in_virtual_time
async def test_a_slot_handed_out_again_is_a_new_one_and_the_old_reference_is_dead():
    async with fake_pool(slots=1) as pool:
        first = await pool.acquire("a")
        await pool.execute(first, WriteRequest("left.txt", b"over"))
        await pool.release(first)
        second = await pool.acquire("b")
        assert second.slot_id != first.slot_id
        answer = await pool.execute(second, ReadRequest("left.txt"))
        assert answer.kind is FailureKind.NOT_FOUND
        with pytest.raises(SlotStateError, match="not held"):
            await pool.execute(first, ExecRequest("true"))
        with pytest.raises(SlotStateError, match="not held"):
            await pool.release(first)


@in_virtual_time
async def test_knowing_a_slots_name_is_not_holding_it():
    async with fake_pool() as pool:
        slot = await pool.acquire("a")
        forged = Slot(slot.slot_id, slot.host_id, state=SlotState.ACQUIRED, trajectory_id="a")
        with pytest.raises(SlotStateError):
            await pool.execute(forged, ExecRequest("true"))
        with pytest.raises(SlotStateError):
            await pool.release(forged)


@in_virtual_time
async def test_slots_go_to_those_who_wait_in_the_order_they_came():
    async with fake_pool(slots=1) as pool:
        order = []

        async def trajectory(name):
            slot = await pool.acquire(name)
            order.append(name)
            await asyncio.sleep(0.1)
            await pool.release(slot, reset_workspace=False)

        async with asyncio.TaskGroup() as group:
            for number in range(20):
                group.create_task(trajectory(f"t{number:02}"))
        assert order == [f"t{number:02}" for number in range(20)]


@in_virtual_time
async def test_a_newcomer_does_not_overtake_when_a_slot_comes_free():
    async with fake_pool(slots=1) as pool:
        held = await pool.acquire("holder")
        early = asyncio.create_task(pool.acquire("early"))
        await asyncio.sleep(0)
        await pool.release(held)
        late = asyncio.create_task(pool.acquire("late", timeout_s=1))
        assert (await early).trajectory_id == "early"
        with pytest.raises(AcquireTimeoutError):
            await late


@in_virtual_time
async def test_waiting_for_a_slot_ends_at_the_deadline_and_says_who_holds_them():
    async with fake_pool(slots=1) as pool:
        await pool.acquire("greedy")
        asyncio.create_task(pool.acquire("other", timeout_s=99)).add_done_callback(
            lambda task: task.cancelled() or task.exception()
        )
        with pytest.raises(AcquireTimeoutError) as caught:
            await pool.acquire("poor", timeout_s=2)
        message = str(caught.value)
        assert "poor within 2 s: 1 of 1 slots on 1 of at most 1 hosts" in message
        assert "by greedy" in message
        assert "also waiting: other" in message
        assert isinstance(caught.value, TimeoutError)
        assert pool.stats().waiting == 1


@in_virtual_time
async def test_a_cancelled_wait_gives_its_place_and_its_slot_back():
    async with fake_pool(slots=1) as pool:
        held = await pool.acquire("holder")
        waiting = asyncio.create_task(pool.acquire("cancelled"))
        await asyncio.sleep(0)
        waiting.cancel()
        await pool.release(held)
        granted_then_cancelled = asyncio.create_task(pool.acquire("too late"))
        await asyncio.sleep(0)
        while pool.stats().acquired_slots == 0:
            await asyncio.sleep(0)
        granted_then_cancelled.cancel()
        await asyncio.sleep(0)
        assert granted_then_cancelled.cancelled()
        slot = await pool.acquire("next", timeout_s=1)
        assert slot.trajectory_id == "next"


@in_virtual_time
async def test_more_hosts_are_started_when_slots_run_short_and_ended_when_idle():
    provider = FakeProvider(launch_s=3)
    async with fake_pool(provider, slots=2, max_hosts=3) as pool:
        slots = await asyncio.gather(*(pool.acquire(f"t{n}") for n in range(6)))
        assert pool.stats().hosts == 3
        with pytest.raises(AcquireTimeoutError):
            await pool.acquire("one too many", timeout_s=10)
        assert provider.launches == 3
        for slot in slots:
            await pool.release(slot)
        await asyncio.sleep(200)
        assert pool.stats().hosts == 1
        assert list(provider.live) == ["h1"]
    assert not provider.live


@in_virtual_time
async def test_slots_are_opened_one_ahead_and_kept():
    provider = FakeProvider()
    async with fake_pool(provider, slots=64) as pool:
        assert len(provider.live["h1"].slots) == 1
        slots = [await pool.acquire(f"t{n}") for n in range(5)]
        await asyncio.sleep(1)
        assert len(provider.live["h1"].slots) == 6
        for slot in slots:
            await pool.release(slot)
        await asyncio.sleep(1)
        assert len(provider.live["h1"].slots) == 6
        assert pool.stats().available_slots == 6


@in_virtual_time
async def test_acquiring_takes_no_time_while_warm_slots_are_left():
    provider = FakeProvider(faults=Faults(latency_s=(1.0, 1.0)))
    async with fake_pool(provider, slots=16, warm_slots=4) as pool:
        await asyncio.sleep(10)
        loop = asyncio.get_running_loop()
        for round_number in range(3):
            start = loop.time()
            for number in range(4):
                await pool.acquire(f"t{round_number}-{number}")
            assert loop.time() == start
            await asyncio.sleep(10)
        assert pool.counters().granted_at_once == 12


@in_virtual_time
async def test_a_host_for_a_single_use_is_gone_when_its_slot_was_released():
    provider = FakeProvider(faults=Faults(latency_s=(1.0, 1.0)))
    async with fake_pool(
        provider, slots=1, max_hosts=4, warm_slots=1, single_use_hosts=True
    ) as pool:
        await asyncio.sleep(10)
        for number in range(5):
            before = asyncio.get_running_loop().time()
            slot = await pool.acquire(f"t{number}")
            assert asyncio.get_running_loop().time() == before, "a host stands ready"
            await asyncio.sleep(10)
            assert len(provider.live) == 2
            await pool.release(slot)
            assert slot.host_id not in provider.live
        assert pool.stats().lost_hosts == 0
        assert provider.launches == 6
    assert not provider.live


@in_virtual_time
async def test_a_host_for_a_single_use_whose_slot_died_is_gone_too():
    provider = FakeProvider()
    async with fake_pool(provider, slots=1, max_hosts=2, single_use_hosts=True) as pool:
        slot = await pool.acquire("a")
        provider.live[slot.host_id].lose_slot(slot.slot_id)
        with pytest.raises(SlotLostError):
            await pool.execute(slot, ExecRequest("true"))
        await pool.release(slot)
        await asyncio.sleep(1)
        assert slot.host_id not in provider.live
        assert (await pool.acquire("b")).host_id != slot.host_id


@in_virtual_time
async def test_a_slot_that_dies_fails_its_request_and_is_replaced():
    provider = FakeProvider()
    async with fake_pool(provider, slots=1) as pool:
        slot = await pool.acquire("a")
        call = asyncio.create_task(pool.execute(slot, ExecRequest("sleep 20")))
        await asyncio.sleep(1)
        host_of(provider, slot).lose_slot(slot.slot_id)
        with pytest.raises(SlotLostError):
            await call
        assert slot.state is SlotState.LOST
        with pytest.raises(SlotLostError):
            await pool.execute(slot, ExecRequest("true"))
        await pool.acquire("b", timeout_s=1)
        await pool.release(slot)
        assert pool.stats().lost_slots == 1


@in_virtual_time
async def test_a_host_that_dies_fails_all_its_requests_and_is_replaced():
    provider = FakeProvider()
    async with fake_pool(provider, slots=3) as pool:
        slots = [await pool.acquire(f"t{n}") for n in range(3)]
        calls = asyncio.gather(
            *(pool.execute(slot, ExecRequest("sleep 20")) for slot in slots), return_exceptions=True
        )
        await asyncio.sleep(1)
        provider.live["h1"].lose("out of memory")
        assert all(isinstance(answer, HostLostError) for answer in await calls)
        fresh = await pool.acquire("again", timeout_s=5)
        assert fresh.host_id == "h2"
        for slot in slots:
            await pool.release(slot)
        assert list(provider.live) == ["h2"]
        assert pool.stats().lost_hosts == 1


@in_virtual_time
async def test_a_host_that_answers_nothing_any_more_is_ended_and_its_calls_fail():
    provider = FakeProvider()
    async with fake_pool(provider) as pool:
        slot = await pool.acquire("a")
        call = asyncio.create_task(pool.execute(slot, ExecRequest("sleep 500", timeout_s=600)))
        await asyncio.sleep(1)
        host_of(provider, slot).freeze()
        with pytest.raises(HostLostError, match="unanswered"):
            await call
        assert (await pool.acquire("b")).host_id == "h2"
        assert list(provider.live) == ["h2"]


@in_virtual_time
async def test_health_checks_go_on_while_all_is_well():
    provider = FakeProvider()
    async with fake_pool(provider):
        await asyncio.sleep(60)
        assert provider.live["h1"].pings >= 10


@in_virtual_time
async def test_one_missed_health_check_is_forgiven():
    provider = FakeProvider()
    async with fake_pool(provider, ping_interval_s=5, ping_timeout_s=10) as pool:
        host = provider.live["h1"]
        host.freeze()
        await asyncio.sleep(14)
        host.frozen = False
        await asyncio.sleep(100)
        assert pool.stats().lost_hosts == 0
        assert host.pings > 5


@in_virtual_time
async def test_a_lost_host_is_not_asked_for_its_health_any_more():
    provider = FakeProvider()
    async with fake_pool(provider, ping_timeout_s=1e6):
        host = provider.live["h1"]
        host.freeze()
        await asyncio.sleep(10)
        host.lose()
        await asyncio.sleep(10)
        names = {task.get_name() for task in asyncio.all_tasks()}
        assert "health of host h1" not in names
        assert "health of host h2" in names


@in_virtual_time
async def test_an_answer_that_never_comes_ends_with_its_own_error_after_the_commands_deadline():
    provider = FakeProvider(faults=Faults(exec_hangs=1.0))
    async with fake_pool(provider, grace_s=5) as pool:
        slot = await pool.acquire("a")
        before = asyncio.get_running_loop().time()
        with pytest.raises(SandboxTimeoutError, match="within 15 s, 5 s after the deadline"):
            await pool.execute(slot, ExecRequest("true", timeout_s=10))
        assert asyncio.get_running_loop().time() - before == pytest.approx(15)
        await pool.release(slot)


@in_virtual_time
async def test_a_call_on_a_host_that_gives_no_sign_of_life_ends_within_a_second_of_its_deadline():
    provider = FakeProvider()
    async with fake_pool(provider, grace_s=5) as pool:
        slot = await pool.acquire("a")
        provider.live[slot.host_id].freeze()
        before = asyncio.get_running_loop().time()
        with pytest.raises(SandboxTimeoutError, match=r"deadline of 3 s, and host h1 gave no sign"):
            await pool.execute(slot, ExecRequest("true", timeout_s=3))
        assert 3 < asyncio.get_running_loop().time() - before <= 4


@in_virtual_time
async def test_a_host_that_vanishes_while_it_is_waited_for_is_given_up_before_the_grace_is_over():
    provider = FakeProvider(faults=Faults(exec_hangs=1.0))
    async with fake_pool(provider, grace_s=60) as pool:
        slot = await pool.acquire("a")
        loop = asyncio.get_running_loop()
        loop.call_later(10, provider.live[slot.host_id].freeze)
        before = loop.time()
        with pytest.raises(SandboxTimeoutError, match="no sign of life"):
            await pool.execute(slot, ExecRequest("true", timeout_s=3))
        assert 10 < loop.time() - before <= 12


@in_virtual_time
async def test_a_driver_that_stood_still_holds_nothing_against_the_host():
    provider = FakeProvider(faults=Faults(exec_hangs=1.0))
    async with fake_pool(provider, grace_s=5) as pool:
        slot = await pool.acquire("a")
        loop = asyncio.get_running_loop()

        async def answer_through_a_tunnel():
            await asyncio.sleep(0.05)
            for _ in range(10):  # turns of the loop in which others carry the answer on
                await asyncio.sleep(0)

        def stand_still():
            loop._jumping.now += 2

        provider.live[slot.host_id].ping = answer_through_a_tunnel
        loop.call_later(3.01, stand_still)
        with pytest.raises(SandboxTimeoutError, match="5 s after the deadline"):
            await pool.execute(slot, ExecRequest("true", timeout_s=3))


@in_virtual_time
async def test_an_answer_after_the_deadline_counts_when_the_host_is_there():
    provider = FakeProvider(faults=Faults(latency_s=(0.5, 0.5)))
    async with fake_pool(provider, grace_s=5) as pool:
        slot = await pool.acquire("a")
        before = asyncio.get_running_loop().time()
        answer = await pool.execute(slot, ExecRequest("sleep 99", timeout_s=10))
        assert answer.status is ExecStatus.TIMED_OUT
        assert asyncio.get_running_loop().time() - before == pytest.approx(10.5)
        await asyncio.sleep(0.1)
        names = {task.get_name() for task in asyncio.all_tasks()}
        assert "health of host h1" in names
        assert "signs of life of host h1" not in names
        await pool.release(slot)


@in_virtual_time
async def test_requests_queued_in_one_slot_each_get_the_time_of_those_before_them():
    async with fake_pool(grace_s=1) as pool:
        slot = await pool.acquire("a")
        calls = [(slot, ExecRequest("sleep 9", timeout_s=10)) for _ in range(4)]
        answers = await pool.execute_batch(calls)
        assert [answer.status for answer in answers] == [ExecStatus.EXITED] * 4


@in_virtual_time
async def test_a_failing_request_does_not_fail_its_neighbours_in_the_batch():
    provider = FakeProvider()
    async with fake_pool(provider) as pool:
        slots = [await pool.acquire(f"t{n}") for n in range(3)]
        batch = asyncio.create_task(
            pool.execute_batch(
                [(slot, ExecRequest(f"sleep {n + 1}")) for n, slot in enumerate(slots)]
            )
        )
        await asyncio.sleep(0.5)
        provider.live["h1"].lose_slot(slots[1].slot_id)
        first, second, third = await batch
        assert first.exit_code == third.exit_code == 0
        assert isinstance(second, SlotLostError)


@in_virtual_time
async def test_misuse_in_a_batch_is_refused_before_anything_is_sent():
    provider = FakeProvider()
    async with fake_pool(provider) as pool:
        held, released = await pool.acquire("a"), await pool.acquire("b")
        await pool.release(released)
        with pytest.raises(SlotStateError):
            await pool.execute_batch([(held, ExecRequest("true")), (released, ExecRequest("true"))])
        assert host_of(provider, held).slots[held.slot_id].requests == []


@in_virtual_time
async def test_releasing_a_slot_ends_the_request_under_way_in_it():
    async with fake_pool() as pool:
        slot = await pool.acquire("a")
        call = asyncio.create_task(pool.execute(slot, ExecRequest("sleep 20")))
        await asyncio.sleep(1)
        await pool.release(slot)
        with pytest.raises(SlotLostError, match="released while"):
            await call


@in_virtual_time
async def test_a_slot_that_cannot_be_closed_is_never_handed_out_again():
    provider = FakeProvider(faults=Faults(close_hangs=1.0))
    async with fake_pool(provider, slots=2, close_timeout_s=1) as pool:
        slot = await pool.acquire("a")
        await pool.release(slot)
        assert pool.counters().quarantined == 1
        assert {(await pool.acquire(f"t{n}")).slot_id for n in range(2)}.isdisjoint({slot.slot_id})


@in_virtual_time
async def test_a_host_that_opens_no_more_slots_is_replaced_when_none_is_in_use():
    provider = FakeProvider()
    async with fake_pool(provider, slots=4) as pool:
        held = await pool.acquire("a")
        provider.faults = Faults(open_fails=1.0)
        waiting = asyncio.create_task(pool.acquire("b", timeout_s=60))
        await asyncio.sleep(5.0)
        assert pool.counters().failed_opens >= 3
        assert (await pool.execute(held, ExecRequest("echo fine"))).stdout.text() == "fine\n"
        await pool.release(held)
        provider.faults = Faults()
        assert (await waiting).host_id != held.host_id
        assert pool.stats().lost_hosts == 1


@in_virtual_time
async def test_a_host_that_opens_no_more_slots_is_left_for_another_one():
    provider = FakeProvider()
    async with fake_pool(provider, slots=4, max_hosts=2) as pool:
        held = await pool.acquire("a")
        setattr(host_of(provider, held), "open_slot", refuse_to_open)  # noqa: B010
        assert (await pool.acquire("b", timeout_s=60)).host_id != held.host_id


async def refuse_to_open(slot_id):
    raise SlotLostError(f"no file descriptors for {slot_id}")


@in_virtual_time
async def test_a_host_that_cannot_close_its_slots_is_replaced():
    provider = FakeProvider(faults=Faults(close_fails=1.0))
    async with fake_pool(provider, slots=4) as pool:
        for number in range(3):
            slot = await pool.acquire(f"t{number}")
            await pool.release(slot)
        assert (await pool.acquire("after")).host_id == "h2"


@in_virtual_time
async def test_a_release_waits_for_the_old_slot_to_be_gone_not_for_the_new_one():
    provider = FakeProvider(faults=Faults(latency_s=(1.0, 1.0)))
    async with fake_pool(provider, slots=1) as pool:
        loop = asyncio.get_running_loop()
        slot = await pool.acquire("a")
        start = loop.time()
        await pool.release(slot)
        assert loop.time() - start == pytest.approx(1)
        slot = await pool.acquire("b")
        assert loop.time() - start == pytest.approx(2)
        await pool.release(slot, reset_workspace=False)
        assert loop.time() - start == pytest.approx(2)


@in_virtual_time
async def test_a_start_that_fails_raises_and_leaves_nothing():
    provider = FakeProvider()
    provider.fail_launches = [HostStartError(f"no luck {n}") for n in range(3)]
    pool = fake_pool(provider)
    with pytest.raises(HostStartError, match="no luck 2"):
        await pool.start()
    assert provider.launches == 3
    assert not provider.live
    with pytest.raises(BackendStoppedError):
        await pool.start()


@in_virtual_time
async def test_a_start_survives_a_launch_that_fails_once():
    provider = FakeProvider()
    provider.fail_launches = [OSError("out of file descriptors")]
    async with fake_pool(provider) as pool:
        assert pool.counters().failed_launches == 1


@in_virtual_time
async def test_waiters_hear_why_no_host_can_be_had_and_later_ones_may_try_again():
    provider = FakeProvider()
    async with fake_pool(provider, slots=2) as pool:
        slot = await pool.acquire("a")
        provider.faults = Faults(launch_fails=1.0)
        host_of(provider, slot).lose()
        waiting = [asyncio.create_task(pool.acquire(f"t{n}", timeout_s=60)) for n in range(3)]
        answers = await asyncio.gather(*waiting, return_exceptions=True)
        assert [type(answer) for answer in answers] == [HostStartError] * 3
        assert "failed by chance" in str(answers[0])
        provider.faults = Faults()
        assert (await pool.acquire("later", timeout_s=60)).slot_id


@in_virtual_time
async def test_a_launch_that_hangs_is_a_failed_launch():
    provider = FakeProvider(faults=Faults(launch_hangs=1.0))
    pool = fake_pool(provider, launch_timeout_s=10)
    with pytest.raises(HostStartError, match="more than 10 s"):
        await pool.start()


@in_virtual_time
async def test_stop_tells_everyone_and_can_be_called_again():
    provider = FakeProvider()
    pool = fake_pool(provider, slots=1)
    await pool.start()
    slot = await pool.acquire("a")
    call = asyncio.create_task(pool.execute(slot, ExecRequest("sleep 20")))
    waiting = asyncio.create_task(pool.acquire("b"))
    await asyncio.sleep(1)
    await asyncio.gather(pool.stop(), pool.stop())
    await pool.stop(purge=True)
    with pytest.raises(HostLostError, match="stopped"):
        await call
    with pytest.raises(BackendStoppedError):
        await waiting
    with pytest.raises(BackendStoppedError):
        await pool.acquire("c")
    await pool.release(slot)
    assert not provider.live
    assert not pool.stats().started


@in_virtual_time
async def test_a_stop_cancelled_again_and_again_still_finishes():
    provider = FakeProvider(faults=Faults(latency_s=(1.0, 1.0)))
    pool = fake_pool(provider)
    await pool.start()
    stopping = asyncio.create_task(pool.stop())
    for _ in range(5):
        await asyncio.sleep(0.1)
        stopping.cancel()
    with pytest.raises(asyncio.CancelledError):
        await stopping
    assert not provider.live


@in_virtual_time
async def test_a_start_cancelled_at_any_moment_leaves_nothing():
    for tick in range(60):
        provider = FakeProvider(launch_s=1.0, faults=Faults(latency_s=(0.5, 0.5)))
        pool = fake_pool(provider)
        starting = asyncio.create_task(pool.start())
        await asyncio.sleep(tick * 0.05)
        starting.cancel()
        await asyncio.wait({starting})
        if not starting.cancelled():
            await pool.stop()
        assert not provider.live
        assert asyncio.all_tasks() == {asyncio.current_task()}


@in_virtual_time
async def test_a_host_that_never_ends_does_not_keep_stop_from_returning():
    provider = FakeProvider()
    pool = fake_pool(provider, close_timeout_s=3)
    await pool.start()

    async def never():
        await asyncio.get_running_loop().create_future()

    setattr(provider.live["h1"], "close", never)  # noqa: B010
    before = asyncio.get_running_loop().time()
    await pool.stop()
    assert asyncio.get_running_loop().time() - before <= 3.1


@in_virtual_time
async def test_nothing_works_before_start():
    pool = fake_pool()
    with pytest.raises(BackendStoppedError, match="not started"):
        await pool.acquire("a")
    with pytest.raises(BackendStoppedError, match="not started"):
        _ = pool.capabilities
    await pool.stop()


@in_virtual_time
async def test_commands_can_be_scripted():
    def script(slot, request):
        return exec_result(f"{slot.slot_id}: {request.command}", exit_code=3)

    async with fake_pool(FakeProvider(on_exec=script)) as pool:
        slot = await pool.acquire("a")
        result = await pool.execute(slot, ExecRequest("anything"))
        assert (result.stdout.text(), result.exit_code) == (f"{slot.slot_id}: anything", 3)


@in_virtual_time
async def test_twenty_thousand_acquires_cancelled_at_random_give_every_permit_back():
    chance = random.Random(10)
    async with fake_pool(slots=16, acquire_timeout_s=1e9) as pool:

        async def trajectory(number):
            slot = await pool.acquire(f"t{number}")
            try:
                await asyncio.sleep(chance.choice((0, 0, 0.001)))
            finally:
                await pool.release(slot, reset_workspace=False)

        for _ in range(400):
            tasks = [asyncio.create_task(trajectory(n)) for n in range(50)]
            while running := [task for task in tasks if not task.done()]:
                for task in chance.sample(running, k=min(len(running), chance.randrange(20))):
                    task.cancel()
                await asyncio.sleep(chance.choice((0, 0, 0, 0.0005)))
        slots = await asyncio.gather(*(pool.acquire(f"all{n}", timeout_s=60) for n in range(16)))
        assert len({slot.slot_id for slot in slots}) == 16
        assert pool.stats().waiting == 0


class SharingProvider(FakeProvider):
    """Its hosts have something in common."""

    def __init__(self, **options):
        super().__init__(**options)
        self.left_at_close = []

    async def close(self):
        self.left_at_close.append(set(self.live))


@in_virtual_time
async def test_what_all_hosts_share_is_let_go_of_after_the_last_of_them():
    provider = SharingProvider()
    async with fake_pool(provider=provider, slots=1, max_hosts=2) as pool:
        await asyncio.gather(pool.acquire("a"), pool.acquire("b"))
        assert len(provider.live) == 2
    assert provider.left_at_close == [set()]


@in_virtual_time
async def test_what_all_hosts_share_is_let_go_of_when_the_start_failed():
    provider = SharingProvider()
    provider.fail_launches = [HostStartError("no host today")] * 9
    pool = fake_pool(provider=provider)
    with pytest.raises(HostStartError):
        await pool.start()
    assert provider.left_at_close == [set()]
