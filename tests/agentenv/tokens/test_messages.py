import json

from agentenv.tokens.base import Message
from agentenv.tokens.messages import system_prompt, to_chat_messages
from agentenv_tools.parsing import parse_reply
from agentenv_tools.schema import ToolCall, ToolResult, ToolSchema

TOOL = ToolSchema("terminal", "Runs {a} command.", {"command": {"type": "string"}}, ["command"])


def test_the_system_prompt_lists_each_tool_as_a_line_of_json():
    prompt = system_prompt([TOOL, TOOL], "Be brief.")
    assert prompt.startswith("Be brief.\n\n")
    lines = prompt.partition("<tools>\n")[2].partition("\n</tools>")[0].splitlines()
    assert [json.loads(line)["name"] for line in lines] == ["terminal", "terminal"]


def test_without_tools_the_system_prompt_is_what_was_given():
    assert system_prompt([], "Be brief.") == "Be brief."
    assert system_prompt([]) == ""


def test_results_of_one_reply_are_one_user_message():
    results = [ToolResult(True, "a", uniq_id="call_1"), ToolResult(False, error="no")]
    chat = to_chat_messages(
        [Message("user", "Go."), *(Message("tool", result.to_json()) for result in results)]
    )
    assert chat == [
        {"role": "user", "content": "Go."},
        {"role": "user", "content": "\n".join(result.to_xml() for result in results)},
    ]


def test_results_of_two_replies_are_two_user_messages():
    chat = to_chat_messages([Message("tool", "1"), Message("assistant", "x"), Message("tool", "2")])
    assert [message["role"] for message in chat] == ["user", "assistant", "user"]


def test_a_reply_reads_as_it_was_written_and_parses_to_the_same_calls():
    written = '<tool_call>\n{"name": "terminal", "arguments": {"command": "ls"}}\n</tool_call>'
    calls = (
        ToolCall("terminal", {"command": "ls"}, raw_text=written),
        ToolCall("terminal", {"command": "</tool_call>"}),
    )
    message = Message("assistant", "Both.", tool_calls=calls, reasoning="Hm.")
    (chat,) = to_chat_messages([message])
    assert chat["content"].startswith(f"<think>\nHm.\n</think>\n\nBoth.\n{written}\n<tool_call>")
    reply = parse_reply(chat["content"])
    assert (reply.content, reply.reasoning) == ("Both.", "Hm.")
    assert [(call.name, call.arguments) for call in reply.tool_calls] == [
        (call.name, call.arguments) for call in calls
    ]


def test_what_is_not_part_of_the_form_is_quoted():
    call = ToolCall("terminal", {"command": "x"}, raw_text="<tool_call>x</tool_call>")
    messages = [
        Message("user", "x"),
        Message("assistant", "x", tool_calls=(call,), reasoning="x"),
        Message("tool", "x"),
    ]
    chat = to_chat_messages(messages, quote=lambda text: text.replace("x", "Q"))
    assert not any("x" in message["content"] for message in chat)
    assert "<tool_call>Q</tool_call>" in chat[1]["content"]
