"""The pool's decisions under thousands of seeded orders of events and faults, without any I/O."""
# mypy: disable-error-code="no-untyped-call, union-attr"

import random
import sys
from math import inf

import pytest

from agentenv_backends._actions import CloseHost, CloseSlot, Grant, LaunchHost, OpenSlot, Refuse
from agentenv_backends._fleet import HostPhase, SlotPhase
from agentenv_backends._scheduling import Scheduler
from agentenv_backends.errors import BackendConfigError, BackendStoppedError, HostStartError
from agentenv_backends.settings import Limits


class World:
    """Hosts, slots and callers that do anything they are allowed to, in an order drawn from a seed."""

    def __init__(self, seed):
        self.chance = random.Random(seed)
        self.now = 0.0
        single_use = self.chance.random() < 0.3
        self.limits = Limits(
            slots_per_host=1 if single_use else self.chance.randint(1, 4),
            min_hosts=(least := self.chance.randint(0, 2)),
            max_hosts=max(1, least + self.chance.randint(0, 2)),
            warm_slots=self.chance.choice((0, 1, 1, 2, 5)),
            single_use_hosts=single_use,
            idle_host_s=self.chance.choice((1.0, 30.0)),
            trajectory_life_s=100.0,
        )
        self.lifetime_s = self.chance.choice((None, None, 160.0))
        self.dies = {}  # hosts that end by themselves -> when
        self.scheduler = Scheduler(self.limits, lambda: self.now)
        self.pending = []  # actions that were asked for and not answered yet
        self.hosts = {}  # live, or being closed -> ids of its slots that are open in the real world
        self.held = {}  # slot -> ticket
        self.waiting = []
        self.granted = []
        self.answered = set()
        self.used = set()
        self.used_hosts = set()
        self.pinned = []
        self.last_ticket = 0
        self.faults = self.chance.choice((0.0, 0.05, 0.3))

    def do(self):
        for action in self.scheduler.take_actions():
            match action:
                case Grant(ticket, host_id, slot_id):
                    assert ticket not in self.answered, "a ticket was answered twice"
                    assert slot_id not in self.used, "a slot was handed out twice"
                    assert slot_id in self.hosts[host_id], "the slot is not open"
                    if self.limits.single_use_hosts:
                        assert host_id not in self.used_hosts, "a host was used twice"
                    left = self.dies.get(host_id, inf) - self.now
                    assert left > self.limits.trajectory_life_s - 1e-6, (
                        "the host will not live so long"
                    )
                    assert ticket == self.waiting.pop(0), "somebody was overtaken"
                    self.answered.add(ticket)
                    self.granted.append(ticket)
                    self.held[slot_id] = ticket
                case Refuse(ticket, _):
                    assert ticket not in self.answered, "a ticket was answered twice"
                    self.answered.add(ticket)
                    self.waiting.remove(ticket)
                case CloseHost(host_id, reason):
                    if reason == "idle":
                        assert host_id not in self.pinned, "a host was ended that is still needed"
                    if reason in ("idle", "its lifetime is nearly over"):
                        assert not any(slot in self.held for slot in self.hosts[host_id])
                    self.pinned = [pinned for pinned in self.pinned if pinned != host_id]
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
        self.check_books()
        if self.waiting:
            assert not scheduler.slots(SlotPhase.AVAILABLE), "a slot is free and somebody waits"
            assert self.something_will_happen(), "somebody waits and nothing will ever happen"

    def check_books(self):
        """What is kept at hand is what a look at every host would find."""
        fleet = self.scheduler._fleet
        live = list(fleet.live())
        lasting = [host for host in live if not host.retired]
        assert list(fleet.lasting) == lasting
        assert list(fleet.retired) == [host for host in live if host.retired]
        assert list(fleet.roomy) == [host for host in live if host.room > 0]
        assert list(fleet.idle) == [host for host in lasting if host.idle]
        assert fleet.free == sum(host.free for host in lasting)
        assert fleet.next_retirement == min((host.retires_at for host in lasting), default=inf)
        for phase in HostPhase:
            counted = sum(host.phase is phase for host in fleet.hosts.values())
            assert fleet.count(phase) == counted

    def something_will_happen(self):
        return self.held or self.pending or self.scheduler.wake_at < inf

    # --- One step ------------------------------------------------------------------------------

    def step(self):
        moves = [self.arrive, self.leave, self.release, self.answer, self.answer, self.wait]
        moves += [self.pin, self.unpin] if self.chance.random() < 0.2 else []
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
                self.used_hosts.add(slot_id.partition("-")[0])
                self.scheduler.release(slot_id)

    def pin(self):
        live = [host_id for host_id in self.hosts if self.scheduler.slots_of(host_id)]
        if live:
            self.pinned.append(self.chance.choice(live))
            self.scheduler.pin(self.pinned[-1])

    def unpin(self):
        if self.pinned:
            self.scheduler.unpin(self.pinned.pop(self.chance.randrange(len(self.pinned))))

    def wait(self):
        self.now += self.chance.choice((0.01, 1.0, 60.0))
        self.scheduler.tick()
        for host_id in [host for host in self.hosts if self.dies.get(host, inf) <= self.now]:
            self.scheduler.host_lost(host_id, "its lifetime is over")

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
                    if self.lifetime_s:
                        self.dies[host_id] = self.now + self.lifetime_s
                    self.scheduler.host_launched(host_id, self.dies.get(host_id))
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
        if self.scheduler.broken:
            self.arrive()  # it tries again for whoever asks, not by itself
        for _ in range(10_000):
            self.release()
            self.answer()
            self.do()
            self.now += 1.0
            self.scheduler.tick()
            self.do()
            if not (self.waiting or self.held or self.pending):
                break
        else:
            raise AssertionError(f"still waiting: {self.waiting}, held: {self.held}")
        if not self.lifetime_s:  # else there is always a next host to make ready
            self.rest()

    def rest(self):
        """Left alone, the pool has what it is to keep ready, and then does nothing any more."""
        while self.pinned:
            self.unpin()
            self.do()
        limits, scheduler = self.limits, self.scheduler
        for _ in range(50):
            while self.pending:
                self.answer()
                self.do()
            if scheduler.wake_at == inf:
                break
            self.now = max(self.now, scheduler.wake_at)
            scheduler.tick()
            self.do()
        else:
            raise AssertionError("the pool does not come to rest")
        ready = min(limits.warm_slots, limits.max_hosts * limits.slots_per_host)
        assert scheduler.slots(SlotPhase.AVAILABLE) >= ready, "fewer slots stand ready than asked"
        live = scheduler.hosts(HostPhase.LIVE)
        assert live >= limits.min_hosts, "fewer hosts than asked for"
        wanted = max(limits.min_hosts, -(-ready // limits.slots_per_host))
        assert live <= wanted, "hosts are kept that nobody needs"
        before = vars_of(scheduler.counters)
        self.now += 10_000
        scheduler.tick()
        assert scheduler.take_actions() == []
        assert vars_of(scheduler.counters) == before

    def end(self):
        self.scheduler.stop()
        self.do()
        while self.pending:
            self.answer()
            self.do()
        assert not self.hosts
        assert not self.waiting


def vars_of(counters):
    return {name: getattr(counters, name) for name in counters.__slots__}


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
    assert sum(len(world.granted) for world in worlds) > 8_000
    assert sum(world.scheduler.counters.granted_at_once for world in worlds) > 1_000
    assert sum(len(w.granted) for w in worlds if w.limits.single_use_hosts) > 1_000
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


def answered(scheduler):
    """Everything that is asked for happens at once; what that was, in order."""
    asked = []
    while actions := scheduler.take_actions():
        for action in actions:
            asked.append(type(action))
            match action:
                case LaunchHost(host_id):
                    scheduler.host_launched(host_id)
                case OpenSlot(_, slot_id):
                    scheduler.slot_opened(slot_id)
                case CloseSlot(_, slot_id):
                    scheduler.slot_closed(slot_id, clean=True)
                case CloseHost(host_id):
                    scheduler.host_closed(host_id)
    return asked


def held_slots(scheduler, host_id):
    return [s for s, phase in scheduler.slots_of(host_id).items() if phase is SlotPhase.HELD]


def calls_of_a_turn(hosts):
    """Of functions, whatever they are written in, when a slot of a full pool goes from one holder to the next."""
    scheduler, _ = make(min_hosts=hosts, max_hosts=hosts)
    scheduler.start()
    answered(scheduler)
    for ticket in range(2 * hosts + 1):
        scheduler.enqueue(ticket)
        answered(scheduler)
    assert (scheduler.slots(SlotPhase.HELD), scheduler.waiting) == (2 * hosts, 1)
    (slot_id, _) = held_slots(scheduler, f"h{hosts}")
    calls = 0

    def count(_frame, event, _argument):
        nonlocal calls
        calls += event in ("call", "c_call")

    sys.setprofile(count)
    try:
        scheduler.release(slot_id)
        answered(scheduler)
    finally:
        sys.setprofile(None)
    assert scheduler.waiting == 0
    return calls


def test_what_is_done_when_a_slot_changes_hands_does_not_grow_with_the_hosts():
    assert calls_of_a_turn(400) <= 1.2 * calls_of_a_turn(4)


def test_a_host_that_is_to_end_before_long_takes_no_more_and_is_ended_when_it_has_none():
    scheduler, clock = make(trajectory_life_s=100, max_hosts=2)
    scheduler.start()
    (launch,) = scheduler.take_actions()
    scheduler.host_launched(launch.host_id, 1000.0)
    scheduler.enqueue(1)
    answered(scheduler)
    assert held_slots(scheduler, "h1")
    assert scheduler.wake_at == 900
    clock[0] = 900.0
    scheduler.tick()
    assert answered(scheduler) == [CloseSlot, LaunchHost, OpenSlot], (
        "its free slot, and another host"
    )
    scheduler.enqueue(2)
    answered(scheduler)
    assert held_slots(scheduler, "h2")
    assert held_slots(scheduler, "h1"), "who has a slot there keeps it"
    scheduler.release(held_slots(scheduler, "h1")[0])
    assert CloseHost in answered(scheduler)
    assert scheduler.counters.lost_hosts == 0


def test_hosts_that_live_too_short_for_any_trajectory_are_an_error_and_not_made_for_ever():
    scheduler, clock = make(trajectory_life_s=100, launch_attempts=3)
    scheduler.start()
    scheduler.enqueue(1)
    refused = []
    for _ in range(20):
        for action in scheduler.take_actions():
            match action:
                case LaunchHost(host_id):
                    scheduler.host_launched(host_id, clock[0] + 99.0)
                case CloseHost(host_id):
                    scheduler.host_closed(host_id)
                case Refuse(_, error):
                    refused.append(str(error))
        clock[0] += 10.0
        scheduler.tick()
    assert len(refused) == 1
    assert "shorter than a trajectory may take (100 s)" in refused[0]
    assert scheduler.counters.launched == 3


def test_slots_are_opened_ahead_of_those_who_will_ask():
    scheduler, _ = make(slots_per_host=6, warm_slots=3)
    scheduler.start()
    assert answered(scheduler) == [LaunchHost] + [OpenSlot] * 3
    for ticket in range(6):
        scheduler.enqueue(ticket)
        asked = answered(scheduler)
        assert asked == ([Grant, OpenSlot] if ticket < 3 else [Grant]), "all six are open by then"
    assert scheduler.counters.granted_at_once == 6


def test_hosts_are_started_ahead_and_ended_when_long_not_needed():
    scheduler, clock = make(warm_slots=1, max_hosts=3, idle_host_s=60)
    scheduler.start()
    scheduler.enqueue(1)
    scheduler.enqueue(2)
    assert LaunchHost in answered(scheduler)
    assert scheduler.hosts(HostPhase.LIVE) == 2
    for _ in range(20):  # whoever comes and goes in less time than that causes no churn
        clock[0] += 50
        scheduler.release(held_slots(scheduler, "h1")[0])
        scheduler.enqueue(clock[0])
        asked = answered(scheduler)
        assert LaunchHost not in asked
        assert CloseHost not in asked
    assert scheduler.hosts(HostPhase.LIVE) == 2


def test_a_host_is_only_ended_when_the_others_have_the_spare_slots():
    scheduler, clock = make(warm_slots=2, max_hosts=2, idle_host_s=60)
    scheduler.start()
    answered(scheduler)
    scheduler.enqueue(1)
    answered(scheduler)
    assert scheduler.hosts(HostPhase.LIVE) == 2
    clock[0] += 1000
    scheduler.tick()
    assert answered(scheduler) == []
    scheduler.release(*held_slots(scheduler, "h1"))
    answered(scheduler)
    assert scheduler.wake_at == clock[0] + 60
    clock[0] += 60
    scheduler.tick()
    assert answered(scheduler) == [CloseHost]


def test_a_host_with_something_on_it_is_not_ended_for_being_idle():
    scheduler, clock = make(min_hosts=0, warm_slots=0, idle_host_s=60)
    scheduler.start()
    answered(scheduler)
    scheduler.pin("h1")
    clock[0] += 1000
    scheduler.tick()
    assert answered(scheduler) == []
    scheduler.unpin("h1")
    clock[0] += 60
    scheduler.tick()
    assert answered(scheduler) == [CloseHost]


def test_what_dies_unused_is_made_again_later_and_later_until_it_is_used():
    scheduler, clock = make(warm_slots=1, backoff_s=1.0, max_backoff_s=4.0)
    scheduler.start()
    answered(scheduler)
    pauses = []
    for number in range(1, 5):
        scheduler.slot_lost(f"h1-s{number}")
        assert OpenSlot not in answered(scheduler)
        pauses.append(scheduler.wake_at - clock[0])
        clock[0] = scheduler.wake_at
        scheduler.tick()
        assert answered(scheduler) == [OpenSlot]
    assert pauses == [1.0, 2.0, 4.0, 4.0]
    scheduler.enqueue(1)
    answered(scheduler)
    scheduler.slot_lost("h1-s6")
    answered(scheduler)
    assert scheduler.wake_at - clock[0] == 1.0


def test_whoever_waits_does_not_wait_for_that_pause():
    scheduler, _ = make(warm_slots=1, backoff_s=100.0, max_backoff_s=100.0)
    scheduler.start()
    answered(scheduler)
    scheduler.slot_lost("h1-s1")
    answered(scheduler)
    scheduler.enqueue(1)
    assert Grant in answered(scheduler)


def test_many_that_die_together_are_one_mishap():
    scheduler, clock = make(slots_per_host=8, warm_slots=8, backoff_s=1.0)
    scheduler.start()
    answered(scheduler)
    for number in range(1, 9):
        scheduler.slot_lost(f"h1-s{number}")
    answered(scheduler)
    assert scheduler.wake_at - clock[0] == 1.0


def test_hosts_that_die_unused_are_launched_again_later_and_later():
    scheduler, clock = make(min_hosts=0, warm_slots=1, backoff_s=1.0, max_backoff_s=4.0)
    scheduler.start()
    answered(scheduler)
    pauses = []
    for number in range(1, 5):
        scheduler.host_lost(f"h{number}", "it died")
        assert LaunchHost not in answered(scheduler)
        pauses.append(scheduler.wake_at - clock[0])
        clock[0] = scheduler.wake_at
        scheduler.tick()
        assert LaunchHost in answered(scheduler)
    assert pauses == [1.0, 2.0, 4.0, 4.0]


def test_a_host_whose_slots_just_failed_to_open_gets_a_pause_also_when_one_is_released():
    scheduler, clock = make(warm_slots=0, backoff_s=1.0)
    scheduler.start()
    answered(scheduler)
    scheduler.enqueue(1)
    answered(scheduler)
    scheduler.enqueue(2)
    (opening,) = scheduler.take_actions()
    scheduler.slot_failed(opening.slot_id, "no room")
    answered(scheduler)
    scheduler.release(*held_slots(scheduler, "h1"))
    assert OpenSlot not in answered(scheduler)
    clock[0] = scheduler.wake_at
    scheduler.tick()
    assert OpenSlot in answered(scheduler)


def test_a_host_for_a_single_use_is_ended_with_its_slot_and_a_new_one_stands_ready():
    scheduler, _ = make(slots_per_host=1, max_hosts=3, warm_slots=1, single_use_hosts=True)
    scheduler.start()
    assert answered(scheduler) == [LaunchHost, OpenSlot]
    scheduler.enqueue(1)
    assert answered(scheduler) == [Grant, LaunchHost, OpenSlot]
    scheduler.release("h1-s1")
    assert answered(scheduler) == [CloseHost]
    assert scheduler.slots(SlotPhase.AVAILABLE) == 1


def test_a_host_for_a_single_use_whose_slot_dies_is_ended_too():
    scheduler, _ = make(slots_per_host=1, max_hosts=2, warm_slots=0, single_use_hosts=True)
    scheduler.start()
    answered(scheduler)
    scheduler.enqueue(1)
    answered(scheduler)
    scheduler.slot_lost("h1-s1")
    assert answered(scheduler) == [CloseHost, LaunchHost]


def test_a_host_for_a_single_use_has_one_slot():
    with pytest.raises(BackendConfigError, match="slots_per_host to 1"):
        Limits(slots_per_host=2, single_use_hosts=True)


def test_a_slot_that_dies_while_it_is_opened_counts_as_one_that_did_not_open():
    scheduler, _ = make(warm_slots=1)
    scheduler.start()
    (launch,) = scheduler.take_actions()
    scheduler.host_launched(launch.host_id)
    (opening,) = scheduler.take_actions()
    scheduler.slot_lost(opening.slot_id)
    assert scheduler.counters.failed_opens == 1
    assert scheduler.wake_at > 0


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
