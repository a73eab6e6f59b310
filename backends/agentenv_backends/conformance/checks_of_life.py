"""Acquiring, releasing, stopping; batches; what is left when a driver dies."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import sys
from typing import TYPE_CHECKING, Any

from agentenv_backends.base import SlotState
from agentenv_backends.conformance.checks import check, expect, hold, said
from agentenv_backends.errors import (
    AcquireTimeoutError,
    BackendStoppedError,
    HostLostError,
    InfrastructureError,
    SlotLostError,
    SlotStateError,
)
from agentenv_backends.requests import ExecRequest, KillRequest, ReadRequest
from agentenv_backends.results import ExecResult, KillResult, OpFailure

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from agentenv_backends.base import Backend, Slot
    from agentenv_backends.conformance.checks import Subject
    from agentenv_backends.requests import Request

_LEAVE_TRACES = """
echo x > file; mkdir -p a/b; ln -s a l; mkdir locked; echo x > locked/f; chmod 0 locked
echo x > "$HOME/.profile"; echo x > "$HOME/.bashrc"; echo x > "$TMPDIR/trace"
for d in /tmp /var/tmp /dev/shm /run /var/lock; do echo x > $d/conformance-trace; done 2>/dev/null
(setsid sleep 6364 >/dev/null 2>&1 &)
true
"""
_SEE_TRACES = """
ls -A; ls -A "$HOME" "$TMPDIR" | grep -v : ; ls -d /tmp/* /var/tmp/* /dev/shm/* /run/conf* /var/lock/conf* 2>/dev/null
cat /proc/[0-9]*/cmdline 2>/dev/null | tr '\\0' '\\n' | grep -x '[6]364'
true
"""
_DRIVER = """
import asyncio, json, sys
from agentenv_backends.conformance.running import load_factory
from agentenv_backends.requests import ExecRequest

async def main():
    backend = load_factory(sys.argv[1])(**json.loads(sys.argv[2]))
    await backend.start()
    slots = [await backend.acquire(f"t{i}", timeout_s=120) for i in range(2)]
    print("\\n".join(slot.host_id for slot in slots), flush=True)
    running = asyncio.gather(*(backend.execute(s, ExecRequest("sleep 300", 300)) for s in slots))
    await asyncio.sleep(0.3)
    print("busy", flush=True)
    await running

asyncio.run(main())
"""


async def _raises(kind: type[BaseException], call: Awaitable[Any]) -> BaseException:
    try:
        answer = await call
    except kind as error:
        return error
    hold(False, f"expected {kind.__name__}, got {answer}")
    raise AssertionError


async def _started(subject: Subject) -> Backend:
    backend = subject.make()
    await backend.start()
    return backend


@check("life")
async def a_slot_handed_out_is_as_good_as_new(subject: Subject) -> None:
    """Files, folders without permission, temporary files and processes of its last holder are gone."""
    async with subject.slot() as slot:
        fresh = await subject.output(slot, _SEE_TRACES)
        await subject.output(slot, _LEAVE_TRACES)
    for _ in range(6):
        async with subject.slot() as slot:
            seen = await subject.output(slot, _SEE_TRACES)
            hold(seen == fresh, f"a new slot shows {seen!r}, a fresh one {fresh!r}")


@check("life")
async def a_released_slot_can_no_longer_be_used(subject: Subject) -> None:
    """Nor released again, nor used through a copy of its name."""
    slot = await subject.backend.acquire("conformance-released", timeout_s=120)
    hold(slot.state is SlotState.ACQUIRED, f"its state is {slot.state}")
    await subject.backend.release(slot)
    await _raises(SlotStateError, subject.ask(slot, ExecRequest("true")))
    await _raises(SlotStateError, subject.backend.release(slot))


@check("life")
async def a_request_under_way_ends_when_its_slot_is_released(subject: Subject) -> None:
    """In an error that is the infrastructure's, soon."""
    slot = await subject.backend.acquire("conformance-under-way", timeout_s=120)
    running = asyncio.create_task(subject.ask(slot, ExecRequest("sleep 600", 600)))
    await asyncio.sleep(0.2)
    await subject.backend.release(slot)
    async with asyncio.timeout(30):
        await _raises(SlotLostError, running)


@check("life")
async def waiting_for_a_slot_ends_at_the_deadline_and_leaks_nothing(subject: Subject) -> None:
    """Cancelled waits neither."""
    backend = subject.backend
    held: list[Slot] = []
    try:
        with contextlib.suppress(AcquireTimeoutError):
            while len(held) < 512:
                held.append(await backend.acquire(f"conformance-all-{len(held)}", timeout_s=8))
        hold(len(held) < 512, "there is no end to its slots: give the checks a small backend")
        waits = [asyncio.create_task(backend.acquire(f"w{i}", timeout_s=60)) for i in range(20)]
        await asyncio.sleep(0)
        for wait in waits:
            wait.cancel()
        await asyncio.gather(*waits, return_exceptions=True)
        error = await _raises(AcquireTimeoutError, backend.acquire("one-more", timeout_s=0.2))
        hold(isinstance(error, TimeoutError) and str(error), "the error says nothing")
    finally:
        await asyncio.gather(*(backend.release(slot) for slot in held))
    again = [await backend.acquire(f"again-{i}", timeout_s=120) for i in range(len(held))]
    await asyncio.gather(*(backend.release(slot) for slot in again))


@check("life")
async def a_batch_answers_in_order_and_no_request_fails_its_neighbours(subject: Subject) -> None:
    """Whether the agent is at fault or not."""
    async with subject.slot() as one, subject.slot() as two:
        calls: list[tuple[Slot, Request]] = [
            (one, ExecRequest("sleep 0.3; echo slow")),
            (two, ReadRequest("missing")),
            (two, ExecRequest("echo quick")),
            (one, ExecRequest("exit 3")),
            (two, ExecRequest("sleep 60", timeout_s=0.5)),
        ]
        slow, missing, quick, failing, late = await subject.backend.execute_batch(calls)
        hold(isinstance(slow, ExecResult) and slow.stdout.text() == "slow\n", f"got {slow}")
        hold(isinstance(missing, OpFailure), f"got {missing}")
        hold(isinstance(quick, ExecResult) and quick.stdout.text() == "quick\n", f"got {quick}")
        hold(isinstance(failing, ExecResult) and failing.exit_code == 3, f"got {failing}")
        hold(isinstance(late, ExecResult) and late.status == "timed_out", f"got {late}")


@check("life")
async def killing_the_processes_of_a_slot_leaves_it_usable(subject: Subject) -> None:
    """A verifier runs undisturbed afterwards."""
    async with subject.slot() as slot:
        await subject.output(slot, "echo kept > f; (setsid sleep 7475 >/dev/null 2>&1 &) ; true")
        expect(KillResult, await subject.ask(slot, KillRequest()))
        hold(await subject.output(slot, "cat f") == "kept\n", "files are lost")


@check("life")
async def an_agent_that_attacks_its_own_slot_gets_no_result_but_its_own(subject: Subject) -> None:
    """Killing all it can reach harms neither a neighbour nor, afterwards, anybody."""
    async with subject.slot() as neighbour:
        await subject.output(neighbour, "echo mine > f")
        async with subject.slot() as slot:
            attack = (
                "kill -9 -1; for p in /proc/[0-9]*; do kill -9 ${p#/proc/}; done; kill -9 $PPID"
            )
            with contextlib.suppress(InfrastructureError):
                await subject.ask(slot, ExecRequest(attack, timeout_s=10))
            hold(await subject.output(neighbour, "cat f") == "mine\n", "a neighbour was harmed")
        async with subject.slot() as fresh:
            hold(await subject.output(fresh, "ls -A") == "", "the next slot is not new")


@check("life", own_backend=True)
async def nothing_works_before_start_and_after_stop(subject: Subject) -> None:
    """Stopping twice is stopping once."""
    backend = subject.make()
    await _raises(BackendStoppedError, backend.acquire("early", timeout_s=1))
    await backend.start()
    slot = await backend.acquire("held", timeout_s=120)
    running = asyncio.create_task(backend.execute(slot, ExecRequest("sleep 600", 600)))
    await asyncio.sleep(0.2)
    await asyncio.gather(backend.stop(), backend.stop())
    await backend.stop()
    async with asyncio.timeout(30):
        await _raises(HostLostError, running)
        await _raises(BackendStoppedError, backend.acquire("late", timeout_s=1))


@check("life", own_backend=True)
async def a_start_that_is_cancelled_leaves_a_backend_that_can_be_stopped(subject: Subject) -> None:
    """At several moments."""
    for delay in (0.0, 0.05, 0.3):
        backend = subject.make()
        starting = asyncio.create_task(backend.start())
        await asyncio.sleep(delay)
        starting.cancel()
        await asyncio.gather(starting, return_exceptions=True)
        async with asyncio.timeout(60):
            await backend.stop()


@check("life", own_backend=True)
async def what_a_killed_driver_held_is_gone_and_others_go_on(subject: Subject) -> None:
    """A backend beside it is not touched, and one started afterwards finds nothing in its way."""
    async with subject.slot() as slot:
        await subject.output(slot, "echo mine > f")
        driver = await asyncio.create_subprocess_exec(
            sys.executable,
            "-c",
            _DRIVER,
            subject.factory,
            json.dumps(subject.arguments),
            stdout=asyncio.subprocess.PIPE,
        )
        try:
            assert driver.stdout is not None
            async with asyncio.timeout(120):
                while (line := await driver.stdout.readline()) != b"busy\n":
                    hold(line, "the second driver did not start")
        finally:
            driver.send_signal(signal.SIGKILL)
            await driver.wait()
        after = await _started(subject)
        try:
            fresh = await after.acquire("after", timeout_s=120)
            answer = expect(ExecResult, await after.execute(fresh, ExecRequest("echo hi")))
            hold(answer.stdout.text() == "hi\n", said(answer))
        finally:
            await after.stop()
        hold(await subject.output(slot, "cat f") == "mine\n", "a live run lost its slot to a sweep")
