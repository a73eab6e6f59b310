"""Shells and terminals in every kind of slot: who lives on beside a command, and who kills whom."""

from __future__ import annotations

import asyncio
import os
import shutil
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio

from agentenv_backends.requests import KillRequest, RecordingRequest, ShellRequest, TmuxRequest
from agentenv_backends.results import ExecStatus, KillResult, RecordingResult
from tests.agentenv_backends.sandboxd.container import launch_contained
from tests.agentenv_backends.sandboxd.harness import RunningHost, launch, until
from tests.agentenv_backends.sandboxd.terminals import UNTIL_SAID, output, shell, tmux, typed

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

pytestmark = [pytest.mark.sandbox, pytest.mark.asyncio(loop_scope="module")]


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=["bubblewrap", "user", "none"])
async def one_host(request: pytest.FixtureRequest, pyz: Path) -> AsyncIterator[RunningHost]:
    if request.param == "bubblewrap" and shutil.which("bwrap") is None:
        pytest.skip("bubblewrap is not installed")
    if request.param == "user":
        if os.geteuid() != 0:
            pytest.skip("only root can make a container for slots that are users")
        host = await launch_contained(pyz, slots=2)
    else:
        host = await launch(pyz, isolation=request.param)
    yield host
    await host.connection.close()


@pytest_asyncio.fixture(loop_scope="module")
async def host(one_host: RunningHost) -> AsyncIterator[RunningHost]:
    """A host with one new slot, `a`, for each kind of isolation."""
    await one_host.connection.open_slot("a")
    yield one_host
    await one_host.connection.close_slot("a")


async def test_streams_and_exit_code_come_apart(host: RunningHost) -> None:
    result = await shell(host, "echo out; echo err >&2; (exit 7)")
    assert (result.status, result.exit_code) == (ExecStatus.EXITED, 7)
    assert (result.stdout.text(), result.stderr.text()) == ("out\n", "err\n")
    assert not result.shell_ended


async def test_folder_variables_functions_aliases_and_exit_code_stay(host: RunningHost) -> None:
    await shell(host, "mkdir d; cd d; x=5; f() { echo in f; }; alias again='echo alias'; (exit 3)")
    assert await output(host, 'echo $?; echo "${PWD##*/}" $x; f; again') == "3\nd 5\nin f\nalias\n"


@pytest.mark.parametrize(
    "command",
    [
        "sleep 100; echo no",
        "while :; do :; done; echo no",
        "while sleep 0.05; do :; done; echo no",
        "(trap '' INT; sleep 100)",
        "setsid --wait sleep 100",
        "timeout 100 sleep 100",
        "cat <(sleep 100)",
        "sleep 100 & wait",
    ],
)
async def test_an_overrun_command_is_interrupted_and_the_shell_goes_on(
    host: RunningHost, command: str
) -> None:
    await shell(host, "x=5; sleep 1000 & job=$!")
    late = await shell(host, "echo early; " + command, timeout_s=0.3)
    assert late.status is ExecStatus.TIMED_OUT
    assert late.stdout.text() == "early\n"
    assert not late.shell_ended
    assert await output(host, "echo $x; kill -0 $job && echo the job lives") == (
        "5\nthe job lives\n"
    )


@pytest.mark.parametrize(
    "command",
    [
        "trap '' INT; while :; do :; done",
        "kill -STOP $$",
        "exec sh -c 'trap : INT; exec sleep 100'",
    ],
)
async def test_a_shell_that_does_not_come_back_is_ended_with_all_it_started(
    host: RunningHost, command: str
) -> None:
    late = await shell(host, "sleep 1000 & setsid sleep 1000 & echo early; " + command, 0.3)
    assert late.status is ExecStatus.TIMED_OUT
    assert late.stdout.text() == "early\n"
    assert late.shell_ended
    assert await host.execute(KillRequest()) == KillResult(0)
    assert await output(host, "echo new") == "new\n"


async def test_a_job_that_writes_without_end_is_never_held_up(host: RunningHost) -> None:
    await shell(host, "(trap 'touch held-up' PIPE; while echo line; do :; done) & yes & true")
    for _ in range(3):
        await asyncio.sleep(0.1)
        result = await shell(host, "echo now", max_output_bytes=1000)
        assert result.stdout.total_bytes > 100_000
        assert len(result.stdout.head) + len(result.stdout.tail) <= 1000
    # Nor while a fresh command runs.
    await host.run("sleep 0.3")
    assert (await shell(host, "kill %1 %2; ls")).stdout.total_bytes > 100_000


async def test_a_fresh_command_ends_what_it_left_and_spares_the_shell(host: RunningHost) -> None:
    await shell(host, "x=5; sleep 1001 & (setsid nohup sleep 1002 >/dev/null 2>&1 &)")
    for _ in range(3):
        result = await host.run("sleep 1003 & setsid sleep 1004 & (setsid sleep 1005 &) ; echo hi")
        assert result.stdout.text() == "hi\n"
        assert result.killed_processes == 3
    late = await host.run("sleep 1003 & sleep 1004", timeout_s=0.2)
    assert late.status is ExecStatus.TIMED_OUT
    count = "cat /proc/[0-9]*/cmdline 2>/dev/null | tr '\\0' ' ' | grep -o 'sleep 100[0-9]' | sort"
    alive = await output(host, f"echo $x; {count}")
    assert alive.split() == ["5", "sleep", "1001", "sleep", "1002"]


async def test_killing_ends_the_shell_and_its_jobs_too(host: RunningHost) -> None:
    await shell(host, "x=5; sleep 1000 & (setsid sleep 1000 &) ; true")
    assert await host.execute(KillRequest()) == KillResult(3)
    after = await shell(host, 'echo "[$x]"')
    assert (after.stdout.text(), after.stderr.text(), after.shell_ended) == ("[]\n", "", False)


async def test_a_slots_end_is_the_end_of_its_shell(one_host: RunningHost) -> None:
    before = len(one_host.family())
    await one_host.connection.open_slot("b")
    await one_host.connection.execute(
        "b", ShellRequest("sleep 1000 & (setsid sleep 1000 &) ; true")
    )
    assert len(one_host.family()) >= before + 4
    await one_host.connection.close_slot("b")
    assert await until(lambda: len(one_host.family()) == before)


async def test_what_happens_is_recorded_and_handed_out_once(host: RunningHost) -> None:
    first = await shell(host, "echo héllo; echo err >&2")
    (recording,) = first.recordings
    assert recording.session == "shell-1"
    typed = [event.data for event in recording.events if event.kind == "i"]
    shown = "".join(event.data for event in recording.events if event.kind == "o")
    assert typed == ["echo héllo; echo err >&2\n"]
    assert shown == "$ echo héllo; echo err >&2\r\nhéllo\r\nerr\r\n"
    assert [event.at_s for event in recording.events] == sorted(e.at_s for e in recording.events)
    assert await host.execute(RecordingRequest()) == RecordingResult(())


async def test_the_last_words_of_a_killed_shell_are_kept(host: RunningHost) -> None:
    await shell(host, "(sleep 0.1; echo last; touch said; sleep 1000) & true")
    await host.run(UNTIL_SAID)
    await host.execute(KillRequest())
    second = await shell(host, "true")
    assert [recording.session for recording in second.recordings] == ["shell-1", "shell-2"]
    assert second.recordings[0].events[-1].data == "last\r\n"


async def test_hosts_say_where_bash_is(one_host: RunningHost) -> None:
    assert one_host.facts.bash.endswith("/bash")


# --- the terminal -----------------------------------------------------------------------------------------------------


async def test_a_terminal_runs_commands_and_shows_its_screen(host: RunningHost) -> None:
    assert (await tmux(host, "start", width=60, height=12)).running
    screen = await typed(host, "echo $((6*7)); stty size", "Enter")
    assert screen.split("\n")[1:3] == ["42", "12 60"]


async def test_a_fresh_command_spares_the_terminal_too(host: RunningHost) -> None:
    await tmux(host, "start")
    await typed(host, "x=5; (setsid sleep 1001 &); sleep 1002 &", "Enter")
    await shell(host, "sleep 1003 &")
    result = await host.run("sleep 1004 & setsid sleep 1005 & true")
    assert result.killed_processes == 2
    assert "[5]" in await typed(host, "clear; echo [$x]; kill -0 $!", "Enter")
    assert (await output(host, "jobs")).count("Running") == 1


async def test_killing_ends_the_terminal_too(host: RunningHost) -> None:
    await shell(host, "sleep 1000 &")
    await tmux(host, "start")
    await typed(host, "(setsid sleep 1001 &); sleep 1002 &", "Enter")
    # A shell and its job; the client, the server, the shell in it and two jobs.
    assert await host.execute(KillRequest()) == KillResult(7)
    assert await host.refused(TmuxRequest("capture")) == "no_session"
    assert (await tmux(host, "start")).running


async def test_stopping_a_terminal_ends_what_runs_in_it_and_nothing_else(host: RunningHost) -> None:
    await shell(host, "sleep 1000 &")
    await tmux(host, "start")
    await typed(host, "(setsid sleep 1001 &); sleep 1002 &", "Enter")
    assert not (await tmux(host, "stop")).running
    assert await host.execute(KillRequest()) == KillResult(2)
