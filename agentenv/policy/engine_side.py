"""The engine's side of each protocol: how requests are read and replies are written, without input or output.

The counterpart of `agentenv.policy.wire`, made apart from it on purpose: a misunderstanding there is not repeated
here. Fake engines and the generation server of the demonstration trainer answer by it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from agentenv.policy.base import Completion

Json = dict[str, Any]


@dataclass(slots=True)
class Draft:
    """A reply before it is written. Not frozen: fake engines spoil some."""

    ids: list[Any] | None
    logprobs: list[Any] | None
    ids_with_logprobs: list[Any] | None
    """The ids as they are said beside the log-probs."""
    finish_reason: str | None
    text: str
    version: str | None
    prompt_tokens: int
    choices: int = 1

    @classmethod
    def of(cls, completion: Completion, *, prompt_tokens: int) -> Draft:
        """What a sound engine would write."""
        return cls(
            ids=list(completion.token_ids),
            logprobs=list(completion.logprobs),
            ids_with_logprobs=list(completion.token_ids),
            finish_reason=completion.finish_reason,
            text=completion.text or "",
            version=completion.policy_version,
            prompt_tokens=prompt_tokens,
        )


@dataclass(frozen=True, slots=True)
class Asked:
    """The parts of a request's body that decide what is sampled."""

    prompt_ids: tuple[int, ...]
    messages: tuple[Json, ...]
    sampling: Json
    """In the OpenAI names."""


@dataclass(frozen=True, slots=True)
class EngineProtocol:
    """One protocol: reads a body (KeyError or TypeError if it is of another shape) and writes a
    reply.
    """

    read: Callable[[Json], Asked]
    write: Callable[[Draft], Any]


# vLLM, /v1/completions


def _read_completions(body: Json) -> Asked:
    if not body["return_token_ids"] or body["logprobs"] < 0:
        raise KeyError("return_token_ids")
    return Asked(_ids(body["prompt"]), (), body)


def _write_completions(draft: Draft, *, strings_only: bool) -> Json:
    logprobs = None
    if draft.logprobs is not None:
        said = draft.ids_with_logprobs
        tokens = (
            ["?"] * len(draft.logprobs) if said is None else [f"token_id:{token}" for token in said]
        )
        logprobs = {
            "tokens": tokens,
            "token_logprobs": draft.logprobs,
            "top_logprobs": None,
            "text_offset": [],
        }
    choice: Json = {
        "index": 0,
        "text": draft.text,
        "logprobs": logprobs,
        "finish_reason": draft.finish_reason,
    }
    if not strings_only:
        choice |= {"token_ids": draft.ids, "prompt_token_ids": None}
    return {"object": "text_completion", "choices": [choice] * draft.choices} | _common(draft)


def completions(*, strings_only: bool) -> EngineProtocol:
    """`/v1/completions`; with `strings_only` as older vLLM, where ids are only in the strings
    `token_id:N`.
    """
    return EngineProtocol(
        _read_completions, lambda draft: _write_completions(draft, strings_only=strings_only)
    )


# vLLM, /inference/v1/generate


def _read_generate(body: Json) -> Asked:
    return Asked(_ids(body["token_ids"]), (), body["sampling_params"])


def _write_generate(draft: Draft) -> Json:
    logprobs = None
    if draft.logprobs is not None:
        said = draft.ids_with_logprobs or ["?"] * len(draft.logprobs)
        logprobs = {
            "content": [
                {"token": f"token_id:{token}", "logprob": value, "bytes": None, "top_logprobs": []}
                for token, value in zip(said, draft.logprobs, strict=False)
            ]
        }
    choice = {
        "index": 0,
        "logprobs": logprobs,
        "finish_reason": draft.finish_reason,
        "token_ids": draft.ids,
    }
    return {"request_id": "request", "choices": [choice] * draft.choices} | _common(draft)


GENERATE = EngineProtocol(_read_generate, _write_generate)


# The server Atropos shipped, /generate


def _read_legacy(body: Json) -> Asked:
    return Asked(_ids(body["prompt"]["prompt_token_ids"]), (), body)


def _write_legacy(draft: Draft) -> Json:
    rows = None
    if draft.logprobs is not None and draft.ids_with_logprobs is not None:
        rows = [
            [{str(token): value}]
            for token, value in zip(draft.ids_with_logprobs, draft.logprobs, strict=False)
        ]
    return {
        "text": [draft.text] * draft.choices,
        "logprobs": [rows] * draft.choices,
        "finish_reasons": [draft.finish_reason] * draft.choices,
        "token_ids": [draft.ids] * draft.choices,
    } | _common(draft)


LEGACY = EngineProtocol(_read_legacy, _write_legacy)


# SGLang, /generate


def _read_sglang(body: Json) -> Asked:
    if not body["return_logprob"]:
        raise KeyError("return_logprob")
    sampling = dict(body["sampling_params"])
    sampling["max_tokens"] = sampling.pop("max_new_tokens")
    sampling["seed"] = sampling.pop("sampling_seed", None)
    return Asked(_ids(body["input_ids"]), (), sampling)


def _write_sglang(draft: Draft) -> Any:
    finish = (
        None if draft.finish_reason is None else {"type": draft.finish_reason, "message": "as told"}
    )
    meta: Json = {
        "id": "request",
        "finish_reason": finish,
        "weight_version": draft.version or "default",
    }
    if draft.logprobs is not None and draft.ids_with_logprobs is not None:
        meta["output_token_logprobs"] = [
            [value, token, None]
            for token, value in zip(draft.ids_with_logprobs, draft.logprobs, strict=False)
        ]
    reply = {"text": draft.text, "meta_info": meta}
    if draft.ids is not None:
        reply["output_ids"] = draft.ids
    return reply if draft.choices else []


SGLANG = EngineProtocol(_read_sglang, _write_sglang)


# OpenAI, /v1/chat/completions


def _read_chat(body: Json) -> Asked:
    sampling = dict(body)
    if "max_completion_tokens" in sampling:
        sampling["max_tokens"] = sampling.pop("max_completion_tokens")
    return Asked((), tuple(body["messages"]), sampling)


def _write_chat(draft: Draft) -> Json:
    message = {"role": "assistant", "content": draft.text}
    choice = {"index": 0, "message": message, "finish_reason": draft.finish_reason}
    return {"object": "chat.completion", "choices": [choice] * draft.choices} | _common(draft)


CHAT = EngineProtocol(_read_chat, _write_chat)


def _ids(value: Any) -> tuple[int, ...]:
    if not isinstance(value, list) or not all(type(token) is int for token in value):
        raise TypeError(f"a list of token ids was expected, not {value!r:.100}")
    return tuple(value)


def _common(draft: Draft) -> Json:
    completion_tokens = len(draft.ids or ())
    usage = {"prompt_tokens": draft.prompt_tokens, "completion_tokens": completion_tokens}
    return {"usage": usage} | ({} if draft.version is None else {"policy_version": draft.version})
