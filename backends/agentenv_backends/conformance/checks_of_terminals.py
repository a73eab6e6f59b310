"""The persistent shell and the terminal."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from agentenv_backends.conformance.checks import check, expect, hold, refused
from agentenv_backends.requests import KillRequest, ShellRequest, TmuxRequest
from agentenv_backends.results import ExecStatus, FailureKind, ShellResult, TmuxResult

if TYPE_CHECKING:
    from agentenv_backends.base import Slot
    from agentenv_backends.conformance.checks import Subject


async def _shell(
    subject: Subject, slot: Slot, command: str, timeout_s: float = 30.0
) -> ShellResult:
    return expect(ShellResult, await subject.ask(slot, ShellRequest(command, timeout_s)))


async def _tmux(subject: Subject, slot: Slot, request: TmuxRequest) -> TmuxResult:
    return expect(TmuxResult, await subject.ask(slot, request))


@check("terminals", needs=("stateful_terminals",))
async def a_persistent_shell_keeps_folder_variables_and_jobs(subject: Subject) -> None:
    """And says its exit codes."""
    async with subject.slot() as slot:
        begun = await _shell(
            subject, slot, "mkdir d; cd d; X=5; f() { echo in f; }; sleep 300 & false"
        )
        hold(begun.exit_code == 1 and begun.status is ExecStatus.EXITED, f"got {begun}")
        kept = await _shell(subject, slot, "pwd; echo $X; f; jobs | wc -l; echo err >&2")
        lines = kept.stdout.text().split("\n")
        hold(lines[0].endswith("/d") and lines[1:3] == ["5", "in f"], f"kept only {lines}")
        hold(lines[3].strip() == "1", "the background job is gone")
        hold(kept.stderr.text() == "err\n", f"standard error is {kept.stderr.text()!r}")
        fresh = await subject.output(slot, "echo $X")
        hold(fresh == "\n", "a fresh shell knows the persistent one's variable")


@check("terminals", needs=("stateful_terminals",))
async def a_fresh_command_spares_the_persistent_shell_and_its_jobs(subject: Subject) -> None:
    """Killing everything does not."""
    async with subject.slot() as slot:
        await _shell(subject, slot, "X=1; (while :; do date +%N > beat; sleep 0.05; done) &")
        await subject.output(slot, "(setsid sleep 8586 &) ; true")
        alive = 'a=$(cat beat); sleep 0.5; test "$a" != "$(cat beat)"'
        hold((await subject.run(slot, alive)).exit_code == 0, "the job died with a fresh command")
        hold((await _shell(subject, slot, "echo $X")).stdout.text() == "1\n", "the shell died")
        await subject.ask(slot, KillRequest())
        hold((await subject.run(slot, alive)).exit_code == 1, "the job outlived the killing")
        hold((await _shell(subject, slot, "echo .$X")).stdout.text() == ".\n", "the shell did too")


@check("terminals", needs=("stateful_terminals",))
async def a_shell_survives_a_deadline_or_says_that_it_did_not(subject: Subject) -> None:
    """What was written so far is kept either way."""
    async with subject.slot() as slot:
        await _shell(subject, slot, "X=1")
        late = await _shell(subject, slot, "echo begun; sleep 600", timeout_s=1)
        hold(late.status is ExecStatus.TIMED_OUT, f"got {late}")
        hold("begun" in late.stdout.text(), "what it wrote is lost")
        after = await _shell(subject, slot, "echo .$X")
        expected = ".\n" if late.shell_ended else ".1\n"
        hold(after.stdout.text() == expected, f"ended={late.shell_ended}, then {after}")
        deaf = await _shell(subject, slot, "trap '' INT TERM; while :; do :; done", timeout_s=1)
        hold(deaf.status is ExecStatus.TIMED_OUT, f"got {deaf}")
        again = await _shell(subject, slot, "echo hi")
        hold(again.stdout.text() == "hi\n", f"the next one: {again}")


@check("terminals", needs=("stateful_terminals",))
async def nothing_a_command_does_to_its_shell_wedges_the_slot(subject: Subject) -> None:
    """It ends, replaces itself, closes its descriptors, redefines what it can, floods."""
    attacks = (
        "exit 3",
        "exec sleep 0",
        "exec >&- 2>&-",
        "kill -9 $$",
        'for f in /proc/self/fd/*; do eval "exec ${f##*/}>&-"; done 2>/dev/null',
        "printf() { :; }; echo() { :; }; eval() { :; }; trap() { :; }; builtin() { :; }; readonly -f printf",
        "set -e; false",
        "trap 'exit 5' DEBUG EXIT ERR",
        "echo 'open",
        "cat <<E",
        "head -c 50000000 /dev/zero",
        "read x; echo got $x",
        ": " + "x" * 200_000,
    )
    async with subject.slot() as slot:
        for attack in attacks:
            async with asyncio.timeout(60):
                await _shell(subject, slot, attack, timeout_s=10)
                after = await _shell(subject, slot, "command echo hi", timeout_s=10)
                if "hi" not in after.stdout.text():  # such as after `exit` set as a trap
                    after = await _shell(subject, slot, "command echo hi", timeout_s=10)
            hold(
                "hi" in after.stdout.text() or attack.startswith("exec >"),
                f"{attack[:40]}: {after}",
            )
            await subject.ask(slot, KillRequest())


@check("terminals", needs=("stateful_terminals", "tmux"))
async def a_terminal_shows_what_programs_draw_and_takes_keys(subject: Subject) -> None:
    """A pager, which needs a screen and keys."""
    async with subject.slot() as slot:
        refused(await subject.ask(slot, TmuxRequest("capture")), FailureKind.NO_SESSION)
        started = await _tmux(subject, slot, TmuxRequest("start", width=60, height=12))
        hold(started.running, f"got {started}")
        keys = ("seq 1000 > n; echo made; tput cols", "Enter")
        typed = await _tmux(subject, slot, TmuxRequest("send_keys", keys=keys, block=True))
        hold("made" in typed.screen and "60" in typed.screen, f"the screen is {typed.screen!r}")
        await _tmux(subject, slot, TmuxRequest("send_keys", keys=("less n", "Enter"), min_wait_s=1))
        paged = await _tmux(subject, slot, TmuxRequest("send_keys", keys=("G",), min_wait_s=1))
        hold("1000" in paged.screen, f"the pager shows {paged.screen!r}")
        await _tmux(subject, slot, TmuxRequest("send_keys", keys=("q",)))
        streamed = await _tmux(subject, slot, TmuxRequest("stream"))
        hold(streamed.output and streamed.next_offset > 0, "nothing was streamed")
        await _tmux(subject, slot, TmuxRequest("stop"))
        refused(await subject.ask(slot, TmuxRequest("capture")), FailureKind.NO_SESSION)


@check("terminals", needs=("stateful_terminals", "tmux"))
async def a_terminal_ends_with_its_slot_and_with_a_killing(subject: Subject) -> None:
    """An agent that waits in it for its verifier waits in vain."""
    async with subject.slot() as slot:
        await _tmux(subject, slot, TmuxRequest("start"))
        loop = ("while :; do date +%N > beat; sleep 0.05; done", "Enter")
        await _tmux(subject, slot, TmuxRequest("send_keys", keys=loop, min_wait_s=1))
        await subject.ask(slot, KillRequest())
        alive = 'a=$(cat beat); sleep 0.5; test "$a" != "$(cat beat)"'
        hold((await subject.run(slot, alive)).exit_code == 1, "the terminal lives on")


@check("terminals", needs=("stateful_terminals",))
async def what_happened_in_a_shell_is_recorded(subject: Subject) -> None:
    """Each event once, in order."""
    async with subject.slot() as slot:
        first = await _shell(subject, slot, "echo seen-once")
        second = await _shell(subject, slot, "echo and-then")
        recordings = (*first.recordings, *second.recordings)
        text = "".join(event.data for recording in recordings for event in recording.events)
        hold("seen-once" in text and "and-then" in text, f"recorded {text!r}")
        times = [event.at_s for recording in recordings for event in recording.events]
        hold(times == sorted(times), "its times go backwards")
