"""The pool's decisions under thousands of seeded orders of events and faults, without any I/O."""
# mypy: disable-error-code="no-untyped-call, union-attr"

import random

import pytest

from agentenv_backends._actions import CloseHost, CloseSlot, Grant, LaunchHost, OpenSlot, Refuse
from agentenv_backends._scheduling import HostPhase, Scheduler, SlotPhase
from agentenv_backends.errors import BackendStoppedError, HostStartError
from agentenv_backends.settings import Limits


class World:
    """Hosts, slots and callers that do anything they are allowed to, in an order drawn from a seed."""

    def __init__(self, seed):
        self.chance = random.Random(seed)
        self.now = 0.0
        self.limits = Limits(
            slots_per_host=self.chance.randint(1, 4),
            min_hosts=(least := self.chance.randint(0, 2)),
            max_hosts=max(1, least + self.chance.randint(0, 2)),
            warm_slots=self.chance.randint(0, 2),
            idle_host_s=self.chance.choice((1.0, 30.0)),
        )
        self.scheduler = Scheduler(self.limits, lambda: self.now)
        self.pending = []  # actions that were asked for and not answered yet
        self.hosts = {}  # live, or being closed -> ids of its slots that are open in the real world
        self.held = {}  # slot -> ticket
        self.waiting = []
        self.granted = []
        self.answered = set()
        self.used = set()
        self.last_ticket = 0
        self.faults = self.chance.choice((0.0, 0.05, 0.3))

    def do(self):
        for action in self.scheduler.take_actions():
            match action:
                case Grant(ticket, host_id, slot_id):
                    assert ticket not in self.answered, "a ticket was answered twice"
                    assert slot_id not in self.used, "a slot was handed out twice"
                    assert slot_id in self.hosts[host_id], "the slot is not open"
                    assert ticket == self.waiting.pop(0), "somebody was overtaken"
                    self.answered.add(ticket)
                    self.granted.append(ticket)
                    self.held[slot_id] = ticket
                case Refuse(ticket, _):
                    assert ticket not in self.answered, "a ticket was answered twice"
                    self.answered.add(ticket)
                    self.waiting.remove(ticket)
                case CloseHost(host_id):
                    self.held = {s: t for s, t in self.held.items() if s not in self.hosts[host_id]}
                    self.pending.append(action)
                case _:
                    self.pending.append(action)
        self.check()

    def check(self):
        scheduler, limits = self.scheduler, self.limits
        phases = {phase: scheduler.hosts(phase) for phase in HostPhase}
        assert sum(phases.values()) <= limits.max_hosts
        for phase in SlotPhase:
            counted = sum(
                list(scheduler.slots_of(host_id).values()).count(phase) for host_id in self.hosts
            )
            assert scheduler.slots(phase) == counted
        for host_id in self.hosts:
            assert len(scheduler.slots_of(host_id)) <= limits.slots_per_host
        assert scheduler.slots(SlotPhase.HELD) == len(self.held)
        assert scheduler.waiting == len(self.waiting)
        if self.waiting:
            assert not scheduler.slots(SlotPhase.AVAILABLE), "a slot is free and somebody waits"
            assert self.something_will_happen(), "somebody waits and nothing will ever happen"

    def something_will_happen(self):
        return self.held or self.pending or self.scheduler.wake_at < float("inf")

    # --- One step ------------------------------------------------------------------------------

    def step(self):
        moves = [self.arrive, self.leave, self.release, self.answer, self.answer, self.wait]
        if self.chance.random() < self.faults:
            moves = [self.lose_slot, self.lose_host]
        self.chance.choice(moves)()
        self.do()

    def arrive(self):
        self.last_ticket += 1
        self.waiting.append(self.last_ticket)
        self.scheduler.enqueue(self.last_ticket)

    def leave(self):
        if self.waiting:
            ticket = self.waiting.pop(self.chance.randrange(len(self.waiting)))
            self.answered.add(ticket)
            assert self.scheduler.withdraw(ticket)

    def release(self):
        if self.held:
            slot_id = self.chance.choice(list(self.held))
            del self.held[slot_id]
            if self.chance.random() < 0.2:
                self.scheduler.put_back(slot_id)
            else:
                self.used.add(slot_id)
                self.scheduler.release(slot_id)

    def wait(self):
        self.now += self.chance.choice((0.01, 1.0, 60.0))
        self.scheduler.tick()

    def lose_slot(self):
        open_slots = [slot_id for slots in self.hosts.values() for slot_id in slots]
        if open_slots:
            slot_id = self.chance.choice(open_slots)
            self.held.pop(slot_id, None)
            self.used.add(slot_id)
            self.scheduler.slot_lost(slot_id)

    def lose_host(self):
        if self.hosts:
            self.scheduler.host_lost(self.chance.choice(list(self.hosts)), "an accident")

    def answer(self):
        if not self.pending:
            return
        action = self.pending.pop(self.chance.randrange(len(self.pending)))
        fails = self.chance.random() < self.faults
        match action:
            case LaunchHost(host_id):
                if fails:
                    self.scheduler.host_failed(host_id, HostStartError("an accident"))
                else:
                    self.hosts[host_id] = set()
                    self.scheduler.host_launched(host_id)
            case OpenSlot(host_id, slot_id):
                if fails:
                    self.scheduler.slot_failed(slot_id, "an accident")
                else:
                    if host_id in self.hosts:
                        self.hosts[host_id].add(slot_id)
                    self.scheduler.slot_opened(slot_id)
            case CloseSlot(host_id, slot_id):
                if host_id in self.hosts:
                    self.hosts[host_id].discard(slot_id)
                self.scheduler.slot_closed(slot_id, clean=not fails)
            case CloseHost(host_id):
                del self.hosts[host_id]
                self.scheduler.host_closed(host_id)

    # --- The end -------------------------------------------------------------------------------

    def settle(self):
        """Without further faults, everyone who waits must be answered and every slot come back."""
        self.faults = 0.0
        for _ in range(10_000):
            self.release()
            self.answer()
            self.now += 1.0
            self.scheduler.tick()
            self.do()
            if not (self.waiting or self.held or self.pending):
                return
        raise AssertionError(f"still waiting: {self.waiting}, held: {self.held}, {self.pending}")

    def end(self):
        self.scheduler.stop()
        self.do()
        while self.pending:
            self.answer()
            self.do()
        assert not self.hosts
        assert not self.waiting


def run_schedule(seed, steps):
    world = World(seed)
    try:
        world.scheduler.start()
        world.do()
        for _ in range(steps):
            world.step()
        world.settle()
        world.end()
    except AssertionError as error:
        raise AssertionError(f"seed {seed}: {error}") from error
    return world


def test_two_thousand_orders_of_events_and_faults_keep_every_promise():
    worlds = [run_schedule(seed, steps=60) for seed in range(2_000)]
    # What was tried: a simulation in which nothing happens would keep every promise too.
    assert sum(len(world.granted) for world in worlds) > 10_000
    assert sum(world.scheduler.counters.lost_hosts for world in worlds) > 200
    assert sum(world.scheduler.counters.quarantined for world in worlds) > 20
    assert sum(world.scheduler.counters.idle_hosts for world in worlds) > 20


@pytest.mark.slow
def test_ten_thousand_more_keep_them_too():
    for seed in range(2_000, 12_000):
        run_schedule(seed, steps=60)


@pytest.mark.slow
def test_long_schedules_keep_every_promise_too():
    for seed in range(200):
        run_schedule(seed, steps=3_000)


def make(**limits):
    clock = [0.0]
    scheduler = Scheduler(Limits(**{"slots_per_host": 2, **limits}), lambda: clock[0])
    return scheduler, clock


def test_failed_launches_are_tried_again_later_and_later():
    scheduler, clock = make(launch_attempts=5, backoff_s=1.0, max_backoff_s=4.0)
    scheduler.start()
    pauses = []
    for _ in range(4):
        (launch,) = scheduler.take_actions()
        scheduler.host_failed(launch.host_id, HostStartError("no"))
        assert scheduler.take_actions() == []
        pauses.append(scheduler.wake_at - clock[0])
        clock[0] = scheduler.wake_at
        scheduler.tick()
    assert pauses == [1.0, 2.0, 4.0, 4.0]


def test_a_caller_of_a_pool_that_gave_up_gets_one_more_try():
    scheduler, clock = make(launch_attempts=1)
    scheduler.start()
    (launch,) = scheduler.take_actions()
    scheduler.host_failed(launch.host_id, HostStartError("no"))
    clock[0] = 100.0
    scheduler.enqueue(1)
    (launch,) = scheduler.take_actions()
    scheduler.host_failed(launch.host_id, HostStartError("still no"))
    (refusal,) = scheduler.take_actions()
    assert isinstance(refusal, Refuse)
    assert "still no" in str(refusal.error)


def test_stopping_refuses_whoever_waits():
    scheduler, _ = make()
    scheduler.start()
    scheduler.enqueue(1)
    scheduler.take_actions()
    scheduler.stop()
    (refusal,) = scheduler.take_actions()
    assert isinstance(refusal.error, BackendStoppedError)
