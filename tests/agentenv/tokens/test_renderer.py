import json

import pytest

from agentenv.errors import ConfigError
from agentenv.testing.tokenizers import byte_level_tokenizer, tiny_tokenizer
from agentenv.tokens import selftest
from agentenv.tokens.base import Message, ParsedReply
from agentenv.tokens.families import FamilyDialect, known_families
from agentenv.tokens.renderer import load_renderer
from agentenv.tokens.tokenizer import InertTokenizer
from agentenv_tools.schema import ToolCall
from tests.agentenv.tokens.dialogues import CALL, SETUPS, TOOLS, renderer, written

QWEN = "qwen3/qwen3"


def parse(text: str, setup: str = QWEN, prompt: str = "") -> ParsedReply:
    tokenizer = renderer(setup).tokenizer
    ids = [*tokenizer.encode(text), renderer(setup).stop_token_ids[0]]
    return renderer(setup).parse(ids, tokenizer.encode(prompt) if prompt else (), TOOLS)


def test_an_unknown_family_is_refused_with_the_known_ones():
    with pytest.raises(ConfigError, match=r"'qwen9' is unknown.*auto, template.*llama-3.*qwen3"):
        load_renderer(tiny_tokenizer(), "qwen9")


def test_a_family_that_does_not_fit_the_tokenizer_is_refused():
    with pytest.raises(ConfigError, match=r"'llama-3' does not fit.*begin_of_text"):
        load_renderer(tiny_tokenizer("qwen3"), "llama-3")


def test_an_option_the_family_does_not_have_is_refused():
    with pytest.raises(ConfigError, match="no_such_option"):
        load_renderer(tiny_tokenizer(), "qwen3", chat_template_kwargs={"no_such_option": 1})


def test_auto_knows_exact_model_names_and_takes_the_template_for_all_others():
    tokenizer = tiny_tokenizer()
    assert load_renderer(tokenizer).describe()["family"] == "template"
    tokenizer.name_or_path = "Qwen/Qwen3-8B"
    assert load_renderer(tokenizer).describe()["family"] == "qwen3"


def test_families_that_tokenize_by_themselves_are_not_offered():
    assert "gpt-oss" not in known_families()
    tokenizer = tiny_tokenizer()
    tokenizer.name_or_path = "openai/gpt-oss-20b"
    assert load_renderer(tokenizer).describe()["family"] == "template"


def test_disabled_thinking_is_part_of_the_generation_prompt():
    disabled = load_renderer(
        tiny_tokenizer(), "qwen3", chat_template_kwargs={"enable_thinking": False}
    )
    text = disabled.tokenizer.decode(disabled.prompt([Message("user", "Hi.")]))
    assert text.endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")


@pytest.mark.parametrize("setup", SETUPS)
def test_a_renderer_describes_itself_as_json(setup):
    description = renderer(setup).describe()
    assert json.loads(json.dumps(description)) == description
    assert description["stop_tokens"]


@pytest.mark.parametrize("setup", SETUPS)
def test_a_call_is_read_as_the_family_writes_it(setup):
    ids = written(setup, Message("assistant", "", tool_calls=(CALL,)))
    (call,) = (
        renderer(setup).parse(ids, renderer(setup).prompt([Message("user", "x")]), TOOLS).tool_calls
    )
    assert (call.name, call.arguments, call.error) == (CALL.name, CALL.arguments, None)
    assert "ls -la" in call.raw_text


@pytest.mark.parametrize("setup", SETUPS)
def test_an_answer_is_no_call(setup):
    reply = renderer(setup).parse(written(setup, Message("assistant", "it is done.")), (), TOOLS)
    assert reply.tool_calls == ()
    assert "it is done." in reply.text


@pytest.mark.parametrize("setup", SETUPS)
def test_nothing_a_policy_can_sample_makes_parsing_raise(setup):
    tokenizer = renderer(setup).tokenizer
    control = list(tokenizer.control)
    for first in control:
        for second in control:
            reply = renderer(setup).parse([first, second, *tokenizer.encode('{"a"'), first], ())
            assert all(call.error is None or call.error for call in reply.tool_calls)


def test_a_broken_call_says_where_and_why():
    reply = parse('Well.\n<tool_call>\n{"name": "now", "arguments": {]}\n</tool_call>')
    (call,) = reply.tool_calls
    assert "character" in (call.error or "")
    assert call.raw_text.startswith("<tool_call>")
    assert reply.content == "Well."


@pytest.mark.parametrize(
    "body",
    [
        '{"name": "now", "arguments": null}',
        '{"name": "now", "arguments": [1]}',
        '{"name": "now", "arguments": 3}',
        '{"name": "now"}',
        '{"name": "now", "arguments": {"a": NaN}}',
        '{"arguments": {}}',
        '{"name": "now", "arguments": ' + "[" * 10_000 + "}",
        '{"name": "now", "arguments": {"a": ' + "1" * 5000 + "}}",
    ],
)
@pytest.mark.parametrize("setup", [QWEN, "llama-3/llama-3"])
def test_malformed_arguments_are_never_made_up(setup, body):
    text = f"<tool_call>{body}</tool_call>" if setup == QWEN else body
    reply = parse(text, setup)
    assert all(call.error for call in reply.tool_calls)
    assert reply.tool_calls or reply.content == body


@pytest.mark.parametrize("arguments", ["null", "[1]", "3", '{"a": NaN}'])
def test_kimi_calls_with_malformed_arguments_are_errors(arguments):
    text = (
        "<|tool_calls_section_begin|><|tool_call_begin|>functions.now:0"
        f"<|tool_call_argument_begin|>{arguments}<|tool_call_end|><|tool_calls_section_end|>"
    )
    (call,) = parse(text, "special-tool-tokens/kimi-k2").tool_calls
    assert call.error


def test_kimi_calls_keep_their_own_ids():
    ids = written("special-tool-tokens/kimi-k2", Message("assistant", "", tool_calls=(CALL,)))
    (call,) = renderer("special-tool-tokens/kimi-k2").parse(ids).tool_calls
    assert call.uniq_id == "functions.terminal:0"


def test_a_call_inside_thinking_is_no_call():
    call = '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'
    assert parse(f"<think>\n{call}\n</think>\n\nDone.").tool_calls == ()
    opened = "<|im_start|>assistant\n<think>\n"
    assert parse(f"{call}\n</think>\n\nDone.", prompt=opened).tool_calls == ()
    assert parse(call, prompt=opened).tool_calls == ()


def test_a_hundred_calls_are_bounded():
    reply = parse('<tool_call>{"name": "now", "arguments": {}}</tool_call>' * 100)
    assert len(reply.tool_calls) < 100
    assert reply.tool_calls[-1].error is not None


def test_a_malformed_call_of_history_is_rendered_as_text():
    broken = ToolCall("", raw_text="<tool_call>{]</tool_call>", error="malformed")
    history = [Message("user", "Hi."), Message("assistant", "", tool_calls=(broken,))]
    ids = renderer(QWEN).prompt([*history, Message("tool", "{}")])
    assert "<tool_call>{]</tool_call>" in renderer(QWEN).tokenizer.decode(ids)
    assert ids.count(renderer(QWEN).tokenizer.convert_tokens_to_ids("<tool_call>")) == 0


def test_a_dialogue_the_family_cannot_express_is_a_config_error():
    two = Message("assistant", "", tool_calls=(CALL, CALL))
    with pytest.raises(ConfigError, match="single tool call"):
        renderer("llama-3/llama-3").prompt([Message("user", "Hi."), two], TOOLS)


class LeakyTokenizer(InertTokenizer):
    """Escapes nothing."""

    def escape(self, text: str) -> str:
        return text


def test_a_family_whose_content_becomes_control_tokens_is_refused():
    tokenizer = LeakyTokenizer(tiny_tokenizer())
    with pytest.raises(ConfigError, match=r"would become control tokens.*<\|im_end\|>"):
        selftest.run_self_test(FamilyDialect(tokenizer, "qwen3", {}), tokenizer)


def test_a_family_that_tokenizes_past_the_inert_tokenizer_is_refused():
    class Bypassed(InertTokenizer):
        def encode(self, text, *_, **__):
            return list(self.wrapped.encode(text, add_special_tokens=False))

        def __call__(self, text, **options):
            return dict(self.wrapped(text, **options))

    tokenizer = Bypassed(tiny_tokenizer())
    with pytest.raises(ConfigError, match="marks"):
        selftest.run_self_test(FamilyDialect(tokenizer, "qwen3", {}), tokenizer)


_GEMMA = [
    *("<bos>", "<eos>", "<|turn>", "<turn|>", "<|channel>", "<channel|>", "<|think|>"),
    *("<|tool>", "<tool|>", "<|tool_call>", "<tool_call|>", "<|tool_response>"),
    *("<tool_response|>", '<|"|>', "<|image|>", "<|image>", "<image|>"),
]
_GLM = [
    *("<|endoftext|>", "<|system|>", "<|user|>", "<|assistant|>", "<|observation|>", "[gMASK]"),
    *("<sop>", "<think>", "</think>", "<tool_call>", "</tool_call>", "<arg_key>", "</arg_key>"),
    *("<arg_value>", "</arg_value>"),
]


@pytest.mark.parametrize(("family", "special"), [("glm-4.5", _GLM), ("gemma4", _GEMMA)])
def test_other_families_hold_content_inert_too(family, special):
    loaded = load_renderer(byte_level_tokenizer(special, eos_token=special[0]), family)
    assert loaded.describe()["extends_prompts"]


def test_tokens_sampled_after_a_stop_token_are_never_cut_off():
    prompt = renderer(QWEN).prompt([Message("user", "Hi.")], TOOLS)
    stop = renderer(QWEN).stop_token_ids[0]
    odd = [stop, *renderer(QWEN).tokenizer.encode("more")]
    assert renderer(QWEN).extend(prompt, odd, [Message("tool", "{}")], TOOLS) is None
