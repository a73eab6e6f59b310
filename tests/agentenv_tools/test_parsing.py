"""Reading tool calls out of what a model wrote, however it wrote it."""

import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from agentenv_tools import (
    ToolCall,
    ToolCallFormatError,
    build_call,
    finish_calls,
    parse_reply,
    parse_tool_calls,
    validate_json_arguments,
)
from agentenv_tools.json_values import MAX_CHARS


def block(payload: object) -> str:
    return f"<tool_call>\n{json.dumps(payload)}\n</tool_call>"


def only(text: str) -> ToolCall:
    (call,) = parse_tool_calls(text)
    return call


def error_of(call: ToolCall) -> str:
    assert call.error is not None
    return call.error


LS = {"name": "bash", "arguments": {"command": "ls"}}


# ---- good calls ----


def test_the_json_form_gives_name_arguments_id_and_raw_text():
    text = block(LS | {"id": "call_7"})
    call = only(f"I look around.\n{text}\n")
    assert (call.name, call.arguments, call.uniq_id) == ("bash", {"command": "ls"}, "call_7")
    assert (call.raw_text, call.error) == (text, None)


def test_uniq_id_wins_over_id_and_a_number_is_an_id_too():
    assert only(block(LS | {"uniq_id": "a", "id": "b"})).uniq_id == "a"
    assert only(block(LS | {"id": 3})).uniq_id == "3"


@pytest.mark.parametrize("space", ["", " ", "\n"])
def test_the_short_form_is_a_name_followed_by_the_arguments(space):
    call = only(f'<tool_call>{space}terminal{space}{{"command": "ls"}}{space}</tool_call>')
    assert (call.name, call.arguments, call.error) == ("terminal", {"command": "ls"}, None)


def test_several_calls_keep_their_order_and_the_text_around_them_is_the_content():
    reply = parse_reply(f"first {block(LS)} then {block({'name': 'b', 'arguments': {}})} done")
    assert [call.name for call in reply.tool_calls] == ["bash", "b"]
    assert reply.content == "first  then  done"
    assert reply.reasoning is None


def test_a_literal_newline_and_tab_inside_a_string_are_taken_as_written():
    text = '<tool_call>{"name": "bash", "arguments": {"command": "a\nb\tc"}}</tool_call>'
    assert only(text).arguments == {"command": "a\nb\tc"}


def test_tags_inside_a_json_string_belong_to_the_string():
    command = "echo '</tool_call><tool_call></think><think>' \\ \"quoted\" {["
    call = only(block({"name": "bash", "arguments": {"command": command}}))
    assert call.arguments == {"command": command}


def test_arguments_given_as_text_are_decoded_once():
    call = only(block({"name": "bash", "arguments": json.dumps({"command": "ls"})}))
    assert call.arguments == {"command": "ls"}
    twice = only(block({"name": "bash", "arguments": json.dumps(json.dumps({"command": "ls"}))}))
    assert twice.error
    assert twice.arguments == {}


# ---- broken calls are answered, never dropped ----


@pytest.mark.parametrize("arguments", [None, [], 3, True, "ls", ""])
def test_arguments_that_are_no_object_are_an_error_and_never_an_empty_object(arguments):
    call = only(block({"name": "bash", "arguments": arguments}))
    assert call.name == "bash"
    assert "'arguments'" in error_of(call)


def test_missing_arguments_are_an_error():
    assert "'arguments' is missing" in error_of(only(block({"name": "bash"})))


@pytest.mark.parametrize("name", [None, "", "  ", 5, ["bash"], "x" * 1000])
def test_a_name_that_is_no_name_is_an_error(name):
    call = only(block({"name": name, "arguments": {}}))
    assert call.name == ""
    assert "'name'" in error_of(call)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('<tool_call>{"name":"bash","arguments":{"command":"ls"}', "not closed"),
        ('<tool_call>{"name":"bash","arguments":{"command":"ls"}}', "unterminated"),
        ('<tool_call>{"name":"bash","arguments":{"command":"ls', "string in it is not closed"),
        ('<tool_call>{"name":"bash","arguments":{"command":"ls\\', "string in it is not closed"),
        ("<tool_call>", "expected {"),
        ("<tool_call></tool_call>", "expected {"),
        ("<tool_call>ls -la</tool_call>", "expected {"),
        ('<tool_call>[{"name":"bash"}]</tool_call>', "expected {"),
        (f"<tool_call>{json.dumps(LS)}{json.dumps(LS)}</tool_call>", "one call per"),
        (f"<tool_call>{json.dumps(LS)}}}</tool_call>", "unexpected text"),
        ("</tool_call>", "without <tool_call>"),
        ('<tool_call>{"name": "bash", "arguments": {"command": "a "b" c"}}</tool_call>', "Expect"),
        ('<tool_call>{"name": "bash", "arguments": {"command": "ls"</tool_call>', "not closed"),
        ("<tool_call>{'name': 'bash', 'arguments': {}}</tool_call>", "Expecting property name"),
        ('<tool_call>{"a": ]}</tool_call>', "Expecting value"),
        ('<tool_call>bash{"command": }</tool_call>', "Expecting value"),
    ],
)
def test_a_malformed_call_becomes_an_error_with_position_and_reason(text, reason):
    call = only(text)
    assert reason in error_of(call)
    assert "at character" in error_of(call)
    assert call.arguments == {}
    assert call.raw_text == text


def test_the_position_is_that_of_the_fault_in_the_reply():
    text = 'Text. <tool_call>{"name": "bash", "arguments": }</tool_call>'
    assert f"at character {text.index('}')} " in error_of(only(text))


def test_each_block_stands_alone_so_good_calls_run_beside_broken_ones():
    broken = '<tool_call>{"name": "bash", "arguments": {"command": "ls"}</tool_call>'
    first, second, third = parse_tool_calls(f"{block(LS)}{broken}\n{block(LS)}")
    assert (first.error, third.error) == (None, None)
    assert second.error
    assert len({first.uniq_id, second.uniq_id, third.uniq_id}) == 3


def test_a_block_given_up_for_a_new_one_is_an_error_and_the_new_one_is_a_call():
    first, second = parse_tool_calls(f"<tool_call>\n{block(LS)}")
    assert first.error
    assert second.error is None


def test_a_call_quoted_inside_a_broken_call_does_not_run():
    quoted = json.dumps(block({"name": "bash", "arguments": {"command": "rm -rf ."}}))
    text = f'<tool_call>{{"name": "write_file", "arguments": {{"content": {quoted}}}</tool_call>'
    assert only(text).error


# ---- thinking and fences ----


def test_calls_inside_thinking_are_not_calls():
    reply = parse_reply(f"<think>maybe {block(LS)}</think>No need. {block(LS)}")
    assert len(reply.tool_calls) == 1
    assert reply.content == "No need."
    assert "maybe" in (reply.reasoning or "")


def test_a_reply_cut_while_thinking_makes_no_calls():
    reply = parse_reply(f"<think>hm {block(LS)}")
    assert (reply.tool_calls, reply.content) == ((), "")


def test_thinking_opened_by_the_prompt_ends_at_the_first_closing_tag():
    text = f"maybe {block(LS)} hm</think>Now: {block({'name': 'b', 'arguments': {}})}"
    for reply in (parse_reply(text), parse_reply(text, in_reasoning=True)):
        assert [call.name for call in reply.tool_calls] == ["b"]
        assert reply.content == "Now:"
        assert (reply.reasoning or "").endswith("hm")


def test_a_reply_known_to_start_in_thinking_and_never_leaving_it_makes_no_calls():
    assert parse_reply(block(LS), in_reasoning=True).tool_calls == ()


def test_a_stray_closing_think_tag_after_thinking_is_only_text():
    reply = parse_reply(f"<think>a</think>{block(LS)}</think>b")
    assert len(reply.tool_calls) == 1
    assert reply.content == "</think>b"


def test_a_code_fence_changes_nothing_because_the_tags_are_control_syntax():
    assert only(f"```xml\n{block(LS)}\n```").error is None


# ---- ids and limits ----


def test_equal_ids_are_made_unique():
    calls = parse_tool_calls(block(LS | {"id": "x"}) * 2 + block(LS | {"id": "x-2"}))
    assert [call.uniq_id for call in calls] == ["x", "x-2", "x-2-2"]


def test_calls_beyond_the_limit_are_refused_with_one_message():
    calls = parse_tool_calls(block(LS) * 100)
    assert len(calls) == 17
    assert all(call.error is None for call in calls[:16])
    assert calls[16].error == "Refused: at most 16 tool calls per reply; 84 more were not run"


def test_structured_calls_beyond_the_limit_are_refused_one_by_one_with_unique_ids():
    calls = finish_calls([ToolCall("a", uniq_id="x")] * 4, max_calls=3)
    assert [call.uniq_id for call in calls] == ["x", "x-2", "x-3", "x-4"]
    assert [call.error is None for call in calls] == [True, True, True, False]


@pytest.mark.parametrize(
    "text",
    [
        "<tool_call>" * 50_000,
        "<tool_call>{" * 50_000,
        '<tool_call>{"' * 50_000,
        '<tool_call>{"' + '<tool_call>{\\"' * 50_000,
        "</tool_call>" * 50_000,
        "<think>" * 50_000,
        "</think>" * 50_000,
        '<tool_call>{"a": "' + '\\"' * 500_000,
        "<tool_call>" + " " * 500_000,
        "<tool_call>" + "a" * 500_000,
        '<tool_call>{"a":' + "[" * 500_000,
        '<tool_call>{"a":[' + "[]," * 160_000 + "[]]}</tool_call>",
        '<tool_call>{"a":[' + "1," * 100_000 + "1]}</tool_call>",
        '<tool_call>{"a":"' + "x" * 1_000_000 + '"}</tool_call>',
        "<tool_call>{" + ",".join(f'"{n}":1' for n in range(30_000)) + ',"1":2}</tool_call>',
    ],
)
def test_hostile_text_is_read_to_its_end_without_running_anything(text):
    calls = parse_tool_calls(text)  # quadratic work on half a megabyte would take minutes
    assert len(calls) <= 17
    assert all(call.error for call in calls)


def test_a_call_that_is_too_long_is_refused_with_its_limit():
    text = block({"name": "write", "arguments": {"content": "x" * MAX_CHARS}})
    assert f"longer than {MAX_CHARS}" in error_of(only(text))


def test_deep_nesting_is_refused_without_recursion():
    deep = "[" * 10_000 + "]" * 10_000
    call = only(f'<tool_call>{{"name": "a", "arguments": {{"x": {deep}}}}}</tool_call>')
    assert "nested deeper than 64" in error_of(call)


# ---- values that JSON cannot carry ----


@pytest.mark.parametrize(
    "value", ["NaN", "Infinity", "-Infinity", "1e999", "9" * 400, "9" * 5000, '"\\ud800"']
)
def test_values_that_cannot_be_written_as_json_again_are_errors(value):
    call = only(f'<tool_call>{{"name": "a", "arguments": {{"x": {value}}}}}</tool_call>')
    assert call.error
    error_of(call).encode()


def test_duplicate_keys_are_an_error_that_names_the_key():
    text = '<tool_call>{"name": "a", "arguments": {"x": 1, "x": 2}}</tool_call>'
    assert "'x' occurs twice" in error_of(only(text))


def test_a_surrogate_pair_is_a_character():
    assert only(
        '<tool_call>{"name": "a", "arguments": {"x": "\\ud83d\\ude00"}}</tool_call>'
    ).arguments == {"x": "😀"}


@pytest.mark.parametrize("text", ["", "  \n ", "\x00", "Just an answer.", "1 < 2 <tool_cal>"])
def test_text_without_calls_gives_none(text):
    reply = parse_reply(text)
    assert (reply.tool_calls, reply.content) == ((), text.strip())


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)  # fmt: skip


@given(st.dictionaries(st.text(), json_values, max_size=4), st.booleans(), st.text())
def test_every_json_object_arrives_as_it_was_sent(arguments, ascii_only, around):
    payload = json.dumps({"name": "t", "arguments": arguments}, ensure_ascii=ascii_only)
    around = around.replace("<", "")
    call = only(f"{around}<tool_call>{payload}</tool_call>{around}")
    assert call.error is None
    assert call.arguments == arguments


pieces = st.sampled_from(
    ["<tool_call>", "</tool_call>", "<think>", "</think>", '{"name": "a", "arguments": {}}', "{",
     "}", '"', "\\", "\ud800", "```", " ", "a{", "[", "NaN", "\n", "é"]
)  # fmt: skip


@given(st.lists(pieces, max_size=30).map("".join))
@example('<tool_call>{"\\')
def test_whatever_is_written_parses_to_valid_utf8_without_an_exception(text):
    reply = parse_reply(text)
    reply.content.encode()
    for call in reply.tool_calls:
        payload = [call.name, call.arguments, call.raw_text, call.uniq_id, call.error]
        json.dumps(payload, ensure_ascii=False, allow_nan=False).encode()
    ids = [call.uniq_id for call in reply.tool_calls]
    assert len(set(ids)) == len(ids)


@given(st.text())
def test_a_reply_without_tags_is_all_content(text):
    text = text.replace("<", "")
    assert parse_reply(text).content == text.strip()


def test_how_the_text_was_cut_into_chunks_makes_no_difference():
    text = f"<think>x</think>{block(LS | {'id': 'a'})}tail"
    whole = parse_reply(text)
    for cut in range(len(text)):
        assert parse_reply("".join([text[:cut], text[cut:]])) == whole


# ---- calls that other parsers found ----


def test_arguments_from_elsewhere_are_validated_the_same_way():
    assert validate_json_arguments({"a": [1, {"b": None}]}) == {"a": [1, {"b": None}]}
    assert validate_json_arguments(' {"a": 1} ') == {"a": 1}
    assert validate_json_arguments({}) == {}


def nested(levels: int) -> list[object]:
    value: list[object] = []
    for _ in range(levels):
        value = [value]
    return value


@pytest.mark.parametrize(
    "bad",
    [
        *(None, [], 1, "", "null", '{"a": 1} x', "{", '"{}"'),
        *({"a": float("nan")}, {1: 2}, {"a": nested(5000)}, {"a": object()}, {"a": "\ud800"}),
        *({"a": 10**400}, {"a": "x" * MAX_CHARS}, {"a": ["x"] * MAX_CHARS}),
    ],
)
def test_arguments_from_elsewhere_that_are_no_json_object_are_refused(bad):
    with pytest.raises(ToolCallFormatError):
        validate_json_arguments(bad)


def test_a_built_call_carries_what_is_wrong_as_its_error():
    good = build_call("bash", {"command": "ls"}, call_id="i", raw_text="raw")
    assert good == ToolCall("bash", {"command": "ls"}, "raw", "i")
    assert "must be a JSON object" in error_of(build_call("bash", None))
    assert "'name'" in error_of(build_call(None, {}))
    assert build_call("bash", {}, call_id=True).uniq_id != "True"
