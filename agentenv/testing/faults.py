"""What a fake inference engine can be told to do wrong."""

from __future__ import annotations

import random
from collections import Counter
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


class Fault(StrEnum):
    """One thing that goes wrong with one request."""

    SERVER_ERROR = "server_error"
    """500."""
    UNAVAILABLE = "unavailable"
    """503."""
    RATE_LIMITED = "rate_limited"
    """429, with the `Retry-After` of the `FaultPlan`."""
    UNAUTHORIZED = "unauthorized"
    """401."""
    BAD_REQUEST = "bad_request"
    """400 that says nothing of the context's length."""
    NO_SUCH_MODEL = "no_such_model"
    """404. Providers of chat models only, as the next."""
    OUT_OF_BUDGET = "out_of_budget"
    """429, in the words of an account whose money is used up."""
    CONTEXT_LENGTH = "context_length"
    """400 in the words of the engine."""
    RESET = "reset"
    """The connection is cut before an answer."""
    TRUNCATED = "truncated"
    """The connection is cut in the middle of the body."""
    NEVER_ANSWERS = "never_answers"
    """Nothing comes."""
    NEVER_ENDS = "never_ends"
    """A part of the body comes, and then nothing."""
    HTML = "html"
    """200 with a web page."""
    BROKEN_JSON = "broken_json"
    """200 with half of the JSON as the whole body."""
    EMPTY_CHOICES = "empty_choices"
    NULL_FINISH = "null_finish"
    ABORTED = "aborted"
    """The engine gave the request up."""
    NO_TOKENS = "no_tokens"
    """Nothing was sampled."""
    TOO_MANY_TOKENS = "too_many_tokens"
    """More than was asked for."""
    IDS_MISSING = "ids_missing"
    IDS_OUT_OF_RANGE = "ids_out_of_range"
    """The last id is 2**31 - 1."""
    IDS_NEGATIVE = "ids_negative"
    IDS_DISAGREE = "ids_disagree"
    """The reply says twice what was sampled, and not the same. As good as no fault where it is
    said once."""
    LOGPROBS_MISSING = "logprobs_missing"
    LOGPROBS_SHORT = "logprobs_short"
    LOGPROBS_NONE = "logprobs_none"
    """One of them is null."""
    LOGPROBS_POSITIVE = "logprobs_positive"
    LOGPROBS_INFINITE = "logprobs_infinite"
    """One of them is minus infinity."""
    LOGPROBS_NAN = "logprobs_nan"


class FaultPlan:
    """Which request gets which fault.

    `schedule` is used up first, one entry per request, None for a good answer. After it `rates`
    apply, each the share of requests that get this fault, drawn from `seed`. `always` comes before
    both and spares not even the check that `PolicyClient.start` makes. `injected` counts what was
    done.
    """

    def __init__(
        self,
        schedule: Sequence[Fault | None] = (),
        *,
        rates: Mapping[Fault, float] | None = None,
        always: Fault | None = None,
        retry_after: str = "0",
        seed: int = 0,
    ) -> None:
        self.schedule = list(schedule)
        self.rates = dict(rates or {})
        self.always = always
        self.retry_after = retry_after
        self.injected: Counter[Fault] = Counter()
        if sum(self.rates.values()) > 1:
            raise ValueError(f"the fault rates add up to more than 1: {self.rates}")
        self._random = random.Random(seed)  # noqa: S311 - a repeatable test, no secret

    def draw(self, *, is_check: bool = False) -> Fault | None:
        """The fault of the next request."""
        fault = self.always or (None if is_check else self._next())
        if fault is not None:
            self.injected[fault] += 1
        return fault

    def _next(self) -> Fault | None:
        if self.schedule:
            return self.schedule.pop(0)
        point = self._random.random()
        for fault, rate in self.rates.items():
            point -= rate
            if point < 0:
                return fault
        return None
