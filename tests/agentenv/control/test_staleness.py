"""No group is older at hand-out than the bound says, whatever order groups finish in."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentenv.control import StalenessLimit, Supply, oldest_version


def test_without_a_bound_any_group_is_usable_and_any_may_start():
    limit = StalenessLimit()
    assert limit.usable(0, 10**6)
    assert limit.admits(Supply(5, 8, waiting=10**6), oldest_running=0, group_size=8)
    assert limit.overdue({"a": 0}, Supply(10**6, 8)) == []


@pytest.mark.parametrize(
    ("version", "step", "usable"), [(5, 5, True), (3, 5, True), (2, 5, False), (None, 5, True)]
)
def test_a_groups_age_is_the_step_less_its_policy_version(
    version: int | None, step: int, usable: bool
):
    assert StalenessLimit(max_steps=2).usable(version, step) is usable


def test_on_policy_means_one_batch_at_a_time():
    limit, started = StalenessLimit(max_steps=0), 0
    while limit.admits(Supply(3, 32, running=started), 3 if started else None, 8):
        started += 8
    assert started == 32
    assert limit.admits(Supply(4, 32), None, 8)


def test_a_slow_group_holds_back_new_ones_instead_of_growing_too_old():
    limit = StalenessLimit(max_steps=1)
    assert limit.admits(Supply(step=1, batch_size=16, waiting=8, running=0), None, 8)
    slow = 0  # started at step 0, still under way at step 1: only what fills the batch of this step may start
    assert limit.admits(Supply(step=1, batch_size=16, waiting=0, running=8), slow, 8)
    assert not limit.admits(Supply(step=1, batch_size=16, waiting=8, running=8), slow, 8)


def test_groups_that_would_be_too_old_even_now_are_overdue():
    limit = StalenessLimit(max_steps=2)
    under_way = {"old": 3, "edge": 4, "new": 6, "unknown": None}
    assert limit.overdue(under_way, Supply(step=6, batch_size=8)) == ["old"]
    assert limit.overdue(under_way, Supply(step=6, batch_size=8, waiting=8)) == ["old", "edge"]


@settings(max_examples=200)
@given(
    seed=st.integers(0, 10**6),
    max_steps=st.integers(0, 4),
    group_size=st.sampled_from([1, 2, 4, 8]),
    groups_in_batch=st.integers(1, 5),
)
def test_admission_alone_keeps_every_group_within_the_bound(
    seed: int, max_steps: int, group_size: int, groups_in_batch: int
):
    """Groups end in random order, some only when nothing else is left to do; none is ever dropped or too old."""
    rng = random.Random(seed)
    limit = StalenessLimit(max_steps=max_steps)
    batch_size = group_size * groups_in_batch
    step = 0
    running: list[int] = []
    queue: list[int] = []
    oldest_handed_out = 0
    for _ in range(400):
        supply = Supply(step, batch_size, len(queue) * group_size, len(running) * group_size)
        moves = []
        if limit.admits(supply, min(running, default=None), group_size):
            moves.append("start")
        moves += ["end"] * bool(running) + ["train"] * (len(queue) >= groups_in_batch)
        assert moves, "nothing can go on"
        assert limit.overdue(dict(enumerate(running)), supply) == []
        move = rng.choice(moves)
        if move == "start":
            running.append(step)
        elif move == "end":
            late = rng.random() < 0.7  # the newest often overtake the oldest
            queue.append(running.pop(-1 if late else 0))
        else:
            ages = [step - queue.pop(0) for _ in range(groups_in_batch)]
            oldest_handed_out = max(oldest_handed_out, *ages)
            step += 1
    assert oldest_handed_out <= max_steps
    assert step > 0


def test_versions_of_an_engine_are_compared_as_numbers():
    assert oldest_version(["10", "9", 11]) == 9
    assert oldest_version([]) is None
    assert oldest_version(["3", "checkpoint-b"]) is None
    assert oldest_version([None]) is None
