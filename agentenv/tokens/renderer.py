"""Messages to token ids and back, for one model family.

    renderer = load_renderer(tokenizer, "qwen3")
    prompt = renderer.prompt(messages, tools)
    reply = renderer.parse(completion_ids, prompt, tools)
    next_prompt = renderer.extend(prompt, completion_ids, tool_results, tools)

`TokenRenderer` is what the rest of the framework sees. Behind it stands a `Dialect`: a hand-written
one of the `renderers` library (`families.py`), or the tokenizer's own chat template
(`template.py`).
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Protocol

from agentenv.errors import ConfigError
from agentenv.tokens.families import FamilyDialect, family_for, known_families
from agentenv.tokens.selftest import SelfTest, run_self_test
from agentenv.tokens.template import TemplateDialect
from agentenv.tokens.tokenizer import InertTokenizer

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from agentenv.tokens.base import Message, ParsedReply
    from agentenv_tools.schema import ToolSchema

_log = logging.getLogger(__name__)


class Dialect(Protocol):
    """How one model family writes dialogues. Content never becomes control tokens."""

    family: str
    stop_token_ids: tuple[int, ...]
    notes: tuple[str, ...]
    """What a user should know about this way of rendering, in sentences."""

    def render(self, messages: Sequence[Message], tools: Sequence[ToolSchema]) -> list[int]:
        """The dialogue and the generation prompt. Raises `ConfigError` if it cannot be written."""
        ...

    def bridge(
        self,
        prompt_ids: list[int],
        completion_ids: list[int],
        new_messages: Sequence[Message],
        tools: Sequence[ToolSchema],
    ) -> list[int] | None:
        """Prompt, completion and what follows; None where the family would rewrite the past."""
        ...

    def parse(
        self, completion_ids: list[int], prompt_ids: list[int], tools: Sequence[ToolSchema]
    ) -> ParsedReply:
        """Read a completion. Never raises for anything a model can write."""
        ...


class TokenRenderer:
    """One model family: messages to exact prompts, completions to what they say. Holds no state of
    a dialogue.
    """

    def __init__(self, dialect: Dialect, tokenizer: InertTokenizer, self_test: SelfTest) -> None:
        self._dialect = dialect
        self.tokenizer = tokenizer
        self.self_test = self_test

    @property
    def stop_token_ids(self) -> tuple[int, ...]:
        """Each of them ends the assistant's turn. The sampled one belongs to the completion."""
        return self._dialect.stop_token_ids

    def prompt(self, messages: Sequence[Message], tools: Sequence[ToolSchema] = ()) -> list[int]:
        """Token ids of the whole dialogue with the generation prompt at the end.

        Raises `ConfigError` when the family cannot express the dialogue.
        """
        return self._dialect.render(messages, tools)

    def extend(
        self,
        prompt_ids: Sequence[int],
        completion_ids: Sequence[int],
        new_messages: Sequence[Message],
        tools: Sequence[ToolSchema] = (),
    ) -> list[int] | None:
        """The next prompt, which begins with `prompt_ids` and `completion_ids`, token for token.

        None where there is no such prompt, because the family writes the history differently from
        how it was sampled (thinking stripped, for one): then the next prompt is
        `prompt(all_messages)`, and a new sequence begins. After a completion that was cut short,
        the end of the turn is among the tokens added.
        """
        before = [*prompt_ids, *completion_ids]
        bridged = self._dialect.bridge(list(prompt_ids), list(completion_ids), new_messages, tools)
        return bridged if bridged is not None and bridged[: len(before)] == before else None

    def parse(
        self,
        completion_ids: Sequence[int],
        prompt_ids: Sequence[int] = (),
        tools: Sequence[ToolSchema] = (),
    ) -> ParsedReply:
        """What the policy wrote. `prompt_ids` tells whether the prompt had opened its thinking
        already.

        Never raises for what a model can write: a malformed tool call is a `ToolCall` with `error`,
        and tool calls inside thinking are no calls.
        """
        return self._dialect.parse(list(completion_ids), list(prompt_ids), tools)

    def describe(self) -> dict[str, Any]:
        """Family, stop tokens and what the self-test found, for logs and reports."""
        return {
            "family": self._dialect.family,
            "stop_tokens": [self.tokenizer.decode([token]) for token in self.stop_token_ids],
            "control_tokens": len(self.tokenizer.control),
            "extends_prompts": self.self_test.extends_prompts,
            "notes": [*self._dialect.notes, *self.self_test.notes],
        }


def load_named_renderer(
    name: str,
    family: str = "auto",
    *,
    setting: str,
    chat_template_kwargs: Mapping[str, Any] | None = None,
) -> TokenRenderer:
    """The renderer for the tokenizer in a folder, or of that name in the local hub cache. Blocking, for seconds.

    Raises `ConfigError` as `load_renderer` does, and, naming `setting`, when there is no such tokenizer.
    """
    from transformers import AutoTokenizer  # noqa: PLC0415 - takes seconds to import

    try:
        tokenizer = AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{setting}={name!r} cannot be loaded ({str(error).splitlines()[0]}): give a folder that "
            f"holds the policy's tokenizer, or the name of one that is in the local hub cache"
        ) from error
    return load_renderer(tokenizer, family, chat_template_kwargs=chat_template_kwargs)


def load_renderer(
    tokenizer: Any, family: str = "auto", *, chat_template_kwargs: Mapping[str, Any] | None = None
) -> TokenRenderer:
    """The renderer of a model family, tested on the spot.

    `tokenizer` is a Hugging Face tokenizer. `family` is a name of the `renderers` library (`qwen3`,
    `llama-3`, ...); `template` for the tokenizer's own chat template; or `auto`: by the exact name
    of the model where it is known, else the template. `chat_template_kwargs` are the template's
    variables, such as `enable_thinking`.

    The self-test renders a set of dialogues. Where prompts cannot be extended, `describe()` says so
    and every turn starts a new sequence. Raises `ConfigError` when dialogues cannot be rendered at
    all, when content could become control tokens, when the name is unknown, or when the tokenizer
    lacks tokens the family needs.
    """
    inert = InertTokenizer(tokenizer)
    options = dict(chat_template_kwargs or {})
    name = family_for(tokenizer) if family == "auto" else family
    if name == "template":
        dialect: Dialect = TemplateDialect(inert, options)
    elif name in known_families():
        dialect = FamilyDialect(inert, name, options)
    else:
        known = ", ".join(["auto", "template", *known_families()])
        raise ConfigError(f"renderer {family!r} is unknown; the known ones are: {known}")
    self_test = run_self_test(dialect, inert)
    renderer = TokenRenderer(dialect, inert, self_test)
    _log.info(
        "renderer of %s: %s", getattr(tokenizer, "name_or_path", "?") or "?", renderer.describe()
    )
    return renderer
