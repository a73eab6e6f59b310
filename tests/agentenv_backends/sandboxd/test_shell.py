"""The persistent shell: what stays, what a command can do to it, and what comes back."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio

from agentenv_backends.requests import ExecRequest, KillRequest, RecordingRequest, ShellRequest
from agentenv_backends.results import ExecStatus, KillResult, RecordingResult
from tests.agentenv_backends.sandboxd.harness import RunningHost
from tests.agentenv_backends.sandboxd.terminals import UNTIL_SAID, output, shell
from tests.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from agentenv_backends.requests import Request

pytestmark = [pytest.mark.sandbox, pytest.mark.asyncio(loop_scope="module")]


@pytest_asyncio.fixture(loop_scope="module")
async def host(lasting_host: RunningHost) -> AsyncIterator[RunningHost]:
    """A host with one new slot, `a`."""
    await lasting_host.connection.open_slot("a")
    yield lasting_host
    await lasting_host.connection.close_slot("a")


# --- what stays -------------------------------------------------------------------------------------------------------


async def test_a_fresh_command_knows_nothing_of_the_shell(host: RunningHost) -> None:
    await shell(host, "export x=5; mkdir d; cd d")
    assert (await host.run('echo "[$x]"; ls')).stdout.text() == "[]\nd\n"


async def test_standard_input_is_at_its_end(host: RunningHost) -> None:
    assert await output(host, 'read line; echo "[$line]"; cat') == "[]\n"
    assert await output(host, "exec 0</etc/passwd; head -c 4") == "root"
    assert await output(host, "cat; echo end") == "end\n"


async def test_programs_in_the_shell_have_no_terminal(host: RunningHost) -> None:
    assert await output(host, "test -t 0 || test -t 1 || test -t 2 || echo none") == "none\n"
    assert (await shell(host, "yes | head -n 1; kill -9 $$ & wait")).stderr.text().count("tty") == 0


@pytest.mark.parametrize(
    ("command", "complaint"),
    [
        ('echo "open', "unexpected EOF"),
        ("if true; then", "unexpected end of file"),
        ("echo )", "syntax error"),
        ("${nope?is not set}", "is not set"),
        ("nonexistent-program", "command not found"),
        ("readonly r=1; r=2", "readonly variable"),
        ("echo $((1/0))", "division by 0"),
    ],
)
async def test_what_is_wrong_is_said_by_the_shell_which_goes_on(
    host: RunningHost, command: str, complaint: str
) -> None:
    wrong = await shell(host, command)
    assert wrong.exit_code != 0
    assert complaint in wrong.stderr.text()
    after = await shell(host, "echo fine")
    assert (after.stdout.text(), after.stderr.text()) == ("fine\n", "")


async def test_here_documents_quotes_and_several_lines_are_taken_as_they_are(
    host: RunningHost,
) -> None:
    command = "cat <<'E'\nit's $HOME \\n\nE\necho 'a'\\''b'\n# comment's end\necho \"c'd\"\ncat <<E"
    assert await output(host, command + "\nopen") == "it's $HOME \\n\na'b\nc'd\nopen\n"


async def test_a_command_of_any_length_is_taken(host: RunningHost) -> None:
    assert await output(host, f"echo {'x' * 300_000} | wc -c") == "300001\n"


async def test_long_output_is_kept_at_both_ends(host: RunningHost) -> None:
    result = await shell(
        host, "echo first; head -c 30000000 /dev/zero; echo last", max_output_bytes=100
    )
    assert result.stdout.head.startswith(b"first\n\0")
    assert result.stdout.tail.endswith(b"\0last\n")
    assert len(result.stdout.head) + len(result.stdout.tail) == 100
    assert result.stdout.total_bytes == 30_000_011


async def test_a_nul_byte_is_refused(host: RunningHost) -> None:
    assert await host.refused(ShellRequest("echo a\0b")) == "bad_request"
    assert await host.refused(ShellRequest("true", timeout_s=0)) == "bad_request"
    assert await host.refused(ShellRequest("true", max_output_bytes=-1)) == "bad_request"


# --- what a command can do to its shell ------------------------------------------------------------------------------


HARMLESS = {
    "functions": "for f in eval printf echo trap set unset exit builtin command exec read test true; do "
    'eval "$f() { return 1; }"; done',
    "frozen functions": "eval() { :; }; set() { :; }; readonly -f eval set",
    "aliases": "alias eval=no printf=no exit=no set=no unset=no trap=no",
    "options": "set -euxvC -o pipefail -o posix; shopt -s extglob failglob nullglob",
    "traps": "trap 'echo trapped' ERR DEBUG RETURN INT TERM HUP",
    "prompts": "PS1='one '; PS2='two '; PS4='four '; PROMPT_COMMAND='echo prompted'",
    "reports of its own": "echo /dev/null/0/0/x: >&60; for i in 1 2 3; do echo /dev/null/?/0/x: >&60; done",
    "noise where it reports": "(yes >&60 & sleep 0.2; kill $!) 2>/dev/null; sleep 0.3",
    "interrupting itself": "kill -INT $$; echo no",
    "interrupting everybody": "kill -INT 0; echo no",
    "terminating itself politely": "kill -TERM $$",
    "variables": "IFS=x; LC_ALL=xx; PATH=; BASH_ENV=/nope; ENV=/nope; POSIXLY_CORRECT=1; TMOUT=9",
    "the mark": "readonly _AGENTENV_CALL",
    "no mark": "set -u; unset _AGENTENV_CALL",
    "odd descriptors": "exec 9>&- 3</dev/null 200>/dev/null 2>&1; exec {free}>/dev/null",
    "job control": "set -m; set -b",
}


@pytest.mark.parametrize("command", HARMLESS.values(), ids=HARMLESS)
async def test_a_shell_serves_on_whatever_a_command_does_to_it(
    host: RunningHost, command: str
) -> None:
    first = await shell(host, command, timeout_s=5)
    assert (first.status, first.shell_ended) == (ExecStatus.EXITED, False)
    after = await shell(host, "/bin/echo here", timeout_s=5)
    assert (after.status, after.shell_ended) == (ExecStatus.EXITED, False)
    assert "here\n" in after.stdout.text()


ENDING = {
    "exit 3": (ExecStatus.EXITED, 3),
    "set -e; false; echo no": (ExecStatus.EXITED, 1),
    "exec sh -c 'exit 4'": (ExecStatus.EXITED, 4),
    "kill -9 $$": (ExecStatus.SIGNALED, 137),
    "exec 60>&-": (ExecStatus.EXITED, 126),
    "trap 'exit 5' DEBUG": (ExecStatus.EXITED, 5),
    'for f in /proc/self/fd/*; do eval "exec ${f##*/}>&-"; done': (ExecStatus.EXITED, None),
}


@pytest.mark.parametrize("command", ENDING)
async def test_a_shell_that_ends_says_how_and_the_next_is_new(
    host: RunningHost, command: str
) -> None:
    await shell(host, "x=5; sleep 1000 & true")
    result = await shell(host, "echo said; " + command, timeout_s=5)
    status, code = ENDING[command]
    assert result.shell_ended
    assert result.status is status
    assert code in (None, result.exit_code)
    assert result.stdout.text() == "said\n"
    after = await shell(host, 'echo "[$x]"; jobs')
    assert (after.stdout.text(), after.stderr.text()) == ("[]\n", "")
    assert await host.execute(KillRequest()) == KillResult(1)


async def test_a_shell_that_ended_between_two_calls_is_mentioned(host: RunningHost) -> None:
    await shell(host, "x=5")
    bash = host.the_only("bash")
    await shell(host, "(sleep 0.1; kill -9 $$) & true")
    await eventually(lambda: not bash.alive, "the end of the shell")
    after = await shell(host, 'echo "[$x]"')
    assert after.stdout.text() == "[]\n"
    assert "killed by signal 9" in after.stderr.text()
    assert (await shell(host, "true")).stderr.text() == ""


async def test_options_that_watch_or_end_the_shell_hold_for_one_call(host: RunningHost) -> None:
    assert (await shell(host, "set -x; echo a")).stderr.text() == "++ echo a\n"
    await shell(host, "set -e")
    after = await shell(host, "false; echo b")
    assert (after.stdout.text(), after.stderr.text()) == ("b\n", "")


# --- deadlines and withdrawal -----------------------------------------------------------------------------------------


async def test_a_stopped_shell_does_not_hold_up_the_init_with_a_long_command(
    host: RunningHost,
) -> None:
    await shell(host, "true")
    bash = host.the_only("bash")
    await shell(host, "(sleep 0.1; kill -STOP $$) & true")
    await eventually(lambda: bash.stopped, "the shell stands still")
    late = await shell(host, f"echo {'x' * 2_000_000}", timeout_s=0.3)
    assert (late.status, late.shell_ended) == (ExecStatus.TIMED_OUT, True)


async def test_a_withdrawn_command_is_interrupted_and_the_shell_goes_on(host: RunningHost) -> None:
    await shell(host, "x=5")
    task = asyncio.create_task(shell(host, "touch begun; sleep 100; touch ended"))
    await host.commands("sleep 100")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await output(host, "ls; echo $x") == "begun\n5\n"


@pytest.mark.parametrize("asked", [ExecRequest("sleep 100", 100), ShellRequest("sleep 100", 100)])
async def test_what_is_withdrawn_as_soon_as_it_is_asked_does_not_run_on(
    host: RunningHost, asked: Request
) -> None:
    for _ in range(5):
        task = asyncio.create_task(host.execute(asked))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert await output(host, "echo on") == "on\n"


@pytest.mark.parametrize("pause_s", [0, 0.0005, 0.002])
async def test_the_shell_is_as_it_was_after_a_command_that_was_withdrawn_at_once(
    host: RunningHost, pause_s: float
) -> None:
    await shell(host, "x=5")
    for _ in range(10):
        task = asyncio.create_task(shell(host, "sleep 100; x=6"))
        await asyncio.sleep(pause_s)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        after = await shell(host, "echo $x", timeout_s=20)
        assert (after.stdout.text(), after.shell_ended) == ("5\n", False)


async def test_no_part_of_a_long_command_that_is_withdrawn_at_once_becomes_a_command(
    host: RunningHost,
) -> None:
    await shell(host, "mkdir made; x=5")
    lines = "\n".join(f"touch made/{number}" for number in range(50_000))
    for _ in range(5):
        task = asyncio.create_task(shell(host, f"cat <<'E' >/dev/null; sleep 100\n{lines}\nE\n"))
        await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await output(host, "ls made; echo $x", timeout_s=20) in ("5\n", "\n")


# --- background jobs, and who kills whom ------------------------------------------------------------------------------


async def test_what_a_job_writes_between_two_calls_is_in_the_next_result(host: RunningHost) -> None:
    await shell(host, "(sleep 0.1; echo out; echo err >&2; touch said) & true")
    await host.run(UNTIL_SAID)
    result = await shell(host, "echo now")
    assert result.stdout.text() == "out\nnow\n"
    assert result.stderr.text().endswith("err\n")


async def test_requests_of_all_kinds_take_turns(host: RunningHost) -> None:
    def request(n: int) -> Any:
        return shell(host, f"echo s{n} >> log") if n % 2 else host.run(f"echo e{n} >> log")

    await asyncio.gather(*(request(n) for n in range(20)))
    assert (await output(host, "cat log")).split() == [f"{'es'[n % 2]}{n}" for n in range(20)]


async def test_a_repeated_key_is_not_run_again(host: RunningHost) -> None:
    request = ShellRequest("n=$((n+1)); echo $n")
    first = await host.connection.execute("a", request, key="k")
    assert await host.connection.execute("a", request, key="k") == first
    assert await output(host, "echo $n") == "1\n"


# --- recording --------------------------------------------------------------------------------------------------------


async def test_what_a_job_writes_can_be_asked_for(host: RunningHost) -> None:
    await shell(host, "(sleep 0.1; echo late; touch said) & true")
    await host.run(UNTIL_SAID)
    result = await host.execute(RecordingRequest())
    assert isinstance(result, RecordingResult)
    assert [event.data for event in result.recordings[0].events] == ["late\r\n"]


async def test_more_than_a_recording_holds_is_counted(host: RunningHost) -> None:
    result = await shell(host, "head -c 5000000 /dev/zero | tr '\\0' x", max_output_bytes=10)
    (recording,) = result.recordings
    kept = sum(len(event.data) for event in recording.events if event.kind == "o")
    assert 0 < kept <= 1 << 20
    prompt = len("$ head -c 5000000 /dev/zero | tr '\\0' x\r\n")
    assert kept + recording.dropped_bytes == 5_000_000 + prompt
    assert (await shell(host, "echo on")).recordings[0].dropped_bytes == 0


# --- what is missing --------------------------------------------------------------------------------------------------
