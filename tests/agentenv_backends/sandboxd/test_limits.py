"""A slot at its limits: it gets a clear result, and its neighbours notice nothing."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from agentenv_backends.errors import HostStartError, SlotExhaustedError
from agentenv_backends.requests import ExecRequest, ListRequest, ReadRequest, WriteRequest
from agentenv_backends.results import ExecStatus, ListResult, OpFailure, ReadResult, WriteResult

if TYPE_CHECKING:
    from tests.agentenv_backends.sandboxd.harness import RunningHost, StartHost

pytestmark = pytest.mark.sandbox
MB = 1 << 20


def resident_bytes(pid: int) -> int:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGESIZE")


@pytest.mark.slow
async def test_two_gigabytes_of_output_cost_host_and_driver_little_memory(
    host: RunningHost,
) -> None:
    before, driver_before = resident_bytes(host.process.pid), resident_bytes(os.getpid())
    result = await host.run("head -c 2000000000 /dev/zero", timeout_s=60)
    assert result.status is ExecStatus.EXITED
    assert result.stdout.total_bytes == 2_000_000_000
    assert len(result.stdout.head) + len(result.stdout.tail) == 50_000
    assert resident_bytes(host.process.pid) - before < 8 * MB
    assert resident_bytes(os.getpid()) - driver_before < 8 * MB


async def test_a_command_that_never_stops_writing_is_ended_at_its_deadline(
    host: RunningHost,
) -> None:
    result = await host.run("yes", timeout_s=0.5)
    assert result.status is ExecStatus.TIMED_OUT
    assert result.stdout.truncated


async def test_a_fork_bomb_is_held_and_its_neighbour_keeps_serving(start_host: StartHost) -> None:
    host = await start_host("a", "b", max_processes=64)
    assert host.facts.process_limit
    bomb = asyncio.create_task(host.run(":(){ :|:& };:; sleep 10", "a", timeout_s=1.5))
    served = 0
    while not bomb.done():
        assert (await host.run("echo ok", "b")).stdout.text() == "ok\n"
        served += 1
    assert served > 10
    assert (await bomb).status in (ExecStatus.TIMED_OUT, ExecStatus.EXITED)
    assert (await host.run("set -- /proc/[0-9]*; echo $#", "a")).stdout.text() == "2\n"


async def test_a_full_disk_is_told_and_freed_space_is_usable(start_host: StartHost) -> None:
    host = await start_host("a", disk_mb=8, tmp_mb=4)
    result = await host.run(
        "for i in $(seq 20); do dd if=/dev/zero of=f$i bs=1M count=1 2>&1; done; du -sm ."
    )
    assert "No space left" in result.stdout.text()
    assert int(result.stdout.text().splitlines()[-1].split()[0]) <= 8
    failure = await host.execute(WriteRequest("more", b"x" * MB))
    assert isinstance(failure, OpFailure)
    assert failure.kind == "no_space"
    for folder in ("/tmp", "/dev/shm"):
        result = await host.run(f"head -c 100M /dev/zero > {folder}/big; stat -c %s {folder}/big")
        assert int(result.stdout.text()) <= 4 * MB
    await host.run("rm f*")
    assert await host.execute(WriteRequest("more", b"x" * MB)) == WriteResult(MB)


HOG = "python3 -c 'x = bytearray(400 << 20); print(len(x))'"


@pytest.mark.parametrize(
    "command", [HOG, HOG + "; exit $?", f"sh -c {HOG!r}"], ids=["main", "child", "grandchild"]
)
async def test_a_memory_hog_is_reported_as_out_of_memory(
    start_host: StartHost, command: str
) -> None:
    host = await start_host("a", "b", memory_mb=128, disk_mb=16, tmp_mb=4)
    if not host.facts.memory_limit.startswith("cgroup"):
        pytest.skip("needs writable cgroups")
    result = await host.run(command)
    assert result.status is ExecStatus.OUT_OF_MEMORY, result
    assert (await host.run("kill -9 $$")).status is ExecStatus.SIGNALED
    assert (await host.run("echo alive", "b")).stdout.text() == "alive\n"


HOARD = """exec python3 -c '
import ctypes, os
open("/proc/self/oom_score_adj", "w").write("0")
c = ctypes.CDLL(None)
c.shmat.restype = ctypes.c_void_p
while True:
    segment = c.shmget(0, 1 << 20, 0o1600)
    if os.fork() == 0:
        ctypes.memset(c.shmat(segment, None, 0), 1, 1 << 20)
        os._exit(0)
    os.wait()'
"""
"""Memory that outlives the processes that took it, taken by processes that are not the first to go."""


async def hoard_until_the_end(host: RunningHost) -> None:
    for _ in range(50):
        await host.run(HOARD, timeout_s=20)


async def test_a_slot_that_its_own_command_starves_to_death_says_so(start_host: StartHost) -> None:
    host = await start_host("a", memory_mb=64, disk_mb=1, tmp_mb=1)
    if not host.facts.memory_limit.startswith("cgroup"):
        pytest.skip("no memory limit for whole slots here")
    with pytest.raises(SlotExhaustedError, match="used up its memory"):
        await hoard_until_the_end(host)


async def test_a_full_disk_leaves_commands_their_memory(start_host: StartHost) -> None:
    host = await start_host("a", memory_mb=128, disk_mb=128, tmp_mb=4)
    await host.run("head -c 200M /dev/zero > big")
    result = await host.run("python3 -c 'x = bytearray(100 << 20); print(len(x))'")
    assert result.stdout.text() == f"{100 << 20}\n"


async def test_a_share_of_the_processors_is_in_force_or_refused(start_host: StartHost) -> None:
    try:
        host = await start_host("a", cpus=0.25, require=("cpus",))
    except HostStartError as error:
        assert "cpus" in str(error)  # noqa: PT017 - either outcome is right, by machine
        return
    assert host.facts.cpu_limit
    code = (
        "end = time.monotonic() + 1\nwhile time.monotonic() < end: pass\nprint(time.process_time())"
    )
    result = await host.run(f"python3 -c 'import time\n{code}'", timeout_s=20)
    assert float(result.stdout.text()) < 0.6


async def test_open_files_are_limited_and_core_dumps_are_off(start_host: StartHost) -> None:
    host = await start_host("a", open_files=128)
    assert (await host.run("ulimit -n; ulimit -c")).stdout.text() == "128\n0\n"


async def test_when_nothing_can_be_forked_the_command_says_so_and_the_slot_recovers(
    start_host: StartHost,
) -> None:
    host = await start_host("a", max_processes=8)
    result = await host.run("for i in $(seq 30); do sleep 100 & done; wait", timeout_s=1.5)
    assert "fork" in result.stderr.text()
    assert (await host.run("echo alive")).stdout.text() == "alive\n"


async def test_files_over_a_frame_are_refused_before_they_are_sent(host: RunningHost) -> None:
    assert await host.refused(WriteRequest("big", bytes((64 << 20) + 1))) == "too_large"
    assert await host.refused(ReadRequest("big", max_bytes=1 << 30)) == "bad_request"


async def test_megabytes_pass_both_ways_unchanged(host: RunningHost) -> None:
    content = os.urandom(20 * MB)
    assert await host.execute(WriteRequest("big", content)) == WriteResult(len(content))
    result = await host.execute(ReadRequest("big", max_bytes=32 * MB))
    assert isinstance(result, ReadResult)
    assert result.content == content


async def test_a_folder_of_many_files_is_listed_up_to_the_limit(host: RunningHost) -> None:
    await host.run("seq 1 20000 | xargs touch", timeout_s=30)
    result = await host.execute(ListRequest(max_entries=5000))
    assert isinstance(result, ListResult)
    assert (len(result.entries), result.truncated) == (5000, True)


async def test_more_requests_than_a_slot_can_hold_are_refused_not_piled_up(
    host: RunningHost,
) -> None:
    tasks = [host.connection.execute("a", ExecRequest("true")) for _ in range(200)]
    results = await asyncio.gather(*tasks)
    refused = [result for result in results if isinstance(result, OpFailure)]
    assert refused
    assert {failure.kind for failure in refused} == {"bad_request"}
    assert len(results) - len(refused) >= 64


async def test_a_long_loop_of_orphans_is_reaped_while_it_runs(start_host: StartHost) -> None:
    host = await start_host("a", max_processes=32)
    result = await host.run("for i in $(seq 200); do (true &); done; echo done", timeout_s=20)
    # On a busy machine bash may have to try a fork again; orphans that stayed would make it fail for good.
    assert result.stdout.text() == "done\n"


async def test_slots_do_not_wait_for_each_other(start_host: StartHost) -> None:
    host = await start_host("a", "b")
    slow = asyncio.create_task(host.run("sleep 2; echo slow", "a"))
    for _ in range(20):
        assert (await host.run("echo quick", "b")).stdout.text() == "quick\n"
    assert not slow.done()
    assert (await slow).stdout.text() == "slow\n"


@pytest.mark.slow
async def test_large_answers_of_many_slots_all_arrive(start_host: StartHost) -> None:
    slots = [str(number) for number in range(8)]
    host = await start_host(*slots)
    size = 40 * MB
    await asyncio.gather(*[host.run(f"head -c {size} /dev/zero > f", slot) for slot in slots])
    before = resident_bytes(host.process.pid)
    reads = [host.execute(ReadRequest("f", max_bytes=size), slot) for slot in slots]
    tasks = [asyncio.create_task(read) for read in reads]
    peak = 0
    while not all(task.done() for task in tasks):
        peak = max(peak, resident_bytes(host.process.pid))
        await asyncio.sleep(0.005)
    for task in tasks:
        result = task.result()
        assert isinstance(result, ReadResult)
        assert len(result.content) == size
    assert peak - before < 300 * MB
