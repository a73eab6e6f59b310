"""The persistent shell lent to the host: what cannot be told from outside, and when the init has it back."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio

from agentenv_backends.requests import RecordingRequest, ShellRequest, TmuxRequest
from agentenv_backends.results import ExecStatus, RecordingResult
from tests.agentenv_backends.sandboxd.terminals import UNTIL_SAID, output, shell
from tests.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.agentenv_backends.sandboxd.harness import RunningHost

pytestmark = [pytest.mark.sandbox, pytest.mark.asyncio(loop_scope="module")]


@pytest_asyncio.fixture(loop_scope="module")
async def host(lasting_host: RunningHost) -> AsyncIterator[RunningHost]:
    """A host that has been lent the shell of its one slot."""
    await lasting_host.connection.open_slot("a")
    await shell(lasting_host, ":")
    await is_lent(lasting_host)
    yield lasting_host
    await lasting_host.connection.close_slot("a")


def loans(host: RunningHost) -> int:
    """How many shells the host has: it holds the kernel's list of the children of each, and of its own."""
    folder = Path(f"/proc/{host.process.pid}/fd")
    return sum(each.readlink().name == "children" for each in folder.iterdir()) - 1


def descriptors(host: RunningHost) -> int:
    return len(list(Path(f"/proc/{host.process.pid}/fd").iterdir()))


async def is_lent(host: RunningHost) -> None:
    await eventually(lambda: loans(host) == 1, "the shell is lent")


async def test_a_command_that_ends_soon_leaves_the_shell_with_the_host(host: RunningHost) -> None:
    for number in range(5):
        assert await output(host, f"echo {number} $?; cd /; x={number}") == f"{number} 0\n"
        await is_lent(host)
    result = await shell(host, 'echo "$x $PWD"; echo oh >&2; (exit 7)')
    assert (result.stdout.text(), result.stderr.text(), result.exit_code) == ("4 /\n", "oh\n", 7)
    assert await output(host, "echo $?") == "7\n"
    await is_lent(host)


async def test_one_that_takes_its_time_loses_nothing_of_what_it_has_said(host: RunningHost) -> None:
    result = await shell(host, "echo a; echo b >&2; sleep 0.2; echo c; (exit 3)")
    assert (result.stdout.text(), result.stderr.text()) == ("a\nc\n", "b\n")
    assert (result.status, result.exit_code) == (ExecStatus.EXITED, 3)
    assert result.duration_s >= 0.2
    await is_lent(host)
    assert await output(host, "echo $?") == "3\n"


async def test_one_that_says_much_is_kept_at_both_ends(host: RunningHost) -> None:
    result = await shell(host, "echo first; seq 200000; echo last", max_output_bytes=100)
    assert result.stdout.head.startswith(b"first\n1\n2\n")
    assert result.stdout.tail.endswith(b"200000\nlast\n")
    assert result.stdout.total_bytes == 1_288_895 + 11
    assert len(result.stdout.head) + len(result.stdout.tail) == 100


async def test_little_output_is_bounded_as_asked(host: RunningHost) -> None:
    result = await shell(host, "printf 1234567890", max_output_bytes=4)
    assert (result.stdout.head, result.stdout.tail) == (b"12", b"90")
    assert result.stdout.total_bytes == 10
    await is_lent(host)
    assert await output(host, "printf 1234567890") == "1234567890"


async def test_a_command_longer_than_the_socket_is_wide_is_taken(host: RunningHost) -> None:
    assert await output(host, f"echo {'x' * 30_000} | wc -c") == "30001\n"
    assert await output(host, f"echo {'x' * 900_000} | wc -c") == "900001\n"


@pytest.mark.parametrize("ending", ["exit 5", "kill -9 $$", "exec true"])
async def test_the_shells_end_is_told_and_the_next_is_new(host: RunningHost, ending: str) -> None:
    result = await shell(host, f"x=1; {ending}")
    assert result.shell_ended
    again = await shell(host, 'echo "[$x]"')
    assert (again.stdout.text(), again.shell_ended) == ("[]\n", False)
    assert "this is a new one" not in again.stderr.text()


async def test_an_end_between_two_calls_is_mentioned(host: RunningHost) -> None:
    bash = host.the_only("bash")
    await shell(host, "(sleep 0.2; kill -9 $$) &")
    await eventually(
        lambda: not Path(f"/proc/{bash.pid}").exists(), "the init has reaped the shell"
    )
    result = await shell(host, "echo fine")
    assert result.stdout.text() == "fine\n"
    assert "killed by signal 9" in result.stderr.text()


async def test_what_a_job_says_between_two_calls_is_in_the_next_result(host: RunningHost) -> None:
    await shell(host, "(sleep 0.2; echo out; echo err >&2; > said) &")
    await host.run(UNTIL_SAID)
    result = await shell(host, "echo then")
    assert result.stdout.text() == "out\nthen\n"
    assert result.stderr.text().endswith("err\n")


async def test_an_overrun_spares_the_jobs_that_there_were_before(host: RunningHost) -> None:
    await shell(host, "sleep 1000 &")
    result = await shell(host, "echo begun; sleep 1000", timeout_s=0.5)
    assert (result.status, result.stdout.text()) == (ExecStatus.TIMED_OUT, "begun\n")
    assert not result.shell_ended
    assert await output(host, "jobs -r | wc -l") == "1\n"


async def test_a_withdrawn_command_is_interrupted(host: RunningHost) -> None:
    call = asyncio.create_task(host.execute(ShellRequest("sleep 4321", 60)))
    await host.commands("sleep 4321")
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert await output(host, "echo on") == "on\n"


async def test_requests_of_other_kinds_come_between(host: RunningHost) -> None:
    for number in range(3):
        assert await output(host, f"echo {number} > f; x={number}") == ""
        assert (await host.run("cat f")).stdout.text() == f"{number}\n"
        assert await output(host, 'echo "$x"') == f"{number}\n"
        await host.execute(TmuxRequest("capture"))


async def test_many_at_once_are_answered_in_their_order(host: RunningHost) -> None:
    commands = [shell(host, f"echo {number}; n=$((n + 1))") for number in range(30)]
    commands.append(shell(host, "sleep 0.2; echo slow $n"))
    commands += [shell(host, f"echo {number}") for number in range(20)]
    texts = [result.stdout.text() for result in await asyncio.gather(*commands)]
    numbers = [f"{number}\n" for number in range(30)]
    assert texts == [*numbers, "slow 30\n", *numbers[:20]]


async def test_an_eval_that_is_no_longer_bashs_own_is_got_round(host: RunningHost) -> None:
    await shell(host, "eval() { echo mine; }")
    for _ in range(2):
        assert (await output(host, "echo fine")).endswith("fine\n")


async def test_streams_that_the_shell_has_closed_are_no_trouble(host: RunningHost) -> None:
    await shell(host, "exec 1>/dev/null 2>/dev/null")
    for _ in range(3):
        assert await output(host, "echo nothing") == ""
    await shell(host, "exec 60>&-; true")
    assert await output(host, "echo heard") == "heard\n"


async def test_reports_that_nobody_asked_for_make_it_the_inits(host: RunningHost) -> None:
    await shell(host, "(while :; do echo noise; done >&60) & echo $! > pid")
    for _ in range(3):
        assert await output(host, "echo heard") == "heard\n"
    await host.run("kill $(cat pid)")
    assert await output(host, "echo heard") == "heard\n"


async def test_it_is_recorded_as_by_the_init(host: RunningHost) -> None:
    await host.execute(RecordingRequest())
    await shell(host, ":")
    first = await shell(host, r"printf 'fast \xe2\x82'")
    second = await shell(host, r"printf '\xac'; sleep 0.2; echo slow")
    third = await shell(host, r"printf '\xac\n'")
    batches = [batch for result in (first, second, third) for batch in result.recordings]
    assert {batch.session for batch in batches} == {"shell-1"}
    events = [event for batch in batches for event in batch.events]
    assert [event.at_s for event in events] == sorted(event.at_s for event in events)
    typed = "".join(event.data for event in events if event.kind == "i")
    assert typed == (
        "printf 'fast \\xe2\\x82'\nprintf '\\xac'; sleep 0.2; echo slow\nprintf '\\xac\\n'\n"
    )
    shown = "".join(event.data for event in events if event.kind == "o")
    assert "slow\r\n" in shown
    left = await host.execute(RecordingRequest())
    assert isinstance(left, RecordingResult)
    assert not left.recordings


async def test_descriptors_do_not_pile_up(host: RunningHost) -> None:
    before = descriptors(host)
    for number in range(20):
        await shell(host, "echo fast")
        await shell(host, "sleep 0.06")
        await host.run("true")
        await shell(host, f"exit {number}")
        await shell(host, ":")
    await eventually(lambda: descriptors(host) == before, "no more descriptors than before")


async def test_a_slot_ends_with_its_shell_lent_and_a_command_in_it(
    lasting_host: RunningHost,
) -> None:
    before = descriptors(lasting_host)
    await lasting_host.connection.open_slot("b")
    await shell(lasting_host, ":", slot="b")
    await is_lent(lasting_host)
    call = asyncio.create_task(shell(lasting_host, "sleep 1234", slot="b"))
    await lasting_host.commands("sleep 1234")
    await lasting_host.connection.close_slot("b")
    await asyncio.gather(call, return_exceptions=True)
    await eventually(lambda: descriptors(lasting_host) == before, "its descriptors are closed")


async def test_a_stopped_shell_is_the_inits_to_end(host: RunningHost) -> None:
    host.the_only("bash").kill(signal.SIGSTOP)
    result = await shell(host, "echo never", timeout_s=0.5)
    assert result.status is ExecStatus.TIMED_OUT
    assert result.shell_ended
    assert await output(host, "echo fine") == "fine\n"
