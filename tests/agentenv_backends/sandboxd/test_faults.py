"""Deaths: of the driver, the host, a slot, and what is left afterwards (nothing)."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from agentenv_backends.errors import (
    HostLostError,
    HostStartError,
    SandboxTimeoutError,
    SlotLostError,
)
from agentenv_backends.sandboxd import cgroups, frames
from agentenv_backends.sandboxd.slot_processes import descendants_of
from tests.agentenv_backends.sandboxd.harness import RunningHost, StartHost, all_gone, owner, until
from tests.processes import child
from tests.waiting import WITHIN_S

if TYPE_CHECKING:
    from collections.abc import Iterable

    from agentenv_backends.results import ExecResult
    from agentenv_backends.sandboxd.leftovers import Owner

pytestmark = pytest.mark.sandbox


def busy(host: RunningHost, slots: Iterable[str]) -> list[asyncio.Task[ExecResult]]:
    return [asyncio.create_task(host.run("sleep 1000 & setsid sleep 1000", slot)) for slot in slots]


async def running(host: RunningHost, count: int) -> list[Owner]:
    assert await until(lambda: len(host.family()) >= count)
    return host.family()


def groups_of(pid: int) -> list[Path]:
    """Cgroups that a host made, found by the owner in their names."""
    folders = [parent for parent in cgroups.parents() if parent]
    return [path for parent in folders for path in Path(parent).glob(f"agentenv-*-{pid}-*")]


async def outcomes(tasks: list[asyncio.Task[ExecResult]]) -> set[type]:
    return {type(result) for result in await asyncio.gather(*tasks, return_exceptions=True)}


async def test_killing_the_host_leaves_no_process_and_every_request_learns_of_it(
    start_host: StartHost,
) -> None:
    slots = [str(number) for number in range(8)]
    host = await start_host(*slots)
    reasons: list[str] = []
    host.connection.on_lost(reasons.append)
    tasks = busy(host, slots)
    family = await running(host, 1 + 8 * 4)
    host.process.kill()
    assert await outcomes(tasks) == {HostLostError}
    assert await all_gone(family)
    assert len(reasons) == 1
    with pytest.raises(HostLostError):
        await host.run("true", "0")
    host.process.wait()
    assert len([path for path in cgroups.abandoned() if cgroups.remove_with_members(path)]) >= 8
    assert groups_of(host.process.pid) == []


DRIVER = """
import asyncio, sys
sys.path[:0] = {path!r}
from pathlib import Path
from typing import TYPE_CHECKING
from tests.agentenv_backends.sandboxd.harness import launch
async def main():
    host = await launch(Path({pyz!r}))
    for slot in "abcd":
        await host.connection.open_slot(slot)
    tasks = [asyncio.create_task(host.run("sleep 1000 & setsid sleep 1000", slot)) for slot in "abcd"]
    await host.commands("sleep 1000", 8)
    print(host.process.pid, flush=True)
    await asyncio.gather(*tasks)
asyncio.run(main())
"""


async def test_killing_the_driver_leaves_no_process(pyz: Path) -> None:
    code = DRIVER.format(path=[str(Path.cwd()), *sys.path], pyz=str(pyz))
    driver = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    try:
        assert driver.stdout is not None
        line = await asyncio.to_thread(driver.stdout.readline)
        server = int(line)
        family = [
            member for pid in [server, *descendants_of(server)] if (member := owner(pid)).is_alive()
        ]
        assert len(family) >= 1 + 4 * 4
    finally:
        driver.kill()
        driver.communicate()
    assert await all_gone(family)
    assert groups_of(server) == []


async def test_the_end_of_the_stream_ends_the_host(host: RunningHost) -> None:
    family = host.family()
    host.connection.abort()
    assert await all_gone(family)
    assert groups_of(host.process.pid) == []


async def test_a_terminated_host_cleans_up_and_says_why(host: RunningHost) -> None:
    reasons: list[str] = []
    host.connection.on_lost(reasons.append)
    family = host.family()
    host.process.terminate()
    assert await all_gone(family)
    assert await until(lambda: reasons == ["SIGTERM"])
    assert groups_of(host.process.pid) == []


async def test_an_interrupt_from_the_terminal_is_not_for_the_host(host: RunningHost) -> None:
    host.process.send_signal(signal.SIGINT)
    assert (await host.run("echo alive")).stdout.text() == "alive\n"


@pytest.mark.parametrize("member", ["init", "bubblewrap"])
async def test_a_slot_killed_from_outside_is_lost_and_its_neighbour_is_not(
    start_host: StartHost, member: str
) -> None:
    host = await start_host("a", "b")
    lost: list[tuple[str, SlotLostError]] = []
    host.connection.on_slot_lost(lambda slot, error: lost.append((slot, error)))
    outer = host.family()[1].pid
    victim = outer if member == "bubblewrap" else descendants_of(outer)[0]
    family = [owner(pid) for pid in (outer, *descendants_of(outer))]
    task = busy(host, "a")
    await asyncio.sleep(0.1)
    os.kill(victim, signal.SIGKILL)
    assert await outcomes(task) == {SlotLostError}
    assert [slot for slot, _ in lost] == ["a"]
    assert await all_gone(family)
    with pytest.raises(SlotLostError):
        await host.run("true", "a")
    assert (await host.run("echo alive", "b")).stdout.text() == "alive\n"
    await host.connection.close_slot("a")
    await host.connection.open_slot("a")
    assert (await host.run("ls", "a")).stdout.text() == ""


async def test_closing_a_slot_ends_what_runs_in_it_and_its_new_self_is_empty(
    host: RunningHost,
) -> None:
    family = host.family()[1:]
    await host.run("touch file /tmp/file")
    task = busy(host, "a")
    await asyncio.sleep(0.1)
    await host.connection.close_slot("a")
    assert not any(member.is_alive() for member in family)
    assert await outcomes(task) == {SlotLostError}
    await host.connection.open_slot("a")
    assert (await host.run("ls -A . /tmp")).stdout.text() == ".:\n\n/tmp:\n"
    await host.connection.close_slot("never opened")


async def test_closing_a_host_leaves_nothing_and_may_be_asked_twice(start_host: StartHost) -> None:
    host = await start_host(*"abcd")
    tasks = busy(host, "abcd")
    family = await running(host, 1 + 4 * 4)
    await asyncio.gather(host.connection.close(), host.connection.close())
    assert not any(member.is_alive() for member in family)
    assert await outcomes(tasks) <= {HostLostError, SlotLostError}
    assert host.process.returncode == 0
    assert groups_of(host.process.pid) == []
    await host.connection.close()


async def test_a_lease_that_is_not_renewed_ends_the_host(start_host: StartHost) -> None:
    leased = await start_host("a", lease_s=0.5)
    family = leased.family()
    reasons: list[str] = []
    leased.connection.on_lost(reasons.append)
    assert leased.connection._lease_timer is not None
    leased.connection._lease_timer.cancel()
    assert await all_gone(family)
    assert await until(lambda: len(reasons) == 1)
    assert "nothing heard" in reasons[0]


async def test_the_connection_renews_the_lease_by_itself(start_host: StartHost) -> None:
    host = await start_host("a", lease_s=3)
    result = await host.run("sleep 4; echo alive")
    assert result.stdout.text() == "alive\n"


async def test_a_host_that_answers_nothing_is_given_up_after_deadline_and_grace(
    start_host: StartHost,
) -> None:
    host = await start_host("a")
    host.connection._grace_s = 0.2
    host.process.send_signal(signal.SIGSTOP)
    try:
        with pytest.raises(SandboxTimeoutError):
            await host.run("true", timeout_s=0.2)
    finally:
        host.process.send_signal(signal.SIGCONT)
    assert (await host.run("echo alive")).stdout.text() == "alive\n"


async def test_a_frame_that_is_none_ends_the_host_with_the_reason(host: RunningHost) -> None:
    reasons: list[str] = []
    host.connection.on_lost(reasons.append)
    host.connection._write(b"GET / HTTP/1.1\r\nHost: sandbox\r\n\r\n")
    assert await until(lambda: len(reasons) == 1)
    assert "broken" in reasons[0]
    assert await all_gone(host.family())


async def test_a_host_speaks_only_after_its_greeting(pyz: Path) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs, child([sys.executable, "-I", str(pyz)], stdin=theirs.fileno()) as server:
        theirs.close()
        ours.sendall(frames.encode(frames.PING, request_id=1))
        ours.settimeout(WITHIN_S)
        got = frames.FrameReader().feed(await asyncio.to_thread(ours.recv, 1 << 16))
        assert [frame.kind for frame in got] == [frames.CLOSING]
        assert await asyncio.to_thread(server.wait, WITHIN_S) == 0


async def test_settings_that_cannot_work_are_refused_with_the_reason(start_host: StartHost) -> None:
    with pytest.raises(HostStartError, match="cannot run"):
        await start_host(python="/usr/bin/no-such-python")


async def test_a_slot_whose_uids_are_all_taken_is_not_opened(start_host: StartHost) -> None:
    if os.geteuid() != 0:
        pytest.skip("uids are dropped when started as root")
    host = await start_host("a", uid_count=1)
    with pytest.raises(SlotLostError, match="uid_count"):
        await host.connection.open_slot("b")
    await host.connection.close_slot("a")
    await host.connection.open_slot("b")
    assert (await host.run("true", "b")).exit_code == 0


async def test_giving_up_on_a_slot_that_is_being_opened_leaves_nothing(host: RunningHost) -> None:
    task = asyncio.create_task(host.connection.open_slot("b"))
    await asyncio.sleep(0.005)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await until(lambda: len(host.family()) == 3)
    await host.connection.open_slot("b")
