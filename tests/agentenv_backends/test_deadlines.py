"""Deadlines behind one timer: each is kept, those that are met cost none."""

from __future__ import annotations

import asyncio
import random
from functools import partial

from agentenv_backends._deadlines import Deadlines
from agentenv_backends._virtual_time import run_in_virtual_time


def test_each_is_called_back_at_its_time_in_whatever_order_they_are_added() -> None:
    async def main() -> None:
        loop, deadlines = asyncio.get_running_loop(), Deadlines()
        wanted = random.Random(1).sample(range(1, 1000), 200)
        called: list[tuple[float, int]] = []

        def note(at: int) -> None:
            called.append((loop.time(), at))

        for at in wanted:
            deadlines.add(at, float(at), partial(note, at))
        await asyncio.sleep(1000)
        assert called == [(float(at), at) for at in sorted(wanted)]

    run_in_virtual_time(main())


def test_what_was_removed_is_not_called_and_keeps_nothing_from_being_called() -> None:
    async def main() -> None:
        loop, deadlines = asyncio.get_running_loop(), Deadlines()
        called: list[tuple[str, float]] = []

        def note(name: str) -> None:
            called.append((name, loop.time()))

        for name, at in (("first", 1.0), ("second", 2.0), ("third", 3.0)):
            deadlines.add(name, at, partial(note, name))
        deadlines.remove("first")
        deadlines.remove("never added")
        await asyncio.sleep(2.5)
        deadlines.add("sooner", 2.75, partial(note, "sooner"))
        await asyncio.sleep(2.5)
        assert called == [("second", 2.0), ("sooner", 2.75), ("third", 3.0)]

    run_in_virtual_time(main())


def test_one_that_is_called_may_add_and_remove_others() -> None:
    async def main() -> None:
        deadlines = Deadlines()
        called: list[str] = []

        def first() -> None:
            called.append("first")
            deadlines.remove("same time")
            deadlines.add("next", 2.0, lambda: called.append("next"))

        deadlines.add("first", 1.0, first)
        deadlines.add("same time", 1.0, lambda: called.append("same time"))
        await asyncio.sleep(3)
        assert called == ["first", "next"]

    run_in_virtual_time(main())


def test_closed_it_calls_nobody_and_can_be_used_again() -> None:
    async def main() -> None:
        deadlines = Deadlines()
        called: list[str] = []
        deadlines.add("before", 1.0, lambda: called.append("before"))
        deadlines.close()
        await asyncio.sleep(2)
        deadlines.add("after", 3.0, lambda: called.append("after"))
        await asyncio.sleep(2)
        assert called == ["after"]

    run_in_virtual_time(main())


def test_one_that_fails_takes_no_other_with_it() -> None:
    async def main() -> None:
        loop, deadlines = asyncio.get_running_loop(), Deadlines()
        failures: list[object] = []
        loop.set_exception_handler(lambda _, context: failures.append(context["exception"]))
        called: list[str] = []

        def fail() -> None:
            raise RuntimeError("a bug")

        deadlines.add("fails", 1.0, fail)
        deadlines.add("same time", 1.0, lambda: called.append("same time"))
        deadlines.add("later", 2.0, lambda: called.append("later"))
        await asyncio.sleep(3)
        assert called == ["same time", "later"]
        assert len(failures) == 1

    run_in_virtual_time(main())
