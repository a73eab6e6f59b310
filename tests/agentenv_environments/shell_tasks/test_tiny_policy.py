import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from agentenv.tokens.base import Message
from agentenv.tokens.dialogue import Dialogue
from agentenv.tokens.renderer import load_renderer
from agentenv_environments.shell_tasks.environment import TINY_POLICY
from agentenv_environments.shell_tasks.words import EXTENSIONS, WORDS
from agentenv_tools.toolsets import build_registry

TOOLS = build_registry(["terminal"]).schemas()


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(TINY_POLICY)


def test_nearly_each_part_of_a_name_is_one_token(tokenizer):
    parts = [f"{mark}{word}" for word in WORDS for mark in ("", " ", "-")]
    parts += [f".{extension}" for extension in EXTENSIONS]

    split = [part for part in parts if len(tokenizer.encode(part)) != 1]
    assert len(split) < len(parts) / 10


@pytest.mark.parametrize(
    "text",
    ["cp amber-pearl.txt plum.md", "a\nb\tc", '{"output": "x\\ny"}', "naïve ☃ \x00", "  two  "],
)
def test_any_text_survives_the_tokenizer(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_a_name_is_the_same_tokens_in_a_task_and_in_a_command(tokenizer):
    name = tokenizer.encode(" amber-pearl.txt")

    assert len(name) == 3
    for text in ("Delete amber-pearl.txt", '{"command": "rm amber-pearl.txt"}'):
        ids = tokenizer.encode(text)
        assert any(ids[at : at + 3] == name for at in range(len(ids))), text


def test_the_chat_template_writes_what_the_renderer_writes(tokenizer):
    messages = [Message("system", "Be brief."), Message("user", "List the files.")]
    rendered = load_renderer(tokenizer, "qwen3").prompt(messages, TOOLS)

    text = tokenizer.apply_chat_template(
        [{"role": message.role, "content": message.content} for message in messages],
        tools=[tool.to_openai() for tool in TOOLS],
        tokenize=False,
        add_generation_prompt=True,
    )

    assert text == tokenizer.decode(rendered)


def test_the_prompt_of_a_task_leaves_room_for_the_work(tokenizer):
    prompt = load_renderer(tokenizer, "qwen3").prompt([Message("user", "Delete it.")], TOOLS)

    assert len(prompt) < 300


@pytest.mark.torch
def test_the_model_is_float32_and_about_a_million_weights():
    model = AutoModelForCausalLM.from_pretrained(TINY_POLICY)

    assert model.dtype == torch.float32
    assert 0.9e6 < model.num_parameters() < 1.2e6


@pytest.mark.torch
def test_the_model_greedily_writes_a_call_that_can_be_read(tokenizer):
    model = AutoModelForCausalLM.from_pretrained(TINY_POLICY)
    dialogue = Dialogue(load_renderer(tokenizer, "qwen3"), TOOLS)
    dialogue.add(Message("user", "Copy amber-pearl.txt to plum-crane.md"))
    prompt = dialogue.prompt_ids()

    with torch.no_grad():
        ids = model.generate(torch.tensor([prompt]), do_sample=False, max_new_tokens=64)[0]
    reply = load_renderer(tokenizer, "qwen3").parse(ids[len(prompt) :].tolist(), prompt, TOOLS)

    (call,) = reply.tool_calls
    assert call.error is None
    assert call.name == "terminal"
    assert "amber-pearl.txt" in call.arguments["command"]
