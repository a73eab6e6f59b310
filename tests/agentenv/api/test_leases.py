import pytest

from agentenv.api.leases import MAX_REMEMBERED, Batch, Leases
from agentenv.api.queue import Entry
from agentenv.api.refusals import LostLeaseError, UnknownBatchError


def make_batch(batch_id: int, consumer: str | None = "a", deadline: float = 10.0) -> Batch:
    return Batch(batch_id, 0, (Entry(batch_id, 4, 100),), consumer, deadline)


def test_the_bytes_of_open_batches_are_counted():
    leases = Leases()
    for number in (1, 2):
        leases.add(make_batch(number))
    leases.acknowledge(1, "a")
    assert (leases.bytes, len(leases)) == (100, 1)
    leases.restore(make_batch(3))
    assert leases.bytes == 200


def test_a_consumers_own_batch_comes_before_one_whose_lease_has_ended():
    leases = Leases()
    leases.add(make_batch(1, "other", deadline=1.0))
    leases.add(make_batch(2, "a"))
    found = [leases.again("a", now=5.0, deadline=20.0) for _ in range(2)]
    assert [batch.batch_id for batch in found if batch] == [2, 2]
    taken = leases.again("b", now=5.0, deadline=20.0)
    assert taken is not None
    assert (taken.batch_id, taken.consumer, taken.deadline) == (1, "b", 20.0)
    assert leases.again("c", now=5.0, deadline=20.0) is None


def test_a_batch_that_somebody_else_has_by_now_is_left_alone():
    leases = Leases()
    sent = make_batch(1, None)
    leases.add(sent)
    assert leases.end(sent) is not None
    leases.again("b", now=1.0, deadline=20.0)
    assert leases.end(sent) is None
    assert not leases.drop(sent)
    leases.acknowledge(1, "b")


def test_acknowledgements_may_be_repeated_as_long_as_they_are_remembered():
    leases = Leases()
    for number in range(MAX_REMEMBERED + 2):
        leases.add(make_batch(number))
        leases.acknowledge(number, "a")
    assert leases.forget_old() == [0, 1]
    assert leases.acknowledge(2, "a")[1] is False
    with pytest.raises(UnknownBatchError):
        leases.acknowledge(0, "a")
    with pytest.raises(LostLeaseError):
        leases.acknowledge(2, "b")
