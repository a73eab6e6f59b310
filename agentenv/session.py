"""One trajectory's conversation with the policy: exact tokens where the engine gives them, text where it does not."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol

from agentenv.errors import ContextLengthError
from agentenv.policy.base import SamplingParams, ToolCallingPolicy
from agentenv.tokens.base import Message, ParsedReply, TokenSequence
from agentenv.tokens.dialogue import Dialogue
from agentenv.tokens.messages import system_prompt, to_chat_messages
from agentenv.types import Usage
from agentenv_tools.parsing import parse_reply

if TYPE_CHECKING:
    from collections.abc import Sequence

    from agentenv.policy.base import PolicyClient
    from agentenv.tokens.renderer import TokenRenderer
    from agentenv_tools.schema import ToolSchema


def completion_seed(seed: int | None, turn: int) -> int | None:
    """The seed of one completion: a function of the rollout's seed and the turn alone."""
    if seed is None:
        return None
    return int.from_bytes(hashlib.blake2b(f"{seed}:{turn}".encode(), digest_size=4).digest()) >> 1


class Session(Protocol):
    """A conversation under way. Not for concurrent use."""

    sampled_tokens: int

    @property
    def messages(self) -> Sequence[Message]:
        """The conversation so far."""
        ...

    def add(self, *messages: Message) -> None:
        """Append messages that the policy did not write."""
        ...

    async def sample(
        self, *, turn: int, temperature: float, max_tokens: int | None
    ) -> tuple[ParsedReply, str]:
        """One reply and its finish reason. Raises `PolicyError`, or `ContextLengthError` when no token is left."""
        ...

    def sequences(self) -> list[TokenSequence]:
        """The trajectory's token sequences; empty where the policy returns no tokens."""
        ...


class TokenSession:
    """A conversation in exact tokens. They are text: of a tool's images it keeps what the result says of them."""

    def __init__(
        self,
        policy: PolicyClient,
        renderer: TokenRenderer,
        tools: Sequence[ToolSchema],
        *,
        trajectory_id: str,
        seed: int | None,
        token_budget: int,
    ) -> None:
        self._policy = policy
        self._renderer = renderer
        self._dialogue = Dialogue(renderer, tools)
        self._trajectory_id = trajectory_id
        self._seed = seed
        self._token_budget = token_budget
        self.sampled_tokens = 0

    @property
    def messages(self) -> Sequence[Message]:
        """The conversation so far."""
        return self._dialogue.messages

    def add(self, *messages: Message) -> None:
        """Append messages that the policy did not write."""
        self._dialogue.add(*map(_text_only, messages))

    async def sample(
        self, *, turn: int, temperature: float, max_tokens: int | None
    ) -> tuple[ParsedReply, str]:
        """One reply and its finish reason."""
        prompt = self._dialogue.prompt_ids()
        left = self._token_budget - len(prompt)
        if left <= 0:
            raise ContextLengthError(
                f"prompt of {len(prompt)} tokens leaves nothing of max_token_length={self._token_budget}"
            )
        params = SamplingParams(
            max_tokens=min(left, max_tokens or left),
            temperature=temperature,
            seed=completion_seed(self._seed, turn),
            stop_token_ids=tuple(self._renderer.stop_token_ids),
        )
        completion = await self._policy.generate(prompt, params, trajectory_id=self._trajectory_id)
        reply = self._dialogue.record(completion)
        self.sampled_tokens += len(completion.token_ids)
        usage = Usage(len(prompt), len(completion.token_ids))
        return replace(reply, usage=usage), completion.finish_reason

    def sequences(self) -> list[TokenSequence]:
        """The trajectory's token sequences."""
        return self._dialogue.sequences()


class ChatSession:
    """A conversation in text, for engines without token ids. Never trained on.

    Images of tool results are sent to a policy that takes them; else only what the results say of them.
    """

    def __init__(
        self,
        policy: PolicyClient,
        tools: Sequence[ToolSchema],
        *,
        trajectory_id: str,
        seed: int | None,
        token_budget: int,
        extra: dict[str, Any] | None = None,
    ) -> None:
        self._policy = policy
        self._extra = extra or {}
        self._tools = tools
        self._trajectory_id = trajectory_id
        self._seed = seed
        self._token_budget = token_budget
        self._messages: list[Message] = []
        self.sampled_tokens = 0

    @property
    def messages(self) -> Sequence[Message]:
        """The conversation so far."""
        return self._messages

    def add(self, *messages: Message) -> None:
        """Append messages that the policy did not write."""
        takes_images = self._policy.takes_images
        self._messages.extend(messages if takes_images else map(_text_only, messages))

    async def sample(
        self, *, turn: int, temperature: float, max_tokens: int | None
    ) -> tuple[ParsedReply, str]:
        """One reply and its finish reason."""
        params = SamplingParams(
            max_tokens=max_tokens or self._token_budget,
            temperature=temperature,
            seed=completion_seed(self._seed, turn),
            extra=self._extra,
        )
        if isinstance(self._policy, ToolCallingPolicy):
            reply, finish_reason = await self._call_natively(self._policy, params)
        else:
            reply, finish_reason = await self._call_in_text(params)
        if reply.usage is not None:
            self.sampled_tokens += reply.usage.completion_tokens
        return reply, finish_reason

    def sequences(self) -> list[TokenSequence]:
        """None: this engine returns no tokens."""
        return []

    async def _call_natively(
        self, policy: ToolCallingPolicy, params: SamplingParams
    ) -> tuple[ParsedReply, str]:
        """The server is told of the tools and returns calls."""
        completion = await policy.chat_with_tools(
            self._messages, self._tools, params, trajectory_id=self._trajectory_id
        )
        message = Message(
            role="assistant",
            content=completion.text,
            tool_calls=completion.tool_calls,
            reasoning=completion.reasoning,
            native=completion.native,
        )
        self._messages.append(message)
        reply = ParsedReply(
            text=to_chat_messages([message])[0]["content"],
            content=completion.text,
            reasoning=completion.reasoning,
            tool_calls=completion.tool_calls,
            usage=completion.usage,
        )
        return reply, completion.finish_reason

    async def _call_in_text(self, params: SamplingParams) -> tuple[ParsedReply, str]:
        """The tools are described in the system prompt, and calls are read out of the reply."""
        completion = await self._policy.chat(
            self._prompt(), params, trajectory_id=self._trajectory_id
        )
        found = parse_reply(completion.text)
        self._messages.append(Message(role="assistant", content=completion.text))
        reply = ParsedReply(
            text=completion.text,
            content=found.content,
            reasoning=found.reasoning or completion.reasoning,
            tool_calls=tuple(found.tool_calls),
            usage=completion.usage,
        )
        return reply, completion.finish_reason

    def _prompt(self) -> list[dict[str, Any]]:
        messages = list(self._messages)
        own = messages.pop(0).content if messages and messages[0].role == "system" else None
        system = Message(role="system", content=system_prompt(self._tools, own))
        return to_chat_messages([system, *messages], images=True)


def _text_only(message: Message) -> Message:
    return replace(message, images=()) if message.images else message
