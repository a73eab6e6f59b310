"""What one slot may take, and that its neighbours do not feel it."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

from agentenv_backends.conformance.checks import check, hold, said
from agentenv_backends.errors import InfrastructureError
from agentenv_backends.requests import ExecRequest
from agentenv_backends.results import ExecResult, ExecStatus

if TYPE_CHECKING:
    from agentenv_backends.conformance.checks import Subject

_HOG = "python3 -c 'import os\nx=[]\nfor i in range(4096): x.append(os.urandom(1<<20))\nprint(\"had 4 GB\")'"
_BOMB = "bomb() { bomb | bomb & }; bomb; sleep 3"


@check("limits", needs=("memory_limit",))
async def a_memory_hog_is_ended_and_its_neighbour_is_not(subject: Subject) -> None:
    """It is told as out of memory, or the program itself is refused the memory; or the slot is lost by its doing."""
    async with subject.slot() as neighbour, subject.slot() as slot:
        await subject.output(neighbour, "echo mine > f")
        with contextlib.suppress(InfrastructureError):
            answer = await subject.ask(slot, ExecRequest(_HOG, timeout_s=60))
            hold(isinstance(answer, ExecResult), f"got {answer}")
            assert isinstance(answer, ExecResult)
            refused = b"MemoryError" in answer.stderr.tail + answer.stderr.head
            ended = answer.status is ExecStatus.OUT_OF_MEMORY or refused
            hold(ended and answer.exit_code != 0, f"the hog: {said(answer)}")
        hold(await subject.output(neighbour, "cat f") == "mine\n", "the neighbour was harmed")


@check("limits", needs=("process_limit",))
async def a_fork_bomb_is_held_and_leaves_nothing(subject: Subject) -> None:
    """Its neighbour works meanwhile; its own slot does afterwards, or is replaced."""
    async with subject.slot() as neighbour:
        async with subject.slot() as slot:
            bomb = asyncio.create_task(subject.ask(slot, ExecRequest(_BOMB, timeout_s=5)))
            await asyncio.sleep(0.5)
            hold(await subject.output(neighbour, "echo hi", timeout_s=60) == "hi\n", "no answer")
            with contextlib.suppress(InfrastructureError):
                await bomb
                hold(await subject.output(slot, "echo hi", timeout_s=60) == "hi\n", "no answer")
        async with subject.slot() as fresh:
            hold(await subject.output(fresh, "echo hi", timeout_s=60) == "hi\n", "no answer")


@check("limits")
async def no_core_dumps_and_a_bound_on_open_files(subject: Subject) -> None:
    """As `ulimit` says it."""
    async with subject.slot() as slot:
        core, files = (await subject.output(slot, "ulimit -Hc; ulimit -Hn")).split()
        hold(core == "0", f"core dumps of {core}")
        hold(files.isdigit(), f"open files: {files}")


@check("limits")
async def a_busy_slot_does_not_stop_its_neighbours(subject: Subject) -> None:
    """Sixteen endless loops in one."""
    async with subject.slot() as busy, subject.slot() as neighbour:
        loops = "for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16; do (while :; do :; done) & done; sleep 5"
        load = asyncio.create_task(subject.run(busy, loops, timeout_s=4))
        await asyncio.sleep(0.3)
        for number in range(5):
            answer = await subject.output(neighbour, f"echo {number}", timeout_s=20)
            hold(answer == f"{number}\n", "a wrong answer")
        hold(not load.done(), "the loops ended too soon to tell")
        await load
