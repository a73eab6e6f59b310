"""Any model with a chat template: extended by what the template puts between two turns.

The template is asked for text, never for ids: contents are escaped before, and the text is
tokenized by the inert tokenizer. Tools are described in the system prompt in Hermes' form, and
results of tools are a user message, so that a template needs to know the roles user and assistant
only. A template that drops or refuses the system role gets the system prompt at the head of the
first user message; consecutive messages of one role are joined.

How a dialogue goes on after a reply is found with a probe: the template renders the probe as the
assistant's message, followed by the new messages, and what comes after the probe is the end of the
turn, the new messages and the generation prompt. That this does not depend on the reply or on what
came before is tested at start, and so is that the template leaves earlier turns as they were.
"""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING, Any

from agentenv.errors import ConfigError
from agentenv.tokens.base import Message, ParsedReply
from agentenv.tokens.messages import system_prompt, to_chat_messages
from agentenv_tools.parsing import parse_reply

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from agentenv.tokens.tokenizer import InertTokenizer
    from agentenv_tools.schema import ToolSchema

_PROBE = "Probe answer 7391."
_OTHER_PROBE = "Quite another reply (40 words)"
_THOUGHT = "<think>\nProbe thought 58.\n</think>\n\n"
_USER = {"role": "user", "content": "Probe question 204."}
_SYSTEM = {"role": "system", "content": "Probe system 616."}
_RESULT = {"role": "user", "content": "<tool_response>\n{}\n</tool_response>"}

Chat = list[dict[str, Any]]


class TemplateDialect:
    """The tokenizer's chat template behind our contract."""

    family = "template"

    def __init__(self, tokenizer: InertTokenizer, options: Mapping[str, Any]) -> None:
        self._tokenizer = tokenizer
        self._options = dict(options)
        self._generation_text = self._require([_USER])
        self._takes_system = self._renders_system()
        self._opens_thinking = self._generation_text.rstrip().endswith("<think>")
        self._close_ids = self._find_close()
        eos = tokenizer.eos_token_id
        stops = [*self._close_ids[-1:], *([eos] if eos is not None else [])]
        if not stops:
            raise ConfigError(
                "no reply could end: the chat template ends the assistant's turn with no control "
                "token, and there is no tokenizer.eos_token. Set it, or choose a renderer family"
            )
        self.stop_token_ids = tuple(dict.fromkeys(stops))
        self._keeps_replies = self._keeps(_PROBE)
        self._keeps_thinking = self._keeps(_THOUGHT + _PROBE)
        self.notes = tuple(self._findings())

    def render(self, messages: Sequence[Message], tools: Sequence[ToolSchema]) -> list[int]:
        """The dialogue and the generation prompt."""
        return self._tokenizer.encode(self._require(self._conversation(messages, tools)))

    def bridge(
        self,
        prompt_ids: list[int],
        completion_ids: list[int],
        new_messages: Sequence[Message],
        tools: Sequence[ToolSchema],
    ) -> list[int] | None:
        """Prompt, completion and what follows, if the template keeps such a reply."""
        if not new_messages or any(message.role == "assistant" for message in new_messages):
            return None
        if not self._close_ids or not self._keeps_completion(completion_ids):
            return None
        following = self._following(self._turns(new_messages))
        if following is None:
            return None
        ended = bool(completion_ids) and completion_ids[-1] in self.stop_token_ids
        added = self._tokenizer.encode(following)
        return [*prompt_ids, *completion_ids, *(added[len(self._close_ids) :] if ended else added)]

    def parse(
        self,
        completion_ids: list[int],
        prompt_ids: list[int],
        tools: Sequence[ToolSchema],
    ) -> ParsedReply:
        """Read a completion in Hermes' form."""
        text = self._tokenizer.readable(completion_ids)
        reply = parse_reply(text, in_reasoning=self._opens_thinking)
        return ParsedReply(text, reply.content, reply.reasoning, reply.tool_calls)

    def _conversation(self, messages: Sequence[Message], tools: Sequence[ToolSchema]) -> Chat:
        """`messages` as the template gets them: escaped, in Hermes' form, no role twice in a row."""
        rest = list(messages)
        own = rest.pop(0).content if rest and rest[0].role == "system" else None
        system = system_prompt(tools, own, quote=self._tokenizer.escape)
        turns = self._turns(rest)
        if system and self._takes_system:
            return [{"role": "system", "content": system}, *turns]
        return _joined([{"role": "user", "content": system}, *turns]) if system else turns

    def _turns(self, messages: Sequence[Message]) -> Chat:
        """Messages as turns of user and assistant; what is no assistant's is a user's."""
        chat = to_chat_messages(messages, quote=self._tokenizer.escape)
        return _joined(
            [
                message if message["role"] == "assistant" else {**message, "role": "user"}
                for message in chat
            ]
        )

    def _text(self, chat: Chat) -> str:
        return str(
            self._tokenizer.wrapped.apply_chat_template(
                chat, tokenize=False, add_generation_prompt=True, **self._options
            )
        )

    def _try_text(self, chat: Chat) -> str | None:
        """As `_text`, None where the template refuses: a program of others may raise anything."""
        try:
            return self._text(chat)
        except Exception:  # noqa: BLE001 - refusing is an answer here
            return None

    def _require(self, chat: Chat) -> str:
        try:
            return self._text(chat)
        except Exception as error:
            roles = ", ".join(message["role"] for message in chat)
            raise ConfigError(
                f"the tokenizer's chat template cannot render a dialogue of [{roles}]: "
                f"{type(error).__name__}: {error}. "
                "Give the tokenizer a chat template, or choose a renderer family by name"
            ) from error

    def _renders_system(self) -> bool:
        text = self._try_text([_SYSTEM, _USER])
        return text is not None and _SYSTEM["content"] in text and _USER["content"] in text

    def _following(self, new: Chat, before: Chat | None = None, probe: str = _PROBE) -> str | None:
        """What the template writes between the text of an assistant's reply and the next one."""
        text = self._try_text([*(before or [_USER]), {"role": "assistant", "content": probe}, *new])
        if text is None or probe not in text:
            return None
        return text.partition(probe)[2]

    def _find_close(self) -> list[int]:
        """The ids that end a reply: a control token, after blanks at most. Empty if none does."""
        followings = {
            self._following([_USER], before, probe)
            for before in ([_USER], [_USER, {"role": "assistant", "content": "Yes"}, _RESULT])
            for probe in (_PROBE, _OTHER_PROBE)
        }
        following = followings.pop()
        if followings or following is None:
            return []
        ids = self._tokenizer.encode(following)
        end = next((i for i, token in enumerate(ids) if token in self._tokenizer.control), len(ids))
        if end == len(ids) or self._tokenizer.decode(ids[:end]).strip():
            return []
        return ids[: end + 1]

    def _keeps(self, reply: str) -> bool:
        """Whether `reply`, as sampled after a generation prompt, stands in later prompts unchanged.

        Blanks between the two do not count: where a template puts one, the policy samples it.
        """
        sampled = reply
        if self._opens_thinking:
            prefill = "<think>\n" if self._generation_text.endswith("\n") else "<think>"
            if not reply.startswith(prefill):
                return False
            sampled = reply.removeprefix(prefill)
        history = [_USER, {"role": "assistant", "content": reply}]
        later = (
            [*history, _RESULT],
            [*history, _RESULT, {"role": "assistant", "content": _OTHER_PROBE}, _USER],
        )
        texts = [self._try_text(chat) or "" for chat in later]
        start = self._generation_text
        return all(
            text.startswith(start) and text.removeprefix(start).lstrip().startswith(sampled)
            for text in texts
        )

    def _keeps_completion(self, completion_ids: list[int]) -> bool:
        text = self._tokenizer.decode(completion_ids)
        thinks = self._opens_thinking or "<think>" in text or "</think>" in text
        if not thinks:
            return self._keeps_replies
        return self._keeps_thinking and "</think>" in text

    def _findings(self) -> list[str]:
        findings = []
        if not self._takes_system:
            findings.append("system prompts go into the first user message: no system role")
        if not self._close_ids:
            findings.append("nothing in the template marks the end of a reply")
        if not self._keeps_thinking:
            findings.append("the template rewrites earlier thinking")
        return findings


def _joined(chat: Chat) -> Chat:
    """Consecutive messages of one role made one."""
    return [
        {"role": role, "content": "\n\n".join(message["content"] for message in group)}
        for role, group in groupby(chat, key=lambda message: message["role"])
    ]
