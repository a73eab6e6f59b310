"""How many groups may be under way, by the protocol's formulas."""

import pytest

from agentenv.serve.offpolicy import OffPolicyLimit, Queue, crossed


def limit(**fields) -> OffPolicyLimit:
    values = {"batch_size": 64, "group_size": 8, "max_batches_offpolicy": 3, **fields}
    return OffPolicyLimit(**values)


@pytest.mark.parametrize(
    ("queue_size", "groups"),
    [(0, 16), (8, 16), (9, 15), (23, 1), (24, 0), (100, 0)],
    # 3 batches of 64 are 24 groups of 8; 16 workers
)
def test_what_waits_and_what_is_under_way_are_three_batches_together(queue_size: int, groups: int):
    assert limit().groups(Queue(0, queue_size), most=16) == groups


def test_the_queue_is_full_at_three_batches_and_not_before():
    assert not limit().is_full(Queue(0, 23))
    assert limit().is_full(Queue(0, 24))


@pytest.mark.parametrize("batches", [0, -1])
def test_without_a_bound_on_batches_any_number_may_wait(batches: int):
    unbounded = limit(max_batches_offpolicy=batches)
    assert not unbounded.is_full(Queue(0, 10_000))
    assert unbounded.groups(Queue(0, 10_000), most=16) == 16


def test_nothing_is_collected_while_no_batch_size_is_known():
    unknown = limit(batch_size=-1)
    assert unknown.derived_batch_size(1.0) == -1
    assert unknown.groups(Queue(0, 0), most=16) == 0


def test_what_others_have_reserved_is_not_counted_on():
    assert limit().derived_batch_size(0.5) == 32
    assert limit().groups(Queue(0, 0, unallocated_fraction=0.25), most=16) == 3 * 16 // 8
    assert limit(min_batch_allocation=0.25).derived_batch_size(0.5) == 48


def test_an_environment_with_a_share_of_its_own_fills_it_though_others_fill_the_queue():
    ours = limit(min_batch_allocation=0.25)
    # ceil(0.25 * 64 * 3 / 8) = 6 packs of 8 rows are ours; 40 groups wait, 2 of them ours
    queue = Queue(0, 40, self_queue_size=2, max_group_size=8, unallocated_fraction=0.75)
    assert not ours.is_full(queue)
    # ((6 + 1) * 8 - 8 * 2 // 1) / 8 = 5
    assert ours.groups(queue, most=16) == 5
    assert ours.groups(queue, most=3) == 3
    met = Queue(0, 40, self_queue_size=6, max_group_size=8, unallocated_fraction=0.75)
    assert ours.is_full(met)


def test_groups_of_several_sizes_are_counted_in_packs_of_the_largest():
    ours = limit(group_size=4, min_batch_allocation=0.5)
    # ceil(0.5 * 64 * 3 / 16) = 6 packs of 16 rows, 24 groups of 4
    assert not ours.is_full(Queue(0, 48, self_queue_size=23, max_group_size=16))
    assert ours.is_full(Queue(0, 48, self_queue_size=24, max_group_size=16))
    # ((6 + 4) * 16 - 16 * 23 // 4.0) / 4 = 17
    queue = Queue(0, 48, self_queue_size=23, max_group_size=16, unallocated_fraction=0.5)
    assert ours.groups(queue, most=99) == 17


@pytest.mark.parametrize(
    ("step", "queue_size", "finished"),
    [(10, 0, False), (11, 0, True), (8, 16, False), (9, 15, False), (9, 16, True)],
)
def test_it_is_finished_when_more_waits_than_the_trainer_will_take(
    step: int, queue_size: int, finished: bool
):
    assert limit().is_finished(Queue(step, queue_size), total_steps=10) is finished


@pytest.mark.parametrize(
    ("old", "new", "every", "fires"),
    [
        (0, 1, 1, True),
        (4, 5, 5, True),
        (5, 6, 5, False),
        (5, 15, 10, True),
        (15, 25, 10, True),
        (0, 35, 10, True),
        (9, 9, 3, False),
        (12, 2, 5, False),
        (0, 100, 0, False),
        (0, 100, -1, False),
    ],
)
def test_an_interval_fires_also_at_one_and_when_steps_jump(
    old: int, new: int, every: int, fires: bool
):
    assert crossed(old, new, every) is fires
