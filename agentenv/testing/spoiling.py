"""Faults that are in the content of a fake engine's reply."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from agentenv.testing.faults import Fault

if TYPE_CHECKING:
    from collections.abc import Callable

    from agentenv.policy.engine_side import Draft


def spoil(draft: Draft, fault: Fault, *, max_tokens: int) -> None:
    """Put `fault` into the reply; faults that are not of its content leave it as it is."""
    if fault is Fault.TOO_MANY_TOKENS:
        _lengthen(draft, max_tokens + 1)
    elif fault in _SPOILERS:
        _SPOILERS[fault](draft)


def _lengthen(draft: Draft, length: int) -> None:
    missing = length - len(draft.ids or ())
    draft.ids = draft.ids_with_logprobs = [*(draft.ids or ()), *([1] * missing)]
    draft.logprobs = [*(draft.logprobs or ()), *([-0.5] * missing)]


def _set(**fields: Any) -> Callable[[Draft], None]:
    def spoiler(draft: Draft) -> None:
        for name, value in fields.items():
            setattr(draft, name, value)

    return spoiler


def _last_id(value: int) -> Callable[[Draft], None]:
    def spoiler(draft: Draft) -> None:
        draft.ids = draft.ids_with_logprobs = [*(draft.ids or ())[:-1], value]

    return spoiler


def _last_logprob(value: float | None) -> Callable[[Draft], None]:
    def spoiler(draft: Draft) -> None:
        draft.logprobs = [*(draft.logprobs or ())[:-1], value]

    return spoiler


def _disagree(draft: Draft) -> None:
    draft.ids = [token + 1 for token in draft.ids or ()]


def _shorten_logprobs(draft: Draft) -> None:
    draft.logprobs = (draft.logprobs or [])[:-1]


_SPOILERS: dict[Fault, Callable[[Draft], None]] = {
    Fault.EMPTY_CHOICES: _set(choices=0),
    Fault.NULL_FINISH: _set(finish_reason=None),
    Fault.ABORTED: _set(finish_reason="abort"),
    Fault.NO_TOKENS: _set(ids=[], ids_with_logprobs=[], logprobs=[]),
    Fault.IDS_MISSING: _set(ids=None, ids_with_logprobs=None),
    Fault.IDS_OUT_OF_RANGE: _last_id(2**31 - 1),
    Fault.IDS_NEGATIVE: _last_id(-1),
    Fault.IDS_DISAGREE: _disagree,
    Fault.LOGPROBS_MISSING: _set(logprobs=None),
    Fault.LOGPROBS_SHORT: _shorten_logprobs,
    Fault.LOGPROBS_NONE: _last_logprob(None),
    Fault.LOGPROBS_POSITIVE: _last_logprob(0.5),
    Fault.LOGPROBS_INFINITE: _last_logprob(float("-inf")),
    Fault.LOGPROBS_NAN: _last_logprob(float("nan")),
}
