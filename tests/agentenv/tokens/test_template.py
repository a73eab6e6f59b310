from typing import Any

import pytest

from agentenv.errors import ConfigError
from agentenv.testing.tokenizers import byte_level_tokenizer, tiny_tokenizer
from agentenv.tokens.base import Message
from agentenv.tokens.renderer import TokenRenderer, load_renderer
from tests.agentenv.tokens.dialogues import TOOLS

SPECIAL = ["<|im_start|>", "<|im_end|>", "</s>"]
TURN = "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
OPEN = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"


def templated(
    template: str | None, *, eos: str | None = "<|im_end|>", **kwargs: Any
) -> TokenRenderer:
    tokenizer = byte_level_tokenizer(
        SPECIAL, ["<think>", "</think>"], eos_token=eos, chat_template=template
    )
    return load_renderer(tokenizer, "template", **kwargs)


def turns(body: str = TURN, opening: str = OPEN) -> str:
    return "{% for m in messages %}" + body + "{% endfor %}" + opening


def extends(renderer: TokenRenderer, text: str) -> bool:
    prompt = renderer.prompt([Message("user", "Go.")], TOOLS)
    reply = [*renderer.tokenizer.encode(text), renderer.stop_token_ids[0]]
    extended = renderer.extend(prompt, reply, [Message("tool", "{}")], TOOLS)
    assert extended is None or extended[: len(prompt) + len(reply)] == prompt + reply
    return extended is not None


def test_a_prompt_is_what_the_template_writes_with_the_tools_in_the_system_prompt():
    renderer = templated(turns())
    text = renderer.tokenizer.decode(renderer.prompt([Message("user", "Hi.")], TOOLS))
    assert text.startswith("<|im_start|>system\nYou are a function calling")
    assert text.endswith("<|im_end|>\n<|im_start|>user\nHi.<|im_end|>\n<|im_start|>assistant\n")


def test_an_extension_equals_a_render_of_the_whole_dialogue():
    renderer = templated(turns())
    dialogue = [Message("system", "S."), Message("user", "U.")]
    prompt = renderer.prompt(dialogue)
    reply = [*renderer.tokenizer.encode("Fine."), renderer.stop_token_ids[0]]
    new = [Message("tool", '{"a": 1}'), Message("tool", '{"b": 2}'), Message("user", "Well?")]
    whole = renderer.prompt([*dialogue, Message("assistant", "Fine."), *new])
    assert renderer.extend(prompt, reply, new) == whole


def test_after_a_cut_reply_the_end_of_the_turn_is_added():
    renderer = templated(turns())
    prompt = renderer.prompt([Message("user", "U.")])
    cut = renderer.tokenizer.encode("Fine")
    extended = renderer.extend(prompt, cut, [Message("user", "Go on.")])
    assert extended is not None
    assert extended[len(prompt) + len(cut)] == renderer.stop_token_ids[0]


def test_a_stop_token_that_the_template_does_not_write_ends_the_turn_as_well():
    renderer = templated(turns(), eos="</s>")
    assert [renderer.tokenizer.decode([t]) for t in renderer.stop_token_ids] == [
        "<|im_end|>",
        "</s>",
    ]
    prompt = renderer.prompt([Message("user", "U.")])
    reply = [*renderer.tokenizer.encode("Fine."), renderer.stop_token_ids[1]]
    extended = renderer.extend(prompt, reply, [Message("user", "x")])
    assert extended is not None
    following = extended[len(prompt) + len(reply) :]
    assert renderer.tokenizer.decode(following).startswith("\n<|im_start|>user")


@pytest.mark.parametrize(
    ("body", "opening"),
    [
        (TURN.replace("m.content", "m.content.split('</think>')[-1].strip()"), OPEN),
        (TURN, OPEN.replace("assistant\n", "assistant\n<think>\n")),
    ],
    ids=["stripped from history", "opened by the prompt, kept in history"],
)
def test_thinking_is_only_bridged_where_the_template_keeps_it(body, opening):
    renderer = templated(turns(body, opening))
    kept = body == TURN
    thought = "Hm.\n</think>\n\nYes." if kept else "<think>\nHm.\n</think>\n\nYes."
    assert extends(renderer, thought) is kept
    assert extends(renderer, "Yes.") is not kept


def test_a_template_that_prefills_an_empty_thought_only_for_the_next_turn_is_not_bridged():
    opening = OPEN.replace("assistant\n", "assistant\n<think>\n\n</think>\n\n")
    renderer = templated(turns(opening=opening))
    assert not extends(renderer, "Yes.")
    assert not renderer.describe()["extends_prompts"]


def test_a_template_that_writes_earlier_turns_differently_is_not_bridged():
    body = TURN.replace("{{ m.content }}", "{{ m.content if loop.last else m.content[:5] }}")
    assert not extends(templated(turns(body)), "Yes, of course.")


def test_a_template_that_mentions_the_number_of_messages_is_not_bridged():
    assert not extends(templated("{{ messages | length }} " + turns()), "Yes.")


def test_without_an_end_of_turn_every_turn_is_a_new_sequence():
    template = "{% for m in messages %}\n# {{ m.role }}\n{{ m.content }}{% endfor %}\n# assistant\n"
    renderer = templated(template, eos="</s>")
    assert not extends(renderer, "Yes.")
    assert "nothing in the template marks the end of a reply" in renderer.describe()["notes"]


@pytest.mark.parametrize(
    "start",
    [
        "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}",
        "{% if messages[0].role == 'system' %}{% set messages = messages[1:] %}{% endif %}",
    ],
    ids=["refused", "dropped"],
)
def test_a_system_prompt_without_a_system_role_stands_in_the_first_user_message(start):
    renderer = templated(start + turns())
    text = renderer.tokenizer.decode(
        renderer.prompt([Message("system", "S."), Message("user", "U.")])
    )
    assert "<|im_start|>user\nS.\n\nU.<|im_end|>" in text


def test_template_variables_are_passed_on():
    renderer = templated("{{ greeting }}" + turns(), chat_template_kwargs={"greeting": "Moin"})
    text = renderer.tokenizer.decode(renderer.prompt([Message("user", "U.")]))
    assert text.startswith("Moin<|im_start|>user")


def test_content_is_not_read_as_a_template():
    renderer = load_renderer(tiny_tokenizer("chatml"), "template")
    content = "{{ 7*7 }}{% for x in y %}{# #}"
    text = renderer.tokenizer.decode(renderer.prompt([Message("user", content)]))
    assert content in text


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        (None, "chat_template"),
        ("{{ raise_exception('not today') }}", "not today"),
        ("{% for m in messages %}", "template"),
        ("{{ nothing.at.all }}", "undefined"),
    ],
)
def test_a_template_that_cannot_be_rendered_is_refused_with_the_reason(template, reason):
    with pytest.raises(ConfigError, match=reason):
        templated(template)


def test_a_tokenizer_without_any_stop_token_is_refused():
    with pytest.raises(ConfigError, match="eos_token"):
        templated("{% for m in messages %}{{ m.content }}{% endfor %}", eos=None)


def test_the_probe_may_occur_in_what_the_policy_reads():
    renderer = templated(turns())
    prompt = renderer.prompt([Message("user", "U.")])
    reply = [*renderer.tokenizer.encode("Fine."), renderer.stop_token_ids[0]]
    new = [Message("user", "Probe answer 7391. Probe answer 7391.")]
    whole = renderer.prompt([Message("user", "U."), Message("assistant", "Fine."), *new])
    assert renderer.extend(prompt, reply, new) == whole
