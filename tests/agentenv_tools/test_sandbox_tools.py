"""Arguments to requests, and results to what the model reads."""

import pytest

from agentenv_backends.errors import InfrastructureError
from agentenv_backends.requests import ExecRequest, ReadRequest, WriteRequest
from agentenv_backends.results import (
    Capture,
    ExecResult,
    ExecStatus,
    FailureKind,
    KillResult,
    OpFailure,
    ReadResult,
    WriteResult,
)
from agentenv_tools import (
    BashTool,
    ReadFileTool,
    TerminalTool,
    ToolArgumentsError,
    ToolResult,
    WriteFileTool,
)


def capture(text: str | bytes) -> Capture:
    data = text.encode() if isinstance(text, str) else text
    return Capture(data, total_bytes=len(data))


def ran(
    stdout: str | bytes = "",
    stderr: str = "",
    code: int = 0,
    status: ExecStatus = ExecStatus.EXITED,
    killed: int = 0,
) -> ExecResult:
    return ExecResult(status, code, capture(stdout), capture(stderr), 0.1, killed)


def shown(result: ExecResult) -> ToolResult:
    tool = TerminalTool()
    return tool.result(tool.validate({"command": "x"}), result, 30.0)


# ---- schemas ----


def test_the_schemas_are_what_a_model_is_told():
    terminal, bash = TerminalTool().schema, BashTool().schema
    assert terminal.required == bash.required == ["command"]
    assert list(bash.parameters) == ["command"]
    assert terminal.parameters["timeout"] == {
        "type": "integer",
        "minimum": 1,
        "description": "Seconds the command may take.",
    }
    assert terminal.parameters["background"]["type"] == "boolean"
    assert ReadFileTool().schema.required == ["path"]
    assert WriteFileTool().schema.required == ["path", "content"]


# ---- requests ----


def test_each_tool_asks_the_slot_for_one_thing():
    terminal, read, write = TerminalTool(), ReadFileTool(), WriteFileTool()
    assert terminal.request(terminal.validate({"command": "ls"}), 7.0) == ExecRequest("ls", 7.0)
    assert read.request(read.validate({"path": "a"}), 7.0) == ReadRequest("a")
    arguments = write.validate({"path": "a", "content": "é"})
    assert write.request(arguments, 7.0) == WriteRequest("a", "é".encode())


@pytest.mark.parametrize(
    ("tool", "arguments", "message"),
    [
        (TerminalTool(), {}, "command: required, but missing"),
        (TerminalTool(), {"command": 5}, "command: Input should be a valid string (got 5)"),
        (TerminalTool(), {"command": ""}, "command: String should have at least 1 character"),
        (TerminalTool(), {"command": "x", "timeout": "soon"}, "timeout: "),
        (TerminalTool(), {"command": "x", "timeout": 0}, "timeout: "),
        (TerminalTool(), {"command": "x", "background": True}, "background commands are not"),
        (TerminalTool(), {"command": "x", "cwd": "/"}, "cwd: unknown argument"),
        (BashTool(), {"command": "x", "background": False}, "background: unknown argument"),
        (ReadFileTool(), {"path": ["a"]}, "path: Input should be a valid string"),
        (WriteFileTool(), {"path": "a", "content": "é" * 50_001}, "content: 100002 bytes, but"),
        (WriteFileTool(), {"path": "a", "content": "\ud800"}, "content: "),
        (WriteFileTool(), {"path": "a"}, "content: required"),
    ],
)
def test_bad_arguments_are_refused_by_field(tool, arguments, message):
    with pytest.raises(ToolArgumentsError) as caught:
        tool.validate(arguments)
    text = str(caught.value)
    assert text.startswith(f"Invalid arguments for {tool.name}: ")
    assert message in text


def test_a_long_bad_value_is_quoted_in_part_and_many_problems_are_counted():
    arguments = {"command": ["x" * 10_000]} | {f"extra_{n}": n for n in range(20)}
    with pytest.raises(ToolArgumentsError) as caught:
        BashTool().validate(arguments)
    assert len(str(caught.value)) < 400
    assert "and 16 more" in str(caught.value)


@pytest.mark.parametrize("timeout", [5, "5", 5.0, None])
def test_values_with_one_possible_reading_are_taken(timeout):
    arguments = TerminalTool().validate({"command": "x", "timeout": timeout, "background": "false"})
    assert arguments.timeout == (None if timeout is None else 5)  # type: ignore[attr-defined]


def test_a_file_of_exactly_the_limit_can_be_written():
    WriteFileTool().validate({"path": "a", "content": "é" * 50_000})


# ---- what the model reads of a command ----


def test_a_command_that_succeeds_shows_its_output_and_exit_code():
    assert shown(ran("hi\n")) == ToolResult(success=True, output="hi\n", metadata={"exit_code": 0})


@pytest.mark.parametrize(
    ("stdout", "stderr", "output"),
    [
        ("out\n", "err\n", "out\n[stderr]\nerr\n"),
        ("out", "err", "out\n[stderr]\nerr"),
        ("", "err", "[stderr]\nerr"),
        ("", "", ""),
        ("\x00\x1b[31m", "", "\x00\x1b[31m"),
    ],
)
def test_standard_error_follows_in_a_section_of_its_own(stdout, stderr, output):
    assert shown(ran(stdout, stderr)).output == output


def test_bytes_that_are_no_text_are_replaced():
    assert shown(ran(b"a\xffb")).output == "a\ufffdb"


@pytest.mark.parametrize(
    ("status", "code", "error", "metadata"),
    [
        (ExecStatus.EXITED, 2, "Exit code: 2", {"exit_code": 2}),
        (ExecStatus.SIGNALED, 139, "Exit code: 139 (killed by signal 11)", {"exit_code": 139}),
        (ExecStatus.OUT_OF_MEMORY, 137, "Exit code: 137 (killed: out of memory)", {"exit_code": 137}),
        (ExecStatus.TIMED_OUT, 137, "Command timed out after 30s", {"exit_code": -1, "timeout": True}),
        (ExecStatus.CANCELLED, 137, "Command cancelled", {"exit_code": 137}),
    ],
)  # fmt: skip
def test_every_other_ending_is_a_failure_that_keeps_the_output(status, code, error, metadata):
    result = shown(ran("partial", code=code, status=status))
    assert result == ToolResult(success=False, output="partial", error=error, metadata=metadata)


def test_output_that_was_cut_says_how_much_in_text_and_metadata():
    long = Capture(b"head", b"tail", total_bytes=2_000_000_000)
    result = shown(ExecResult(ExecStatus.EXITED, 0, long, capture(""), 0.1))
    assert result.output == "head\n... 1999999992 of 2000000000 bytes dropped ...\ntail"
    assert result.metadata["truncated"] == {
        "stdout": {"total_bytes": 2_000_000_000, "kept_bytes": 8}
    }


def test_background_processes_that_were_killed_are_mentioned():
    result = shown(ran("hi\n", killed=2))
    assert result.output == (
        "hi\n[2 background processes were still running when the command ended, and killed]"
    )
    assert result.metadata["killed_processes"] == 2
    assert "[1 background process was still running" in shown(ran(killed=1)).output


# ---- what the model reads of a file ----


def read(result: ReadResult | OpFailure) -> ToolResult:
    tool = ReadFileTool()
    return tool.result(tool.validate({"path": "a"}), result, 30.0)


def test_a_file_is_shown_as_it_is():
    assert read(ReadResult(b"a\xff\n", 3, truncated=False)) == ToolResult(
        success=True, output="a\ufffd\n"
    )


def test_a_long_file_is_cut_between_characters_and_says_so():
    result = read(ReadResult("aé".encode()[:2], 500_000, truncated=True))
    assert result.output == "a\n... file truncated: first 2 of 500000 bytes shown ..."
    assert result.metadata == {"truncated": {"content": {"total_bytes": 500_000, "kept_bytes": 2}}}


def test_a_path_outside_the_workspace_is_denied_in_fixed_words_and_other_failures_in_their_own():
    outside = read(OpFailure(FailureKind.OUTSIDE_WORKSPACE, "details"))
    missing = read(OpFailure(FailureKind.NOT_FOUND, "a: no such file"))
    assert outside == ToolResult(success=False, error="Access denied: path outside workspace")
    assert missing == ToolResult(success=False, error="a: no such file")


def test_writing_reports_what_was_written():
    tool = WriteFileTool()
    arguments = tool.validate({"path": "b/a.txt", "content": "x"})
    assert tool.result(arguments, WriteResult(1), 30.0).output == "Wrote 1 bytes to b/a.txt"
    failure = OpFailure(FailureKind.NO_SPACE, "disk full")
    assert tool.result(arguments, failure, 30.0).error == "disk full"


def test_an_answer_to_another_question_is_the_sandboxs_fault_not_the_agents():
    for tool in (ReadFileTool(), BashTool()):
        arguments = tool.validate({"path": "a"} if tool.name == "read_file" else {"command": "x"})
        with pytest.raises(InfrastructureError):
            tool.result(arguments, KillResult(0), 30.0)  # type: ignore[arg-type]
