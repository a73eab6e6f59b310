"""Running commands: what goes in, what comes out, how they end."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from agentenv_backends.conformance.checks import check, hold, refused, said
from agentenv_backends.requests import ExecRequest
from agentenv_backends.results import ExecStatus, FailureKind

if TYPE_CHECKING:
    from agentenv_backends.base import Slot
    from agentenv_backends.conformance.checks import Subject

_LEAVING_BEHIND = {
    "a background child": "sleep {mark} & echo hi",
    "a child in a session of its own": "setsid sleep {mark} & echo hi",
    "a child that ignores signals": "(trap '' TERM HUP INT; exec sleep {mark}) & echo hi",
    "a daemon": "(setsid sh -c 'sleep {mark} >/dev/null 2>&1 &') ; echo hi",
    "a stopped child": "sleep {mark} & kill -STOP $!; echo hi",
}


async def _running(subject: Subject, slot: Slot, mark: str) -> bool:
    """Whether a process with that argument is to be seen from inside."""
    find = f"cat /proc/[0-9]*/cmdline 2>/dev/null | tr '\\0' '\\n' | grep -x {mark} || true"
    # `grep` must not find its own argument.
    return bool(await subject.output(slot, find.replace(mark, f"'[{mark[0]}]'{mark[1:]}")))


@check("commands")
async def output_error_output_and_exit_code_stay_apart(subject: Subject) -> None:
    """With every exit code a program can have."""
    async with subject.slot() as slot:
        for code in (0, 1, 2, 124, 126, 127, 137, 255):
            result = await subject.run(slot, f"echo out; echo err >&2; exit {code}")
            hold(result.status is ExecStatus.EXITED, f"exit {code}: {said(result)}")
            hold(result.exit_code == code, f"exit {code} came back as {result.exit_code}")
            hold(result.stdout.text() == "out\n", f"standard output is {result.stdout.text()!r}")
            hold(result.stderr.text() == "err\n", f"standard error is {result.stderr.text()!r}")


@check("commands")
async def a_program_with_its_arguments_goes_without_a_shell(subject: Subject) -> None:
    """Nothing in them is expanded; what is not there or cannot be run ends as in a shell; the rest is as with one."""
    async with subject.slot() as slot:
        odd = ("a  b", "$HOME", "`id`", "*", "'\"\\", "", "\n", "ü")
        shown = await subject.output(slot, ("printf", "<%s>", *odd))
        hold(shown == "".join(f"<{argument}>" for argument in odd), f"they came as {shown!r}")
        hold((await subject.run(slot, ("no-such-program", "x"))).exit_code == 127, "not 127")
        await subject.output(slot, "mkdir d; echo x > d/plain; printf '#!/bin/sh\\npwd' > d/run")
        await subject.output(slot, ("chmod", "+x", "d/run"))
        hold((await subject.run(slot, ("d/plain",))).exit_code == 126, "not 126")
        where = await subject.output(slot, ("./run",), cwd="d")
        hold(where.strip() == f"{slot.workspace_dir}/d", f"it ran in {where!r}")
        found = await subject.output(slot, ("run",), env={"PATH": f"{slot.workspace_dir}/d:/bin"})
        hold(found.strip() == slot.workspace_dir, f"it ran in {found!r}")
        hold(await subject.output(slot, ("cat",), stdin=b"x\0y") == "x\0y", "its input is another")
        late = await subject.run(slot, ("sleep", "60"), timeout_s=0.5)
        hold(late.status is ExecStatus.TIMED_OUT, said(late))
        for none in ((), ("echo", "\0")):
            refused(await subject.ask(slot, ExecRequest(none)), FailureKind.BAD_REQUEST)


@check("commands")
async def death_by_a_signal_is_told_apart(subject: Subject) -> None:
    """From an exit code of the same number."""
    async with subject.slot() as slot:
        result = await subject.run(slot, "kill -SEGV $$; sleep 5")
        hold(result.status is ExecStatus.SIGNALED, said(result))
        hold(result.exit_code == 128 + 11, f"its exit code is {result.exit_code}")


@check("commands")
async def what_is_not_there_or_not_executable_is_the_shells_to_tell(subject: Subject) -> None:
    """127 and 126."""
    async with subject.slot() as slot:
        hold((await subject.run(slot, "no-such-program")).exit_code == 127, "not 127")
        await subject.output(slot, "echo x > plain")
        hold((await subject.run(slot, "./plain")).exit_code == 126, "not 126")


@check("commands")
async def any_bytes_come_back_as_they_were_written(subject: Subject) -> None:
    """UTF-8, broken UTF-8, NUL."""
    async with subject.slot() as slot:
        result = await subject.run(slot, r"printf 'h\303\251 \377\376 \000 end'")
        hold(result.stdout.head == b"h\xc3\xa9 \xff\xfe \0 end", f"got {result.stdout.head!r}")
        hold("hé" in result.stdout.text(), "what is UTF-8 does not decode")


@check("commands")
async def output_beyond_the_cap_keeps_head_and_tail(subject: Subject) -> None:
    """Half a gigabyte is read, and dropped, and counted."""
    count = 512 << 20
    command = f"echo first; head -c {count} /dev/zero | tr '\\0' x; echo; echo last"
    async with subject.slot() as slot:
        result = await subject.run(slot, command, timeout_s=120, max_output_bytes=1000)
        stream = result.stdout
        hold(result.exit_code == 0, said(result))
        hold(len(stream.head) + len(stream.tail) <= 1000, "more is kept than was asked for")
        hold(stream.head.startswith(b"first\n"), "the head is not kept")
        hold(stream.tail.endswith(b"last\n"), "the tail is not kept")
        hold(stream.total_bytes == count + 12, f"{stream.total_bytes} bytes counted")


@check("commands")
async def a_full_error_stream_does_not_block_an_unread_output(subject: Subject) -> None:
    """Both are drained."""
    async with subject.slot() as slot:
        flood = "head -c 5000000 /dev/zero >&2; head -c 5000000 /dev/zero; echo done >&2"
        result = await subject.run(slot, flood, timeout_s=60)
        hold(result.stderr.tail.endswith(b"done\n"), said(result))


@check("commands")
async def each_call_is_a_fresh_shell_in_the_same_workspace(subject: Subject) -> None:
    """Files stay; the folder, variables and options do not."""
    async with subject.slot() as slot:
        await subject.output(slot, "mkdir d; cd d; export KEPT=1; set -f; umask 0; echo x > f")
        hold(await subject.output(slot, "cat d/f; echo $KEPT; pwd; umask") != "", "nothing came")
        where = (await subject.output(slot, "pwd")).strip()
        hold(where == slot.workspace_dir, f"the next call began in {where}")
        hold(await subject.output(slot, "echo $KEPT") == "\n", "a variable was kept")


@check("commands")
async def the_environment_is_an_allow_list_and_what_the_request_adds(subject: Subject) -> None:
    """Nothing of the driver's own."""
    async with subject.slot() as slot:
        odd = "with 'quotes' $HOME\nand lines"
        shown = await subject.output(slot, 'printf %s "$ODD"', env={"ODD": odd})
        hold(shown == odd, f"the variable came as {shown!r}")
        home = await subject.output(
            slot, 'cd "$HOME" && touch x && cd "$TMPDIR" && touch x && id -u'
        )
        hold(home.strip().isdigit(), "home or temporary folder cannot be written to")


@check("commands")
async def standard_input_is_what_was_given_or_empty(subject: Subject) -> None:
    """Text, every byte, megabytes; a program that reads does not hang."""
    async with subject.slot() as slot:
        hold(
            await subject.output(slot, "cat; echo end", timeout_s=10) == "end\n", "it is not empty"
        )
        content = bytes(range(256)) * 8000
        counted = await subject.output(slot, "wc -c; ", stdin=content)
        hold(counted.strip() == str(len(content)), f"{counted.strip()} of {len(content)} bytes")
        shown = await subject.output(slot, "cat", stdin=b"$(id) `id` 'x' \"y\" \\ ;|&\n")
        hold(shown == "$(id) `id` 'x' \"y\" \\ ;|&\n", f"it came as {shown!r}")


@check("commands")
async def the_working_directory_is_below_the_workspace(subject: Subject) -> None:
    """Relative, absolute, with spaces; missing or outside is refused."""
    async with subject.slot() as slot:
        await subject.output(slot, "mkdir -p 'a b/c'; echo x > f")
        absolute = f"{slot.workspace_dir}/a b"
        for cwd in ("a b", absolute):
            where = (await subject.output(slot, "pwd", cwd=cwd)).strip()
            hold(where == absolute, f"cwd {cwd!r} is {where!r}")
        missing = await subject.ask(slot, ExecRequest("pwd", cwd="missing"))
        refused(missing, FailureKind.NOT_FOUND)
        outside = await subject.ask(slot, ExecRequest("pwd", cwd="/"))
        refused(outside, FailureKind.OUTSIDE_WORKSPACE)
        refused(await subject.ask(slot, ExecRequest("pwd", cwd="f")), FailureKind.NOT_A_DIRECTORY)


@check("commands")
async def odd_commands_work_or_fail_as_in_any_shell(subject: Subject) -> None:
    """200 KB, here-documents, only a comment, unbalanced quotes, nothing; NUL is refused."""
    async with subject.slot() as slot:
        long = f"x='{'y' * 200_000}'; echo ${{#x}}"
        hold(await subject.output(slot, long) == "200000\n", "a command of 200 KB is cut")
        here = "cat <<'E'\n$(id) stays\nE\n"
        hold(await subject.output(slot, here) == "$(id) stays\n", "a here-document is changed")
        hold((await subject.run(slot, "# nothing")).exit_code == 0, "a comment fails")
        hold((await subject.run(slot, "echo 'open")).exit_code != 0, "open quotes succeed")
        refused(await subject.ask(slot, ExecRequest("echo \0")), FailureKind.BAD_REQUEST)
        refused(await subject.ask(slot, ExecRequest("true", timeout_s=0)), FailureKind.BAD_REQUEST)


@check("commands")
async def a_command_over_its_deadline_is_killed_and_keeps_what_it_wrote(subject: Subject) -> None:
    """Also one that ignores every signal, and its children."""
    stubborn = "trap '' TERM HUP INT; echo begun; (trap '' TERM; sleep 4241) & sleep 4242"
    async with subject.slot() as slot:
        result = await subject.run(slot, stubborn, timeout_s=1)
        hold(result.status is ExecStatus.TIMED_OUT, said(result))
        hold(result.stdout.text() == "begun\n", "what it had written is lost")
        hold(result.duration_s < 20, f"it took {result.duration_s:.1f} s")
        for mark in ("4241", "4242"):
            hold(not await _running(subject, slot, mark), "a process outlived the deadline")


@check("commands")
async def a_call_ends_with_its_main_process_and_takes_the_rest_along(subject: Subject) -> None:
    """Whatever still holds its output open."""
    async with subject.slot() as slot:
        for number, (what, command) in enumerate(_LEAVING_BEHIND.items()):
            mark = str(76_001 + number)
            result = await subject.run(slot, command.format(mark=mark), timeout_s=30)
            hold(result.status is ExecStatus.EXITED, f"{what} kept the call: {said(result)}")
            hold(result.stdout.text() == "hi\n", f"{what}: {said(result)}")
            hold(not await _running(subject, slot, mark), f"{what} outlived its call")


@check("commands")
async def closing_its_output_does_not_end_a_command(subject: Subject) -> None:
    """The process counts, not the pipe."""
    async with subject.slot() as slot:
        await subject.output(slot, "exec 1>&- 2>&-; sleep 0.5; touch finished")
        hold(await subject.output(slot, "ls") == "finished\n", "it was not waited for")


@check("commands")
async def cancelling_kills_the_tree_and_the_slot_serves_on(subject: Subject) -> None:
    """In the middle of a command, and before its turn."""
    async with subject.slot() as slot:
        running = asyncio.create_task(subject.run(slot, "sleep 5253 & sleep 5253", timeout_s=60))
        waiting = asyncio.create_task(subject.run(slot, "touch ran"))
        await asyncio.sleep(0.3)
        for task in (waiting, running):
            task.cancel()
        await asyncio.gather(running, waiting, return_exceptions=True)
        hold(await subject.output(slot, "ls") == "", "what was withdrawn before its turn has run")
        hold(not await _running(subject, slot, "5253"), "what was withdrawn is still running")


@check("commands")
async def requests_of_one_slot_run_in_the_order_they_were_sent(subject: Subject) -> None:
    """Also when an early one is slow."""
    async with subject.slot() as slot:
        delays = [0.3, 0, 0.1, 0, 0]
        commands = [f"sleep {delay}; echo {i} >> order" for i, delay in enumerate(delays)]
        await asyncio.gather(*(subject.run(slot, command) for command in commands))
        hold(await subject.output(slot, "cat order") == "0\n1\n2\n3\n4\n", "the order changed")


@check("commands")
async def nothing_runs_twice_whatever_is_cancelled(subject: Subject) -> None:
    """A hundred commands, every third withdrawn at some moment."""
    async with subject.slot() as slot:
        tasks = [
            asyncio.create_task(subject.run(slot, f"echo {number} >> log")) for number in range(60)
        ]
        for number, task in enumerate(tasks):
            if number % 3 == 0:
                await asyncio.sleep(0.01)
                task.cancel()
        done = await asyncio.gather(*tasks, return_exceptions=True)
        lines = (await subject.output(slot, "cat log")).split()
        hold(len(lines) == len(set(lines)), "a command has run twice")
        for number, result in enumerate(done):
            if not isinstance(result, BaseException):
                hold(str(number) in lines, f"command {number} was answered and did not run")


@check("commands")
async def sixty_four_commands_run_at_the_same_time_on_the_slots_there_are(subject: Subject) -> None:
    """Each slot serves its own."""
    async with subject.slot() as one, subject.slot() as two, subject.slot() as three:
        slots = [one, two, three]
        answers = await asyncio.gather(
            *(subject.output(slots[i % 3], f"echo {i}; sleep 0.01") for i in range(64))
        )
        hold(answers == [f"{i}\n" for i in range(64)], "answers were mixed up")
