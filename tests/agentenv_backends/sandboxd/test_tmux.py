"""The terminal: keys in, screens out, and programs that need one."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio

from agentenv_backends.requests import ExecRequest, RecordingRequest, TmuxRequest
from agentenv_backends.results import ExecResult, OpFailure, RecordingResult
from tests.agentenv_backends.sandboxd.terminals import shell, tmux, typed
from tests.waiting import WITHIN_S

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from tests.agentenv_backends.sandboxd.harness import RunningHost

pytestmark = [pytest.mark.sandbox, pytest.mark.asyncio(loop_scope="module")]


@pytest_asyncio.fixture(loop_scope="module")
async def host(lasting_host: RunningHost) -> AsyncIterator[RunningHost]:
    """A host with one new slot, `a`."""
    await lasting_host.connection.open_slot("a")
    yield lasting_host
    await lasting_host.connection.close_slot("a")


@pytest_asyncio.fixture(loop_scope="module")
async def terminal(host: RunningHost) -> RunningHost:
    """A host whose slot `a` has a terminal of 80x24."""
    await tmux(host, "start", width=80, height=24)
    return host


async def screen_with(
    host: RunningHost, is_there: Callable[[str], bool], timeout_s: float = WITHIN_S
) -> str:
    """The screen once it shows something; fails with the last one when it does not."""
    end = asyncio.get_running_loop().time() + timeout_s
    while not is_there(screen := (await tmux(host, "capture")).screen):
        assert asyncio.get_running_loop().time() < end, screen
        await asyncio.sleep(0.02)
    return screen


# --- keys and screens -------------------------------------------------------------------------------------------------


async def test_a_terminal_has_the_size_it_was_asked_for_and_can_be_resized(
    host: RunningHost,
) -> None:
    await tmux(host, "start", width=61, height=17)
    assert "\n17 61\n" in await typed(host, "stty size", "Enter")
    await tmux(host, "start", width=100, height=30)
    assert "\n30 100\n" in await typed(host, "stty size", "Enter")
    assert "17 61" in (await tmux(host, "capture")).screen, "it is not the same terminal"


@pytest.mark.parametrize("size", [(19, 24), (80, 9), (501, 24), (80, 201)])
async def test_sizes_that_no_terminal_has_are_refused(
    host: RunningHost, size: tuple[int, int]
) -> None:
    request = TmuxRequest("start", width=size[0], height=size[1])
    assert await host.refused(request) == "bad_request"


async def test_text_is_typed_as_it_is(terminal: RunningHost) -> None:
    text = "a  'b' \\ $HOME ~ `c` \"d\" # ; {e} %f !g | é 日本 😀 -h;"
    await tmux(terminal, "send_keys", "echo go; cat > typed", "Enter")
    await screen_with(terminal, lambda screen: "\ngo" in screen)
    await typed(terminal, text, "Enter", "C-d")
    assert (await terminal.run("cat typed")).stdout.text() == text + "\n"


async def test_short_and_long_keys_are_typed_in_their_order(terminal: RunningHost) -> None:
    await tmux(terminal, "send_keys", "echo go; cat > typed", "Enter")
    await screen_with(terminal, lambda screen: "\ngo" in screen)
    keys = ["ls;", "{", "~", '"', "Enter", "y" * 30, "-t", *(f"{n}," for n in range(70))]
    keys += ["z" * 30, "é" * 25, "done", "Enter"]
    await typed(terminal, *keys, "C-d")
    written = (await terminal.run("cat typed")).stdout.text()
    assert written == "".join(keys).replace("Enter", "\n")


async def test_text_of_any_length_is_typed(terminal: RunningHost) -> None:
    lines = ["x" * 100 + f" {n}" for n in range(60)]
    await tmux(terminal, "send_keys", "echo go; cat > typed", "Enter")
    await screen_with(terminal, lambda screen: "\ngo" in screen)
    await typed(terminal, "\n".join(lines) + "\n", "C-d")
    assert (await terminal.run("cat typed")).stdout.text().splitlines() == lines


@pytest.mark.parametrize(
    ("key", "bytes_"),
    [
        ("Up", "1b 5b 41"),
        ("F1", "1b 4f 50"),
        ("F12", "1b 5b 32 34 7e"),
        ("Tab", "09"),
        ("Escape", "1b"),
        ("BSpace", "7f"),
        ("C-a", "01"),
        ("M-x", "1b 78"),
        ("Space", "20"),
        ("-t", "2d 74"),
        (";", "3b"),
    ],
)
async def test_keys_have_names(terminal: RunningHost, key: str, bytes_: str) -> None:
    await tmux(
        terminal,
        "send_keys",
        "stty raw -echo; touch ready; dd bs=20 count=1 2>/dev/null | od -An -tx1 > key; stty sane",
        "Enter",
    )
    ready = ExecRequest("until test -e ready; do sleep 0.01; done; sleep 0.05")
    assert isinstance(await terminal.execute(ready), ExecResult)
    await typed(terminal, key)
    assert (await terminal.run("cat key")).stdout.text().strip() == bytes_


async def test_wide_and_combining_characters_are_shown(terminal: RunningHost) -> None:
    screen = await typed(terminal, "printf '日本語|é|😀|e\\u0301\\n'", "Enter")
    assert "\n日本語|é|😀|e\u0301\n" in screen


async def test_history_reaches_beyond_the_screen(terminal: RunningHost) -> None:
    screen = await typed(terminal, "seq 1000", "Enter")
    assert "\n1000\n" in screen
    assert "\n900\n" not in screen
    whole = (await tmux(terminal, "capture", history=True)).screen.split("\n")
    assert [str(n) for n in range(1, 1001)] == whole[1:1001]


async def test_a_nul_cannot_be_typed(terminal: RunningHost) -> None:
    assert await terminal.refused(TmuxRequest("send_keys", ("a\0b",))) == "bad_request"
    assert await terminal.refused(TmuxRequest("send_keys", ("a",), timeout_s=-1)) == "bad_request"
    assert await terminal.refused(TmuxRequest("stream", offset=-1)) == "bad_request"


# --- waiting ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "keys",
    [
        ("sleep 0.3; echo $((6*7))", "Enter"),
        ("sleep 0.3", "Enter", "echo $((6*7))", "Enter"),
        ("for i in 1 2; do", "Enter", "sleep 0.1", "Enter", "done; echo $((6*7))", "Enter"),
        ("sleep 0.3; echo $((6*7))\n",),
        ("sleep 0.3 && clear; echo $((6*7))", "Enter"),
        ("i=0; while ((i < 300000)); do ((i += 1)); done; echo $((6*7))", "Enter"),
        ("PS1='mine: '; sleep 0.3; echo $((6*7))", "Enter"),
        ("bash --norc", "Enter", "sleep 0.3; echo $((6*7))", "Enter"),
    ],
)
async def test_block_waits_for_the_command_and_no_longer(
    terminal: RunningHost, keys: tuple[str, ...]
) -> None:
    assert "42\n" in await typed(terminal, *keys)


async def test_block_gives_up_at_its_deadline_and_ends_nothing(terminal: RunningHost) -> None:
    late = await tmux(
        terminal, "send_keys", "sleep 1; echo $((6*7))", "Enter", block=True, timeout_s=0.2
    )
    assert late.timed_out
    assert late.running
    assert "42" not in late.screen
    await screen_with(terminal, lambda screen: "\n42\n" in screen)


async def test_block_with_keys_that_start_nothing_ends_at_once(terminal: RunningHost) -> None:
    assert "echo typed" in await typed(terminal, "echo typed", timeout_s=5)
    assert "^C" in await typed(terminal, "C-c", timeout_s=5)
    assert (await typed(terminal, "Enter", timeout_s=5)).count("~$") == 3


async def test_without_waiting_no_screen_is_looked_at(terminal: RunningHost) -> None:
    assert (await tmux(terminal, "send_keys", "echo x", "Enter")).screen == ""
    waited = await tmux(terminal, "send_keys", "echo y", "Enter", min_wait_s=0.3)
    assert "\ny\n" in waited.screen


async def test_a_withdrawn_wait_leaves_the_terminal_as_it_is(terminal: RunningHost) -> None:
    task = asyncio.create_task(
        tmux(terminal, "send_keys", "sleep 2; echo $((6*7))", "Enter", block=True)
    )
    await terminal.commands("sleep 2")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await screen_with(terminal, lambda screen: "\n42\n" in screen)


# --- programs ---------------------------------------------------------------------------------------------------------


async def test_an_editor_works(terminal: RunningHost) -> None:
    await tmux(terminal, "send_keys", "vi -u NONE file", "Enter")
    await screen_with(terminal, lambda screen: '"file"' in screen)
    screen = await typed(terminal, "ihello", "Enter", "world", "Escape", "kdd", ":wq", "Enter")
    assert screen.count("~$") == 2
    assert (await terminal.run("cat file")).stdout.text() == "world\n"


async def test_a_repl_works_and_keeps_its_state(terminal: RunningHost) -> None:
    await tmux(terminal, "send_keys", "python3 -q", "Enter")
    await screen_with(terminal, lambda screen: screen.endswith(">>>"))
    await tmux(terminal, "send_keys", "x = 6", "Enter", "x * 7", "Enter")
    await screen_with(terminal, lambda screen: "\n42\n" in screen)
    await tmux(terminal, "send_keys", "Up", "Enter")
    await screen_with(terminal, lambda screen: screen.count("\n42\n") == 2)
    assert "~$" in (await typed(terminal, "C-d")).split("\n")[-1]


async def test_a_pager_works(terminal: RunningHost) -> None:
    await tmux(terminal, "send_keys", "seq 1000 | less", "Enter")
    await screen_with(terminal, lambda screen: screen.startswith("1\n2\n"))
    await tmux(terminal, "send_keys", "G")
    await screen_with(terminal, lambda screen: "\n1000\n" in screen)
    assert "\n1000\n" not in await typed(terminal, "q")


async def test_a_program_that_draws_all_the_time_works(terminal: RunningHost) -> None:
    await tmux(terminal, "send_keys", "top -d 0.1", "Enter")
    await screen_with(terminal, lambda screen: "COMMAND" in screen and "bash" in screen)
    assert (await typed(terminal, "q")).rstrip().endswith("~$")


async def test_ctrl_c_interrupts(terminal: RunningHost) -> None:
    await tmux(terminal, "send_keys", "sleep 1000", "Enter", min_wait_s=0.1)
    assert "^C\n" in await typed(terminal, "C-c", timeout_s=5)


# --- output and recording ---------------------------------------------------------------------------------------------


async def test_the_stream_is_what_was_written_from_an_offset_on(terminal: RunningHost) -> None:
    await typed(terminal, "printf 'one\\n'", "Enter")
    first = await tmux(terminal, "stream")
    assert b"\r\none\r\n" in first.output or b"\rone\r\n" in first.output
    assert first.next_offset == len(first.output)
    await typed(terminal, "printf 'two\\n'", "Enter")
    second = await tmux(terminal, "stream", offset=first.next_offset)
    assert b"one" not in second.output
    assert b"two\r\n" in second.output
    piece = await tmux(terminal, "stream", offset=2, max_bytes=5)
    assert (piece.output, piece.next_offset) == (first.output[2:7], 7)
    beyond = await tmux(terminal, "stream", offset=10**9)
    assert (beyond.output, beyond.next_offset) == (b"", second.next_offset)


async def test_nobody_sees_how_the_shell_marks_its_prompts(terminal: RunningHost) -> None:
    await typed(terminal, "echo x", "Enter")
    output = (await tmux(terminal, "stream")).output
    assert b"7373" not in output


async def test_a_flood_is_bounded_and_says_where_it_begins(terminal: RunningHost) -> None:
    await tmux(terminal, "send_keys", "yes $(seq -s . 30)", "Enter", min_wait_s=1)
    assert "^C" in await typed(terminal, "C-c", timeout_s=20)
    stream = await tmux(terminal, "stream", max_bytes=10_000_000)
    assert len(stream.output) <= 2 << 20
    assert stream.next_offset > len(stream.output)
    memory = await terminal.run("grep VmRSS /proc/1/status")
    assert int(memory.stdout.text().split()[1]) < 60_000


async def test_output_input_and_sizes_are_recorded(host: RunningHost) -> None:
    recordings = [*(await tmux(host, "start", width=80, height=24)).recordings]
    keys = ("echo 日本", "Enter")
    recordings += (await tmux(host, "send_keys", *keys, block=True)).recordings
    recordings += (await tmux(host, "start", width=100, height=30)).recordings
    assert {recording.session for recording in recordings} == {"tmux-1"}
    assert (recordings[0].width, recordings[0].height) == (80, 24)
    events = [event for recording in recordings for event in recording.events]
    assert [event.data for event in events if event.kind == "i"] == ["echo 日本", "\r"]
    assert [event.data for event in events if event.kind == "r"] == ["100x30"]
    shown = "".join(event.data for event in events if event.kind == "o")
    assert "\r日本\r\n" in shown or "\n日本\r\n" in shown
    assert [event.at_s for event in events] == sorted(event.at_s for event in events)


async def test_output_between_requests_is_recorded(terminal: RunningHost) -> None:
    await tmux(terminal, "send_keys", "sleep 0.2; echo $((6*7))", "Enter")
    recorded = ""
    async with asyncio.timeout(WITHIN_S):
        while "42\r\n" not in recorded:
            result = await terminal.execute(RecordingRequest())
            assert isinstance(result, RecordingResult)
            events = [event for each in result.recordings for event in each.events]
            recorded += "".join(event.data for event in events)


# --- ends -------------------------------------------------------------------------------------------------------------


async def test_without_a_terminal_there_is_nothing_to_do(host: RunningHost) -> None:
    for action in ("send_keys", "capture", "stream", "stop"):
        result = await host.execute(TmuxRequest(action, ("x",)))
        assert isinstance(result, OpFailure)
        assert str(result.kind) == "no_session"
        assert "start" in result.message


@pytest.mark.parametrize(
    "keys",
    [
        ("exit", "Enter"),
        ("C-d",),
        ("tmux kill-server", "Enter"),
        ("tmux detach-client", "Enter"),
        ("tmux kill-session", "Enter"),
        ("kill -9 $(pgrep -f tmux)", "Enter"),
        ("exec true", "Enter"),
    ],
)
async def test_a_terminal_that_somebody_ended_is_over_with_all_that_ran_in_it(
    terminal: RunningHost, keys: tuple[str, ...]
) -> None:
    await typed(terminal, "(setsid sleep 1001 &); sleep 1002 &", "Enter")
    over = await tmux(terminal, "send_keys", *keys, block=True, timeout_s=10)
    assert not over.running
    assert await terminal.refused(TmuxRequest("capture")) == "no_session"
    assert (await terminal.run("pgrep -c sleep")).stdout.text() == "0\n"
    assert (await tmux(terminal, "start")).running


async def test_a_tmux_that_says_nothing_any_more_is_ended(terminal: RunningHost) -> None:
    await terminal.run("kill -STOP $(pgrep -f '[t]mux.*-S')")
    assert await terminal.refused(TmuxRequest("capture", timeout_s=1)) == "no_session"
    assert (await terminal.run("pgrep -c tmux")).stdout.text() == "0\n"
    assert (await tmux(terminal, "start")).running


async def test_reset_begins_anew(terminal: RunningHost) -> None:
    await typed(terminal, "x=5; sleep 1000 &", "Enter")
    kept = await tmux(terminal, "start")
    assert kept.running
    assert "[5]" in await typed(terminal, "echo [$x]", "Enter")
    await tmux(terminal, "start", reset=True)
    assert "\n[]\n" in await typed(terminal, "echo [$x]", "Enter")
    assert (await terminal.run("pgrep -c sleep")).stdout.text() == "0\n"
    assert (await tmux(terminal, "stream")).next_offset < 200


async def test_nothing_of_a_stopped_terminal_stays(terminal: RunningHost) -> None:
    await tmux(terminal, "stop")
    assert (await terminal.run("ls -A /tmp /workspace")).stdout.text() == "/tmp:\n\n/workspace:\n"


async def test_a_terminal_that_cannot_be_started_says_why(host: RunningHost) -> None:
    await host.run("chmod 500 /tmp")
    result = await host.execute(TmuxRequest("start"))
    assert isinstance(result, OpFailure)
    assert str(result.kind) == "cannot_start"
    assert "temporary files" in result.message
    assert "exited unexpectedly" in result.message
    assert (await shell(host, "echo fine")).stdout.text() == "fine\n"


async def test_hosts_say_where_tmux_is(host: RunningHost) -> None:
    assert host.facts.tmux.endswith("/tmux")
