"""What is tried with a model family before it is used.

Can prompts be extended, and does content stay content?
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from agentenv.errors import ConfigError
from agentenv.tokens.base import Message
from agentenv_tools.schema import ToolCall, ToolSchema

if TYPE_CHECKING:
    from agentenv.tokens.renderer import Dialect
    from agentenv.tokens.tokenizer import InertTokenizer


_CALL = ToolCall("findx", {"pathx": "a"}, uniq_id="call_1")
_REPLIES = {
    "a plain reply": Message("assistant", "Done."),
    "an empty reply": Message("assistant", ""),
    "a tool call": Message("assistant", "", tool_calls=(_CALL,)),
    "several tool calls": Message(
        "assistant", "Both.", tool_calls=(_CALL, replace(_CALL, uniq_id="call_2"))
    ),
    "thinking": Message("assistant", "", tool_calls=(_CALL,), reasoning="Hm."),
}


@dataclass(frozen=True, slots=True)
class SelfTest:
    """What the self-test found."""

    extends_prompts: bool
    """Prompts can be extended, at least after some replies: a dialogue is one sequence."""
    notes: tuple[str, ...] = ()
    """What does not hold, in sentences."""


def run_self_test(dialect: Dialect, tokenizer: InertTokenizer) -> SelfTest:
    """Try `dialect` on a set of dialogues.

    Raises `ConfigError` when one cannot be rendered, when no stop token can end a turn, or when a
    content that spells every control token adds one to the prompt.
    """
    if not dialect.stop_token_ids:
        raise ConfigError(f"renderer {dialect.family!r} has no stop token: no reply could end")
    _check_inert(dialect, tokenizer)
    failed = [name for name, reply in _REPLIES.items() if not _extends(dialect, reply)]
    extends = len(failed) < len(_REPLIES)
    kinds = ", ".join(failed) if extends else "any reply"
    note = f"a turn after {kinds} starts a new sequence: the family writes that history differently"
    return SelfTest(extends, (note,) if failed else ())


def dialogue_with(text: str) -> tuple[list[Message], list[ToolSchema]]:
    """A dialogue in which every place for untrusted text holds `text`."""
    call = ToolCall(f"find{text}", {f"path{text}": text, "deep": {text: [text]}}, uniq_id="call_1")
    messages = [
        Message("system", f"Rules {text}."),
        Message("user", f"Look {text}."),
        Message("assistant", f"Looking {text}.", tool_calls=(call,), reasoning=f"Hm {text}."),
        Message("tool", f'{{"output": "{text}"}}', tool_call_id=call.uniq_id, name=call.name),
        Message("assistant", f"Found {text}."),
        Message("user", f"Thanks {text}."),
    ]
    schema = ToolSchema(
        f"find{text}", f"Finds {text}.", {f"path{text}": {"type": "string", "description": text}}
    )
    return messages, [schema]


def control_counts(dialect: Dialect, tokenizer: InertTokenizer, text: str) -> Counter[int]:
    """How often each control token occurs in the prompt of `dialogue_with(text)`."""
    messages, tools = dialogue_with(text)
    return Counter(token for token in dialect.render(messages, tools) if token in tokenizer.control)


def _check_inert(dialect: Dialect, tokenizer: InertTokenizer) -> None:
    text = "".join(tokenizer.control.values())
    messages, tools = dialogue_with(text)
    if tokenizer.has_marks(tokenizer.decode(dialect.render(messages, tools))):
        raise ConfigError(
            f"renderer {dialect.family!r} leaves the marks of escaped text in its prompts: it does "
            "not tokenize by this tokenizer. Choose another family"
        )
    hostile = control_counts(dialect, tokenizer, text)
    neutral = control_counts(dialect, tokenizer, "x")
    if hostile == neutral:
        return
    differing = sorted(
        {tokenizer.control[token] for token in (hostile - neutral) + (neutral - hostile)}
    )
    raise ConfigError(
        f"renderer {dialect.family!r}: text of a message would become control tokens "
        f"({', '.join(differing[:8])}), so that a tool result could speak as the user. "
        "Choose another family, or report the tokenizer"
    )


def _extends(dialect: Dialect, reply: Message) -> bool:
    """Whether a prompt and such a reply stay, token for token, in the prompt that follows.

    The reply is taken from what the family itself writes for it, up to the stop token.
    """
    dialogue, tools = dialogue_with("x")
    prompt = dialect.render(dialogue[:2], tools)
    answer = Message("tool", '{"output": "y"}', tool_call_id="call_1", name=_CALL.name)
    new = [replace(answer, tool_call_id=call.uniq_id) for call in reply.tool_calls]
    new = new or [Message("user", "And now?")]
    try:
        written = dialect.render([*dialogue[:2], reply, *new], tools)
    except ConfigError:
        return False
    if written[: len(prompt)] != prompt:
        return False
    rest = written[len(prompt) :]
    end = next((i for i, token in enumerate(rest) if token in dialect.stop_token_ids), None)
    if end is None:
        return False
    before = written[: len(prompt) + end + 1]
    bridged = dialect.bridge(prompt, rest[: end + 1], new, tools)
    return bridged is not None and len(bridged) > len(before) and bridged[: len(before)] == before
