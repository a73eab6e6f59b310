"""What a fake policy says: replies by turn, or a function of the request."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from agentenv.policy.base import Completion


class EncodesText(Protocol):
    """As much of a tokenizer as a fake needs. Those of transformers have it."""

    def encode(self, text: str, *, add_special_tokens: bool = ...) -> Any:
        """Text to ids."""
        ...

    def decode(self, token_ids: Any) -> Any:
        """Ids to text."""
        ...


@dataclass(frozen=True, slots=True)
class FakeRequest:
    """One request as a script sees it."""

    trajectory_id: str
    turn: int
    """How many replies this trajectory has had before. A request whose reply was lost to a fault
    does not count."""
    max_tokens: int
    prompt_ids: tuple[int, ...] = ()
    """Empty for chat."""
    messages: tuple[dict[str, Any], ...] = ()
    """Empty unless chat."""
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int | None = None
    stop_token_ids: tuple[int, ...] = ()
    extra: dict[str, Any] = field(default_factory=dict)
    """What else the body held."""


@dataclass(frozen=True, slots=True)
class FakeReply:
    """A reply in full. Where `logprobs` is None they encode their position, see
    `position_logprob`.
    """

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...] | None = None
    finish_reason: str | None = None
    """None: `length` if the reply was cut at the request's `max_tokens`, else `stop`."""
    policy_version: str | None = None


Reply = str | Sequence[int] | FakeReply | Exception
"""Text (encoded, with `end_ids` after it), token ids as they are, a `FakeReply`, or an error to
fail with."""
Script = Callable[[FakeRequest], Reply] | Sequence[Reply]
"""A function of the request, or one reply per turn, the same for each trajectory."""


class ScriptExhaustedError(LookupError):
    """A trajectory asked for more turns than the script has."""


def position_logprob(position: int) -> float:
    """The log-prob a fake gives the token at `position` of a completion: `-(position + 1) /
    1000`.
    """
    return -(position + 1) / 1000


def default_script(request: FakeRequest) -> str:
    """What a fake says that was told nothing."""
    return f"This is turn {request.turn}."


class ReplyScript:
    """A script with the turns of each trajectory counted.

    Without a tokenizer the ids of a text are its UTF-8 bytes.
    """

    def __init__(
        self,
        script: Script | None,
        *,
        tokenizer: EncodesText | None = None,
        end_ids: Sequence[int] = (),
    ) -> None:
        self._script: Script = default_script if script is None else script
        self._tokenizer = tokenizer
        self._end_ids = tuple(end_ids)
        self._turns: Counter[str] = Counter()

    def turn(self, trajectory_id: str) -> int:
        """How many replies this trajectory has had."""
        return self._turns[trajectory_id]

    def delivered(self, trajectory_id: str) -> None:
        """Count a reply that got through."""
        self._turns[trajectory_id] += 1

    def completion(self, request: FakeRequest) -> Completion:
        """The scripted completion, cut at `max_tokens`. Raises what the script holds in place of a
        reply.
        """
        reply = self._reply(request)
        if isinstance(reply, Exception):
            raise reply
        if not isinstance(reply, FakeReply):
            reply = FakeReply(self._encode(reply) if isinstance(reply, str) else tuple(reply))
        ids = reply.token_ids[: request.max_tokens]
        cut = len(ids) < len(reply.token_ids)
        logprobs = reply.logprobs or tuple(map(position_logprob, range(len(ids))))
        finish = reply.finish_reason or ("length" if cut else "stop")
        return Completion(
            ids, logprobs[: len(ids)], finish, reply.policy_version, self._decode(ids)
        )

    def _reply(self, request: FakeRequest) -> Reply:
        if callable(self._script):
            return self._script(request)
        if request.turn >= len(self._script):
            raise ScriptExhaustedError(
                f"the script has {len(self._script)} replies, "
                f"and trajectory {request.trajectory_id!r} asks for one more"
            )
        return self._script[request.turn]

    def _encode(self, text: str) -> tuple[int, ...]:
        if self._tokenizer is None:
            return (*text.encode(), *self._end_ids)
        return (*self._tokenizer.encode(text, add_special_tokens=False), *self._end_ids)

    def _decode(self, ids: Sequence[int]) -> str:
        """As an engine shows it: the tokens that end a reply are no part of its text."""
        end = len(self._end_ids)
        if end and tuple(ids[-end:]) == self._end_ids:
            ids = ids[:-end]
        if self._tokenizer is not None:
            return str(self._tokenizer.decode(list(ids)))
        return bytes(token for token in ids if token < 256).decode("utf-8", "replace")
