"""Reading what a test script wrote as its reward. Nothing is guessed: what is no clear number is refused.

The main reward (`reward`, or whatever is there where no key has that name) lies between 0 and 1. Other numbers, which a
script may report beside `reward`, are finite and no larger than a thousand million either way.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any, NoReturn

from agentenv.tasks.errors import (
    RewardFileEmptyError,
    RewardFileNotFoundError,
    VerifierOutputParseError,
)

REWARD_JSON = "reward.json"
REWARD_TEXT = "reward.txt"
MAX_REWARD_BYTES = 64 << 10
MAX_REWARDS = 256
_LARGEST = 1e9
_NUMBER = re.compile(rb"[+-]?([0-9]{1,40}(\.[0-9]{0,60})?|\.[0-9]{1,60})([eE][+-]?[0-9]{1,4})?")


def rewards_from(json_file: bytes | None, text_file: bytes | None) -> dict[str, float]:
    """The rewards by name. reward.json goes before reward.txt; None is a file that is not there.

    Raises `RewardFileNotFoundError`, `RewardFileEmptyError` or `VerifierOutputParseError`.
    """
    if json_file is not None:
        rewards = _from_json(_sized(json_file, REWARD_JSON))
    elif text_file is not None:
        rewards = {"reward": _from_text(_sized(text_file, REWARD_TEXT))}
    else:
        raise RewardFileNotFoundError(
            f"the test script wrote neither /logs/verifier/{REWARD_JSON} nor /logs/verifier/{REWARD_TEXT}"
        )
    _check_range(rewards)
    return rewards


def _sized(content: bytes, name: str) -> bytes:
    if len(content) > MAX_REWARD_BYTES:
        raise VerifierOutputParseError(f"{name} has more than {MAX_REWARD_BYTES} bytes")
    if not content.strip():
        raise RewardFileEmptyError(f"{name} is empty")
    return content


def _from_text(content: bytes) -> float:
    if not _NUMBER.fullmatch(content.strip()):
        raise VerifierOutputParseError(
            f"{REWARD_TEXT} is {_shown(content)}, which is no plain number"
        )
    return float(content)


def _from_json(content: bytes) -> dict[str, float]:
    try:
        value = json.loads(content, parse_constant=_refuse_constant, object_pairs_hook=_unique)
    except VerifierOutputParseError:
        raise
    except (ValueError, RecursionError) as error:
        reason = str(error)[:200]
        raise VerifierOutputParseError(
            f"{REWARD_JSON} is {_shown(content)}, which is no JSON: {reason}"
        ) from error
    if not isinstance(value, dict):
        raise VerifierOutputParseError(
            f"{REWARD_JSON} is {_shown(content)}, and not an object of names and numbers"
        )
    if not value:
        raise RewardFileEmptyError(f"{REWARD_JSON} names no reward")
    if len(value) > MAX_REWARDS:
        raise VerifierOutputParseError(f"{REWARD_JSON} names more than {MAX_REWARDS} rewards")
    return {name: _number(name, each) for name, each in value.items()}


def _refuse_constant(name: str) -> NoReturn:
    raise VerifierOutputParseError(f"{REWARD_JSON} holds {name}, which is no number")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise VerifierOutputParseError(f"{REWARD_JSON} names a reward twice")
    return found


def _number(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise VerifierOutputParseError(
            f"{REWARD_JSON}: {name[:80]!r} is {_shown(repr(value).encode())}, and not a number"
        )
    try:
        return float(value)
    except OverflowError:
        raise VerifierOutputParseError(
            f"{REWARD_JSON}: {name[:80]!r} is larger than any number here"
        ) from None


def _check_range(rewards: dict[str, float]) -> None:
    for name, value in rewards.items():
        if not math.isfinite(value):
            raise VerifierOutputParseError(f"{name[:80]!r} is {value}, which is no finite number")
        main = name == "reward" or "reward" not in rewards
        if main and not 0 <= value <= 1:
            raise VerifierOutputParseError(
                f"{name[:80]!r} is {value:g}; a reward lies between 0 and 1 (other numbers are taken beside one "
                'that is called "reward")'
            )
        if abs(value) > _LARGEST:
            raise VerifierOutputParseError(
                f"{name[:80]!r} is {value:g}; at most {_LARGEST:g} is taken"
            )


def _shown(content: bytes) -> str:
    text = content.decode("utf-8", "backslashreplace")
    return repr(text if len(text) <= 80 else f"{text[:80]}...")
