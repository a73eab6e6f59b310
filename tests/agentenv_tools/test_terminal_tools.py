"""`terminal_stateful` and `tmux`: what is asked of the slot, and what the model reads."""

from typing import Any

import pytest

from agentenv_backends.base import Capabilities
from agentenv_backends.errors import CapabilityError, InfrastructureError
from agentenv_backends.requests import ExecRequest, ShellRequest, TmuxRequest
from agentenv_backends.results import (
    Capture,
    ExecStatus,
    FailureKind,
    OpFailure,
    ShellResult,
    TmuxResult,
    WriteResult,
)
from agentenv_backends.testing import FakeProvider
from agentenv_tools import ToolArgumentsError, ToolCall, ToolResult, build_registry, tool
from agentenv_tools.base import ToolContext
from agentenv_tools.terminal_tools import TerminalStatefulTool, TmuxTool
from agentenv_tools.testing import FakeRun, fake_executor, in_virtual_time

TERMINALS = Capabilities("bubblewrap", True, True, True, True, stateful_terminals=True, tmux=True)


def terminals(**settings: Any) -> Any:
    provider = FakeProvider(capabilities=TERMINALS)
    return fake_executor(toolsets=("terminal_stateful", "default"), provider=provider, **settings)


async def shell(run: FakeRun, command: str, trajectory: str = "t", **arguments: Any) -> ToolResult:
    call = ToolCall("terminal_stateful", {"command": command, **arguments})
    return await run.executor.execute(trajectory, call)


async def tmux(run: FakeRun, action: str, **arguments: Any) -> ToolResult:
    return await run.executor.execute("t", ToolCall("tmux", {"action": action, **arguments}))


# ---- the persistent shell ----


@in_virtual_time
async def test_what_a_command_changes_in_its_shell_is_there_for_the_next_one():
    async with terminals() as run:
        await shell(run, "cd src")
        await shell(run, "WORD=hello")
        assert (await shell(run, "pwd")).output == "src\n"
        assert (await shell(run, "echo $WORD")).output == "hello\n"
        assert (await shell(run, "pwd", "other")).output == "/workspace\n"


@in_virtual_time
async def test_output_of_a_background_job_comes_with_the_next_command():
    async with terminals() as run:
        assert (await shell(run, "background done at last")).output == "done at last\n"


@in_virtual_time
async def test_a_failing_command_is_told_with_its_exit_code():
    async with terminals() as run:
        result = await shell(run, "nonsense")
        assert (result.success, result.error) == (False, "Exit code: 127")
        assert result.output == "[stderr]\nnonsense: command not found\n"
        assert result.metadata == {"exit_code": 127}


@in_virtual_time
async def test_an_overrun_timeout_is_told_with_what_became_of_the_shell():
    async with terminals() as run:
        await shell(run, "cd src")
        slow = await shell(run, "sleep 100", timeout=3)
        assert slow.error == (
            "Command timed out after 3s: it was interrupted, and the shell goes on as it was"
        )
        assert slow.metadata == {"exit_code": -1, "timeout": True}
        assert (await shell(run, "pwd")).output == "src\n"
        stuck = await shell(run, "hang", timeout=3)
        assert stuck.error is not None
        assert "the shell was killed: its variables, working directory and" in stuck.error
        assert stuck.metadata == {"exit_code": -1, "timeout": True, "shell_ended": True}
        assert (await shell(run, "pwd")).output == "/workspace\n"


@in_virtual_time
async def test_a_shell_that_left_by_itself_is_told_whatever_its_exit_code():
    async with terminals() as run:
        good, bad = await shell(run, "exit 0"), await shell(run, "exit 3")
        assert good.success
        assert good.output.startswith("[the shell has ended: its variables")
        assert good.metadata == {"exit_code": 0, "shell_ended": True}
        assert (bad.success, bad.error) == (False, "Exit code: 3")


@in_virtual_time
async def test_terminal_and_the_persistent_shell_share_files_and_nothing_else():
    async with terminals() as run:
        await shell(run, "cd src")
        await run.executor.execute("t", ToolCall("terminal", {"command": "echo x > file"}))
        assert (await shell(run, "cat file")).output == "x\n"
        kinds = [type(request) for request in run.requests()[0]]
        assert kinds == [ShellRequest, ExecRequest, ShellRequest]


def test_output_that_was_cut_is_told_as_with_any_command():
    cut = Capture(b"a" * 10, b"b" * 10, 100)
    answer = ShellResult(ExecStatus.EXITED, 0, cut, Capture(b""), 0.1)
    result = TerminalStatefulTool().result(_arguments("terminal_stateful", command="x"), answer, 5)
    assert "80 of 100 bytes dropped" in result.output
    assert result.metadata["truncated"]["stdout"] == {"total_bytes": 100, "kept_bytes": 20}


# ---- tmux ----


def _arguments(name: str, **arguments: Any) -> Any:
    found = build_registry(["terminal_stateful"]).get(name)
    assert found is not None
    return found.validate(arguments)


def _request(timeout_s: float = 30.0, **arguments: Any) -> TmuxRequest:
    request = TmuxTool().request(_arguments("tmux", **arguments), timeout_s)
    assert isinstance(request, TmuxRequest)
    return request


def test_every_parameter_reaches_the_request():
    request = _request(action="start", reset=True, pane_width=90, pane_height=30)
    assert (request.reset, request.width, request.height) == (True, 90, 30)
    request = _request(
        action="send_keys", keys=["ls", "Enter", ""], block=True, min_wait_s=0.5, max_wait_s=4
    )
    assert request.keys == ("ls", "Enter")
    assert (request.block, request.min_wait_s, request.timeout_s) == (True, 0.5, 4.0)
    assert _request(action="send_keys", keys="C-c").keys == ("C-c",)
    assert _request(action="stream", offset=7, max_bytes=100).max_bytes == 100
    assert _request(action="capture", capture_entire=True).history


def test_waits_of_the_models_choice_stay_below_the_calls_limit():
    request = _request(5, action="send_keys", keys="x", block=True, min_wait_s=60, max_wait_s=600)
    assert (request.min_wait_s, request.timeout_s) == (5, 5)
    assert _request(30, action="send_keys", keys="x", block=True, max_wait_s=0).timeout_s == 0.1
    request = _request(30, action="send_keys", keys="x", min_wait_s=20, max_wait_s=10)
    assert (request.min_wait_s, request.timeout_s) == (20, 20)


@in_virtual_time
async def test_max_wait_s_is_the_calls_wish_and_the_executor_grants_it_up_to_its_limit():
    async with terminals() as run:
        await tmux(run, "start")
        await tmux(run, "send_keys", keys="hang", block=True, max_wait_s=200)
        call = ToolCall("tmux", {"action": "send_keys", "keys": "hang", "max_wait_s": 200})
        await run.executor.execute("t", call, limit_s=60)
        await run.executor.execute("t", call, timeout_s=20)
        await tmux(run, "send_keys", keys="x", timeout=9, allow_network=True)
        waits = [request.timeout_s for request in run.requests()[0][1:]]
        assert waits == [200, 60, 20, 9]


@in_virtual_time
async def test_a_wait_longer_than_the_backends_own_default_is_no_lost_sandbox():
    async with terminals() as run:
        await tmux(run, "start")
        result = await tmux(run, "send_keys", keys="hang", block=True, max_wait_s=500)
        assert result.success
        assert result.metadata == {"running": True, "timed_out": True}
        assert result.output.endswith("wait again, or send C-c]")


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({"action": "type"}, "action: Input should be 'start', 'send_keys'"),
        ({"action": "send_keys"}, "keys: required for send_keys"),
        ({"action": "send_keys", "keys": ["", ""]}, "keys: required for send_keys"),
        ({"action": "send_keys", "keys": ["x"] * 1001}, "keys: at most 1000 keys"),
        ({"action": "send_keys", "keys": "x" * 20_001}, "of 20000 characters"),
        ({"action": "start", "pane_width": 19}, "pane_width"),
        ({"action": "start", "pane_height": 9}, "pane_height"),
        ({"action": "start", "pane_width": 10**9}, "pane_width"),
        ({"action": "capture", "max_wait_s": "inf"}, "max_wait_s"),
        ({"action": "capture", "session": "x"}, "session: unknown argument"),
    ],
)
def test_arguments_that_make_no_sense_are_refused_by_name(arguments, problem):
    with pytest.raises(ToolArgumentsError, match=problem):
        _arguments("tmux", **arguments)


@in_virtual_time
async def test_a_terminal_is_started_typed_into_read_and_stopped():
    async with terminals() as run:
        assert (await tmux(run, "capture")).error == "there is no terminal; start one first"
        started = await tmux(run, "start", pane_width=90, pane_height=20)
        assert started.output == "[the terminal is open, 90x20]"
        assert (await tmux(run, "send_keys", keys=["ls", "Enter"])).output == "[keys sent]"
        assert (await tmux(run, "capture")).output == "ls"
        stopped = await tmux(run, "stop")
        assert (stopped.output, stopped.metadata) == (
            "[the terminal is closed]",
            {"running": False},
        )


def _stream(
    output: bytes, next_offset: int, *, running: bool = True, **arguments: Any
) -> ToolResult:
    answer = TmuxResult(running=running, output=output, next_offset=next_offset)
    return TmuxTool().result(_arguments("tmux", action="stream", **arguments), answer, 30)


def test_stream_gives_whole_lines_as_text_and_where_to_go_on():
    whole = b"\x1b]0;title\x07\x1b[1mone\x1b[0m\r\ntwo\r\n"
    first = _stream(whole + b"thr", len(whole) + 3, offset=0)
    assert first.output == "one\ntwo\n"
    assert first.metadata == {"running": True, "next_offset": len(whole)}
    late = _stream(b"two\r\n", 105, offset=90)
    assert late.metadata == {"running": True, "next_offset": 105, "dropped_bytes": 10}
    rest = _stream(b"thr", 30, offset=27)
    assert (rest.output, rest.metadata["next_offset"]) == ("", 27)
    assert _stream(b"three\r\n", 34, offset=27).output == "three\n"


def test_stream_does_not_wait_for_ever_for_the_end_of_a_line():
    assert _stream(b"$ exit", 6, running=False).output == "$ exit"
    assert _stream(b"x" * 100, 100, max_bytes=100).metadata["next_offset"] == 100


@in_virtual_time
async def test_streams_one_after_the_other_give_all_that_was_printed():
    async with terminals() as run:
        await tmux(run, "start")
        said, offset = "", 0
        for word in ("one", "two", "three"):
            await tmux(run, "send_keys", keys=[word, "Enter", "rest"])
            result = await tmux(run, "stream", offset=offset)
            said, offset = said + result.output, result.metadata["next_offset"]
        assert said == "one\nresttwo\nrestthree\n"


# ---- what is none of the model's mistakes ----


def test_an_answer_to_another_question_is_infrastructures_failure():
    with pytest.raises(InfrastructureError, match="WriteResult where TmuxResult belongs"):
        TmuxTool().result(_arguments("tmux", action="stop"), WriteResult(1), 30)


@pytest.mark.parametrize("kind", [FailureKind.NOT_INSTALLED, FailureKind.CANNOT_START])
def test_what_the_slot_refuses_is_told(kind):
    failure = OpFailure(kind, "bash is not installed here")
    result = TerminalStatefulTool().result(_arguments("terminal_stateful", command="x"), failure, 5)
    assert (result.success, result.error) == (False, "bash is not installed here")


# ---- at start ----


@pytest.mark.parametrize(
    ("offered", "toolsets", "message"),
    [
        ({}, ["terminal_stateful"], "'terminal_stateful' is enabled, but this backend has no pers"),
        ({}, ["full"], "'terminal_stateful' is enabled"),
        ({"stateful_terminals": True}, ["terminal_stateful"], "'tmux' is enabled, .* has no tmux"),
        ({"stateful_terminals": True}, ["all"], "'tmux' takes out that tool alone"),
    ],
)
async def test_tools_that_the_backend_cannot_serve_are_refused_at_start(offered, toolsets, message):
    provider = FakeProvider(
        capabilities=Capabilities("bubblewrap", True, True, True, True, **offered)
    )
    with pytest.raises(CapabilityError, match=message):
        async with fake_executor(toolsets=toolsets, provider=provider):
            pass


async def test_a_backend_without_tmux_serves_the_shell_when_tmux_is_disabled():
    offered = Capabilities("bubblewrap", True, True, True, True, stateful_terminals=True)
    registry = build_registry(["terminal_stateful"], ["tmux"])
    assert registry.names() == ("terminal_stateful",)
    stateful = registry.get("terminal_stateful")
    assert stateful is not None
    provider = FakeProvider(capabilities=offered)
    async with fake_executor(stateful, toolsets=(), provider=provider) as run:
        assert (await shell(run, "echo hi")).output == "hi\n"


@in_virtual_time
async def test_a_tool_with_code_of_its_own_gives_a_shell_no_more_time_than_it_has():
    @tool
    async def build(ctx: ToolContext) -> str:
        """Build it."""
        await ctx.execute(ShellRequest("make", 500))
        await ctx.execute(TmuxRequest("capture", min_wait_s=400, timeout_s=500))
        return "built"

    provider = FakeProvider(capabilities=TERMINALS)
    async with fake_executor(build, provider=provider) as run:
        await run.executor.execute("t", ToolCall("build", {"timeout": 10}))
        limits = [request.timeout_s for request in run.requests()[0]]  # type: ignore[union-attr]
        assert limits == [10, 10]
        assert run.requests()[0][1].min_wait_s == 10  # type: ignore[union-attr]
