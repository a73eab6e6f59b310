"""Which members of a group are kept when more were started than it needs."""

import pytest

from agentenv.control import Keep, MemberChoice, OverProvision


def choice(keep: Keep, extra: int = 2, size: int = 4, **more: float) -> MemberChoice:
    return MemberChoice(OverProvision(extra=extra, keep=keep, **more), size)


def end(chosen: MemberChoice, *members: int, at_s: float = 1.0) -> None:
    for member in members:
        chosen.ended(member, usable=True, at_s=at_s)


def lose(chosen: MemberChoice, *members: int) -> None:
    for member in members:
        chosen.ended(member, usable=False, at_s=1.0)


def test_by_default_a_group_starts_what_it_needs_and_waits_for_all_of_it():
    chosen = MemberChoice(OverProvision(), 3)
    assert chosen.started == 3
    end(chosen, 2, 0)
    assert chosen.kept(1e9) is None
    assert chosen.ask_again_in(0) is None
    end(chosen, 1)
    assert chosen.kept(1) == (0, 1, 2)


@pytest.mark.parametrize("keep", Keep)
def test_too_many_lost_members_make_a_group_hopeless(keep: Keep):
    chosen = choice(keep)
    lose(chosen, 0, 5)
    assert not chosen.hopeless
    lose(chosen, 3)
    assert chosen.hopeless
    end(chosen, 1, 2, 4)
    assert chosen.kept(1e9) is None


def test_by_index_waits_for_the_slow_ones_and_replaces_only_the_lost():
    chosen = choice(Keep.BY_INDEX)
    end(chosen, 5, 4, 3, 2, 1)
    assert chosen.kept(1e9) is None
    assert chosen.ask_again_in(1) is None
    lose(chosen, 0)
    assert chosen.kept(2) == (1, 2, 3, 4)


def test_by_index_takes_no_spare_that_it_does_not_need():
    chosen = choice(Keep.BY_INDEX)
    end(chosen, 4, 5, 0, 1, 2, 3)
    assert chosen.kept(1) == (0, 1, 2, 3)


def test_by_deadline_replaces_stragglers_only_when_the_deadline_has_passed():
    chosen = choice(Keep.BY_DEADLINE, quantile=0.5, factor=3.0)
    end(chosen, 5, at_s=1.0)
    assert chosen.ask_again_in(1.0) is None  # half of four is two
    end(chosen, 1, at_s=2.0)
    end(chosen, 2, 4, at_s=2.5)
    assert chosen.kept(2.5) is None
    assert chosen.ask_again_in(2.5) == pytest.approx(3.5)  # three times the 2.0 s that half took
    assert chosen.kept(6.0) == (1, 2, 4, 5)
    assert chosen.ask_again_in(6.0) is None


def test_by_deadline_keeps_the_first_members_if_they_end_in_time():
    chosen = choice(Keep.BY_DEADLINE)
    end(chosen, 5, 4, 0, 1, at_s=1.0)
    end(chosen, 2, 3, at_s=1.5)
    assert chosen.kept(1.5) == (0, 1, 2, 3)


def test_past_the_deadline_the_group_waits_for_as_many_as_it_needs():
    chosen = choice(Keep.BY_DEADLINE)
    end(chosen, 3, 4, at_s=1.0)
    assert chosen.kept(50.0) is None
    assert chosen.ask_again_in(50.0) is None  # no deadline is left: only an end can change it
    end(chosen, 5, 1, at_s=60.0)
    assert chosen.kept(60.0) == (1, 3, 4, 5)


def test_first_finished_keeps_the_first_that_end_in_the_order_of_members():
    chosen = choice(Keep.FIRST_FINISHED)
    end(chosen, 5, 3)
    lose(chosen, 0)
    end(chosen, 4)
    assert chosen.kept(1) is None
    end(chosen, 1, 2)
    assert chosen.kept(1) == (1, 3, 4, 5)
