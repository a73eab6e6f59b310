"""View, edit, glob and grep in real slots: what a search can do to its slot, which is nothing."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from agentenv_backends.errors import SlotLostError
from agentenv_backends.requests import (
    EditRequest,
    ExecRequest,
    GlobRequest,
    GrepRequest,
    ViewRequest,
    WriteRequest,
)
from agentenv_backends.results import (
    EditResult,
    FailureKind,
    GlobResult,
    GrepMatch,
    GrepResult,
    OpFailure,
    ViewResult,
)
from agentenv_backends.sandboxd.slot_processes import descendants_of
from tests.agentenv_backends.sandboxd.harness import all_gone, owner, until

if TYPE_CHECKING:
    from agentenv_backends.requests import Request
    from agentenv_backends.results import Result
    from agentenv_backends.sandboxd.leftovers import Owner
    from tests.agentenv_backends.sandboxd.harness import RunningHost, StartHost

pytestmark = pytest.mark.sandbox

CATASTROPHE = "(a+)+$"
TRAP = "a" * 60 + "!\n"


@pytest.fixture(params=["bubblewrap", "none"])
async def host(start_host: StartHost, request: pytest.FixtureRequest) -> RunningHost:
    return await start_host("a", isolation=request.param)


async def failure(host: RunningHost, request: Request) -> OpFailure:
    result = await host.execute(request)
    assert isinstance(result, OpFailure), result
    return result


async def test_a_file_is_viewed_edited_and_found(host: RunningHost) -> None:
    await host.execute(WriteRequest("src/a.py", b"def f():\n    return 1\n"))
    viewed = await host.execute(ViewRequest("src/a.py", first_line=1))
    assert viewed == ViewResult(b"    return 1\n", "text/plain", 22, first_line=1, lines=1)
    edited = await host.execute(EditRequest("src/a.py", "return 1", "return 22"))
    assert edited == EditResult(replacements=1, bytes_written=23)
    assert await host.execute(GlobRequest("src/**/*.py")) == GlobResult(("src/a.py",), False)
    found = await host.execute(GrepRequest(r"return \d+", context_lines=1))
    match = GrepMatch("src/a.py", 2, "    return 22", before=("def f():",))
    assert found == GrepResult((match,), truncated=False)
    assert (await host.run("cat src/a.py")).stdout.text() == "def f():\n    return 22\n"


async def test_each_mistake_has_its_own_kind(host: RunningHost) -> None:
    await host.execute(WriteRequest("f", b"x\nx\n"))
    requests: dict[Request, FailureKind] = {
        EditRequest("f", "y", "z"): FailureKind.NO_MATCH,
        EditRequest("f", "x", "z"): FailureKind.SEVERAL_MATCHES,
        EditRequest("f", "x", "\ud800"): FailureKind.BAD_REQUEST,
        EditRequest("../f", "x", "z"): FailureKind.OUTSIDE_WORKSPACE,
        ViewRequest("none"): FailureKind.NOT_FOUND,
        GlobRequest("../*"): FailureKind.BAD_REQUEST,
        GlobRequest("*", cwd="/etc"): FailureKind.OUTSIDE_WORKSPACE,
        GrepRequest("("): FailureKind.BAD_REQUEST,
        GrepRequest("x", timeout_s=0.0): FailureKind.BAD_REQUEST,
    }
    assert {request: (await failure(host, request)).kind for request in requests} == requests


async def test_an_edit_that_is_repeated_with_its_key_is_made_once(host: RunningHost) -> None:
    await host.execute(WriteRequest("f", b"a"))
    request = EditRequest("f", "a", "aa", replace_all=True)
    first = await host.connection.execute("a", request, key="k")
    assert await host.connection.execute("a", request, key="k") == first
    assert (await host.run("cat f")).stdout.text() == "aa"


async def test_names_that_are_no_text_come_back_as_they_are(host: RunningHost) -> None:
    await host.run(r"touch $'\xff' $'new\nline' -- -rf; echo hit > $'\xfe'")
    listed = await host.execute(GlobRequest("*"))
    assert isinstance(listed, GlobResult)
    assert sorted(os.fsencode(path) for path in listed.paths) == [b"-rf", b"new\nline", b"\xfe", b"\xff"]  # fmt: skip
    found = await host.execute(GrepRequest("hit"))
    assert isinstance(found, GrepResult)
    viewed = await host.execute(ViewRequest(found.matches[0].path))
    assert isinstance(viewed, ViewResult)
    assert viewed.content == b"hit\n"


async def test_a_pattern_that_takes_for_ever_ends_at_its_deadline_and_leaves_nothing(
    host: RunningHost,
) -> None:
    await host.execute(WriteRequest("trap", TRAP.encode()))
    before = len(descendants_of(host.process.pid))
    result = await failure(host, GrepRequest(CATASTROPHE, timeout_s=1.0))
    assert result.kind is FailureKind.TIMED_OUT
    assert len(descendants_of(host.process.pid)) == before
    assert (await host.run("echo alive")).stdout.text() == "alive\n"


async def searching(host: RunningHost) -> tuple[asyncio.Task[Result], Owner]:
    """A search that takes for ever, and its process."""
    await host.execute(WriteRequest("trap", TRAP.encode()))
    before = set(descendants_of(host.process.pid))
    search = asyncio.create_task(host.execute(GrepRequest(CATASTROPHE, timeout_s=300.0)))
    found: set[int] = set()

    def started() -> bool:
        found.update(set(descendants_of(host.process.pid)) - before)
        return len(found) == 1

    assert await until(started)
    return search, owner(found.pop())


async def test_what_runs_in_the_slot_cannot_look_into_a_search(host: RunningHost) -> None:
    search, process = await searching(host)
    assert not Path(f"/proc/{process.pid}/mem").stat().st_uid, "it would be the slot's user's"
    search.cancel()
    with pytest.raises(asyncio.CancelledError):
        await search
    assert await all_gone([process])


async def test_a_search_that_is_withdrawn_ends_at_once(host: RunningHost) -> None:
    search, process = await searching(host)
    search.cancel()
    with pytest.raises(asyncio.CancelledError):
        await search
    assert await all_gone([process])
    assert (await host.run("echo alive")).stdout.text() == "alive\n"


async def test_a_search_whose_process_is_killed_fails_and_the_slot_lives(host: RunningHost) -> None:
    search, process = await searching(host)
    os.kill(process.pid, 9)
    result = await search
    assert isinstance(result, OpFailure)
    assert result.kind is FailureKind.CANNOT_START
    assert (await host.run("echo alive")).stdout.text() == "alive\n"


async def test_a_slot_that_is_closed_takes_its_search_along(host: RunningHost) -> None:
    search, process = await searching(host)
    await host.connection.close_slot("a")
    assert await all_gone([process])
    with pytest.raises(SlotLostError):
        await search


async def test_a_search_that_needs_too_much_memory_fails_and_the_slot_lives(
    start_host: StartHost,
) -> None:
    host = await start_host("a", memory_mb=128)
    await host.run("yes ab | head -c 8000000 > lines")
    result = await host.execute(GrepRequest("(c)", timeout_s=60.0))
    assert isinstance(result, GrepResult | OpFailure)
    assert (await host.run("echo alive")).stdout.text() == "alive\n"


async def test_the_slot_is_as_before_after_a_search(host: RunningHost) -> None:
    async def descriptors() -> Any:
        counts = await host.run("ls /proc/self/fd | wc -l; echo $PPID")
        return counts.stdout.text()

    before = await descriptors()
    for _ in range(5):
        await host.execute(GrepRequest("x+"))
        await host.execute(GlobRequest("*"))
    assert await descriptors() == before
    result = await host.execute(ExecRequest("sleep 30 & echo started"))
    assert result.killed_processes == 1  # type: ignore[union-attr]


async def test_a_slot_of_few_processes_has_one_for_a_search(start_host: StartHost) -> None:
    host = await start_host("a", max_processes=4)
    result = await host.execute(GrepRequest("x"))
    assert result == GrepResult((), truncated=False)
