"""Which allocations hosts get, and how the count follows what is needed."""
# mypy: disable-error-code="no-untyped-call"

import random
from dataclasses import replace

import pytest

from agentenv_backends.nomad.allocations import Allocation
from agentenv_backends.nomad.ledger import UNREACHABLE_S, Ledger, Plan

COOLDOWN_S = 10.0


def up(index, name=None):
    return Allocation(
        name or f"a{index}", index, "n", "run", "running", "", "running", 0, (), False
    )


def ledger_of(*allocations, count=None, max_hosts=10):
    ledger = Ledger(max_hosts, COOLDOWN_S)
    ledger.count = len(allocations) if count is None else count
    ledger.update(allocations)
    return ledger


def test_hosts_get_the_lowest_allocations_that_run():
    pending = replace(up(0), status="pending", task_state="pending")
    ledger = ledger_of(pending, up(2), up(1))
    assert [ledger.claim(0).allocation_id for _ in range(2)] == ["a1", "a2"]
    assert ledger.claim(0) is None


def test_those_who_wait_together_are_one_change_of_the_count():
    ledger = ledger_of(up(0))
    ledger.waiting = 4
    assert ledger.plan(0) == Plan(count=4)
    ledger.count = 4
    assert ledger.plan(0) == Plan()


def test_the_count_never_passes_the_maximum():
    ledger = ledger_of(up(0), max_hosts=3)
    ledger.waiting = 9
    assert ledger.plan(0).count == 3


def test_what_is_on_its_way_is_not_asked_for_again():
    backing_off = replace(up(0), status="pending", task_state="pending", restarts=1)
    ledger = ledger_of(backing_off, count=2)
    ledger.waiting = 2
    assert ledger.plan(0) == Plan()


def test_an_allocation_that_served_gives_its_place_to_who_waits():
    ledger = ledger_of(up(0), up(1))
    first = ledger.claim(0)
    ledger.claim(0)
    ledger.spend(first.allocation_id)
    ledger.waiting = 1
    assert ledger.plan(0) == Plan(stop=("a0",))
    ledger.stopped("a0")
    assert ledger.plan(0) == Plan()
    ledger.update([replace(up(0), desired="stop"), up(1), up(0, "b0")])
    assert ledger.claim(0).allocation_id == "b0"


def test_one_that_may_hang_is_stopped_though_nobody_waits():
    ledger = ledger_of(up(0))
    ledger.spend(ledger.claim(0).allocation_id, broken=True)
    assert ledger.plan(0).stop == ("a0",)


def test_the_count_is_lowered_after_a_while_and_never_below_a_host_in_use():
    ledger = ledger_of(up(0), up(1), up(2), up(3))
    hosts = [ledger.claim(0) for _ in range(4)]
    for host in (hosts[0], hosts[1], hosts[3]):
        ledger.spend(host.allocation_id)
    assert ledger.plan(0) == Plan()
    assert ledger.wake_at(0) == COOLDOWN_S
    assert ledger.plan(COOLDOWN_S) == Plan(count=3)
    ledger.count = 3
    ledger.spend(hosts[2].allocation_id)
    assert ledger.plan(20) == Plan()
    assert ledger.plan(20 + COOLDOWN_S) == Plan(count=0)


def test_someone_who_comes_meanwhile_keeps_the_count():
    ledger = ledger_of(up(0), up(1))
    ledger.plan(0)
    ledger.waiting = 2
    assert ledger.plan(COOLDOWN_S) == Plan()


def test_a_claimed_allocation_that_is_over_is_told_once():
    ledger = ledger_of(up(0), up(1))
    ledger.claim(0)
    lost = replace(up(0), status="lost", desired="stop")
    assert ledger.update([lost, up(1)]) == [lost]
    assert ledger.update([lost, up(1)]) == []


def test_an_allocation_that_is_not_listed_is_not_over():
    ledger = ledger_of(up(0))
    ledger.claim(0)
    assert ledger.update([]) == []


def test_a_listing_without_a_host_in_use_lowers_no_count():
    ledger = ledger_of(up(0), up(1))
    ledger.claim(0)
    ledger.update([])
    assert ledger.plan(0) == ledger.plan(10 * COOLDOWN_S) == ledger.plan(20 * COOLDOWN_S) == Plan()
    ledger.update([up(0), up(1)])
    assert ledger.plan(30 * COOLDOWN_S) == Plan()
    assert ledger.plan(31 * COOLDOWN_S) == Plan(count=1)


def test_one_that_does_not_answer_is_tried_again_and_then_replaced():
    ledger = ledger_of(up(0))
    ledger.waiting = 1
    now = 0.0
    while not (plan := ledger.plan(now)).stop and now < 10 * UNREACHABLE_S:
        if ledger.claim(now) is not None:
            ledger.give_back("a0", now, silent=True)
        assert ledger.claim(now) is None
        now += 0.5
    assert UNREACHABLE_S < now < 2 * UNREACHABLE_S
    assert plan == Plan(stop=("a0",))


def test_those_that_failed_for_good_are_placed_anew_before_the_count_is_raised():
    stuck = replace(up(0), status="failed", task_state="dead")
    ledger = ledger_of(stuck, up(1))
    ledger.claim(0)
    ledger.waiting = 2
    assert ledger.plan(0) == Plan(count=3, reschedule=True)


class Scheduler:
    """Does what is planned as the cluster would: lowers from the top, replaces what is stopped."""

    def __init__(self, ledger):
        self.ledger = ledger
        self.serial = 0
        self.allocations = {}

    def place(self):
        for index in range(self.ledger.count):
            if not any(each.index == index for each in self.allocations.values()):
                self.serial += 1
                self.allocations[f"x{self.serial}"] = up(index, f"x{self.serial}")

    def carry_out(self, plan):
        if plan.count is not None:
            self.ledger.count = plan.count
            self.allocations = {
                name: each for name, each in self.allocations.items() if each.index < plan.count
            }
        for name in plan.stop:
            self.allocations.pop(name, None)
            self.ledger.stopped(name)
        self.place()
        return self.ledger.update(self.allocations.values())


@pytest.mark.parametrize("seed", range(200))
def test_whatever_comes_in_whatever_order_no_host_in_use_is_stopped_and_all_are_served(seed):
    chance = random.Random(seed)
    ledger = Ledger(6, COOLDOWN_S)
    scheduler = Scheduler(ledger)
    held: list[str] = []
    now = 0.0
    for _ in range(120):
        now += chance.choice((0.0, 1.0, 30.0))
        match chance.random():
            case x if x < 0.45 and len(held) + ledger.waiting < 6:
                ledger.waiting += 1
            case x if x < 0.9 and held:
                name = held.pop(chance.randrange(len(held)))
                ledger.spend(name, broken=chance.random() < 0.2)
        assert scheduler.carry_out(ledger.plan(now)) == []
        assert set(held) <= set(scheduler.allocations)
        while ledger.waiting and (found := ledger.claim(now)) is not None:
            ledger.waiting -= 1
            held.append(found.allocation_id)
    for _ in range(3):
        scheduler.carry_out(ledger.plan(now))
        while ledger.waiting and (found := ledger.claim(now)) is not None:
            ledger.waiting -= 1
            held.append(found.allocation_id)
    assert not ledger.waiting
    for name in held:
        ledger.spend(name)
    for _ in range(3):
        now += 2 * COOLDOWN_S
        scheduler.carry_out(ledger.plan(now))
    assert (ledger.count, scheduler.allocations) == (0, {})
