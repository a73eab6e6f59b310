"""What each engine is sent and what it answers, as pure functions. Nothing here does input or
output.

A dialect builds the body of a request from token ids and reads token ids with their log-probs out
of the reply. A reply that lacks any of it is refused: nothing is padded, guessed or re-tokenised.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from agentenv.errors import ContextLengthError, TokensUnavailableError
from agentenv.policy.base import ChatCompletion, Completion
from agentenv.policy.faults import EngineFaultError, excerpt, is_context_length

if TYPE_CHECKING:
    from collections.abc import Sequence

    from agentenv.policy.base import SamplingParams

Json = dict[str, Any]

NEVER_SAMPLED = -9999.0
"""What vLLM writes for minus infinity, which JSON has not. No sampled token can have it."""
ROUNDING = 1e-3
"""A log-prob may exceed 0 by this much through low precision; it then counts as 0."""
_TOKEN_ID = "token_id:"  # noqa: S105 - the marker vLLM puts before an id, no password


@dataclass(frozen=True, slots=True)
class Sampled:
    """What a reply says was sampled, not yet checked."""

    ids: Any
    logprobs: Any
    finish_reason: Any
    text: str | None = None


class Dialect(Protocol):
    """How to ask one kind of engine for a completion."""

    path: str
    """Relative to the server's root."""
    remedy: str
    """What to do when its replies lack token ids or log-probs."""

    def body(self, model: str, prompt_ids: Sequence[int], params: SamplingParams) -> Json:
        """The JSON to send. `params.extra` goes where the engine expects sampling parameters."""
        ...

    def sampled(self, reply: Any) -> Sampled:
        """What the reply says was sampled. Raises `EngineFaultError` when it has another shape."""
        ...


class VLLMCompletions:
    """vLLM's `/v1/completions` with a prompt of token ids.

    Reads the `token_ids` of a choice (newer vLLM), else the `token_id:N` strings in place of tokens
    (older).
    """

    path = "/v1/completions"
    remedy = "the server must honour return_token_ids or return_tokens_as_token_ids, and logprobs"

    def body(self, model: str, prompt_ids: Sequence[int], params: SamplingParams) -> Json:
        """See `Dialect`."""
        own = {
            "model": model,
            "prompt": list(prompt_ids),
            "logprobs": 1,
            "return_token_ids": True,
            "return_tokens_as_token_ids": True,
            "skip_special_tokens": False,
        }
        return own | _openai_sampling(params, "max_tokens")

    def sampled(self, reply: Any) -> Sampled:
        """See `Dialect`."""
        choice = _only_choice(reply)
        logprobs = choice.get("logprobs")
        logprobs = logprobs if isinstance(logprobs, dict) else {}
        ids = _agreed(choice.get("token_ids"), _marked_ids(logprobs.get("tokens")))
        return Sampled(
            ids,
            logprobs.get("token_logprobs"),
            choice.get("finish_reason"),
            _text(choice.get("text")),
        )


class VLLMGenerate:
    """vLLM's token-in, token-out `/inference/v1/generate`."""

    path = "/inference/v1/generate"
    remedy = "it answers both when sampling_params has logprobs; is a proxy in between?"

    def body(self, model: str, prompt_ids: Sequence[int], params: SamplingParams) -> Json:
        """See `Dialect`."""
        sampling = {"logprobs": 0} | _openai_sampling(params, "max_tokens")
        return {"model": model, "token_ids": list(prompt_ids), "sampling_params": sampling}

    def sampled(self, reply: Any) -> Sampled:
        """See `Dialect`."""
        choice = _only_choice(reply)
        logprobs = choice.get("logprobs")
        content = logprobs.get("content") if isinstance(logprobs, dict) else None
        entries = [entry if isinstance(entry, dict) else {} for entry in content or ()]
        marked = _marked_ids([entry.get("token") for entry in entries])
        values = [entry.get("logprob") for entry in entries] if isinstance(content, list) else None
        return Sampled(
            _agreed(choice.get("token_ids"), marked), values, choice.get("finish_reason")
        )


class LegacyGenerate:
    """The `/generate` of the vLLM server that Atropos shipped. Stock `vllm serve` has no such
    route.
    """

    path = "/generate"
    remedy = (
        "this is the /generate of the server Atropos shipped; for a stock vLLM use api: completions"
    )

    def body(self, model: str, prompt_ids: Sequence[int], params: SamplingParams) -> Json:
        """See `Dialect`. The model is left out: this server has one."""
        del model
        own = {"prompt": {"prompt_token_ids": list(prompt_ids)}, "logprobs": 0, "n": 1}
        return own | _openai_sampling(params, "max_tokens")

    def sampled(self, reply: Any) -> Sampled:
        """See `Dialect`."""
        reply = _object(reply)
        positions = _first(reply.get("logprobs"))
        ids: list[Any] | None = None
        values: list[Any] | None = None
        if isinstance(positions, list):
            pairs = [_id_and_logprob(position) for position in positions]
            ids, values = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
        text = _first(reply.get("text"))
        finish = _first(reply.get("finish_reasons"))
        return Sampled(_agreed(_first(reply.get("token_ids")), ids), values, finish, _text(text))


class SGLangGenerate:
    """SGLang's `/generate`."""

    path = "/generate"
    remedy = "SGLang answers both for return_logprob; is a proxy in between?"

    def body(self, model: str, prompt_ids: Sequence[int], params: SamplingParams) -> Json:
        """See `Dialect`. The model is left out: this server has one."""
        del model
        sampling: Json = {
            "max_new_tokens": params.max_tokens,
            "temperature": params.temperature,
            "top_p": params.top_p,
            "skip_special_tokens": False,
        }
        if params.stop_token_ids:
            sampling["stop_token_ids"] = list(params.stop_token_ids)
        if params.seed is not None:
            sampling["sampling_seed"] = params.seed
        return {
            "input_ids": list(prompt_ids),
            "sampling_params": sampling | params.extra,
            "return_logprob": True,
            "return_text_in_logprobs": False,
        }

    def sampled(self, reply: Any) -> Sampled:
        """See `Dialect`."""
        reply = _object(_first(reply) if isinstance(reply, list) else reply)
        meta = _object(reply.get("meta_info"))
        rows = meta.get("output_token_logprobs")
        ids: list[Any] | None = None
        values: list[Any] | None = None
        if isinstance(rows, list):
            whole = [
                row if isinstance(row, list) and len(row) >= 2 else (None, None) for row in rows
            ]
            ids, values = [row[1] for row in whole], [row[0] for row in whole]
        finish = meta.get("finish_reason")
        if isinstance(finish, dict):
            _raise_if_aborted(finish)
            finish = finish.get("type")
        return Sampled(
            _agreed(reply.get("output_ids"), ids), values, finish, _text(reply.get("text"))
        )


def read_completion(
    dialect: Dialect, reply: Any, params: SamplingParams, *, vocab_size: int | None = None
) -> Completion:
    """The completion in `reply`, every part checked.

    Raises `TokensUnavailableError` when there are no ids or no log-probs at all, `EngineFaultError`
    when they are there and cannot be right: none sampled, another length, more than asked for, ids
    outside the vocabulary, log-probs that are missing, positive or infinite, no reason to have
    ended.
    """
    sampled = dialect.sampled(reply)
    finish = _finish(sampled.finish_reason, reply)
    ids = _checked_ids(sampled.ids, dialect.remedy, vocab_size, reply)
    logprobs = _checked_logprobs(sampled.logprobs, len(ids), dialect.remedy, reply)
    if len(ids) > params.max_tokens:
        raise EngineFaultError(f"{len(ids)} tokens came where {params.max_tokens} were allowed")
    return Completion(ids, logprobs, finish, _version(reply), sampled.text)


def chat_body(
    model: str,
    messages: Sequence[Json],
    params: SamplingParams,
    *,
    limit_field: str = "max_tokens",
    stop_token_ids: bool = True,
) -> Json:
    """The body for `/v1/chat/completions`."""
    body = {"model": model, "messages": list(messages)} | _openai_sampling(params, limit_field)
    if not stop_token_ids:
        body.pop("stop_token_ids", None)
    return body


def read_chat(reply: Any) -> ChatCompletion:
    """The reply of `/v1/chat/completions`."""
    choice = _only_choice(reply)
    message = _object(choice.get("message"))
    finish = choice.get("finish_reason")
    if not isinstance(finish, str):
        raise EngineFaultError(f"the reply has no finish_reason: {excerpt(reply)}")
    content = message.get("content") or ""
    if not isinstance(content, str):
        raise EngineFaultError(f"the reply's content is no text: {excerpt(content)}")
    usage = reply.get("usage")
    usage = usage if isinstance(usage, dict) else {}
    return ChatCompletion(
        content, finish, _count(usage.get("prompt_tokens")), _count(usage.get("completion_tokens"))
    )


def _openai_sampling(params: SamplingParams, limit_field: str) -> Json:
    body: Json = {
        limit_field: params.max_tokens,
        "temperature": params.temperature,
        "top_p": params.top_p,
    }
    if params.stop_token_ids:
        body["stop_token_ids"] = list(params.stop_token_ids)
    if params.seed is not None:
        body["seed"] = params.seed
    return body | params.extra


def _object(value: Any) -> Json:
    if not isinstance(value, dict):
        raise EngineFaultError(f"the reply has another shape than expected: {excerpt(value)}")
    return value


def _only_choice(reply: Any) -> Json:
    choices = _object(reply).get("choices")
    if not isinstance(choices, list) or len(choices) != 1:
        raise EngineFaultError(f"the reply has not exactly one choice: {excerpt(reply)}")
    return _object(choices[0])


def _first(value: Any) -> Any:
    return value[0] if isinstance(value, list) and value else None


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _count(value: Any) -> int:
    return value if isinstance(value, int) else 0


def _marked_ids(tokens: Any) -> list[int] | None:
    """The ids in strings of the form `token_id:N`; None if they are not of that form."""
    if not isinstance(tokens, list):
        return None
    if not all(isinstance(token, str) and token.startswith(_TOKEN_ID) for token in tokens):
        return None
    numbers = [token.removeprefix(_TOKEN_ID) for token in tokens]
    plain = all(number.isdecimal() and len(number) < 12 for number in numbers)
    return [int(number) for number in numbers] if plain else None


def _id_and_logprob(position: Any) -> tuple[Any, Any]:
    """Of the form `{"<token id>": logprob}`, or a list whose first element is that."""
    entry = _first(position) if isinstance(position, list) else position
    if not isinstance(entry, dict) or not entry:
        return None, None
    token_id, logprob = next(iter(entry.items()))
    return (int(token_id) if token_id.isdecimal() and len(token_id) < 12 else None), logprob


def _agreed(stated: Any, with_logprobs: list[Any] | None) -> Any:
    """The ids, where the reply gives them twice. Two answers that differ are no answer."""
    if stated is None or not with_logprobs:
        return with_logprobs if stated is None else stated
    # Some engines leave the stop token out of the plain list.
    if stated not in (with_logprobs, with_logprobs[:-1]):
        raise EngineFaultError(
            f"the ids {excerpt(stated)} are not those of the log-probs {excerpt(with_logprobs)}"
        )
    return with_logprobs


def _raise_if_aborted(finish: Json) -> None:
    if finish.get("type") != "abort":
        return
    message = str(finish.get("message"))
    if is_context_length(message):
        raise ContextLengthError(f"the prompt does not fit the context: {excerpt(message)}")
    raise EngineFaultError(f"the engine aborted the request: {excerpt(message)}", kind="aborted")


def _finish(reason: Any, reply: Any) -> str:
    if reason in ("stop", "length"):
        return str(reason)
    if reason == "abort":
        raise EngineFaultError("the engine aborted the request", kind="aborted")
    raise EngineFaultError(
        f"finish_reason is {reason!r}, neither stop nor length: {excerpt(reply)}"
    )


def _checked_ids(ids: Any, remedy: str, vocab_size: int | None, reply: Any) -> tuple[int, ...]:
    if not isinstance(ids, list):
        raise TokensUnavailableError(f"the reply has no token ids ({remedy}): {excerpt(reply)}")
    if not ids:
        raise EngineFaultError(f"no token was sampled: {excerpt(reply)}")
    limit = math.inf if vocab_size is None else vocab_size
    for place, token in enumerate(ids):
        if type(token) is not int or not 0 <= token < limit:
            raise EngineFaultError(
                f"token {place} is {excerpt(token)}, no id of the vocabulary (size: {vocab_size})"
            )
    return tuple(ids)


def _checked_logprobs(values: Any, count: int, remedy: str, reply: Any) -> tuple[float, ...]:
    if not isinstance(values, list) or (not values and count):
        raise TokensUnavailableError(f"the reply has no log-probs ({remedy}): {excerpt(reply)}")
    if len(values) != count:
        raise EngineFaultError(f"{count} tokens came with {len(values)} log-probs")
    for place, value in enumerate(values):
        if type(value) not in (float, int) or not NEVER_SAMPLED < value <= ROUNDING:
            raise EngineFaultError(f"the log-prob of token {place} is {excerpt(value)}")
    return tuple(min(0.0, float(value)) for value in values)


def _version(reply: Any) -> str | None:
    """The weights' version, where an engine puts it: SGLang in `meta_info.weight_version`."""
    reply = _first(reply) if isinstance(reply, list) else reply
    meta = reply.get("meta_info")
    for place in (reply, meta if isinstance(meta, dict) else {}):
        for name in ("policy_version", "weight_version"):
            if isinstance(place.get(name), str | int):
                return str(place[name])
    return None
