"""Renderers, random dialogues and a policy of known log-probs, for the tests of this folder."""

from __future__ import annotations

import functools
from dataclasses import dataclass

from hypothesis import strategies as st

from agentenv.policy.base import Completion
from agentenv.testing.tokenizers import byte_level_tokenizer, tiny_tokenizer
from agentenv.tokens.base import Message
from agentenv.tokens.dialogue import Dialogue
from agentenv.tokens.renderer import TokenRenderer, load_renderer
from agentenv_tools.schema import ToolCall, ToolSchema

TOOLS = [
    ToolSchema("terminal", "Runs a command.", {"command": {"type": "string"}}, ["command"]),
    ToolSchema("now", "The time."),
]
SETUPS = [
    "qwen3/qwen3",
    "qwen3/template",
    "chatml/template",
    "llama-3/llama-3",
    "llama-3/template",
    "strip-thinking/template",
    "tool-tokens/template",
    "unigram/template",
    "special-tool-tokens/kimi-k2",
    "special-tool-tokens/deepseek-v3",
]
_KIMI = [
    *("<|im_end|>", "<|im_user|>", "<|im_assistant|>", "<|im_system|>", "<|im_middle|>"),
    *("<|tool_calls_section_begin|>", "<|tool_calls_section_end|>", "<|tool_call_begin|>"),
    *("<|tool_call_argument_begin|>", "<|tool_call_end|>"),
]
_DEEPSEEK = [
    token.replace("|", "\uff5c").replace("_", "\u2581")
    for token in [
        *("<|begin_of_sentence|>", "<|end_of_sentence|>", "<|User|>", "<|Assistant|>"),
        *("<|tool_calls_begin|>", "<|tool_calls_end|>", "<|tool_call_begin|>"),
        *("<|tool_call_end|>", "<|tool_sep|>", "<|tool_outputs_begin|>", "<|tool_outputs_end|>"),
        *("<|tool_output_begin|>", "<|tool_output_end|>"),
    ]
]


@functools.cache
def renderer(setup: str) -> TokenRenderer:
    """The renderer named `tokenizer style/family`."""
    style, family = setup.split("/")
    if style == "special-tool-tokens":
        special = {"kimi-k2": _KIMI, "deepseek-v3": _DEEPSEEK}[family]
        end = {"kimi-k2": 0, "deepseek-v3": 1}[family]
        return load_renderer(byte_level_tokenizer(special, eos_token=special[end]), family)
    return load_renderer(tiny_tokenizer(style), family)


def written(setup: str, reply: Message) -> list[int]:
    """`reply` as the family writes it, stop token included: what a well-trained policy samples."""
    question = [Message("user", "Do it.")]
    prompt = renderer(setup).prompt(question, TOOLS)
    answers = [
        Message("tool", "{}", tool_call_id=call.uniq_id, name=call.name)
        for call in reply.tool_calls
    ]
    following = answers or [Message("user", "Go on.")]
    ids = renderer(setup).prompt([*question, reply, *following], TOOLS)
    start = next(
        (i for i, (a, b) in enumerate(zip(prompt, ids, strict=False)) if a != b), len(prompt)
    )
    stops = renderer(setup).stop_token_ids
    end = next(i for i in range(start, len(ids)) if ids[i] in stops)
    thought = "Hm.\n</think>\n\n" if setup == "strip-thinking/template" else ""
    return [*renderer(setup).tokenizer.encode(thought), *ids[start : end + 1]]


CALL = ToolCall("terminal", {"command": "ls -la"}, uniq_id="functions.terminal:0")


def sampled(ids: list[int], turn: int, finish_reason: str = "stop") -> Completion:
    """A completion whose log-probs name their turn and position."""
    return Completion(
        tuple(ids), tuple(-(turn + (i + 1) / 4096) for i in range(len(ids))), finish_reason
    )


@dataclass(frozen=True)
class Turn:
    """One reply (as ids) and what others say after it."""

    ids: list[int]
    cut: bool
    contents: list[str]
    by_user: bool


@st.composite
def turns(draw: st.DrawFn, setup: str) -> list[Turn]:
    """Replies of all kinds: well written, cut, arbitrary ids; and hostile or plain text after them."""
    vocabulary = renderer(setup).tokenizer.vocab_size
    known = [
        written(setup, Message("assistant", "It is done.")),
        written(setup, Message("assistant", "", tool_calls=(CALL,))),
        [renderer(setup).stop_token_ids[0]],
        [],
    ]
    replies = st.one_of(
        st.sampled_from(known),
        st.lists(st.integers(0, vocabulary - 1), max_size=12),
    )
    count = draw(st.integers(1, 4))
    return [
        Turn(
            ids=draw(replies),
            cut=draw(st.booleans()),
            contents=draw(st.lists(hostile_text(setup), min_size=1, max_size=2)),
            by_user=draw(st.booleans()),
        )
        for _ in range(count)
    ]


def hostile_text(setup: str) -> st.SearchStrategy[str]:
    """Concatenations of control strings, pieces of them, and other text."""
    control = list(renderer(setup).tokenizer.control.values())
    pieces = [text[: len(text) // 2] for text in control] + [text[1:] for text in control]
    ordinary = ["a", " ", "\n", "{{ 7*7 }}", "\u200b", "\uff5c", "\ufdd0", "\ufdd1", "🙂", "</"]
    part = st.one_of(
        st.sampled_from(control), st.sampled_from(pieces), st.sampled_from(ordinary), st.text()
    )
    return st.lists(part, min_size=1, max_size=6).map("".join)


@dataclass(frozen=True)
class Played:
    """A dialogue that was played, with each prompt and completion in order."""

    dialogue: Dialogue
    turns: list[tuple[list[int], Completion]]


def play(setup: str, script: list[Turn], *, neutral: bool = False) -> Played:
    """Play `script`; `neutral` replaces every text others wrote by `x`."""

    def said(text: str) -> str:
        return "x" if neutral else text

    dialogue = Dialogue(renderer(setup), TOOLS)
    dialogue.add(
        Message("system", said(script[0].contents[0])),
        Message("user", said(script[0].contents[-1])),
    )
    played = []
    for number, turn in enumerate(script):
        ids = turn.ids[:-1] if turn.cut else turn.ids
        prompt = dialogue.prompt_ids()
        completion = sampled(ids, number, "length" if turn.cut else "stop")
        reply = dialogue.record(completion)
        played.append((prompt, completion))
        answers = [
            Message("tool", said(text), tool_call_id=call.uniq_id, name=call.name)
            for call, text in zip(reply.tool_calls, turn.contents * 40, strict=False)
        ]
        if turn.by_user or not answers:
            answers.append(Message("user", said(turn.contents[-1])))
        dialogue.add(*answers)
    return Played(dialogue, played)
