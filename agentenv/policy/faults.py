"""What may go wrong between here and an inference server, and how long to wait before trying
again.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Self

from agentenv.errors import ContextLengthError, PolicyError, PolicyRequestError, PolicyTimeoutError

if TYPE_CHECKING:
    import random
    from collections.abc import Iterable

    from agentenv.policy.config import APIServerConfig

EXCERPT = 240
"""How many characters of a reply an error shows."""

_RETRIED_STATUS = frozenset({408, 409, 425, 429, 500, 502, 503, 504})
_CONTEXT_LENGTH = re.compile(
    r"context[ _-]?length|context[ _-]window|max_total_tokens"
    r"|max(imum)?[ _-](model|sequence)[ _-]len|longer than the (model|maximum)|prompt is too long",
    re.IGNORECASE,
)


class EngineFaultError(PolicyError):
    """One attempt failed in a way that another attempt may not. `kind` is what the counters call
    it.
    """

    def __init__(
        self, message: str, *, kind: str = "malformed", retry_after: float | None = None
    ) -> None:
        super().__init__(message)
        self.kind = kind
        self.retry_after = retry_after


class EngineTimeoutError(EngineFaultError, PolicyTimeoutError):
    """One attempt was not answered in time."""


def excerpt(value: object) -> str:
    """At most `EXCERPT` characters of what came, on one line, with control characters escaped."""
    if isinstance(value, bytes):
        text = value[: EXCERPT * 4].decode("utf-8", "replace")
    else:
        text = value if isinstance(value, str) else repr(value)
    shown = repr(text[:EXCERPT])
    return shown if len(text) <= EXCERPT else f"{shown}..."


def is_context_length(message: str) -> bool:
    """Whether an engine's complaint is that the prompt does not fit."""
    return _CONTEXT_LENGTH.search(message) is not None


def error_for_status(
    where: str, status: int, body: bytes, retry_after: str | None
) -> PolicyError | ContextLengthError:
    """The error for a reply whose status is not 200."""
    said = excerpt(_message_in(body))
    if status in (400, 413, 422) and is_context_length(_message_in(body)):
        return ContextLengthError(f"{where}: the prompt does not fit the context: {said}")
    if status in _RETRIED_STATUS or status >= 520:
        return EngineFaultError(
            f"{where} answered {status}: {said}",
            kind=f"http_{status}",
            retry_after=parse_retry_after(retry_after),
        )
    return PolicyRequestError(
        f"{where} refused the request with {status}: {said}{_way_out(status)}"
    )


def _way_out(status: int) -> str:
    if status in (401, 403):
        return "; check api_key"
    if 300 <= status < 400 or status in (404, 405):
        return "; check base_url, server_type and api"
    return ""


def _message_in(body: bytes) -> str:
    text = body[:20_000].decode("utf-8", "replace")
    try:
        data = json.loads(text)
    except (ValueError, RecursionError):
        return text
    if not isinstance(data, dict):
        return text
    inner = data.get("error", data)
    if not isinstance(inner, dict):
        return str(inner)
    said = [inner.get(name) for name in ("message", "detail", "code")]
    return " ".join(part for part in said if isinstance(part, str)) or text


def parse_retry_after(value: str | None) -> float | None:
    """Seconds, from the header's number or date form. None if absent or nonsense; never
    negative.
    """
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        return _seconds_until(value)
    return max(0.0, seconds) if math.isfinite(seconds) else None


def _seconds_until(date: str) -> float | None:
    try:
        moment = parsedate_to_datetime(date)
    except (TypeError, ValueError, IndexError, OverflowError):
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return max(0.0, (moment - datetime.now(UTC)).total_seconds())


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often and when to try again. Times in seconds."""

    max_attempts: int = 8
    base_delay: float = 0.25
    max_delay: float = 20.0
    max_retry_after: float = 30.0
    max_outage: float = 120.0
    """How long a request waits while no server answers at all."""

    @classmethod
    def of(cls, configs: Iterable[APIServerConfig]) -> Self:
        """The most patient value that any of the servers asks for."""
        configs = list(configs)
        return cls(
            max_attempts=max(config.max_attempts for config in configs),
            base_delay=max(config.retry_base_delay for config in configs),
            max_delay=max(config.retry_max_delay for config in configs),
            max_retry_after=max(config.max_retry_after for config in configs),
            max_outage=max(config.max_outage for config in configs),
        )

    def delay(self, attempt: int, retry_after: float | None, jitter: random.Random) -> float:
        """Seconds to sleep after the `attempt`-th failure, counted from 1: half to all of the
        doubled delay.

        A server's own wish is honoured up to `max_retry_after`, and spread a little, so that
        requests refused together do not come back together.
        """
        backoff = min(self.max_delay, self.base_delay * 2.0 ** min(attempt - 1, 30))
        backoff *= jitter.uniform(0.5, 1.0)
        if retry_after is None:
            return backoff
        return max(
            backoff, min(retry_after, self.max_retry_after) + jitter.uniform(0.0, self.base_delay)
        )
