"""What a provider's failure means here, and whether asking again may help."""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass

from pydantic_ai import exceptions as theirs

from agentenv.errors import (
    BudgetExceededError,
    ContextLengthError,
    ModelNotFoundError,
    PolicyAccessError,
    PolicyError,
    PolicyRequestError,
    PolicyTimeoutError,
    RateLimitedError,
)
from agentenv.policy.faults import excerpt, is_context_length


@dataclass(frozen=True, slots=True)
class Failure:
    """One attempt that failed."""

    error: PolicyError | ContextLengthError
    again: bool
    """Whether another attempt may go better."""
    retry_after_s: float | None = None
    """What the provider asked for."""


def read_failure(where: str, error: Exception) -> Failure:
    """The failure behind an exception of the provider's library; unknown ones are an engine's that may recover."""
    said = excerpt(_message(error))
    if isinstance(error, theirs.ModelContextWindowExceededError) or (
        isinstance(error, theirs.ModelRequestRejectedError) and _says_too_long(_message(error))
    ):
        return Failure(
            ContextLengthError(f"{where}: the prompt does not fit the context: {said}"), again=False
        )
    for kind, make, way_out in _FINAL:
        if isinstance(error, kind):
            return Failure(make(f"{where} refused the request: {said}{way_out}"), again=False)
    wait_s = error.retry_after if isinstance(error, theirs.ModelAPIError) else None
    if isinstance(error, theirs.ModelRateLimitError):
        return Failure(
            RateLimitedError(f"{where} is asked too often: {said}"),
            again=True,
            retry_after_s=wait_s,
        )
    if isinstance(
        error, asyncio.TimeoutError | theirs.ModelTimeoutError | theirs.ModelRequestTimeout
    ):
        return Failure(PolicyTimeoutError(f"{where} gave no answer in time: {said}"), again=True)
    if isinstance(error, theirs.UserError):
        return Failure(PolicyRequestError(f"{where} cannot be asked this: {said}"), again=False)
    return Failure(PolicyError(f"{where} failed: {said}"), again=True, retry_after_s=wait_s)


_FINAL: tuple[tuple[type[Exception], type[PolicyRequestError], str], ...] = (
    (theirs.ModelQuotaExceededError, BudgetExceededError, "; the account's quota is used up"),
    (theirs.ModelAuthenticationError, PolicyAccessError, "; check the key"),
    (theirs.ModelNotFoundError, ModelNotFoundError, "; check the model's name"),
    (theirs.ModelRequestRejectedError, PolicyRequestError, ""),
)


_TOO_LONG = re.compile(r"(input|prompt) is too long", re.IGNORECASE)


def _says_too_long(message: str) -> bool:
    return is_context_length(message) or _TOO_LONG.search(message) is not None


def _message(error: Exception) -> str:
    """What was said: keys are no part of it, they are sent in headers."""
    message = getattr(error, "message", None)
    return str(message or error) or type(error).__name__
