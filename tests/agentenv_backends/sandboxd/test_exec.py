"""What a command may do to a slot, and what comes back."""

from __future__ import annotations

import asyncio
import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio

from agentenv_backends.requests import ExecRequest, KillRequest
from agentenv_backends.results import ExecResult, ExecStatus, KillResult
from agentenv_backends.sandboxd.slot_processes import descendants_of
from tests.agentenv_backends.sandboxd.harness import RunningHost, until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

pytestmark = [pytest.mark.sandbox, pytest.mark.asyncio(loop_scope="module")]


@pytest_asyncio.fixture(loop_scope="module")
async def host(lasting_host: RunningHost) -> AsyncIterator[RunningHost]:
    """A host with one new slot, `a`."""
    await lasting_host.connection.open_slot("a")
    yield lasting_host
    await lasting_host.connection.close_slot("a")


COUNT_PROCESSES = "set -- /proc/[0-9]*; echo $#"
"""In a fresh shell that starts nothing: the init and the shell."""


TWENTY = """python3 -c '
import os, time
for _ in range(20):
    if os.fork() == 0:
        os.setsid()
        time.sleep(1000)
time.sleep(1000)'
"""


async def nobody_is_left(host: RunningHost, slot: str = "a") -> bool:
    result = await host.run(COUNT_PROCESSES, slot)
    return result.stdout.text().strip() == "2"


async def test_output_exit_code_and_streams_stay_apart(host: RunningHost) -> None:
    result = await host.run("echo out; echo err >&2; exit 7")
    assert (result.status, result.exit_code) == (ExecStatus.EXITED, 7)
    assert result.stdout.text() == "out\n"
    assert result.stderr.text() == "err\n"


@pytest.mark.parametrize("code", [0, 1, 124, 126, 127, 137, 255])
async def test_exit_codes_are_those_of_the_command(host: RunningHost, code: int) -> None:
    result = await host.run(f"exit {code}")
    assert (result.status, result.exit_code) == (ExecStatus.EXITED, code)


@pytest.mark.parametrize(
    ("name", "number"), [("TERM", 15), ("KILL", 9), ("SEGV", 11), ("PIPE", 13)]
)
async def test_death_by_a_signal_is_told_apart(host: RunningHost, name: str, number: int) -> None:
    result = await host.run(f"kill -{name} $$; sleep 5")
    assert (result.status, result.exit_code) == (ExecStatus.SIGNALED, 128 + number)


async def test_a_command_that_is_not_there_or_not_executable_is_the_shells_to_tell(
    host: RunningHost,
) -> None:
    assert (await host.run("no-such-command")).exit_code == 127
    assert (await host.run("touch f; ./f")).exit_code == 126


async def test_a_programs_arguments_reach_it_as_they_are(host: RunningHost) -> None:
    arguments = ("a  b", "$HOME", "*", "", "'\"\\", "\n", os.fsdecode(b"\xff"))
    result = await host.run(("printf", r"%s\0", *arguments))
    assert result.stdout.head == b"".join(os.fsencode(each) + b"\0" for each in arguments)


async def test_a_program_is_looked_for_where_its_environment_says(host: RunningHost) -> None:
    await host.run("mkdir -p first second empty/run; echo x > first/run")
    await host.run("printf '#!/bin/sh\necho second' > second/run; chmod +x second/run")
    here = host.connection.workspace_dir("a")
    path = ":".join(f"{here}/{folder}" for folder in ("missing", "empty", "first", "second"))
    assert (await host.run(("run",), env={"PATH": path})).stdout.text() == "second\n"
    assert (await host.run(("run",), env={"PATH": ""}, cwd="second")).stdout.text() == "second\n"
    hidden = await host.run(("run",), env={"PATH": f"{here}/first"})
    assert (hidden.exit_code, hidden.stderr.text()) == (126, "run: Permission denied\n")


@pytest.mark.parametrize(
    ("program", "code", "says"),
    [
        ("no-such-program", 127, "No such file or directory"),
        ("", 127, "No such file or directory"),
        ("./no-such-program", 127, "No such file or directory"),
        ("plain/program", 127, "Not a directory"),
        ("./plain", 126, "Permission denied"),
        ("./folder", 126, "Permission denied"),
        ("./none", 126, "Exec format error"),
        ("./round", 126, "Too many levels of symbolic links"),
        ("./" + "x" * 300, 126, "File name too long"),
        ("./stranded", 127, "No such file or directory"),
    ],
)
async def test_a_program_that_does_not_begin_ends_as_in_a_shell(
    host: RunningHost, program: str, code: int, says: str
) -> None:
    await host.run("mkdir folder; echo x > plain; echo x > none; chmod +x none; ln -s round round")
    await host.run("echo '#!/no/such/interpreter' > stranded; chmod +x stranded")
    result = await host.run((program, "argument"))
    assert (result.status, result.exit_code) == (ExecStatus.EXITED, code)
    assert result.stderr.text() == f"{program}: {says}\n"
    assert (await host.run(("echo", "on"))).stdout.text() == "on\n"


async def test_arguments_that_no_kernel_passes_on_are_refused(host: RunningHost) -> None:
    assert await host.refused(ExecRequest(("echo", "x" * 200_000))) == "bad_request"
    assert await host.refused(ExecRequest(("echo", "a\0b"))) == "bad_request"
    assert await host.refused(ExecRequest(())) == "bad_request"


async def test_nothing_that_a_program_starts_outlives_it(host: RunningHost) -> None:
    await host.run(("sh", "-c", "setsid sleep 1000 & sleep 1000 & true"))
    assert await nobody_is_left(host)
    late = await host.run(("sleep", "1000"), timeout_s=0.3)
    assert late.status is ExecStatus.TIMED_OUT
    assert await nobody_is_left(host)


async def test_each_call_has_a_fresh_shell_in_the_same_workspace(host: RunningHost) -> None:
    await host.run("export X=1; echo kept > file; cd /; set -e")
    result = await host.run("echo ${X:-unset} $PWD; cat file; false; echo after")
    assert result.stdout.text() == "unset /workspace\nkept\nafter\n"


async def test_the_environment_is_an_allow_list_plus_the_requests(
    host: RunningHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DRIVER_SECRET", "hidden")
    result = await host.run("env", env={"GREETING": "grüß dich", "HOME": "/tmp"})
    lines = result.stdout.text().splitlines()
    assert "GREETING=grüß dich" in lines
    assert "HOME=/tmp" in lines
    assert not [line for line in lines if "SECRET" in line or "PYTEST" in line]


async def test_cwd_is_below_the_workspace(host: RunningHost) -> None:
    await host.run("mkdir -p 'a b/c'; ln -s /etc out")
    assert (await host.run("pwd", cwd="a b/c")).stdout.text() == "/workspace/a b/c\n"
    assert (await host.run("pwd", cwd="/workspace/a b")).stdout.text() == "/workspace/a b\n"
    assert (await host.run("pwd")).stdout.text() == "/workspace\n"
    assert await host.refused(ExecRequest("pwd", cwd="missing")) == "not_found"
    assert await host.refused(ExecRequest("pwd", cwd="../etc")) == "outside_workspace"
    assert await host.refused(ExecRequest("pwd", cwd="out")) == "outside_workspace"


async def test_standard_input_is_what_was_given_or_empty(host: RunningHost) -> None:
    data = bytes(range(256)) * 5000
    result = await host.run("sha256sum", stdin=data)
    assert result.stdout.head[:64] == (await host.run("sha256sum", stdin=data)).stdout.head[:64]
    assert (await host.run("wc -c", stdin=data)).stdout.text() == "1280000\n"
    result = await host.run("cat; read x; echo $?; python3 -c 'input()'", timeout_s=5)
    assert result.status is ExecStatus.EXITED
    assert result.stdout.text() == "1\n"


@pytest.mark.parametrize(
    ("command", "output", "code"),
    [
        ("", "", 0),
        ("# only a comment", "", 0),
        ("cat <<'END'\n$HOME\nEND", "$HOME\n", 0),
        ("echo 'unbalanced", "", 2),
        ("echo 'a\nb'", "a\nb\n", 0),
        ("echo '" + "x" * 300_000 + "' | wc -c", "300001\n", 0),
    ],
    ids=["empty", "comment", "here-document", "unbalanced", "newline", "300 KB"],
)
async def test_odd_commands_work_or_fail_as_in_any_shell(
    host: RunningHost, command: str, output: str, code: int
) -> None:
    result = await host.run(command)
    assert (result.stdout.text(), result.exit_code) == (output, code)


async def test_what_no_shell_can_take_is_refused(host: RunningHost) -> None:
    assert await host.refused(ExecRequest("echo \0")) == "bad_request"
    assert await host.refused(ExecRequest("true", env={"A=B": "1"})) == "bad_request"
    assert await host.refused(ExecRequest("true", env={"A": "\0"})) == "bad_request"
    assert await host.refused(ExecRequest("true", env={"A": "x" * 200_000})) == "bad_request"
    assert await host.refused(ExecRequest("true", timeout_s=0)) == "bad_request"
    assert (await host.run("echo alive")).stdout.text() == "alive\n"


async def test_any_bytes_come_back_as_they_were_written(host: RunningHost) -> None:
    result = await host.run(r"printf '\000\377\376 caf\303\251 \303'")
    assert result.stdout.head == b"\0\xff\xfe caf\xc3\xa9 \xc3"
    assert result.stdout.text().endswith("café \N{REPLACEMENT CHARACTER}")


async def test_long_output_keeps_its_first_and_last_bytes_and_says_how_much_there_was(
    host: RunningHost,
) -> None:
    result = await host.run("seq 1 200000; seq 1 100000 >&2", max_output_bytes=100)
    assert result.stdout.head == b"".join(b"%d\n" % n for n in range(1, 100))[:50]
    assert result.stdout.tail == b"".join(b"%d\n" % n for n in range(199_000, 200_001))[-50:]
    assert result.stdout.total_bytes == sum(len(str(n)) + 1 for n in range(1, 200_001))
    assert result.stdout.truncated
    assert result.stderr.tail.endswith(b"\n99999\n100000\n")


@pytest.mark.parametrize("cap", [0, 1, 2, 7, 100])
async def test_caps_of_any_size_keep_no_more_than_they_say(host: RunningHost, cap: int) -> None:
    capture = (await host.run("printf 0123456789", max_output_bytes=cap)).stdout
    assert len(capture.head) + len(capture.tail) == min(cap, 10)
    assert b"0123456789".startswith(capture.head)
    assert b"0123456789".endswith(capture.tail)
    assert capture.total_bytes == 10


async def test_a_full_stderr_does_not_block_an_unread_stdout(host: RunningHost) -> None:
    result = await host.run(
        "head -c 3000000 /dev/zero >&2; head -c 3000000 /dev/zero; echo end", timeout_s=20
    )
    assert result.status is ExecStatus.EXITED
    assert result.stdout.tail.endswith(b"end\n")


async def test_a_command_over_its_deadline_keeps_what_it_had_written(host: RunningHost) -> None:
    result = await host.run("echo early; while :; do sleep 0.01; echo -n .; done", timeout_s=0.5)
    assert result.status is ExecStatus.TIMED_OUT
    assert result.stdout.head.startswith(b"early\n..")


@pytest.mark.parametrize(
    "command",
    [
        "trap '' TERM HUP INT; while :; do sleep 100; done",
        "setsid sleep 1000 & sleep 1000",
        "(setsid nohup sleep 1000 >/dev/null 2>&1 &) ; sleep 1000",
        "sleep 1000 & kill -STOP $!; kill -STOP $$",
        TWENTY,
        "exec 1>&- 2>&-; sleep 1000",
    ],
    ids=["ignores signals", "setsid", "daemon", "stopped", "twenty", "closed pipes"],
)
async def test_nothing_survives_a_deadline(host: RunningHost, command: str) -> None:
    result = await host.run(command, timeout_s=0.4)
    assert result.status is ExecStatus.TIMED_OUT
    assert await nobody_is_left(host)


@pytest.mark.parametrize(
    ("command", "survivors"),
    [
        ("(sleep 600 &) ; echo hi", 1),
        ("sleep 600 & setsid sleep 600 & nohup sleep 600 & echo hi", 3),
        ("(while :; do echo noise; done &) ; sleep 0.1; echo hi", 1),
    ],
)
async def test_a_call_ends_with_its_main_process_and_takes_the_rest_along(
    host: RunningHost, command: str, survivors: int
) -> None:
    result = await host.run(command, timeout_s=20)
    assert result.status is ExecStatus.EXITED
    assert result.killed_processes == survivors
    assert await nobody_is_left(host)


async def test_output_of_a_background_child_is_not_seen_by_the_next_call(host: RunningHost) -> None:
    await host.run("(while :; do echo noise; sleep 0.01; done) & sleep 0.1")
    assert (await host.run("sleep 0.2; echo clean")).stdout.text() == "clean\n"


async def test_closing_its_output_does_not_end_a_command(host: RunningHost) -> None:
    result = await host.run("exec 1>&- 2>&-; sleep 0.3; exit 5")
    assert (result.status, result.exit_code) == (ExecStatus.EXITED, 5)
    assert result.duration_s >= 0.3


async def test_slow_output_does_not_move_the_deadline(host: RunningHost) -> None:
    result = await host.run("while :; do echo -n x; sleep 0.1; done", timeout_s=0.5)
    assert result.status is ExecStatus.TIMED_OUT


async def test_the_clock_cannot_be_set(host: RunningHost) -> None:
    assert (await host.run("date -s '2030-01-01'")).exit_code != 0


async def test_cancelling_kills_the_tree_and_the_slot_serves_on(host: RunningHost) -> None:
    task = asyncio.create_task(host.run("touch started; setsid sleep 1000 & sleep 1000"))
    await host.commands("sleep 1000", 2)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    result = await host.run("ls; " + COUNT_PROCESSES)
    assert result.stdout.text() == "started\n2\n"
    assert not host.connection._futures


async def test_a_request_cancelled_before_its_turn_never_runs(host: RunningHost) -> None:
    first = asyncio.create_task(host.run("sleep 2; echo first"))
    second = asyncio.create_task(host.run("touch second"))
    await host.commands("sleep 2")
    second.cancel()
    assert (await first).stdout.text() == "first\n"
    assert (await host.run("ls")).stdout.text() == ""


async def test_requests_of_one_slot_run_in_the_order_they_were_sent(host: RunningHost) -> None:
    commands = [f"sleep 0.0{9 - number}; echo {number} >> log" for number in range(10)]
    await asyncio.gather(*[host.run(command) for command in commands])
    assert (await host.run("cat log")).stdout.text().split() == [
        str(number) for number in range(10)
    ]


async def test_a_repeated_key_is_answered_and_not_run_again(host: RunningHost) -> None:
    request = ExecRequest("echo x >> log; wc -l < log")
    first = await host.connection.execute("a", request, key="k")
    again = await host.connection.execute("a", request, key="k")
    assert again == first
    other = await host.connection.execute("a", request, key="other")
    assert isinstance(other, ExecResult)
    assert other.stdout.text() == "2\n"


async def test_a_repeated_key_joins_the_request_that_runs(host: RunningHost) -> None:
    request = ExecRequest("sleep 0.2; echo x >> log; wc -l < log")
    results = await asyncio.gather(
        *[host.connection.execute("a", request, key="k") for _ in range(3)]
    )
    assert [result.stdout.text() for result in results if isinstance(result, ExecResult)] == [
        "1\n"
    ] * 3


async def test_a_repeated_key_whose_answer_was_too_long_to_keep_says_so(host: RunningHost) -> None:
    request = ExecRequest("echo x >> log; head -c 3000000 /dev/zero", max_output_bytes=3_000_000)
    first = await host.connection.execute("a", request, key="k")
    assert isinstance(first, ExecResult)
    assert first.stdout.total_bytes == 3_000_000
    assert await host.connection.execute("a", request, key="k") != first
    assert (await host.run("wc -l < log")).stdout.text() == "1\n"


async def test_kill_finds_nothing_to_do_after_a_call(host: RunningHost) -> None:
    await host.run("sleep 100 &")
    assert await host.execute(KillRequest()) == KillResult(0)


async def test_a_script_cannot_be_rewritten_by_what_it_starts(host: RunningHost) -> None:
    forge = 'import os; os.pwrite(3, b" " * 200000 + b"\\necho forged\\n", 60)'
    script = f"python3 -c '{forge}' 2> refused\n" + "# a long script\n" * 10_000 + "echo honest\n"
    result = await host.run(script)
    assert result.stdout.text() == "honest\n"
    assert "not permitted" in (await host.run("cat refused")).stdout.text()


async def test_what_is_given_on_standard_input_cannot_be_rewritten_either(
    host: RunningHost,
) -> None:
    result = await host.run("echo forged 1<> /dev/stdin; cat", stdin=b"honest")
    assert result.stdout.text() == "honest"


async def test_commands_start_with_every_signal_at_its_default(host: RunningHost) -> None:
    result = await host.run("trap 'echo caught' INT; kill -INT $$; grep SigIgn /proc/self/status")
    caught, ignored = result.stdout.text().splitlines()
    assert caught == "caught"
    assert int(ignored.split()[1], 16) & 0x7FFFFFFF == 0


async def test_a_deadline_of_years_is_a_deadline_like_any_other(host: RunningHost) -> None:
    assert (await host.run("echo ok", timeout_s=1e9)).stdout.text() == "ok\n"


@pytest.mark.skipif(os.geteuid() != 0, reason="looks into an init that hides itself")
async def test_reading_a_commands_output_never_blocks_its_init(host: RunningHost) -> None:
    """A command can take its own output out of the pipe, between the init's `poll` and its `read`."""
    run = asyncio.create_task(host.run("sleep 100", timeout_s=1))
    init = next(pid for pid in descendants_of(host.process.pid) if is_pid_1_of_a_slot(pid))
    assert await until(lambda: len(reading_ends(init)) == 2)
    assert all(flags & os.O_NONBLOCK for flags in reading_ends(init))
    assert (await run).status is ExecStatus.TIMED_OUT


def is_pid_1_of_a_slot(pid: int) -> bool:
    status = Path(f"/proc/{pid}/status").read_text()
    return "\t1\n" in next(line for line in status.splitlines(True) if line.startswith("NSpid"))


def reading_ends(pid: int) -> list[int]:
    """Flags of the reading ends of pipes that a process has open."""
    found = []
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            info = Path(f"/proc/{pid}/fdinfo/{link.name}").read_text()
            flags = int(info.partition("flags:")[2].split()[0], 8)
            if str(link.readlink()).startswith("pipe:") and flags & os.O_ACCMODE == os.O_RDONLY:
                found.append(flags)
    return found
