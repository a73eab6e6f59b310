"""The data of a call."""

import json

from agentenv_tools import ToolCall, ToolResult, ToolSchema


def test_a_schema_renders_as_an_openai_function_and_as_one_line_for_a_prompt():
    schema = ToolSchema("read", "Read a file.", {"path": {"type": "string"}}, ["path"])
    function = schema.to_openai()["function"]
    assert function["parameters"] == {
        "type": "object",
        "properties": {"path": {"type": "string"}},
        "required": ["path"],
    }
    assert json.loads(schema.to_prompt()) == function
    assert "\n" not in schema.to_prompt()


def test_a_result_leaves_out_empty_error_and_metadata():
    assert json.loads(ToolResult(success=True, output="x").to_json()) == {
        "success": True,
        "output": "x",
    }
    full = ToolResult(success=False, error="no", metadata={"exit_code": 1}, uniq_id="a")
    assert json.loads(full.to_json()) == {
        "success": False,
        "output": "",
        "error": "no",
        "metadata": {"exit_code": 1},
        "uniq_id": "a",
    }


def test_a_result_is_one_line_of_valid_utf8_between_its_tags():
    opening, line, closing = ToolResult(success=True, output="a\nb\ud800é").to_xml().split("\n")
    assert (opening, closing) == ("<tool_response>", "</tool_response>")
    assert json.loads(line.encode())["output"] == "a\nb?é"


def test_calls_get_ids_of_their_own():
    assert ToolCall("a").uniq_id != ToolCall("a").uniq_id
