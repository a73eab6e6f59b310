"""What a command can do to others: nothing. Each case gets a clear result, its neighbour works on, nothing is left."""

import asyncio
import os
from collections.abc import Callable
from typing import NamedTuple

import pytest

from agentenv_backends.results import ListResult
from agentenv_tools import ToolCall, ToolResult
from tests.faults.sandboxes import sandboxes, working_neighbour
from tests.processes import resident_memory

pytestmark = [pytest.mark.sandbox]
_DEADLINE_S = 180
_MIB = 1 << 20
_PROCESSES = 64


class Case(NamedTuple):
    name: str
    call: ToolCall
    check: Callable[[ToolResult], object]
    timeout_s: float | None = None


def shell(command: str) -> ToolCall:
    return ToolCall("terminal", {"command": command})


def read(path: str) -> ToolCall:
    return ToolCall("read_file", {"path": path})


def write(path: str, content: str = "x") -> ToolCall:
    return ToolCall("write_file", {"path": path, "content": content})


def fails(part: str) -> Callable[[ToolResult], bool]:
    return lambda result: not result.success and part in (result.error or "")


def prints(text: str) -> Callable[[ToolResult], bool]:
    return lambda result: result.success and result.output == text


CASES = [
    Case(
        "fork bomb",
        shell(":(){ :|:& };: ; sleep 60"),
        lambda r: r.metadata["timeout"] and 8 <= r.metadata["killed_processes"] <= _PROCESSES,
        3,
    ),
    Case(
        "children that ignore SIGTERM and hold the pipe",
        shell("trap '' TERM HUP; (trap '' TERM; setsid sleep 600) & sleep 600 & echo started"),
        lambda r: r.success and "started" in r.output and r.metadata["killed_processes"] >= 2,
    ),
    Case(
        "a command that ignores SIGTERM past its deadline",
        shell("trap '' TERM; echo begun; while :; do sleep 1; done"),
        lambda r: r.metadata["timeout"] and "begun" in r.output and "timed out" in (r.error or ""),
        1,
    ),
    Case("double fork daemon", shell("setsid bash -c 'sleep 600 & disown' & exit 3"), fails("3")),
    Case("full disk", shell("head -c 1G /dev/zero > big"), fails("Exit code: 1")),
    Case(
        "full disk of many files",
        shell("for i in {1..99}; do head -c 8M /dev/zero >f$i||exit 7; done"),
        fails("7"),
    ),
    Case("full /tmp", shell("head -c 1G /dev/zero > /tmp/big"), fails("Exit code: 1")),
    Case(
        "too much memory",
        shell("x=$(head -c 1G /dev/zero | tr '\\0' a); echo ${#x}"),
        lambda r: not r.success and "memory" in (r.error or "") + r.output,
    ),
    Case(
        "a command that reads stdin", shell("cat; read line; echo status $?"), prints("status 1\n")
    ),
    Case("a closed stdout", shell("exec 1>&- 2>&-; sleep 0.2; exit 5"), fails("5")),
    Case(
        "killing its own init",
        shell("kill -9 1; kill -9 -1; echo here"),
        lambda r: r.success and r.output.startswith("here\n"),
    ),
    Case(
        "a line of 10 MB",
        shell("head -c 10000000 /dev/zero | tr '\\0' a"),
        lambda r: (
            r.success
            and r.metadata["truncated"]["stdout"]["total_bytes"] == 10_000_000
            and len(r.output) < 60_000
        ),
    ),
    Case("NUL bytes", shell("printf 'a\\0b'"), prints("a\0b")),
    Case(
        "invalid UTF-8",
        shell("printf '\\xff\\xfe ok \\xe4\\xb8'"),
        prints("\ufffd\ufffd ok \ufffd"),
    ),
    Case("half a character at the end", shell("printf '\\xf0\\x9f\\x99'"), prints("\ufffd")),
    Case("a NUL byte in the command", shell("echo a\0b"), fails("NUL")),
    Case("a lone surrogate in the command", shell("echo \ud800"), fails("Invalid arguments")),
    Case("a command of 200 kB", shell("echo " + "x" * 200_000 + " | wc -c"), prints("200001\n")),
    Case("unbalanced quotes", shell("echo 'oops"), fails("Exit code: 2")),
    Case("a path that climbs", read("../../etc/passwd"), fails("Access denied")),
    Case("an absolute path outside", read("/etc/passwd"), fails("Access denied")),
    Case("writing outside", write("a/../../../tmp/x"), fails("Access denied")),
    Case("a newline in a name", write("a\nb", "in it"), lambda r: r.success),
    Case("a name of 300 bytes", write("n" * 300), fails("too long")),
    Case("a NUL byte in a name", write("a\0b"), fails("NUL")),
    Case("no such file", read("missing"), fails("missing")),
    Case("a folder read as a file", read("."), fails("directory")),
]


@pytest.mark.slow
async def test_each_hostile_call_gets_a_clear_result_and_harms_no_neighbour():
    """One run for all: each case has a slot of its own, and the same neighbour beside it."""
    async with (
        sandboxes(3, disk_mb=64, tmp_mb=16, memory_mb=128, max_processes=_PROCESSES) as run,
        working_neighbour(run),
    ):
        for case in CASES:
            async with asyncio.timeout(_DEADLINE_S):
                result = await run.executor.execute(case.name, case.call, case.timeout_s)
                assert case.check(result), (case.name, result)
                after = await run.call(case.name, "rm -rf -- * ; echo alive")
                assert after.output == "alive\n", (case.name, after)
                await run.executor.release_trajectory(case.name)
        assert run.pool.stats().lost_slots == 0


async def test_links_out_of_the_workspace_are_not_followed():
    async with sandboxes(1) as run:
        made = await run.call(
            "t", "ln -s /etc/passwd link; ln -s / root; ln -s /tmp/new dangling; ln -s loop loop"
        )
        assert made.success
        for path in ("link", "root/etc/passwd", "dangling"):
            for call in (read(path), write(path)):
                result = await run.executor.execute("t", call)
                assert result.error == "Access denied: path outside workspace", (path, result)
        for call in (read("loop"), write("loop")):
            assert fails("too many links")(await run.executor.execute("t", call))
        unchanged = await run.call("t", "head -c 5 /etc/passwd; ls /tmp; find . -type f")
        assert unchanged.output == "root:"


async def test_a_file_whose_name_holds_a_newline_is_written_read_and_listed():
    async with sandboxes(1) as run:
        name = "two\nlines"
        assert (await run.executor.execute("t", write(name, "content"))).success
        assert (await run.executor.execute("t", read(name))).output == "content"
        listed = await run.executor.list_artifacts("t")
        assert isinstance(listed, ListResult)
        assert [entry.path for entry in listed.entries] == [name]


@pytest.mark.slow
async def test_two_gigabytes_of_output_cost_the_driver_next_to_nothing():
    total = 2 << 30
    async with sandboxes(2) as run, working_neighbour(run):
        await run.call("flood", "true")
        before = resident_memory(os.getpid())
        result = await run.call("flood", f"head -c {total} /dev/zero", timeout_s=60)
        grown = resident_memory(os.getpid()) - before
    assert result.success, result
    sizes = result.metadata["truncated"]["stdout"]
    assert sizes["total_bytes"] == total
    assert sizes["kept_bytes"] <= 50_000
    assert f"of {total} bytes dropped" in result.output
    assert grown < 30 * _MIB


async def test_what_a_call_leaves_running_is_gone_before_the_next_call():
    async with sandboxes(1) as run:
        left = await run.call("t", "(while :; do echo noise >> log; sleep 0.01; done) & echo first")
        assert left.metadata["killed_processes"] >= 1
        assert "still running" in left.output
        lines = [(await run.call("t", "wc -l < log; ps -e --no-headers | wc -l")).output] * 2
        assert lines[0] == lines[1]


async def test_a_workspace_is_empty_for_the_next_trajectory():
    async with sandboxes(1) as run:
        await run.call("first", "echo secret > file; echo secret > /tmp/file; mkdir -p a/b")
        await run.executor.release_trajectory("first")
        seen = await run.call("second", "ls -A /workspace /tmp /dev/shm")
        assert seen.output == "/dev/shm:\n\n/tmp:\n\n/workspace:\n"
