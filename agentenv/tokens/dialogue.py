"""One trajectory's dialogue in exact tokens: what was sampled is kept, and nothing is ever
re-tokenized.

    dialogue = Dialogue(renderer, tools)
    dialogue.add(Message("user", "List the files."))
    completion = await policy.generate(dialogue.prompt_ids(), ...)
    reply = dialogue.record(completion)
    dialogue.add(Message("tool", result.to_json(), tool_call_id=reply.tool_calls[0].uniq_id))
    ...
    dialogue.sequences()

A prompt either extends the last prompt and its completion token for token, and belongs to the same
sequence; or the family rewrote the history, and a new sequence begins whose history is context. So
each sampled token is owned once, by the sequence it was sampled in.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from agentenv.errors import PolicyError, TokensUnavailableError
from agentenv.tokens.base import (
    IGNORE_TOKEN,
    MASKED_LOGPROB,
    Message,
    ParsedReply,
    TokenSequence,
    Turn,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from agentenv.policy.base import Completion
    from agentenv.tokens.renderer import TokenRenderer
    from agentenv_tools.schema import ToolCall, ToolSchema

_LOGPROB_TOLERANCE = 1e-6
"""Log-probs computed in floating point may exceed 0 by as much."""


@dataclass(slots=True)
class _Draft:
    """A sequence under way; it ends with a sampled token."""

    tokens: list[int] = field(default_factory=list)
    masks: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    versions: list[str] = field(default_factory=list)
    turns: list[Turn] = field(default_factory=list)

    def append(self, number: int, prompt: list[int], completion: Completion) -> None:
        """Add what is new in `prompt`, as context, and the completion, which is the trajectory's `number`-th."""
        if completion.token_ids:
            self._append_tokens(prompt, completion)
        end = len(self.tokens)
        start = end - len(completion.token_ids)
        version, reason = completion.policy_version, completion.finish_reason
        self.turns.append(Turn(number, start, end, version, reason))

    def _append_tokens(self, prompt: list[int], completion: Completion) -> None:
        context = prompt[len(self.tokens) :]
        self.tokens += context
        self.masks += [IGNORE_TOKEN] * len(context)
        self.logprobs += [MASKED_LOGPROB] * len(context)
        self.tokens += completion.token_ids
        self.masks += completion.token_ids
        self.logprobs += completion.logprobs
        if (
            completion.policy_version is not None
            and completion.policy_version not in self.versions[-1:]
        ):
            self.versions.append(completion.policy_version)

    def finish(self) -> TokenSequence:
        """The sequence as data, with lists of its own."""
        sequence = TokenSequence(
            tokens=list(self.tokens),
            masks=list(self.masks),
            logprobs=list(self.logprobs),
            policy_versions=tuple(dict.fromkeys(self.versions)),
            metadata={
                "turns": len(self.turns),
                "finish_reason": self.turns[-1].finish_reason if self.turns else "",
            },
            turns=tuple(self.turns),
        )
        _check_sequence(sequence)
        return sequence


class Dialogue:
    """The messages and the tokens of one trajectory. Not for concurrent use."""

    def __init__(self, renderer: TokenRenderer, tools: Sequence[ToolSchema] = ()) -> None:
        self._renderer = renderer
        self._tools = tuple(tools)
        self._messages: list[Message] = []
        self._unanswered: list[Message] = []
        self._last_turn: tuple[list[int], Completion] | None = None
        self._prompt: list[int] | None = None
        self._prompt_extends = False
        self._drafts: list[_Draft] = []
        self._call_ids: set[str] = set()
        self._call_numbers = itertools.count(1)
        self._replies = 0
        self.sampled_tokens = 0
        """Tokens the policy wrote."""

    @property
    def messages(self) -> list[Message]:
        """The conversation so far, replies included."""
        return list(self._messages)

    @property
    def total_tokens(self) -> int:
        """Tokens of all sequences, context included."""
        return sum(len(draft.tokens) for draft in self._drafts)

    def add(self, *messages: Message) -> None:
        """Append messages the policy did not write. They are context, never trained on."""
        self._messages += messages
        self._unanswered += messages
        self._prompt = None

    def prompt_ids(self) -> list[int]:
        """The ids to sample from next. Asking again gives the same ids.

        Raises `ConfigError` when the model family cannot express the dialogue, `ValueError` when
        there is nothing to answer: no message, or none since the last reply.
        """
        if not self._unanswered:
            raise ValueError("nothing to answer: add a message before asking for a prompt")
        if self._prompt is None:
            self._prompt, self._prompt_extends = self._next_prompt()
        return list(self._prompt)

    def record(self, completion: Completion) -> ParsedReply:
        """Take what was sampled from `prompt_ids()`: exactly these ids, whatever they are.

        Calls get ids that are unique in the dialogue and the same in every run. Raises
        `TokensUnavailableError` when ids or log-probs are missing, `PolicyError` when they cannot
        be true; the dialogue is then as before, and another completion may be recorded.
        """
        if self._prompt is None:
            raise ValueError("a completion without a prompt: call prompt_ids() first")
        _check_completion(completion, self._renderer.tokenizer.vocab_size)
        reply = self._renderer.parse(completion.token_ids, self._prompt, self._tools)
        reply = replace(
            reply, tool_calls=tuple(self._with_own_id(call) for call in reply.tool_calls)
        )
        if not self._prompt_extends:
            self._drafts.append(_Draft())
        self._replies += 1
        self._drafts[-1].append(self._replies, self._prompt, completion)
        self.sampled_tokens += len(completion.token_ids)
        self._last_turn, self._prompt, self._unanswered = (self._prompt, completion), None, []
        self._messages.append(
            Message(
                "assistant", reply.content, tool_calls=reply.tool_calls, reasoning=reply.reasoning
            )
        )
        return reply

    def sequences(self) -> list[TokenSequence]:
        """What was recorded so far, one sequence per unbroken stretch. Each ends as sampled."""
        return [
            draft.finish()
            for draft in self._drafts
            if any(mask != IGNORE_TOKEN for mask in draft.masks)
        ]

    def _next_prompt(self) -> tuple[list[int], bool]:
        """The ids to sample from, and whether they continue the last sequence token for token."""
        if self._last_turn is None:
            return self._renderer.prompt(self._messages, self._tools), False
        prompt, completion = self._last_turn
        extended = self._renderer.extend(
            prompt, completion.token_ids, self._unanswered, self._tools
        )
        if extended is None:
            extended = self._renderer.prompt(self._messages, self._tools)
        before = [*prompt, *completion.token_ids]
        return extended, extended[: len(before)] == before

    def _with_own_id(self, call: ToolCall) -> ToolCall:
        """The call with the id the policy wrote, if that is new, else with the next number."""
        uniq_id = call.uniq_id
        if not call.raw_text or uniq_id not in call.raw_text or uniq_id in self._call_ids:
            uniq_id = next(
                name for n in self._call_numbers if (name := f"call_{n}") not in self._call_ids
            )
        self._call_ids.add(uniq_id)
        return replace(call, uniq_id=uniq_id)


def _check_completion(completion: Completion, vocab_size: int) -> None:
    """Refuse what an engine cannot have sampled."""
    ids, logprobs = completion.token_ids, completion.logprobs
    if len(ids) != len(logprobs):
        raise TokensUnavailableError(
            f"the engine returned {len(ids)} token ids and {len(logprobs)} log-probs: "
            "training needs one log-prob for each id"
        )
    for position, (token, logprob) in enumerate(zip(ids, logprobs, strict=True)):
        if type(token) is not int or not 0 <= token < vocab_size:
            raise PolicyError(
                f"the engine returned token id {token!r} at position {position}, and the ids of the "
                f"tokenizer end at {vocab_size - 1}: is it the tokenizer of the model?"
            )
        if logprob is None:
            raise TokensUnavailableError(
                f"the engine returned no log-prob for the token at position {position}"
            )
        if not math.isfinite(logprob) or logprob > _LOGPROB_TOLERANCE:
            raise PolicyError(
                f"the engine returned log-prob {logprob!r} at position {position}: "
                "no probability has such a logarithm"
            )


def _check_sequence(sequence: TokenSequence) -> None:
    """The invariants of `TokenSequence`, on what is handed out."""
    tokens, masks, logprobs = sequence.tokens, sequence.masks, sequence.logprobs
    assert len(tokens) == len(masks) == len(logprobs)
    for token, mask, logprob in zip(tokens, masks, logprobs, strict=True):
        assert (mask == IGNORE_TOKEN) == (logprob == MASKED_LOGPROB)
        assert mask in (IGNORE_TOKEN, token)
