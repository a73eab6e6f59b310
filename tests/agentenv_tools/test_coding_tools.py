"""The toolset `coding`: arguments to requests, results to what the model reads, and both through the executor."""

import json
from typing import Any

import pytest

from agentenv_backends.errors import InfrastructureError
from agentenv_backends.requests import (
    EditRequest,
    ExecRequest,
    GlobRequest,
    GrepRequest,
    ViewRequest,
    WriteRequest,
)
from agentenv_backends.results import (
    Capture,
    EditResult,
    ExecResult,
    ExecStatus,
    FailureKind,
    GlobResult,
    GrepMatch,
    GrepResult,
    KillResult,
    OpFailure,
    Result,
    ViewResult,
    WriteResult,
)
from agentenv_backends.testing import FakeProvider
from agentenv_tools import ToolArgumentsError, ToolCall, ToolResult
from agentenv_tools.coding_tools import (
    EditTool,
    ExecTool,
    GlobTool,
    GrepTool,
    ReadTool,
    WriteTool,
    coding_tools,
)
from agentenv_tools.testing import fake_executor, in_virtual_time
from tests.agentenv_tools.test_images import png

TOOLS: dict[str, Any] = {tool.schema.name: tool for tool in coding_tools()}


def shown(tool: Any, arguments: dict[str, Any], result: Result) -> ToolResult:
    answer: ToolResult = tool.result(tool.validate(arguments), result, 30.0)
    return answer


# ---- schemas and arguments ----


def test_the_parameters_are_the_documented_ones():
    parameters = {
        name: (list(tool.schema.parameters), tool.schema.required) for name, tool in TOOLS.items()
    }
    assert parameters == {
        "exec": (["command", "cwd", "env", "timeout"], ["command"]),
        "read": (["path", "offset", "limit"], ["path"]),
        "write": (["path", "content"], ["path", "content"]),
        "edit": (["path", "old_text", "new_text"], ["path", "old_text", "new_text"]),
        "glob": (["pattern", "cwd", "ignore"], ["pattern"]),
        "grep": (["pattern", "cwd", "include", "max_results", "context_lines"], ["pattern"]),
    }
    assert TOOLS["exec"].schema.parameters["env"]["additionalProperties"] == {"type": "string"}
    assert TOOLS["grep"].schema.parameters["include"]["items"]["type"] == "string"


@pytest.mark.parametrize(
    ("name", "arguments", "request_"),
    [
        ("exec", {"command": "ls"}, ExecRequest("ls", 7.0)),
        ("exec", {"command": "ls", "cwd": "a", "env": {"X": "1"}}, ExecRequest("ls", 7.0, cwd="a", env={"X": "1"})),
        ("read", {"path": "a"}, ViewRequest("a")),
        ("read", {"path": "a", "offset": "3", "limit": 2}, ViewRequest("a", first_line=3, max_lines=2)),
        ("write", {"path": "a", "content": "é"}, WriteRequest("a", "é".encode())),
        ("edit", {"path": "a", "old_text": "x", "new_text": ""}, EditRequest("a", "x", "")),
        ("glob", {"pattern": "*.py", "cwd": "s", "ignore": ["x"]}, GlobRequest("*.py", cwd="s", ignore=("x",))),
        (
            "grep", {"pattern": "x", "include": ["*.c"], "context_lines": 2},
            GrepRequest("x", include=("*.c",), context_lines=2, timeout_s=7.0),
        ),
    ],
)  # fmt: skip
def test_each_tool_asks_the_slot_for_one_thing(name, arguments, request_):
    tool = TOOLS[name]
    assert tool.request(tool.validate(arguments), 7.0) == request_


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("exec", {"command": "x", "env": {"A": 1}}, "env.A: "),
        ("exec", {"command": "x", "allow_net": True}, "allow_net: unknown argument"),
        ("read", {"path": "a", "offset": -1}, "offset: "),
        ("read", {"path": "a", "limit": 0}, "limit: "),
        ("edit", {"path": "a", "old_text": "", "new_text": "x"}, "old_text: "),
        ("write", {"path": "a", "content": "x" * 100_001}, "content: 100001 bytes"),
        ("glob", {"pattern": "*", "ignore": "x"}, "ignore: "),
        ("grep", {"pattern": "x", "max_results": 0}, "max_results: "),
        ("grep", {"pattern": "x", "context_lines": 21}, "context_lines: "),
    ],
)
def test_bad_arguments_are_refused_by_field(name, arguments, message):
    with pytest.raises(ToolArgumentsError) as caught:
        TOOLS[name].validate(arguments)
    assert message in str(caught.value)


# ---- what the model reads ----


def ran(
    stdout: bytes = b"",
    stderr: bytes = b"",
    code: int = 0,
    status: ExecStatus = ExecStatus.EXITED,
    duration_s: float = 0.1,
) -> ExecResult:
    out, err = (Capture(data, total_bytes=len(data)) for data in (stdout, stderr))
    return ExecResult(status, code, out, err, duration_s)


def test_exec_gives_stdout_stderr_and_exit_code_apart():
    assert shown(ExecTool(), {"command": "x"}, ran(b"out\n", b"err\n", 2)) == ToolResult(
        success=False,
        output="out\n",
        error="Exit code: 2",
        metadata={"exit_code": 2, "stderr": "err\n", "truncated": False},
    )


def test_equal_commands_read_equal_text_however_long_they_took():
    results = {
        shown(ExecTool(), {"command": "x"}, ran(b"x", duration_s=seconds)).to_json()
        for seconds in (0.1, 7.0)
    }
    assert len(results) == 1


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_either_stream_sets_truncated(stream):
    long, short = Capture(b"head", b"tail", total_bytes=2_000_000), Capture(b"")
    streams = {"stdout": short, "stderr": short, stream: long}
    result = ExecResult(ExecStatus.EXITED, 0, streams["stdout"], streams["stderr"], 0.1)
    answer = shown(ExecTool(), {"command": "x"}, result)
    text = answer.output if stream == "stdout" else answer.metadata["stderr"]
    assert answer.metadata["truncated"] is True
    assert text == "head\n... 1999992 of 2000000 bytes dropped ...\ntail"


def test_a_command_that_overran_says_so():
    answer = shown(ExecTool(), {"command": "x"}, ran(b"partial", status=ExecStatus.TIMED_OUT))
    assert (answer.output, answer.error) == ("partial", "Command timed out after 30s")
    assert answer.metadata["timeout"] is True


def test_read_gives_the_text_as_it_stands_and_where_to_go_on():
    whole = ViewResult(b"a\r\nb", "text/plain", 4, lines=2)
    part = ViewResult(b"a\n", "text/plain", 900, first_line=5, lines=1, more=True)
    cut = ViewResult(b"aa", "text/plain", 900, first_line=5, lines=1, more=True, line_cut=True)
    assert shown(ReadTool(), {"path": "f"}, whole) == ToolResult(
        success=True, output="a\r\nb", metadata={"path": "f"}
    )
    assert shown(ReadTool(), {"path": "f"}, part).metadata == {
        "path": "f",
        "next_offset": 6,
        "file_size": 900,
    }
    assert "line 5 is cut" in shown(ReadTool(), {"path": "f"}, cut).metadata["truncated"]


def test_read_gives_an_image_beside_a_line_of_text():
    result = shown(ReadTool(), {"path": "p"}, ViewResult(png(640, 480), "image/png", 33))
    assert result.output == "[image/png, 640 x 480 pixels, 29 bytes]"
    (image,) = result.images
    assert (image.media_type, image.width, image.height) == ("image/png", 640, 480)
    assert image.data not in result.to_json()


@pytest.mark.parametrize("content", [png(9000, 1), png(3, 3)[:14], b"\x89PNG\r\n\x1a\n"])
def test_an_image_that_cannot_be_shown_is_an_error(content):
    result = shown(ReadTool(), {"path": "p"}, ViewResult(content, "image/png", len(content)))
    assert not result.success
    assert result.error is not None
    assert result.error.startswith("p: image/png ")
    assert result.images == ()


def test_write_and_edit_say_where():
    written = shown(WriteTool(), {"path": "a", "content": "x"}, WriteResult(1))
    edited = shown(EditTool(), {"path": "a", "old_text": "x", "new_text": "y"}, EditResult(1, 1))
    assert (written.output, written.metadata) == ("Wrote 1 bytes to a", {"path": "a"})
    assert (edited.output, edited.metadata) == ("Edited a", {"path": "a"})


def test_glob_gives_files_and_how_many():
    result = shown(GlobTool(), {"pattern": "*"}, GlobResult(("a", "b\nc"), truncated=False))
    assert (result.output, result.metadata) == ("2 files", {"files": ["a", "b\nc"]})
    one = shown(GlobTool(), {"pattern": "*"}, GlobResult(("a",), truncated=True))
    assert (one.output, one.metadata) == ("1 file", {"files": ["a"], "truncated": True})


def test_grep_gives_matches_with_their_context():
    match = GrepMatch("a.py", 3, "hit", ("1", "2"), ("4",))
    found = GrepResult((match,), truncated=False, skipped_files=2)
    plain = shown(GrepTool(), {"pattern": "x"}, GrepResult((GrepMatch("a", 1, "x"),), truncated=True))  # fmt: skip
    assert plain.output == "1 match"
    assert plain.metadata == {
        "matches": [{"path": "a", "line": 1, "text": "x"}],
        "truncated": True,
    }
    assert shown(GrepTool(), {"pattern": "x", "context_lines": 2}, found).metadata == {
        "matches": [
            {
                "path": "a.py",
                "line": 3,
                "text": "hit",
                "context": {"before": ["1", "2"], "after": ["4"]},
            }
        ],
        "skipped_files": 2,
    }


def test_no_answer_is_longer_than_a_model_should_read():
    paths = tuple(f"{number:04}" + "x" * 1000 for number in range(1000))
    listed = shown(GlobTool(), {"pattern": "*"}, GlobResult(paths, truncated=False))
    found = tuple(GrepMatch(path, 1, "y" * 500) for path in paths)
    grepped = shown(GrepTool(), {"pattern": "x"}, GrepResult(found, truncated=False))
    for result in (listed, grepped):
        assert result.metadata["truncated"] is True
        assert 10_000 < len(result.to_json()) < 60_000


def test_a_failure_is_the_agents_to_read():
    arguments = {
        "exec": {"command": "x"},
        "read": {"path": "a"},
        "write": {"path": "a", "content": ""},
        "edit": {"path": "a", "old_text": "x", "new_text": "y"},
        "glob": {"pattern": "*"},
        "grep": {"pattern": "x"},
    }
    for name, tool in TOOLS.items():
        failed = shown(tool, arguments[name], OpFailure(FailureKind.NOT_TEXT, "a: no text"))
        assert failed == ToolResult(success=False, error="a: no text")
        outside = shown(tool, arguments[name], OpFailure(FailureKind.OUTSIDE_WORKSPACE, "x"))
        assert outside.error == "Access denied: path outside workspace"
        with pytest.raises(InfrastructureError):
            shown(tool, arguments[name], KillResult(0))


# ---- through the executor ----


@in_virtual_time
async def test_a_file_is_written_read_edited_and_found():
    async with fake_executor(toolsets=["coding"]) as run:

        async def call(name: str, **arguments: Any) -> ToolResult:
            return await run.executor.execute("t", ToolCall(name, arguments))

        await call("write", path="src/a.py", content="one\ntwo\n")
        assert (await call("read", path="src/a.py", offset=1)).output == "two\n"
        assert (await call("edit", path="src/a.py", old_text="two", new_text="2")).success
        absent = await call("edit", path="src/a.py", old_text="two", new_text="2")
        assert "old_text is not in it" in (absent.error or "")
        assert (await call("glob", pattern="src/*.py")).metadata["files"] == ["src/a.py"]
        found = await call("grep", pattern="^2", context_lines=1)
        assert found.metadata["matches"][0]["context"] == {"before": ["one"], "after": []}
        assert not (await call("read", path="none")).success


@in_virtual_time
@pytest.mark.parametrize(
    ("timeout", "caller_s", "limit_s", "expected"),
    [
        (None, None, None, 300.0),
        (7, None, None, 7.0),
        (7, 20.0, None, 20.0),
        (None, None, 60.0, 60.0),
        (900, None, None, 600.0),
    ],
)
async def test_the_deadline_of_exec_is_the_callers_else_the_models_else_its_own(
    timeout, caller_s, limit_s, expected
):
    async with fake_executor(toolsets=["coding"]) as run:
        arguments = {"command": "true"} | ({"timeout": timeout} if timeout else {})
        call = ToolCall("exec", arguments)
        await run.executor.execute("t", call, caller_s, limit_s=limit_s)
        ((request,),) = run.requests()
    assert isinstance(request, ExecRequest)
    assert request.timeout_s == expected


@in_virtual_time
async def test_the_model_sets_neither_network_nor_sandbox_policy():
    async with fake_executor(toolsets=["coding"]) as run:
        policy = {"allow_network": True, "require_sandbox": False}
        result = await run.executor.execute("t", ToolCall("exec", {"command": "true", **policy}))
        assert result.success
        assert run.requests() == [[ExecRequest("true", 300.0)]]


@in_virtual_time
async def test_commands_start_in_the_working_folder_unless_the_model_names_one():
    async with fake_executor(toolsets=["coding"]) as run:
        for arguments in ({"command": "true"}, {"command": "true", "cwd": "b"}):
            await run.executor.execute("t", ToolCall("exec", arguments), working_dir="a")
        (requests,) = run.requests()
    assert [getattr(request, "cwd", None) for request in requests] == ["a", "b"]


@in_virtual_time
async def test_an_image_arrives_as_an_image_and_its_bytes_are_nowhere_in_the_text():
    provider = FakeProvider()
    async with fake_executor(toolsets=["coding"], provider=provider) as run:
        await run.executor.execute("t", ToolCall("write", {"path": "x", "content": ""}))
        (host,) = provider.live.values()
        (slot,) = [slot for slot in host.slots.values() if slot.files]
        slot.files["plot.dat"] = png(64, 32)
        result = await run.executor.execute("t", ToolCall("read", {"path": "plot.dat"}))
    assert result.output == "[image/png, 64 x 32 pixels, 29 bytes]"
    assert len(result.images) == 1
    assert set(json.loads(result.to_json())) == {"success", "output", "metadata", "uniq_id"}
